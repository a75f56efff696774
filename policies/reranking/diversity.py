"""Diversity of one request: weights in units of its scores, vectors and codes as the draw takes them.

A weight of w takes w interquartile ranges of the candidates' scores (`acting.spread`) from an item that is exactly like one shown before
(MMR), or whose attribute adds no value that was not shown before (coverage). So a weight means the same whatever the
objective's scale, and nothing where all scores are equal. The law itself is in `within.py`.
"""

from msgspec import Struct

from policies.types import F32, I64

MAX_WEIGHT = 1_000.0  # interquartile ranges: beyond it diversity alone decides


class Diverse(Struct, frozen=True, eq=False, gc=False):
    """What a request asks for, weights in interquartile ranges.

    items (n, d)  are alike by their `columns`, from the first to before the last;   codes (n,) of the values to cover, −1 = none
    """

    items: F32
    codes: I64
    columns: tuple[int, int] = (0, 0)
    mmr: float = 0.0
    coverage: float = 0.0
