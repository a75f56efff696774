"""What each unit of an experiment came to: settled decisions folded into totals, each exactly once.

The fold of a decision is a function of the decision and of what its unit had before; totals and how far they go are written in
one transaction. Settled decisions are numbered by a function of the log (`streaming.settle`), so a fold that is interrupted,
repeated or begun anew comes to the same totals.

    first     the first settled decision of the experiment that was seen: its arm is the unit's, whatever comes later
    credits   of an interleaving, beside: what the items of each arm's policy earned, of slates that both filled for this experiment
    total     every decision of the unit on the surface, in whatever arm, made within the window from there on and settled
              by the time the window closes
    closes    first + window + horizon, as they were then: from there on nothing is added, and the unit's total is complete
    before    the same of decisions made within a window before the experiment began, of units that are not in it yet
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec import Struct

from policies.experiments.document import Trial
from policies.experiments.interleaving import credit_name
from streaming.experiences import Experience
from streaming.experiments import DECISIONS

Sums = dict[str, float]  # metric → sum


class Unit(Struct):
    """What an experiment knows of a unit. `arm` empty: it is not in the experiment (yet); `until`: the window's end."""

    arm: str = ""
    allocation: int = 0
    first: float = 0.0
    until: float = 0.0
    closes: float = 0.0
    totals: Sums = {}
    before: Sums = {}


@dataclass(frozen=True, slots=True)
class Kept:
    """A unit as it is stored. `complete`: the partition's settled time has passed the closing of its window."""

    unit: Unit
    complete: bool


class Totals(Protocol):
    """Units by experiment and key, and how far each partition has been folded."""

    def cursor(self, experiment: str, partition: int) -> tuple[int, float]:
        """(next number to fold, settled time reached); (0, 0.0) before the first commit. Raises Unavailable."""

    def load(self, experiment: str, keys: Sequence[str]) -> dict[str, Unit]:
        """Units that are known, by key."""

    def commit(
        self, experiment: str, partition: int, since: int, number: int, frontier: float, units: Mapping[str, Unit]
    ) -> None:
        """Units as they are now and how far that goes, in one transaction. Raises Unavailable, and Rejected('fenced') when
        the partition is not at `since`: somebody else has folded it meanwhile."""

    def units(self, experiment: str) -> list[Kept]:
        """Every unit that is in an arm."""

    def forget(self, key: str) -> int:
        """Take a unit out of every experiment; from how many (`semantics.md` 24)."""


def fold(trial: Trial, horizon: float, settled: Sequence[Experience], totals: Totals) -> dict[str, Unit]:
    """Units that settled decisions of one partition change, by key, as they are afterwards.

    settled  the next of the partition, in order;   horizon: seconds, of the surface
    """
    document, window = trial.document, trial.document.analysis.window_seconds
    keyed = [(key, one) for one in settled if one.decision.surface == document.surface and (key := key_of(trial, one))]
    known = totals.load(document.experiment, list(dict.fromkeys(key for key, _ in keyed)))
    changed: dict[str, Unit] = {}
    for key, one in keyed:
        decision = one.decision
        unit = changed.get(key) or known.get(key) or Unit(totals={}, before={})
        if not unit.arm and _assigned(document.experiment, one):
            said = decision.experiment or {}
            unit.arm, unit.allocation = said["arm"], int(said.get("allocation", 0))
            unit.first, unit.until = decision.at, decision.at + window
            unit.closes = unit.until + horizon
        if unit.arm:
            if not (unit.first <= decision.at < unit.until and one.row.due <= unit.closes):
                continue
            _add(unit.totals, one)
            if document.kind == "interleaving":
                _credit(unit.totals, one, trial)
        elif trial.start - window <= decision.at < trial.start:
            _add(unit.before, one)
        else:
            continue
        changed[key] = unit
    return changed


def key_of(trial: Trial, one: Experience) -> str:
    """What the experiment is sticky by, hashed; empty where the decision has none."""
    decision = one.decision
    if trial.document.unit == "unit":
        return decision.unit
    if decision.session is None:
        return ""
    return hashlib.blake2b(f"{decision.unit}\0{decision.session}".encode(), digest_size=8).hexdigest()


def _assigned(experiment: str, one: Experience) -> bool:
    """Whether a decision puts its unit into the experiment: seen, at least in part, and no tester's."""
    said = one.decision.experiment
    return said is not None and said.get("name") == experiment and "override" not in said and any(one.row.viewed)


def _add(sums: Sums, one: Experience) -> None:
    if not any(one.row.viewed):  # deferred and never shown
        return
    sums[DECISIONS] = sums.get(DECISIONS, 0.0) + 1.0
    for objective, reward in zip(one.row.objectives, one.rewards.sum(axis=0).tolist(), strict=True):
        sums[objective] = sums.get(objective, 0.0) + reward


def _credit(sums: Sums, one: Experience, trial: Trial) -> None:
    said, drafted = one.decision.experiment, one.decision.interleaved
    if drafted is None or said is None or said.get("name") != trial.document.experiment or "override" in said:
        return
    teams = np.array(drafted.teams, np.int64)
    for objective, rewards in zip(one.row.objectives, one.rewards.T, strict=True):
        for team, arm in enumerate(trial.document.arms):
            name = credit_name(objective, arm)
            sums[name] = sums.get(name, 0.0) + float(rewards[teams == team].sum())
