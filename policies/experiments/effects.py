"""From units to effects: unit values whose mean is an arm's estimate, and the difference of two arms with its variance.

mean    values y_i: a unit's total
ratio   Σ num / Σ den of an arm; its linearisation  v_i = R + (num_i − R·den_i) / mean(den)  has mean R and, to first
        order, the right variance (delta method; Deng, Knoblich and Lu, KDD 2018)
CUPED   v_i − θ (x_i − mean x),  θ = cov(v, x) / var(x)  within arms pooled, x from before the experiment; unbiased
        because x knows nothing of the arm (Deng, Xu, Kohavi and Walker, WSDM 2013)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.types import F64


@dataclass(frozen=True, slots=True)
class Effect:
    """Treatment minus control, an average over a unit. `variance` is that of `value`; `units` are those of both arms."""

    value: float
    variance: float
    units: int
    control: float
    treatment: float
    sd: float  # of a unit's value, both arms pooled
    least: int  # units of the smaller arm

    @property
    def relative(self) -> float | None:
        """As a share of the control; None where that is 0."""
        return self.value / abs(self.control) if self.control else None


def effect(control: F64, treatment: F64) -> Effect | None:
    """Of unit values (n,) and (m,); None with fewer than two in an arm, or where nothing varies yet."""
    n, m = len(control), len(treatment)
    if n < 2 or m < 2:
        return None
    first, second = float(control.var(ddof=1)), float(treatment.var(ddof=1))
    variance = first / n + second / m
    if not variance > 0 or not np.isfinite(variance):
        return None
    before, after = float(control.mean()), float(treatment.mean())
    sd = float(np.sqrt(((n - 1) * first + (m - 1) * second) / (n + m - 2)))
    return Effect(after - before, variance, n + m, before, after, sd, min(n, m))


def stratified(strata: Sequence[Effect | None]) -> Effect | None:
    """One effect of several times with different shares: each compared for itself, weighed by its units, so that what
    changed with time is not taken for what changed with the arm. Strata that cannot be compared yet are left out."""
    found = [one for one in strata if one is not None]
    if len(found) < 2:
        return found[0] if found else None
    units = sum(one.units for one in found)
    weights = [one.units / units for one in found]

    def mean(name: str) -> float:
        return sum(w * float(getattr(one, name)) for w, one in zip(weights, found, strict=True))

    variance = sum(w * w * one.variance for w, one in zip(weights, found, strict=True))
    sd, least = mean("sd"), sum(one.least for one in found)
    return Effect(mean("value"), variance, units, mean("control"), mean("treatment"), sd, least)


def ratio(numerators: F64, denominators: F64) -> F64:
    """Linearised values (n,) of one arm's ratio; empty where the denominators add up to nothing."""
    total = float(denominators.sum())
    if not total > 0:
        return np.empty(0)
    value = float(numerators.sum()) / total
    linear: F64 = value + (numerators - value * denominators) / (total / len(denominators))
    return linear


def adjusted(arms: Sequence[F64], covariates: Sequence[F64]) -> tuple[list[F64], float]:
    """(values of each arm after CUPED, share of the variance that is left). Where x explains nothing: as they are, 1."""
    if any(len(values) < 2 for values in arms):
        return list(arms), 1.0
    centred = [x - x.mean() for x in covariates]
    spread = sum(float(x @ x) for x in centred)
    if not spread > 0:
        return list(arms), 1.0
    residuals = [values - values.mean() for values in arms]
    theta = sum(float(x @ y) for x, y in zip(centred, residuals, strict=True)) / spread
    overall = float(np.concatenate(covariates).mean())
    after = [values - theta * (x - overall) for values, x in zip(arms, covariates, strict=True)]
    total = sum(float(y @ y) for y in residuals)
    return after, 1.0 if not total > 0 else 1.0 - theta * theta * spread / total
