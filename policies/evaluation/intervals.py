"""Asymptotic intervals of an estimate, for reports: decisions of one unit count as one observation.

    delta       V̂ ± z · se,   se² = G/(G−1) Σ_g (Σ_{i ∈ g} (c_i − V̂))² / N²,   c the contributions, G units
    skewed      the same moved by se · γ (1 + 2z²) / (6 √G),   γ the skewness of the units' sums; as wide, and never off V̂
    bootstrap   percentiles of V̂ over resampled units; the parts of the estimate are resampled, models are not fitted again

Rare rewards under weights are skewed to the right: an average of few of them is mostly too low, and then its standard error is too
small as well, so `delta` misses on one side (study `ope-coverage`). `skewed` takes away that error's first order. All hold for
many units and a design effective sample size in the hundreds; `confidence` holds at every size.

Source   Liang & Zeger 1986 (clusters); Johnson, JASA 1978 (skewed; Hall 1992, section 3.5, for its order); Efron 1979
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from policies.evaluation.estimate import Estimate
from policies.types import F64

CHUNK = 4_000_000  # cells of one block of resampled counts: 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """low … high at a level, and by which method."""

    low: float
    high: float
    level: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def width(self) -> float:
        return self.high - self.low


def standard_error(estimate: Estimate) -> float:
    """Clustered by unit; inf with one unit, for one says nothing about others."""
    sums = _off(estimate)
    units = len(sums)
    if units < 2:
        return float("inf")
    return float(np.sqrt(units / (units - 1) * (sums**2).sum()) / len(estimate.units))


def delta(estimate: Estimate, level: float = 0.95) -> Interval:
    half = NormalDist().inv_cdf((1 + level) / 2) * float(np.hypot(standard_error(estimate), estimate.monte_carlo_error))
    return Interval(estimate.value - half, estimate.value + half, level, "delta")


def skewed(estimate: Estimate, level: float = 0.95) -> Interval:
    plain, sums = delta(estimate, level), _off(estimate)
    spread = float((sums**2).sum())
    if len(sums) < 3 or spread <= 0.0:  # two have no skewness
        return plain
    z = NormalDist().inv_cdf((1 + level) / 2)
    skewness = float((sums**3).sum()) / spread**1.5  # γ / √G
    moved = standard_error(estimate) * skewness * (1 + 2 * z**2) / 6
    low, high = plain.low + moved, plain.high + moved
    return Interval(min(low, estimate.value), max(high, estimate.value), level, "skewed")


def _off(estimate: Estimate) -> F64:
    """(G,) what each unit's decisions add to N (V̂ − value)."""
    _, group = np.unique(estimate.units, return_inverse=True)
    return np.asarray(np.bincount(group, estimate.contributions - estimate.value), np.float64)


def bootstrap(estimate: Estimate, seed: int, level: float = 0.95, replicates: int = 1000) -> Interval:
    """Replicates in which nothing could be normalised (all weights 0) are left out; all of them left out is (−inf, inf)."""
    _, group = np.unique(estimate.units, return_inverse=True)
    columns = [column for part in estimate.parts for column in part]
    sums = np.stack([np.bincount(group, column) for column in columns], axis=1)
    units, generator = len(sums), np.random.default_rng(seed)
    values: list[F64] = []
    for start in range(0, replicates, step := max(1, CHUNK // units)):
        size = min(step, replicates - start)
        drawn = generator.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        resampled = counts @ sums
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append((resampled[:, 0::2] / resampled[:, 1::2]).sum(axis=1))
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(-np.inf, np.inf, level, "bootstrap")
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high), level, "bootstrap")
