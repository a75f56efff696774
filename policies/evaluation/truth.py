"""Is the logged propensity the probability that was drawn from? The main test of truth.

    z_a = Σ (1{A = a} − p(a)) / √Σ p(a) (1 − p(a))        per arm a and slot, over decisions with full distributions

Under the truth each z is close to a standard normal, however the decisions were chosen and however the policy changed
between them: given the past each term has mean 0 and variance p(1−p) (a martingale). Beside it, E[1/p] of the drawn arm is
the number of arms that could have been drawn; its spread is wide at small floors, and is known: Var = Σ_a 1/p(a) − ∣R∣².

Source   methods.md §0
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

from policies.types import F64, I64

ENOUGH = 25.0  # variance from which z is normal enough for a bound at 4: skewness of the sum is at most 1/√25


def propensity_z(distributions: F64, items: I64) -> F64:
    """z per arm (n,) of N draws: distributions (N, n) they were made from, items (N,) drawn.

    An arm that had no variance has z = 0 when it came as often as it had to, else ±inf.
    """
    drawn = np.bincount(items, minlength=distributions.shape[1])
    surplus = drawn - distributions.sum(axis=0)
    return _standardised(surplus, (distributions * (1.0 - distributions)).sum(axis=0))


def _standardised(surplus: F64, variance: F64) -> F64:
    """surplus / √variance; what has no variance may miss by rounding only."""
    certain = np.where(np.abs(surplus) < 1e-6, 0.0, np.copysign(np.inf, surplus))  # sums of up to 10⁶ ones and zeros
    return np.where(variance > 1e-9, surplus / np.sqrt(np.maximum(variance, 1e-300)), certain)


class Inverse(NamedTuple):
    """E[1/p] against ∣R∣, mean over all slots of all decisions; infinite error where nothing was added."""

    mean: float
    expected: float
    standard_error: float

    @property
    def z(self) -> float:
        """Standard errors between the two; 0 when both agree and nothing could vary."""
        return float(_standardised(np.array(self.mean - self.expected), np.array(self.standard_error**2)))


class Truth:
    """The same statistics fed one drawn slot at a time, for logs in which every decision has candidates of its own."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, Hashable], int] = defaultdict(int)
        self._expected: dict[tuple[int, Hashable], float] = defaultdict(float)
        self._variance: dict[tuple[int, Hashable], float] = defaultdict(float)
        self._count = 0
        self._inverse = self._remaining = self._inverse_variance = 0.0

    def add(self, slot: int, distribution: Mapping[str, float], drawn: str, propensity: float) -> None:
        """One slot of one decision: its full distribution {id: p}, the id drawn and the propensity logged for it.

        Raises ValueError when they contradict each other: not a distribution, an arm that had no chance, a propensity that
        is not the distribution's. (Such a log needs no statistics to be found wrong.)
        """
        if min(distribution.values(), default=-1.0) < 0.0 or abs(math.fsum(distribution.values()) - 1.0) > 1e-9:
            raise ValueError(f"slot {slot}: probabilities must be at least 0 and sum to 1")
        if not distribution.get(drawn, 0.0) > 0.0:
            raise ValueError(f"slot {slot}: {drawn!r} was drawn but had no chance")
        if not math.isclose(distribution[drawn], propensity, rel_tol=1e-9):
            raise ValueError(
                f"slot {slot}: {drawn!r} has propensity {propensity}, its distribution {distribution[drawn]}"
            )
        self._drawn[slot, drawn] += 1
        support, inverses = 0, 0.0
        for arm, p in distribution.items():
            self._expected[slot, arm] += p
            self._variance[slot, arm] += p * (1.0 - p)
            if p > 0.0:
                support += 1
                inverses += 1.0 / p
        self._count += 1
        self._inverse += 1.0 / propensity
        self._remaining += support
        self._inverse_variance += max(0.0, inverses - support**2)

    @property
    def z(self) -> dict[tuple[int, Hashable], float]:
        """z per (slot, arm). Arms of a slot too rare for a z of their own share one, (slot, None), if together they suffice.

        Their common variance is at most the sum of theirs (they exclude each other), so that z errs towards 0.
        """
        surplus: dict[tuple[int, Hashable], float] = defaultdict(float)
        variance: dict[tuple[int, Hashable], float] = defaultdict(float)
        for (slot, arm), expected in self._expected.items():
            own = self._variance[slot, arm]
            group = (slot, None if 0.0 < own < ENOUGH else arm)
            surplus[group] += self._drawn[slot, arm] - expected
            variance[group] += own
        z = _standardised(np.array(list(surplus.values())), np.array(list(variance.values())))
        return {
            group: value
            for group, value in zip(surplus, z.tolist(), strict=True)
            if group[1] is not None or variance[group] >= ENOUGH
        }

    @property
    def worst_z(self) -> float:
        """The largest ∣z∣ over arms and slots; 0 when nothing was added."""
        return max((abs(z) for z in self.z.values()), default=0.0)

    @property
    def mean_inverse(self) -> Inverse:
        """Mean 1/p of what was drawn, the mean ∣R∣ it should equal, and its standard error."""
        if not self._count:
            return Inverse(0.0, 0.0, math.inf)
        n = self._count
        return Inverse(self._inverse / n, self._remaining / n, math.sqrt(self._inverse_variance) / n)
