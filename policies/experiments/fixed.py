"""The interval of the textbook, valid at one look: when the planned number of units has come.

δ̂ ± z_{1−α/2} √V        V = s_c²/n_c + s_t²/n_t (Welch; normal quantiles, arms have at least 30 units)
"""

import math
from statistics import NormalDist

from policies.experiments.effects import Effect
from policies.experiments.sequential import UNKNOWN, Interval

LEAST = 30
NORMAL = NormalDist()


def fixed(found: Effect | None, alpha: float) -> Interval:
    """Looked at more than once, it is wrong more often than α: the readout says when it is final."""
    if found is None or found.least < LEAST:
        return UNKNOWN
    error = math.sqrt(found.variance)
    half = NORMAL.inv_cdf(1 - alpha / 2) * error
    return Interval(found.value - half, found.value + half, 2 * NORMAL.cdf(-abs(found.value) / error))
