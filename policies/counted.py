"""Counts and rates as features: what is counted, and the one transformation that the draw, the learner and the gate see.

    count  x = min(1, log(1 + n) / log(1 + max)): from 0 to 1
    rate   p = (a + n) / (a + b + m), p₀ = a / (a + b), x = (p - p₀) / max(p₀, max - p₀), clipped to ±1

Nothing known is 0, which is a count of nothing and the rate of an item that nobody has seen: a store that is away makes
everything new, and nothing worse. A rate stays linear in p, so that a model that is linear in x expects p where it is true.
A request may bring n or p itself, and so may a log that was made elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log1p

from policies.surface import Count, Counted, Feature, Rate

SHOWN = "shown"  # of a kind: the slots that were seen


def counted(features: Mapping[str, Feature]) -> dict[str, Counted]:
    """Those of the features that the service counts, by name."""
    return {name: feature for name, feature in sorted(features.items()) if isinstance(feature, Count | Rate)}


def kinds_of(feature: Counted) -> tuple[str, ...]:
    """What has to be counted for a feature, in the order of `value`."""
    return (feature.kind, feature.per) if isinstance(feature, Rate) else (feature.kind,)


def value(feature: Counted, counts: Sequence[float]) -> float:
    """The count or the smoothed rate. Counts of a window that slides may disagree by a hair: a rate stays within 0 and 1."""
    if isinstance(feature, Count):
        return max(counts[0], 0.0)
    a, b = feature.prior
    n, m = max(counts[0], 0.0), max(counts[1], 0.0)
    return min((a + n) / (a + b + m), 1.0)


def scaling(feature: Counted) -> Callable[[float], float]:
    """What makes x of a count or rate from 0, whatever can be known before made once."""
    top = feature.max
    if isinstance(feature, Count):
        whole = log1p(top)
        return lambda count: log1p(min(count, top)) / whole
    a, b = feature.prior
    usual = a / (a + b)
    widest = max(usual, top - usual)
    return lambda rate: min(max((min(rate, 1.0) - usual) / widest, -1.0), 1.0)
