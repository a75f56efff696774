"""What to believe about an effect, and what it would cost to be wrong.

    δ ~ N(0, (effect·σ)²)   σ the standard deviation of a unit's value
    δ | data ~ N(w δ̂, w V)  w = prior variance / (prior variance + V)

A posterior does not hold α over many looks; it is for decisions, by expected loss.
Source   conjugate normal model; expected loss: Stucchio 2015
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from policies.experiments.effects import Effect

NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Posterior:
    """chance  that the treatment is better;   loss_keep, loss_ship: expected loss of staying with control, of shipping"""

    mean: float
    low: float
    high: float
    chance: float
    loss_keep: float
    loss_ship: float


def posterior(found: Effect, effect: float, alpha: float) -> Posterior:
    """`effect`: standard deviation of effects expected beforehand, in standard deviations of a unit's value."""
    prior = (effect * found.sd) ** 2
    weight = prior / (prior + found.variance)
    mean, sd = weight * found.value, math.sqrt(weight * found.variance)
    half = NORMAL.inv_cdf(1 - alpha / 2) * sd
    z = mean / sd
    gain = mean * NORMAL.cdf(z) + sd * NORMAL.pdf(z)  # E[max(δ, 0)]
    return Posterior(mean, mean - half, mean + half, NORMAL.cdf(z), gain, gain - mean)
