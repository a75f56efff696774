"""Diversity of one request: weights in units of its scores, vectors and codes as the draw takes them.

A weight of w takes w interquartile ranges of the candidates' scores (`acting.spread`) from an item that is exactly like one shown before
(MMR), or whose attribute adds no value that was not shown before (coverage). So a weight means the same whatever the
objective's scale, and nothing where all scores are equal. The law itself is in `within.py`.
"""

from dataclasses import dataclass

from policies.reranking.acting import Acting, spread
from policies.types import F32, I64

MAX_WEIGHT = 1_000.0  # interquartile ranges: beyond it diversity alone decides


@dataclass(frozen=True, slots=True)
class Diverse:
    """What a request asks for: weights in interquartile ranges; vectors (n, v); codes (n,), −1 = no value."""

    mmr: float = 0.0
    vectors: F32 | None = None
    coverage: float = 0.0
    codes: I64 | None = None

    def acting(self, scores: F32) -> Acting:
        """As it acts on scores (n, m)."""
        unit = spread(scores)
        return Acting(
            mmr=None if self.vectors is None or not self.mmr else (self.mmr * unit, self.vectors),
            coverage=() if self.codes is None or not self.coverage else ((self.coverage * unit, self.codes),),
        )
