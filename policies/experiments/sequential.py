"""An interval that may be looked at after every unit: the normal mixture sequential probability ratio test.

    M = √(V / (V + τ²)) · exp(δ² τ² / (2 V (V + τ²)))         V the variance of the estimate δ, τ² the mixture's
    P(ever M ≥ 1/α) ≤ α without effect, so  |δ̂ − δ| ≤ √(2 V (V + τ²) / τ² · log(√((V + τ²) / V) / α))  holds at all times
    p = min(1, 1/M)

Asymptotic: unit totals are not normal, so nothing is said before `LEAST` units an arm. τ² is set so that the interval is
tightest at the planned number of units: at V* it is V* (−2 log α + log(−2 log α) + 1).
Source   Robbins 1970; Johari, Koomen, Pekelis and Walsh 2017; Waudby-Smith et al. 2021 (arXiv 2103.06476)
"""

import math
from dataclasses import dataclass

from policies.experiments.effects import Effect

LEAST = (
    50  # units of an arm before a mean of them is nearly normal: at 50 an A/A of skewed totals keeps its α (the study)
)


@dataclass(frozen=True, slots=True)
class Interval:
    """Of an effect, with the p-value of no effect. Infinite while nothing can be said."""

    low: float
    high: float
    p: float


UNKNOWN = Interval(-math.inf, math.inf, 1.0)


def mixture(variance_planned: float, alpha: float) -> float:
    """τ² for which the interval is tightest where the estimate has this variance."""
    surprise = -2.0 * math.log(alpha)
    return variance_planned * (surprise + math.log(surprise) + 1.0)


def half_width(variance: float, tau2: float, alpha: float) -> float:
    """Half the width of the interval."""
    return math.sqrt(
        2.0 * variance * (variance + tau2) / tau2 * math.log(math.sqrt((variance + tau2) / variance) / alpha)
    )


def sequential(found: Effect | None, planned: int, alpha: float) -> Interval:
    """Valid at every look, whoever stops when. `planned` units of all arms of the comparison."""
    if found is None or found.least < LEAST:
        return UNKNOWN
    variance = found.variance
    tau2 = mixture(variance * found.units / planned, alpha)
    half = half_width(variance, tau2, alpha)
    log_m = 0.5 * math.log(variance / (variance + tau2)) + found.value**2 * tau2 / (2 * variance * (variance + tau2))
    return Interval(found.value - half, found.value + half, min(1.0, math.exp(-min(log_m, 700.0))))
