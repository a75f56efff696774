"""Position-based examination: what an item earns in a slot is what it would earn if it were looked at, times how often it is.

    E[r ∣ item, context, slot t] = d + e_t (a(item, context) − d),   e_0 = 1,  d the objective's reward of silence

Learning   an example of slot t is taught as r' = d + (r − d)/e_t with weight w e_t. Its mean is a, so every learner that fits means
           without bias fits attraction; and where the variance of a reward goes with its mean, as of rare clicks, r' varies as
           1/e_t, so weights of e_t are those of least variance. With d = 0 the sums are A += w e_t xxᵀ, b += w r x: slots that
           are seldom looked at count for less, and no reward is blown up. It is taught as shown in slot 0, which is what r' is of: a
           column of its own for every slot would be credited with the items that a policy prefers to show there
Estimate   from decisions that log their whole distributions, two neighbouring slots at a time. Given the slots before t, i is
           drawn at t with p_t(i), then j at t + 1 with p_{t+1}(j), and
               E[r_t (1 − p_t(i))] / e_t = Σ_a p_t(a) (1 − p_t(a)) a_a = E[r_{t+1} p_t(j) / p_{t+1}(j)] / e_{t+1}
           (rewards less d): what either slot would earn under one distribution of items, so e_{t+1} / e_t is the ratio of two
           means, whatever policy drew and whatever people like. The weights are between 0 and 1 where drawing i does not
           make others less likely, as under every head here
Interval   jackknife over 32 groups of units, of log e; the groups' sums add over shards

It asks that any item may follow any other: constraints inside the slate (cap, spacing, quota, prefix) break the second equation.
Slots that are known not to have been seen are no examples, as ever; e is then of those that were on the screen.

Source   Agarwal, Zaitsev, Wang, Li, Najork & Joachims, WSDM 2019 (intervention harvesting: neighbouring ranks under a common
         distribution); Joachims, Swaminathan & Schnabel, WSDM 2017 (the position-based model)
"""

from dataclasses import dataclass, replace

import numpy as np

from policies.types import F64, I64, Changes

GROUPS = 32
T_975 = 2.0395  # Student's t with 31 degrees of freedom
SURE = 0.2  # half the 95% interval of log e at which an estimate is fit to be taught by: a standard error of 10%
LEAST = 0.01  # a slot is taken to be looked at that often at least: weights of rewards stay below 100


def taught(changes: Changes, examined: F64, defaults: F64) -> Changes:
    """The changes as learners of attraction take them. examined (k,) of every slot, relative to the first; defaults (o,)."""
    e = examined[changes.slots]

    def seen(rewards: F64, present: F64) -> F64:
        return np.asarray(
            present[:, None] * defaults + (rewards - present[:, None] * defaults) / e[:, None], np.float64
        )

    return replace(
        changes,
        slots=np.zeros_like(changes.slots),
        weights=changes.weights * e,
        rewards_before=seen(changes.rewards_before, changes.present_before),
        rewards_after=seen(changes.rewards_after, changes.present_after),
    )


def relative(probabilities: F64) -> F64:
    """Examination of slots (k,) in terms of the first, none below `LEAST`."""
    found: F64 = np.maximum(probabilities / probabilities[0], LEAST)
    return found


@dataclass(frozen=True, slots=True)
class Examined:
    """(k,) each: estimate and 95% interval of e_t; NaN from the first slot on of which nothing is known."""

    estimate: F64
    low: F64
    high: F64

    @property
    def error(self) -> F64:
        """Half the interval of log e (k,)."""
        return np.asarray(np.log(self.high / self.low) / 2, np.float64)

    def news(self, known: F64 | None) -> bool:
        """Whether it is sure, and what is known so far is not: nothing, or off by more than `SURE` and outside the interval."""
        if not (self.error <= SURE).all():
            return False
        if known is None:
            return True
        off = np.abs(np.log(known / self.estimate)) > SURE
        return bool((off & ((known < self.low) | (known > self.high))).any())


def start(slots: int) -> F64:
    """Sums of nothing: (groups, 2, slots − 1), of what slot t and of what slot t + 1 earned."""
    return np.zeros((GROUPS, 2, slots - 1))


def add(sums: F64, group: int, rewards: F64, distributions: F64, rows: I64, viewed: F64) -> None:
    """Add a decision to its unit's group, in place.

    rewards (k',) less the default;   distributions (k', n) conditional on the slots before;   rows (k',) drawn candidates;
    viewed (k',) 0 or 1;   k' filled slots from the first on, without gaps
    """
    k = len(rows)
    at = np.arange(k - 1)
    both = viewed[:-1] * viewed[1:]
    sums[group, 0, : k - 1] += both * rewards[:-1] * (1.0 - distributions[at, rows[:-1]])
    sums[group, 1, : k - 1] += both * rewards[1:] * distributions[at, rows[1:]] / distributions[at + 1, rows[1:]]


def estimate(sums: F64) -> Examined:
    """Of sums (groups, 2, k − 1)."""
    whole = sums.sum(axis=0)
    logs = _logs(whole)
    without = np.stack([_logs(whole - one) for one in sums])
    with np.errstate(invalid="ignore"):
        spread = np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    half = np.concatenate([[0.0], T_975 * spread])
    logs = np.concatenate([[0.0], logs])
    half[np.isnan(logs)] = np.nan
    return Examined(np.exp(logs), np.exp(logs - half), np.exp(logs + half))


def _logs(sums: F64) -> F64:
    """log e_t of slots 1 … k − 1, NaN from the first on that cannot be told."""
    first, second = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(
            (first * second > 0) & (np.abs(first) > 1e-12 * np.abs(sums).max(initial=0)), second / first, np.nan
        )
    return np.asarray(np.cumsum(np.log(ratio)), np.float64)
