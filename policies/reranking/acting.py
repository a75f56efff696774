"""What acts on one draw besides its scores, by source: the one value that rules, diversity and fairness hand to the draw.

Each source gives boosts (n,) that are added to every draw's score, masks that never yield, or constraints inside the slate
that yield in a stated order (`within.py`). Everything acts before the draw, so propensities stay exact; everything has a
name, so that `explain`, the record and the metrics can say what acted. Sources are joined by `+`: constraints of the left
one yield last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies.reranking.within import Constraint, Within, packed
from policies.types import F32, F64, I64, Mask

LOOKED_AT = 4


@dataclass(frozen=True, slots=True)
class Acting:
    """For n candidates and k slots; an empty one changes nothing.

    boosts       source → (n,) in units of the scores
    masks        rule → (n,) or (k, n), True = allowed; no such rule ever yields
    constraints  inside the slate, by priority: the first yields last
    mmr          (weight in units of the scores, vectors (n, v)) or None
    coverage     (weight in units of the scores, codes (n,)) of each attribute
    skipped      rule → why it could not act this time (a store that is away)
    """

    boosts: Mapping[str, F64] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    mmr: tuple[float, F32] | None = None
    coverage: tuple[tuple[float, I64], ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: "Acting") -> "Acting":
        """Both. Names of boosts and masks must differ."""
        return Acting(
            {**self.boosts, **other.boosts},
            {**self.masks, **other.masks},
            self.constraints + other.constraints,
            self.mmr if other.mmr is None else other.mmr,
            self.coverage + other.coverage,
            {**self.skipped, **other.skipped},
        )

    def ready(self, n: int, k: int) -> "Ready":
        """As `slate.draw` takes it. Boosts are summed in the order of their sources."""
        boosts: F64 | None = None
        for boost in self.boosts.values():
            boosts = boost if boosts is None else boosts + boost
        masks: Mask | None = None
        for mask in self.masks.values():
            whole = np.broadcast_to(mask, (k, n))
            masks = whole if masks is None else masks & whole
        return Ready(boosts, masks, packed(self.constraints, n, k, mmr=self.mmr, coverage=self.coverage))


NOTHING_ACTS = Acting()


@dataclass(frozen=True, slots=True)
class Ready:
    """Keyword arguments of the draw: `draw(…, pins=…, **ready.arguments)`."""

    boosts: F64 | None = None
    masks: Mask | None = None
    within: Within | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"boosts": self.boosts, "masks": self.masks, "within": self.within}


def spread(scores: F32) -> float:
    """Interquartile range of the candidates' scores (n, m) in one draw of the pool, averaged over `LOOKED_AT` draws.

    The unit in which boosts and diversity are configured: it means the same whatever the objective's scale, and holds the
    posterior's uncertainty, so that it is not 0 before anything is learned. Nearest-rank quartiles; 0 of one candidate.
    """
    n, m = scores.shape
    draws = np.sort(scores[:, :: max(1, m // LOOKED_AT)].T, axis=1)
    return float((draws[:, (3 * n) // 4] - draws[:, n // 4]).sum(dtype=np.float64)) / len(draws) if n > 1 else 0.0
