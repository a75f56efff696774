"""Team-draft interleaving: two rankings in one slate, and which of them people prefer.

Both rankings pick in turns, who goes first is a coin a round; each takes its best item that is not yet there, and what people
do with an item is credited to who picked it. A unit of evidence is a slate; the preference is the share of slates won, ties
counting half, with the normal interval of their mean.
Source   Radlinski, Kurup and Joachims, CIKM 2008; Chapelle et al., TOIS 2012
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from policies.experiments.effects import Effect
from policies.types import F64

FIRST, SECOND = 0, 1


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A slate with the ranking that picked each item."""

    items: tuple[str, ...]
    teams: tuple[int, ...]


def team_draft(first: Sequence[str], second: Sequence[str], slots: int, uniforms: F64) -> Interleaved:
    """At most `slots` items of two rankings. `uniforms` (≥ slots/2,) in [0, 1): one a round, below ½ the first begins."""
    rankings, taken = (first, second), set[str]()
    items: list[str] = []
    teams: list[int] = []
    for coin in uniforms:
        for team in (FIRST, SECOND) if coin < 0.5 else (SECOND, FIRST):
            best = next((item for item in rankings[team] if item not in taken), None)
            if best is None or len(items) == slots:
                continue
            taken.add(best)
            items.append(best)
            teams.append(team)
    return Interleaved(tuple(items), tuple(teams))


def credit(slate: Interleaved, rewards: F64) -> tuple[float, float]:
    """(reward of the first ranking's items, of the second's) of a slate's slots (k,)."""
    teams = np.array(slate.teams, np.int64)
    return float(rewards[teams == FIRST].sum()), float(rewards[teams == SECOND].sum())


def credit_name(objective: str, arm: str) -> str:
    """Of a unit's sum of an objective's rewards that items of an arm's policy earned."""
    return f"{objective} of {arm}"


def preferred(first: F64, second: F64) -> Effect | None:
    """How much more than half of the units prefer the second: of credits (n,) of each, a unit's total over all of its slates, so that
    slates of one unit are not taken for independent. Units that gave nothing say nothing and are left out; a tie counts half.

    The variance is that of the units and of one more win and loss, so that a few units that all agree are not certain.
    """
    said = (first != 0) | (second != 0)
    won = np.where(second > first, 1.0, np.where(second < first, 0.0, 0.5))[said]
    n = len(won)
    if n < 2:
        return None
    share, spread = float(won.mean()), float(np.append(won, [0.0, 1.0]).var(ddof=1))
    return Effect(share - 0.5, spread / n, n, 1.0 - share, share, math.sqrt(spread), n)


@dataclass(frozen=True, slots=True)
class Preference:
    """Share of slates the second ranking won, with an interval; above ½ it is preferred."""

    share: float
    low: float
    high: float
    p: float
    slates: int


def preference(credited: F64, alpha: float = 0.05) -> Preference:
    """Of credits (n, 2), see `credit`. Slates without any reward say nothing, and are left out."""
    said = credited[credited.any(axis=1)]
    n = len(said)
    if n < 2:
        return Preference(0.5, 0.0, 1.0, 1.0, n)
    won = np.where(said[:, 1] > said[:, 0], 1.0, np.where(said[:, 1] < said[:, 0], 0.0, 0.5))
    share, error = float(won.mean()), float(won.std(ddof=1)) / math.sqrt(n)
    if not error:  # all slates alike: ties say nothing, wins bound the share as Clopper and Pearson do
        bound = (alpha / 2) ** (1 / n)
        low, high = {0.0: (0.0, 1 - bound), 1.0: (bound, 1.0)}.get(share, (share, share))
        return Preference(share, low, high, 1.0 if share == 0.5 else 2.0 ** (1 - n), n)
    normal = NormalDist()
    half = normal.inv_cdf(1 - alpha / 2) * error
    return Preference(
        share, max(share - half, 0.0), min(share + half, 1.0), 2 * normal.cdf(-abs(share - 0.5) / error), n
    )
