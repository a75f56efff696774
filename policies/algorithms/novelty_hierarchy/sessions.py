"""Sessions that wait for their end and for the one that comes after: what a manager is rewarded by.

    return of a stretch   Σ γ^t r_t from its first decision to the end of its session, unshaped
    reward of a stretch   its return + weight · the return of the unit's next session, 0 when none came within `return_seconds`

A stretch begins with a session, every `goal_steps` decisions of one, and wherever the goal is another. A session is over when its
last decision is terminal, another one of its unit has begun, or its unit is gone. A session that waits for its next one is kept whole.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.types import F64, I64, Arrays, Mask

Columns = dict[str, NDArray[Any]]


class Waiting:
    """Rows of decisions: `unit`, `session`, `time`, `reward`, `terminal`, `chosen` (goal, −1 = none) and whatever else; see `take`."""

    def __init__(self, discount: float, weight: float, steps: int, return_seconds: float, capacity: int) -> None:
        self.discount, self.weight, self.steps = discount, weight, steps
        self.return_seconds, self.capacity = return_seconds, capacity
        self._rows: Columns = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._rows["unit"]) if self._rows else 0

    def take(self, columns: Columns, now: float) -> Columns:
        """Add rows; rows of stretches that are complete at `now`, by unit and time, with their `return`."""
        held = (
            {name: np.concatenate([self._rows[name], value]) for name, value in columns.items()}
            if self._rows
            else columns
        )
        order = np.lexsort((held["time"], held["unit"]))
        held = {name: value[order] for name, value in held.items()}
        starts, ends = sessions(held)
        which = np.cumsum(starts) - 1
        place = np.arange(len(which)) - np.flatnonzero(starts)[which]
        total = returns(held["reward"], place, ends, self.discount)

        first, last = np.flatnonzero(starts), np.flatnonzero(ends)
        follows = np.append(held["unit"][first[1:]] == held["unit"][first[:-1]], False)  # another of the same unit
        gone = ~follows & (now - held["time"][last] > self.return_seconds)
        over = held["terminal"][last] | follows | gone
        complete = (over & follows & np.append(over[1:], False)) | gone
        coming = np.where(follows, np.append(total[first[1:]], 0.0), 0.0)

        begins = starts | (place > 0) & (np.roll(held["chosen"], 1) != held["chosen"])
        if self.steps:
            begins |= place % self.steps == 0
        chosen = begins & complete[which] & (held["chosen"] >= 0)
        made = {name: value[chosen] for name, value in held.items()}
        made["return"] = total[chosen] + self.weight * coming[which[chosen]]
        left = np.flatnonzero(~complete[which])
        if len(left) > self.capacity:
            by_age = np.argsort(held["time"][left], kind="stable")
            self.dropped += len(left) - self.capacity
            left = np.sort(left[by_age[-self.capacity :]])
        self._rows = {name: value[left] for name, value in held.items()}
        return made

    def arrays(self) -> Arrays:
        return {f"waiting.{name}": value.copy() for name, value in self._rows.items()} | {
            "waiting_dropped": np.array([self.dropped])
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._rows = {n.removeprefix("waiting."): np.array(a) for n, a in arrays.items() if n.startswith("waiting.")}
        self.dropped = int(arrays["waiting_dropped"][0])


def sessions(rows: Columns) -> tuple[Mask, Mask]:
    """Which rows, by unit and time, are the first and the last of a session."""
    if not len(rows["unit"]):
        return np.zeros(0, bool), np.zeros(0, bool)
    other = (rows["unit"][1:] != rows["unit"][:-1]) | (rows["session"][1:] != rows["session"][:-1])
    other = other | rows["terminal"][:-1]
    return np.append(True, other), np.append(other, True)


def returns(reward: F64, place: I64, ends: Mask, discount: float) -> F64:
    """Discounted sums to the end of each row's session; `place` is a row's number in it."""
    total = reward.astype(np.float64)
    for number in range(int(place.max(initial=0)) - 1, -1, -1):
        here = np.flatnonzero((place == number) & ~ends)
        total[here] += discount * total[here + 1]
    return total
