"""The promotion gate: is the candidate better than what is live, on the decisions that live made?

    d = mean_t (ω_t r_t − r_t)          same decision, same noise: ω the candidate's weight, r scaled to [0, 1]
    promote when the lower confidence sequence of d exceeds the margin, at any look
    the j-th candidate against one live policy spends α_j = α · 6/(π² j²), so all of them together spend α

d ≥ −1 whatever the weights, so no ceiling is needed; the bound is on the average over the period, so the live policy may go on
learning. Counted are only decisions after the candidate's `trained_through`: what it learned from cannot judge it. With a design
effective sample size below 200 nothing is concluded (`insufficient`): a canary is offered.

    canary   d = (r − r̂)(1[candidate]/s − 1[live]/(1 − s))    randomised with share s, r̂ the mean of all rewards before

Source   methods.md §5; `confidence` for the sequence; Waudby-Smith et al. 2022 (arXiv 2210.10768), section on differences
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from policies.errors import Rejected
from policies.evaluation import confidence
from policies.evaluation.anytime import scaled
from policies.evaluation.confidence import Evidence
from policies.evaluation.diagnostics import weights_of
from policies.evaluation.estimate import Weighting
from policies.evaluation.logged import Logged, checked
from policies.types import F64, Mask

Outcome = Literal["promote", "worse", "wait", "insufficient"]
ENOUGH = 200.0  # design effective sample size below which a log says nothing about the candidate
ESTIMATES = (
    "the average over the logged period of what one decision by the candidate would have earned more than the live policy's, "
    "in the situations that the live policy met"
)
ON_POLICY = "the average over the canary of what one decision by the candidate earns more than one by the live policy"


def spent(alpha: float, candidate: int) -> float:
    """α_j of the j-th candidate (from 1) against one live policy: Σ_j α_j = α. Raises Rejected when it has no number."""
    if candidate < 1:
        raise Rejected("Candidates are numbered from 1", at="$.candidate", code="bad_candidate")
    return alpha * 6.0 / (math.pi * candidate) ** 2


@dataclass(frozen=True, slots=True)
class Gate:
    """What was agreed before the log was looked at.

    bounds           range of one slot's reward;  lower_is_better turns it round
    weighting        the gate estimator's: `slot` (ips), `prefix` (rips) or `slate` (slate_ips)
    trained_through  seconds: the candidate knows decisions up to here
    candidate        number of the candidate against this live policy, from 1
    margin           reward a decision that d must exceed; negative = not worse by more than that
    """

    bounds: tuple[float, float]
    trained_through: float
    candidate: int = 1
    alpha: float = 0.05
    weighting: Weighting = "slot"
    margin: float = 0.0
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """State of a gate: evidence on 1 + d; per slot the sum of designs and how many were known; counts.

    learned_from   decisions left out because the candidate was trained on them;   outside   rewards clipped to the range
    """

    evidence: Evidence
    design: F64
    designed: F64
    decisions: int = 0
    learned_from: int = 0
    outside: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`estimate` and the bounds are rewards of a decision (the sum over its slots), above 0 where the candidate is better, also
    when lower rewards are; `worse` is only a canary's to find. The other fields as in the state."""

    outcome: Outcome
    estimate: float
    low: float
    high: float
    alpha: float
    decisions: int
    design_ess: float
    learned_from: int
    outside: int
    estimates: str
    offers: Literal["canary"] | None = None


def begin(slots: int) -> Judged:
    return Judged(confidence.start(guess=1.0), np.zeros(slots), np.zeros(slots))


def judge(gate: Gate, state: Judged, logged: Logged) -> Judged:
    """The state after more decisions, in their order. Raises Rejected for bad input and for a gate that cannot be."""
    if gate.weighting not in ("slot", "prefix", "slate"):
        raise Rejected("A gate rests on importance weights", at="$.weighting", code="bad_weighting")
    checked(logged)
    new = logged.times > gate.trained_through
    earlier = len(logged) - int(new.sum())
    logged = logged.rows(new)
    r, outside = scaled(np.where(logged.present, logged.rewards, gate.bounds[0]), gate.bounds)
    if gate.lower_is_better:
        r = 1.0 - r
    r = np.where(logged.present, r, 0.0)
    d = ((weights_of(logged, gate.weighting) - 1.0) * r).mean(axis=1)
    second = np.full(r.shape, np.nan) if logged.design is None else logged.design
    if gate.weighting != "slot":
        second = np.cumprod(second, axis=1)
    if gate.weighting == "slate":
        second = np.repeat(second[:, -1:], second.shape[1], axis=1)
    known = ~np.isnan(second)
    return Judged(
        confidence.update(state.evidence, 1.0 + d),
        state.design + np.where(known, second, 0.0).sum(axis=0),
        state.designed + known.sum(axis=0),
        state.decisions + len(logged),
        state.learned_from + earlier,
        state.outside + outside,
    )


def pooled(states: Sequence[Judged]) -> Judged:
    """Parts of a log that were judged apart, each in its own order, as one. Raises ValueError without any."""
    return Judged(
        confidence.pooled([state.evidence for state in states]),
        np.sum([state.design for state in states], axis=0),
        np.sum([state.designed for state in states], axis=0),
        sum(state.decisions for state in states),
        sum(state.learned_from for state in states),
        sum(state.outside for state in states),
    )


