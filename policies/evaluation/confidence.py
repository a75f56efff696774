"""A lower confidence sequence for the mean of numbers that are at least 0 and have no known ceiling (importance weights).

    P(∃ t: L_t > (1/t) Σ_{i ≤ t} μ_i) ≤ α,    x_i ≥ 0,  μ_i = E[x_i ∣ past] in [0, 1]

    M_t = Σ_j π_j exp(λ_j S_t − ψ(λ_j) V_t) ≤ 1 in expectation:  S_t = Σ (x_i − μ_i),  V_t = Σ (x_i − x̂_i)²,
    ψ(λ) = −log(1 − λ) − λ,  x̂_i ≤ 1 predicted from the past;    L_t = (Σ x_i − b_t)/t,  b_t the S at which M_t = 1/α

Anytime: it may be looked at after every decision, and the log may be collected by a policy that learns from it. What is
bounded is the average over the period, so means may drift. State is three numbers, an update is two cumulated sums.
`betting` is tighter where the mean does not move.

Shapes   leading axes (…) are sequences of their own: one state may hold a bound for every policy
Source   Fan, Grama & Liu 2015 (the inequality); Howard, Ramdas, McAuliffe & Sekhon, Ann. Stat. 2021 (mixtures, theorem 4);
         Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro 2022 (arXiv 2210.10768: off-policy, no ceiling on weights)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from policies.types import F64, Mask

# best for V from 10 to 10⁹; between two of them the bound loses at most 6%
LAMBDAS: F64 = np.asarray(0.9 * 0.5 ** np.arange(14), np.float64)
PSI: F64 = -np.log1p(-LAMBDAS) - LAMBDAS
LOG_SHARE = -np.log(len(LAMBDAS))
STEPS = 12  # of Newton from above, where stopping early only widens; 6 reach rounding


@dataclass(frozen=True, slots=True)
class Evidence:
    """count, total Σ x, scatter Σ (x − x̂)², each (…); `guess`: what is predicted before anything was seen, in [0, 1]."""

    count: F64
    total: F64
    scatter: F64
    guess: float

    @property
    def mean(self) -> F64:
        """(…), NaN where nothing was seen."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.total / self.count, np.float64)


def start(shape: tuple[int, ...] = (), guess: float = 0.5) -> Evidence:
    return Evidence(np.zeros(shape), np.zeros(shape), np.zeros(shape), guess)


def update(state: Evidence, x: F64, counted: Mask | None = None) -> Evidence:
    """The state after n more numbers of each sequence, x (…, n) in their order, all at least 0; `counted` (…, n) leaves some
    out. The same numbers in other pieces give the same state, to rounding."""
    seen = np.ones(x.shape) if counted is None else np.broadcast_to(counted, x.shape).astype(np.float64)
    x = x * seen
    counts, totals = np.cumsum(seen, axis=-1), np.cumsum(x, axis=-1)
    before = (state.guess + state.total[..., None] + totals - x) / (1.0 + state.count[..., None] + counts - seen)
    off = seen * (x - np.minimum(before, 1.0))
    return Evidence(
        state.count + seen.sum(axis=-1),
        state.total + x.sum(axis=-1),
        state.scatter + (off**2).sum(axis=-1),
        state.guess,
    )


def pooled(states: Sequence[Evidence]) -> Evidence:
    """Sequences that were kept apart, each predicted from its own past alone, as one: their S and V add, in any order.

    Raises ValueError without any.
    """
    if not states:
        raise ValueError("nothing to pool")
    total = states[0]
    for one in states[1:]:
        total = replace(
            total,
            count=total.count + one.count,
            total=total.total + one.total,
            scatter=total.scatter + one.scatter,
        )
    return total


def boundary(scatter: F64, alpha: F64 | float) -> F64:
    """b (…): Σ (x − μ) stays below it for ever, with probability 1 − α."""
    wanted = np.asarray(-np.log(alpha), np.float64)
    offset = LOG_SHARE - PSI * np.asarray(scatter, np.float64)[..., None]  # (…, J)
    b = ((wanted[..., None] - offset) / LAMBDAS).min(axis=-1)  # one term alone reaches 1/α here: from above
    for _ in range(STEPS):
        exponents = offset + LAMBDAS * b[..., None]
        top = exponents.max(axis=-1)
        shares = np.exp(exponents - top[..., None])
        mass = shares.sum(axis=-1)
        b = b - (top + np.log(mass) - wanted) * mass / (shares * LAMBDAS).sum(axis=-1)
    return np.asarray(b, np.float64)


def lower(state: Evidence, alpha: F64 | float) -> F64:
    """L (…), at least 0: below the mean of the means at every time at once, with probability 1 − α."""
    found = (state.total - boundary(state.scatter, alpha)) / np.maximum(state.count, 1.0)
    return np.asarray(np.maximum(found, 0.0), np.float64)
