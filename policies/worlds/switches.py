"""Switches that every world has: what may go wrong between a world and whoever learns from it, and how the world changes.

    delay       mean seconds from an event to its arrival, exponential; 0 = at once
    loss        share of events that never arrive
    duplicates  share of the events that arrive twice, each time after a delay of its own
    drift       standard deviation a second of the random walk of what people want, in the world's own units
    turnover    share of the items replaced by new ones, a second

A world states what its second is: one step, for worlds that count steps. Everything is a function of the arguments and of the
generator, and a switch that is off draws nothing from it, so a world without switches gives the same numbers as ever.
"""

from dataclasses import dataclass, fields

import numpy as np

from policies.errors import Rejected
from policies.types import F64, I64


@dataclass(frozen=True, slots=True)
class Switches:
    """All off by default. Raises Rejected naming the switch."""

    delay: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    drift: float = 0.0
    turnover: float = 0.0

    def __post_init__(self) -> None:
        for switch in fields(self):
            value = getattr(self, switch.name)
            top = 1.0 if switch.name in ("loss", "duplicates", "turnover") else np.inf
            if not (0.0 <= value <= top and np.isfinite(value)):
                wanted = "a share from 0 to 1" if top == 1.0 else "a finite number of at least 0"
                raise Rejected(f"Expected {wanted}, got {value}", at=f"$.{switch.name}")


def arrivals(switches: Switches, times: F64, rng: np.random.Generator) -> tuple[I64, F64]:
    """When what happened at `times` (N,) arrives: (rows (M,), at (M,)), by time of arrival and, at the same time, by row.

    A row that is missing was lost, one that is there twice is a duplicate.
    """
    rows = np.arange(len(times))
    if switches.loss:
        rows = rows[rng.random(len(times)) >= switches.loss]
    if switches.duplicates:
        rows = np.concatenate([rows, rows[rng.random(len(rows)) < switches.duplicates]])
    at = times[rows]
    if switches.delay:
        at = at + rng.exponential(switches.delay, len(rows))
    order = np.lexsort((rows, at))
    return rows[order], at[order]


def drifted(switches: Switches, wants: F64, elapsed: float, rng: np.random.Generator) -> F64:
    """What people want after `elapsed` seconds: a step of the random walk, each number on its own."""
    if not switches.drift:
        return wants
    return np.asarray(wants + switches.drift * np.sqrt(elapsed) * rng.standard_normal(wants.shape))


def replaced(switches: Switches, items: int, elapsed: float, rng: np.random.Generator) -> I64:
    """Rows of items that have gone after `elapsed` seconds, ascending; a new item takes the place of each."""
    if not switches.turnover:
        return np.zeros(0, np.int64)
    return np.flatnonzero(rng.random(items) < 1 - (1 - switches.turnover) ** elapsed)