def verdict(gate: Gate, state: Judged) -> Verdict:
    """What may be concluded now; it may be asked after every decision."""
    alpha = spent(gate.alpha, gate.candidate)
    known = bool(state.decisions) and bool(state.designed.all())
    ess = float(state.decisions / (state.design / state.designed).max()) if known else float("nan")
    size = (gate.bounds[1] - gate.bounds[0]) * len(state.design)
    low = size * (float(confidence.lower(state.evidence, alpha)) - 1.0)
    outcome: Outcome = "promote" if low > gate.margin else "wait"
    if not ess >= ENOUGH:
        outcome = "insufficient"
    return Verdict(
        outcome,
        estimate=size * (float(state.evidence.mean) - 1.0),
        low=low,
        high=math.inf,
        alpha=alpha,
        decisions=state.decisions,
        design_ess=ess,
        learned_from=state.learned_from,
        outside=state.outside,
        estimates=ESTIMATES,
        offers="canary" if outcome == "insufficient" else None,
    )


@dataclass(frozen=True, slots=True)
class Canary:
    """A randomised test: each decision goes to the candidate with probability `share`, independently of everything before.

    Where units and not decisions are assigned, a row is a unit with the total of its decisions, given once.
    """

    share: float
    bounds: tuple[float, float]
    candidate: int = 1
    alpha: float = 0.05
    margin: float = 0.0
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise Rejected("The canary's share is between 0 and 1", at="$.share", code="bad_share")


@dataclass(frozen=True, slots=True)
class Compared:
    """State of a canary, each (…): evidence on 1 + c d and 1 − c d, c = min(s, 1 − s), and on all rewards (for r̂);
    `outside` counts rewards that were clipped to the range."""

    better: Evidence
    worse: Evidence
    rewards: Evidence
    outside: int = 0


def open_canary(shape: tuple[int, ...] = ()) -> Compared:
    better, worse, rewards = (confidence.start(shape, guess) for guess in (1.0, 1.0, 0.5))
    return Compared(better, worse, rewards)


def compare(canary: Canary, state: Compared, candidate: Mask, rewards: F64) -> Compared:
    """After n more decisions: whom they went to (…, n), and their rewards (…, n), in their order, clipped to the range."""
    r, outside = scaled(rewards, canary.bounds)
    if canary.lower_is_better:
        r = 1.0 - r
    seen = state.rewards.count[..., None] + np.arange(r.shape[-1])
    centre = (state.rewards.guess + state.rewards.total[..., None] + np.cumsum(r, axis=-1) - r) / (1.0 + seen)
    s = canary.share
    d = min(s, 1 - s) * (r - centre) * np.where(candidate, 1 / s, -1 / (1 - s))
    return Compared(
        confidence.update(state.better, 1.0 + d),
        confidence.update(state.worse, 1.0 - d),
        confidence.update(state.rewards, r),
        state.outside + outside,
    )


def differences(canary: Canary, state: Compared) -> tuple[F64, F64, F64]:
    """(estimate, low, high), each (…), of the candidate's reward a decision less live's; the two sides at α_j each."""
    alpha = spent(canary.alpha, canary.candidate)
    unit = (canary.bounds[1] - canary.bounds[0]) / min(canary.share, 1 - canary.share)
    low = unit * (confidence.lower(state.better, alpha) - 1.0)
    high = -unit * (confidence.lower(state.worse, alpha) - 1.0)
    return unit * (state.better.mean - 1.0), low, high


def concluded(canary: Canary, state: Compared) -> Verdict:
    """`promote` when surely better than the margin, `worse` when surely below it: each wrong with probability ≤ α_j, ever."""
    estimate, low, high = (float(each) for each in differences(canary, state))
    outcome: Outcome = "promote" if low > canary.margin else "worse" if high < canary.margin else "wait"
    n = int(state.rewards.count)
    alpha = spent(canary.alpha, canary.candidate)
    return Verdict(outcome, estimate, low, high, alpha, n, float(n), 0, state.outside, ON_POLICY)


def canary_size(
    difference: float, variance: float, canary: Canary, power: float = 0.8, largest: float = 1e10
) -> int | None:
    """Decisions (both arms together) after which a canary promotes a candidate that is better by `difference` a decision, with
    about this power, when one reward has this variance. None when more than `largest` are needed.
    """
    s, unit = canary.share, canary.bounds[1] - canary.bounds[0]
    alpha, c = spent(canary.alpha, canary.candidate), min(s, 1 - s)
    edge = c * (difference - canary.margin) / unit
    if edge <= 0:
        return None
    spread = c**2 * variance / unit**2 / (s * (1 - s))

    z = NormalDist().inv_cdf(power)

    def enough(n: float) -> bool:
        beyond = edge * n - float(confidence.boundary(np.array(spread * n), alpha))
        return beyond >= z * math.sqrt(spread * n)

    low, high = 1.0, 2.0
    while not enough(high):
        low, high = high, 2 * high
        if high > largest:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return int(high)
