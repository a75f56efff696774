"""Reward rules: what was heard about a slate inside its horizon, made one number a slot and objective.

    slot's reward  =  aggregate of what was heard about the slot, if anything
                    + its share of what was heard about the whole slate, if anything
                      else the objective's default: the reward of silence, and of nothing but silence
    credit equal     whole-slate reward r (aggregated alike) gives every slot r/k
    credit clicked   r is shared evenly by the slots with positive feedback of their own, of any kind that is not `better:
                     lower`; by all when there is none
    range            the slot's reward is clipped to it and counted; without a range, to ±LIMIT, which keeps sums finite

Rewards stay raw: scales, weights and `better` act on weights (`policies.algorithm.Problem`), never on what is summed. Sums
are exact before they are rounded and ties in time go by value, so a reward depends on what was heard, not on its order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from policies.surface import Aggregate, Objective
from policies.types import F64

LIMIT = 1e9  # its square, summed 1e9 times and weighed by 2²⁰, is still far from the end of float64
WHOLE_SLATE = -1


class Heard(NamedTuple):
    """One feedback that counts: not retracted, the last of its corrections, dated inside the horizon.

    position  index into the slate's k filled slots, or WHOLE_SLATE
    """

    position: int
    kind: str
    value: float
    at: float


Dated = list[tuple[float, float]]  # (at, value)

AGGREGATES: dict[Aggregate, Callable[[Dated], float]] = {
    "sum": lambda dated: math.fsum(value for _, value in dated),
    "max": lambda dated: max(value for _, value in dated),
    "min": lambda dated: min(value for _, value in dated),
    "mean": lambda dated: math.fsum(value for _, value in dated) / len(dated),
    "first": lambda dated: min(dated)[1],
    "last": lambda dated: max(dated)[1],
}


class RewardRule:
    """The objectives of a surface version, in the order of every reward array.

    silence  (o,) rewards of a slot about which nothing was heard
    """

    def __init__(self, objectives: Mapping[str, Objective], credit: Literal["equal", "clicked"] = "equal") -> None:
        self.silence: F64 = np.array([objective.default for objective in objectives.values()], np.float64)
        self._credit = credit
        self._columns: dict[str, list[tuple[int, Callable[[Dated], float], float, float]]] = {}
        for column, objective in enumerate(objectives.values()):
            low, high = objective.range or (-LIMIT, LIMIT)
            rule = (column, AGGREGATES[objective.aggregate], low, high)
            self._columns.setdefault(objective.kind, []).append(rule)
        self._unwanted = {o.kind for o in objectives.values() if o.better == "lower"}
        self._silent: dict[int, F64] = {}  # k → (k, o) of silence, copied instead of tiled: half of a call's cost

    def bounds(self, kind: str) -> list[tuple[int, float, float]]:
        """(column, low, high) of what a single feedback of a kind sets: its value, inside the bounds."""
        return [(column, low, high) for column, _, low, high in self._columns.get(kind, ())]

    def __call__(self, k: int, heard: Sequence[Heard]) -> tuple[F64, int]:
        """Rewards (k, o) of a slate of k filled slots, and how many of them were clipped."""
        silent = self._silent.get(k)
        if silent is None:
            silent = self._silent[k] = np.tile(self.silence, (k, 1))
        rewards = silent.copy()
        if not heard or not k:
            return rewards, 0
        if len(heard) > 1 and (
            len({(position, kind) for position, kind, _, _ in heard}) < len(heard)
            or any(position == WHOLE_SLATE for position, _, _, _ in heard)
        ):
            return rewards, self._several(rewards, k, heard)
        clipped = 0
        for position, kind, value, _ in heard:  # nothing to add up or share: each value is its own aggregate
            for column, _, low, high in self._columns.get(kind, ()):
                reward = value / k if position == WHOLE_SLATE else value
                if not low <= reward <= high:
                    clipped += k if position == WHOLE_SLATE else 1
                    reward = low if reward < low else high
                if position == WHOLE_SLATE:
                    rewards[:, column] = reward
                else:
                    rewards[position, column] = reward
        return rewards, clipped

    def _several(self, rewards: F64, k: int, heard: Sequence[Heard]) -> int:
        by_kind: dict[str, dict[int, Dated]] = {}
        clicked: set[int] = set()
        for position, kind, value, at in heard:
            bounded = min(max(value, -1e3 * LIMIT), 1e3 * LIMIT)  # sums stay finite; the clip below counts
            by_kind.setdefault(kind, {}).setdefault(position, []).append((at, bounded))
            if value > 0 and position >= 0 and kind not in self._unwanted:
                clicked.add(position)
        sharing = clicked if self._credit == "clicked" and clicked else range(k)
        clipped = 0
        for kind, by_position in by_kind.items():
            for column, aggregate, low, high in self._columns.get(kind, ()):
                totals = {position: aggregate(dated) for position, dated in by_position.items()}
                whole = totals.pop(WHOLE_SLATE, None)
                if whole is not None:
                    for position in sharing:
                        totals[position] = totals.get(position, 0.0) + whole / len(sharing)
                for position, reward in totals.items():
                    inside = min(max(reward, low), high)
                    clipped += inside != reward
                    rewards[position, column] = inside
        return clipped
