"""How late feedback comes: the share of an objective's reward that has come when a decision is of some age.

    F(a) = Σ mass heard within a of the decision / Σ mass,   mass = ∣what the reward became − what it was∣, first of all the default

Delays are by the time feedback is dated, not by when it reached the log, so that F is a function of the set of events as all
sums are. A client that dates what it sends late makes F too large by that lag.

Mass lies in `BUCKETS` buckets of delay whose upper edges grow by a factor of 2^¼ up to the horizon: clicks within seconds and
purchases within days are told apart by the same number of columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policies.types import F64, I64, Changes, Delays

BUCKETS = 64
# upper edges, in horizons: from 2^−15.75 (27 ms of 30 min) to 1
EDGES: F64 = np.exp2((np.arange(BUCKETS) - (BUCKETS - 1)) / 4)
EARLY, RESTS_ON = "early.", "early_decisions."  # of an objective, in a publish's diagnostics
AGES: F64 = (np.arange(16) + 0.5) / 16  # where F is looked up in a stretch of ages: they are taken to be spread evenly


def bucket_of(delays: F64, horizon: float) -> I64:
    """The bucket of each delay in seconds; the last for what is later than the horizon, the first for what is not late."""
    return np.minimum(np.searchsorted(EDGES, delays / horizon), BUCKETS - 1)


def heard_once(changes: Changes, delays: F64, silence: F64, horizon: float) -> Delays:
    """Of decisions that were heard about once, `delays` (decisions,) seconds after they were made, NaN: not at all."""
    starts = np.flatnonzero(np.diff(changes.slates, prepend=-1))
    mass = np.add.reduceat(np.abs(changes.rewards_after - silence), starts)
    mass[np.isnan(delays)] = 0.0
    decision, objective = np.nonzero(mass)
    return Delays(
        changes.times[starts][decision],
        objective,
        bucket_of(delays[decision], horizon),
        mass[decision, objective],
        np.ones(len(decision)),
    )


def early(diagnostics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """objective → (share that has come by half the horizon, decisions it rests on), of a publish of `policies.corrected`."""
    said = {name.removeprefix(EARLY): share for name, share in diagnostics.items() if name.startswith(EARLY)}
    return {objective: (share, diagnostics[RESTS_ON + objective]) for objective, share in said.items()}


@dataclass(frozen=True, slots=True)
class Curve:
    """F of one objective. mass (BUCKETS,);  decisions: how many were heard about, none of them younger than the horizon."""

    mass: F64
    decisions: float
    horizon: float

    def share(self, ages: F64) -> F64:
        """F at each age in seconds, linear inside a bucket; 1 from the horizon on."""
        reached = np.append(0.0, np.cumsum(self.mass))
        early = np.interp(ages, np.append(0.0, EDGES * self.horizon), reached / max(reached[-1], np.finfo(float).tiny))
        return np.where(ages >= self.horizon, 1.0, np.clip(early, 0.0, 1.0))

    def between(self, young: F64, old: F64) -> F64:
        """Mean of F over decisions whose ages are spread evenly from `young` (P,) to `old` (P,)."""
        ages = young[:, None] + (old - young)[:, None] * AGES
        return np.asarray(self.share(ages).mean(axis=1))
