"""Sample-ratio mismatch: whether arms get the units they should, looked at as often as one likes.

    log M = log Γ(k) − log Γ(k + n) + Σ_i [log Γ(k π_i + n_i) − log Γ(k π_i)] − Σ_i n_i log π_i

the Bayes factor of a Dirichlet(k π) around the shares π against the shares themselves, a martingale when they hold; those of
several allocations multiply. p = min(1, 1/M), and P(ever p ≤ α) ≤ α.
Source   Lindon and Malek, NeurIPS 2022 (arXiv 2011.03567)
"""

import math
from collections.abc import Mapping, Sequence

ALPHA = 0.001  # a mismatch spoils the experiment, so it must not be cried lightly
STRENGTH = 500.0  # k: mismatches of some percent are expected


def log_factor(counts: Sequence[int], shares: Sequence[float]) -> float:
    """log M of units counted by arm, under shares that need not add up to 1."""
    total = sum(shares)
    if any(count and not share > 0 for count, share in zip(counts, shares, strict=True)):
        return math.inf  # units where none may be
    pairs = [(count, share / total) for count, share in zip(counts, shares, strict=True) if share > 0]
    found = math.lgamma(STRENGTH) - math.lgamma(STRENGTH + sum(count for count, _ in pairs))
    for count, share in pairs:
        found += math.lgamma(STRENGTH * share + count) - math.lgamma(STRENGTH * share) - count * math.log(share)
    return found


def p_value(counts: Sequence[Mapping[str, int]], shares: Sequence[Mapping[str, float]]) -> float:
    """Of one count of units an arm for each allocation, and the allocations' shares."""
    total = 0.0
    for counted, allocation in zip(counts, shares, strict=True):
        arms = list(allocation)
        if any(counted.values()):
            total += log_factor([counted.get(arm, 0) for arm in arms], [allocation[arm] for arm in arms])
    return min(1.0, math.exp(-min(total, 700.0)))
