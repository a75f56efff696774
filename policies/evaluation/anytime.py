"""A policy's value at any time: what it gained and what it missed, each bounded from below.

    value = mean w r ≥ L(w r)        value ≤ 1 − L(w (1 − r))        r scaled to [0, 1] by the objective's range, E[w] = 1

Neither side needs a ceiling on the weights. `Running` is the small state of a live metric: one for each policy, fed with every
decision's weight and reward as they become known; its bounds hold at all times at once. `martingale` is the same for a log.

Source   Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro 2022 (arXiv 2210.10768); methods.md §5
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from policies.errors import Rejected
from policies.evaluation import betting, confidence
from policies.evaluation.confidence import Evidence
from policies.evaluation.diagnostics import weights_of
from policies.evaluation.estimate import Weighting
from policies.evaluation.intervals import Interval
from policies.evaluation.logged import Logged, checked
from policies.types import F64, Mask

Method = Literal["empirical_bernstein", "betting"]


@dataclass(frozen=True, slots=True)
class Running:
    """Evidence on w r and on w (1 − r), each (…): one sequence a policy."""

    gained: Evidence
    missed: Evidence


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a value in [0, 1], each (…): low ≤ value ≤ high with the level's probability at all times at once."""

    estimate: F64
    low: F64
    high: F64
    count: F64


def begin(shape: tuple[int, ...] = ()) -> Running:
    return Running(confidence.start(shape), confidence.start(shape))


def update(state: Running, weights: F64, rewards: F64, counted: Mask | None = None) -> Running:
    """After n more decisions: weights (…, n) ≥ 0 with mean 1, rewards (…, n) or (n,) in [0, 1] (`scaled`), in the order of
    the decisions; `counted` (…, n) leaves some out. Raises Rejected for a weight or reward that cannot be one.
    """
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise Rejected("Weights must be at least 0 and finite", at="$.weights", code="bad_weight")
    if not ((rewards >= 0) & (rewards <= 1)).all():
        raise Rejected("Rewards must be scaled to [0, 1]", at="$.rewards", code="bad_reward")
    return Running(
        confidence.update(state.gained, weights * rewards, counted),
        confidence.update(state.missed, weights * (1.0 - rewards), counted),
    )


def bounds(state: Running, level: float = 0.95) -> Bounds:
    """Both sides share 1 − level. Before the first decision: [0, 1] and an estimate of NaN."""
    alpha = (1.0 - level) / 2
    low = confidence.lower(state.gained, alpha)
    high = 1.0 - confidence.lower(state.missed, alpha)
    return Bounds(state.gained.mean, np.minimum(low, 1.0), np.maximum(high, 0.0), state.gained.count)


def scaled(rewards: F64, bounds: tuple[float, float]) -> tuple[F64, int]:
    """Rewards moved from their range to [0, 1], and how many lay outside and were clipped.

    Raises Rejected when there is no range: an interval that holds at every size needs one.
    """
    low, high = bounds
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise Rejected("The objective needs a range of two finite numbers", at="$.range", code="no_range")
    outside = int(((rewards < low) | (rewards > high)).sum())
    return np.asarray(np.clip((rewards - low) / (high - low), 0.0, 1.0), np.float64), outside


def martingale(
    logged: Logged,
    bounds: tuple[float, float],
    weighting: Weighting = "slot",
    level: float = 0.95,
    method: Method = "betting",
) -> Interval:
    """Of the target's mean reward of a whole decision, at every N; `bounds` is the range of one slot's reward.

    `betting` takes the value to be the same all along, `empirical_bernstein` bounds its average over the log. Rewards outside
    the range are clipped, so what is bounded is the value of the clipped reward. Raises Rejected for bad input.
    """
    checked(logged)
    r, _ = scaled(logged.rewards, bounds)
    r = np.where(logged.present, r, 0.0)
    w, slots = weights_of(logged, weighting), r.shape[1]
    gained, missed = (w * r).sum(axis=1) / slots, (w * (1.0 - r)).sum(axis=1) / slots
    alpha = (1.0 - level) / 2
    if method == "betting":
        state = betting.update(betting.start((2,)), np.stack([gained, missed]))
        low, miss = betting.lower(state, alpha)
    else:
        evidence = confidence.update(confidence.start((2,)), np.stack([gained, missed]))
        low, miss = confidence.lower(evidence, alpha)
    base = bounds[0] * float(logged.present.sum(axis=1).mean())
    size = (bounds[1] - bounds[0]) * slots
    high = max(float(low), 1.0 - float(miss))
    return Interval(base + size * float(low), base + size * high, level, method)
