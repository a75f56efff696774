"""What acts on one draw besides its scores, by source: the one value that rules, diversity and fairness hand to the draw.

Each source gives boosts (n,) that are added to every draw's score, masks that never yield, or constraints inside the slate
that yield in a stated order (`within.py`). Everything acts before the draw, so propensities stay exact; everything has a
name, so that `explain`, the record and the metrics can say what acted. Sources are joined by `+`: constraints of the left
one yield last.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from policies.compiling import compiled
from policies.reranking.within import NO_LINES, Lines, Within, joined, unit_columns
from policies.types import F32, F64, I64, Mask

LOOKED_AT = 4


class Acting(Struct, frozen=True, gc=False):
    """For n candidates and k slots; an empty one changes nothing.

    boosts       source → (n,) in units of the scores, not all 0
    masks        rule → (n,) or (k, n), True = allowed; no such rule ever yields
    constraints  inside the slate, by priority: the first yields last
    mmr          (weight in units of the scores, vectors as `within.unit_columns` gives them) or None
    coverage     (weight in units of the scores, codes (n,)) of each attribute
    skipped      rule → why it could not act this time (a store that is away)
    """

    boosts: Mapping[str, F64] = {}
    masks: Mapping[str, Mask] = {}
    constraints: Lines = NO_LINES
    mmr: tuple[float, F32] | None = None
    coverage: tuple[tuple[float, I64], ...] = ()
    skipped: Mapping[str, str] = {}

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
        return Ready(boosts, masks, joined(self.constraints, n, k, mmr=self.mmr, coverage=self.coverage))


NOTHING_ACTS = Acting()


class Ready(Struct, frozen=True, eq=False, gc=False):
    """Keyword arguments of the draw: `draw(…, pins=…, **ready.arguments)`."""

    boosts: F64 | None = None
    masks: Mask | None = None
    within: Within | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"boosts": self.boosts, "masks": self.masks, "within": self.within}


@compiled
def _ranked(values: F32, rank: int, end: int) -> float:
    """The value of a rank, from 0, among the first `end`, which are moved: none before it is larger, none after it smaller.

    Source   Hoare, Algorithm 65: FIND, CACM 1961
    """
    first, last = 0, end - 1
    while first < last:
        pivot, i, j = values[rank], first, last
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < rank:
            first = i
        if rank < i:
            last = j
    found: float = values[rank]
    return found


@compiled
def spread(scores: F32) -> float:
    """Interquartile range of the candidates' scores (n, m) in one draw of the pool, averaged over `LOOKED_AT` draws.

    The unit in which boosts and diversity are configured: it means the same whatever the objective's scale, and holds the
    posterior's uncertainty, so that it is not 0 before anything is learned. Nearest-rank quartiles; 0 of one candidate.
    """
    n, m = scores.shape
    if n < 2:
        return 0.0
    total, looked = 0.0, 0
    low, high = n // 4, (3 * n) // 4
    for i in range(0, m, max(1, m // LOOKED_AT)):
        draw = scores[:, i].copy()
        upper = _ranked(draw, high, n)
        total += np.float64(upper - _ranked(draw, low, high))  # low < high: n ≥ 2
        looked += 1
    return total / looked


@compiled
def scaled(scores: F32, codes: I64, boosts: F64, items: F32, start: int, stop: int) -> tuple[float, F64, F32]:
    """What is configured in interquartile ranges of scores (n, m), in their units: (that range, boosts (n,), vectors (v, n)).

    codes (n,)  group of each candidate, −1 of none;   boosts (G,) in ranges, none without any
    items (n, d)  their columns start … stop − 1 are the vectors, made of length 1
    """
    unit = spread(scores)
    lifts = np.zeros(len(codes) if len(boosts) > 0 else 0)
    for c in range(len(lifts)):
        if codes[c] >= 0:
            lifts[c] = boosts[codes[c]] * unit
    return unit, lifts, unit_columns(items, start, stop)
