"""Forgetting by event time, in sums that still add up.

An example of time t weighs 2^(t/H − index), H the half-life in seconds, `index` a whole number of half-lives that the sums
carry. Two indices differ by a whole number, so moving sums from one to the other is a power of two: exact, and an example
has the same weight to the last bit whenever it is learned, corrected or taken back.
"""

import math

import numpy as np

from policies.errors import Rejected
from policies.surface import seconds
from policies.types import F64

BLOCK = (
    16  # the index moves in steps of 16 half-lives: a function of the newest time alone, and weights stay below 2^16
)


def half_life_seconds(half_life: str | float | None) -> float:
    """Seconds, infinite when nothing is forgotten. Raises ValueError, which msgspec turns into an error with a path."""
    if half_life is None:
        return math.inf
    try:
        value = seconds(half_life)
    except Rejected as unreadable:
        raise ValueError(unreadable.message) from None
    if not value > 0:
        raise ValueError(f"half_life must be longer than zero, got {half_life!r}")
    return value


def age(times: F64, half_life: float) -> F64:
    """Times in half-lives, (N,); all zero when nothing is forgotten."""
    return times / half_life


def index_for(newest: float, index: float) -> float:
    """The index sums should carry once they hold an example of age `newest`."""
    return max(index, BLOCK * math.floor(newest / BLOCK))


def move(sums: dict[str, F64], names: tuple[str, ...], index: float) -> dict[str, F64]:
    """Sums carrying a later index: copies of those named, halved as often as it grew. Exact above the smallest normal number."""
    halvings = index - float(sums["index"][0])
    if not halvings:
        return sums
    power = -int(min(halvings, 4_000))  # beyond 2^-2100 every double is zero; ldexp wants a C int
    return sums | {name: np.ldexp(sums[name], power) for name in names} | {"index": np.array([index])}
