"""Switches that every world has: what may go wrong between a world and whoever learns from it, and how the world changes.

    delay       mean seconds from an event to its arrival, exponential; 0 = at once
    loss        share of events that never arrive
    duplicates  share of the events that arrive twice, each time after a delay of its own
    drift       standard deviation a second of the random walk of what people want, in the world's own units
    turnover    share of the items replaced by new ones, a second

A world states what its second is: one step, for worlds that count steps. Everything is a function of the arguments and of the
generator, and a switch that is off draws nothing from it, so a world without switches gives the same numbers as ever.
"""

import heapq
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


def all_arrives(switches: Switches) -> bool:
    """At once, and once."""
    return not (switches.delay or switches.loss or switches.duplicates)


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


@dataclass(frozen=True, slots=True)
class Heard:
    """Responses (M,) as whoever learns hears of them, in order of arrival; one that is there twice came twice.

    rows, slots, objectives   of the decision, of its slate, of its rewards;   values, at   the reward, and when it arrived
    """

    rows: I64
    slots: I64
    objectives: I64
    values: F64
    at: F64


def heard(switches: Switches, rewards: F64, times: F64, rng: np.random.Generator) -> Heard:
    """What is told of slates with rewards (N, k, o) at `times` (N,): one event for each that is not 0."""
    events = np.argwhere(rewards != 0)
    chosen, at = arrivals(switches, times[events[:, 0]], rng)
    rows, slots, objectives = events[chosen].T
    return Heard(rows, slots, objectives, rewards[rows, slots, objectives], at)


def settled(switches: Switches, rewards: F64, times: F64, horizon: float, rng: np.random.Generator) -> F64:
    """Rewards (N, k, o) as they are known `horizon` seconds after each decision: what came later or never is 0, twice is once."""
    if all_arrives(switches):
        return rewards
    told = heard(switches, rewards, times, rng)
    known, soon = np.zeros_like(rewards), told.at - times[told.rows] <= horizon
    known[told.rows[soon], told.slots[soon], told.objectives[soon]] = told.values[soon]
    return known


class Late:
    """Numbers on their way, one a unit: sent at some time, arrived when the switches say, perhaps never, perhaps twice."""

    def __init__(self, switches: Switches, rng: np.random.Generator) -> None:
        self._switches, self._rng, self._sent = switches, rng, 0
        self._waiting: list[tuple[float, int, int, float]] = []
        self._newest: F64 | None = None  # where nothing is late: no need to wait for it

    def send(self, values: F64, at: float) -> None:
        if all_arrives(self._switches):
            self._newest = values
            return
        rows, times = arrivals(self._switches, np.full(len(values), at), self._rng)
        for row, time in zip(rows.tolist(), times.tolist(), strict=True):
            heapq.heappush(self._waiting, (time, self._sent, row, float(values[row])))
            self._sent += 1

    def receive(self, known: F64, now: float) -> F64:
        """`known` (units,) with what has arrived by now in its place, the newest arrival last."""
        if self._newest is not None:
            return self._newest
        found = known.copy()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, row, value = heapq.heappop(self._waiting)
            found[row] = value
        return found
