"""What must be looked at before a number is believed.

    observed ESS   (Σ w)² / Σ w²                         blind to what the log never hit
    rewarded ESS   (Σ w r)² / Σ (w r)²                   where rewards are rare, what asymptotic intervals rest on
    design ESS     N / mean_i E_π[π/β]                   from full distributions: what the weights will do, not what they did
    mean weight    1 within 4 standard errors            wrong propensities, wrong target, or missing decisions
    calibration    `truth.propensity_z`                  the logged propensity is the probability that was drawn from

Weights are the estimator's own: of a slot (the worst slot counts), of the prefix up to it, or of the slate.
Design of a prefix or slate: Π_t of the slots' design along the logged prefix, exact where it does not depend on the prefix.

Source   methods.md §5; Kong 1992 (effective sample size); Owen, Monte Carlo theory, 2013, chapter 9
"""

from dataclasses import dataclass

import numpy as np

from policies.errors import Rejected
from policies.evaluation.estimate import Weighting
from policies.evaluation.logged import Logged
from policies.evaluation.truth import propensity_z
from policies.types import F64, I64

BOUND = 4.0  # standard errors: a statistical check that does not flake and can fail
CLIP = 100.0  # a weight above it is called clipped


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Of the weights one estimator rests on.

    ess, design_ess   decisions; design_ess is NaN where full distributions are missing, 0 where support is
    rewarded_ess      decisions with a reward, by the size of what they add; below about 25 asymptotic intervals cover too
                      seldom, however large the others are (study `ope-coverage`)
    mean_weight       and `mean_weight_z` standard errors from 1 (clustered by nothing: a martingale); 0 where nothing varies
    clipped_share     of slots, above the cap;   largest: the largest weight
    unsupported       decisions in which the target may show what the log could not
    unmatched_share   of slots whose logged item the target never shows (w = 0)
    """

    decisions: int
    ess: float
    design_ess: float
    rewarded_ess: float
    mean_weight: float
    mean_weight_z: float
    clipped_share: float
    largest: float
    unsupported: int
    unmatched_share: float

    @property
    def weights_ok(self) -> bool:
        """Whether the mean weight is 1 within 4 standard errors."""
        return abs(self.mean_weight_z) <= BOUND


def weights_of(logged: Logged, weighting: Weighting) -> F64:
    """(N, K) weights with expectation 1, of each slot; for `slate` and `none` all slots alike."""
    if weighting == "prefix":
        return logged.prefix_ratios
    if weighting == "slate":
        return np.repeat(logged.weights[:, None], logged.rewards.shape[1], axis=1)
    if weighting == "none":
        return np.ones(logged.rewards.shape)
    if weighting == "marginal":
        if logged.marginals is None:
            raise Rejected("Marginal weights need replayed slates", at="$.marginals", code="no_marginals")
        return logged.marginals.slot
    return logged.ratios


def design_ess(logged: Logged, weighting: Weighting = "slot") -> float:
    """The worst slot's. NaN where full distributions are missing for all decisions of a slot; 0 where support is missing.

    Decisions without full distributions (they are logged at a sample rate) are taken to be as the others.
    """
    if weighting == "none":
        return float(len(logged))
    known = logged.design
    if weighting == "marginal":
        known = None if logged.marginals is None else logged.marginals.design
    if known is None:
        return float("nan")
    second = np.cumprod(known, axis=1) if weighting in ("prefix", "slate") else known
    if weighting == "slate":
        second = second[:, -1:]
    found = []
    for column in second.T:
        column = column[~np.isnan(column)]
        found.append(len(logged) / column.mean() if len(column) else np.nan)
    return float(min(found)) if not np.isnan(found).any() else float("nan")


def diagnose(logged: Logged, weighting: Weighting = "slot", cap: float = CLIP) -> Diagnostics:
    w = weights_of(logged, weighting)
    n, present = len(logged), logged.present
    added = np.abs(w * logged.rewards).sum(axis=1)
    squares = (w**2).sum(axis=0)
    ess = np.divide(w.sum(axis=0) ** 2, squares, out=np.zeros(len(squares)), where=squares > 0)
    spread = w.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(w.shape[1])
    off = w.mean(axis=0) - 1.0
    certain = np.where(np.abs(off) < 1e-9, 0.0, np.copysign(np.inf, off))  # rounding of a weight that is 1 for all
    z = np.divide(off, spread, out=certain, where=spread > 1e-12)
    worst = int(np.argmax(np.abs(z)))
    slots = max(1, int(present.sum()))
    return Diagnostics(
        decisions=n,
        ess=float(ess.min()),
        design_ess=design_ess(logged, weighting),
        rewarded_ess=float(added.sum() ** 2 / (added**2).sum()) if added.any() else 0.0,
        mean_weight=float(w[:, worst].mean()),
        mean_weight_z=float(z[worst]),
        clipped_share=float((w > cap)[present].sum() / slots),
        largest=float(w.max()),
        unsupported=0 if logged.design is None else int(np.isinf(logged.design).any(axis=1).sum()),
        unmatched_share=float((w == 0)[present].sum() / slots),
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether arms came as often as their propensities said: z (n,) per arm, the worst arm, and whether all are within 4."""

    z: F64
    arm: int
    ok: bool

    @property
    def worst(self) -> float:
        return float(self.z[self.arm])


def calibration(distributions: F64, items: I64) -> Calibration:
    """Of N decisions with full distributions (N, n) over the same arms and the arm drawn (N,)."""
    z = propensity_z(distributions, items)
    arm = int(np.argmax(np.abs(z)))
    return Calibration(z, arm, bool(abs(z[arm]) <= BOUND))


def inverse_z(propensities: F64, remaining: I64) -> float:
    """Standard errors between mean 1/p of what was drawn and the mean number that could be drawn, where only those two were
    logged (N,). Every one of the ∣R∣ must have had a chance. 0 when nothing varies and both agree.
    """
    off = 1.0 / propensities - remaining
    spread = off.std(ddof=1) / np.sqrt(len(off)) if len(off) > 1 else 0.0
    if spread < 1e-12:  # every draw was certain or uniform
        return 0.0 if abs(off.mean()) < 1e-6 else float(np.copysign(np.inf, off.mean()))
    return float(off.mean() / spread)
