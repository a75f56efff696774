"""How many units a comparison needs, and which effect a number of units can show.

fixed       δ = (z_{1−α/2} + z_power) √V
sequential  δ = half-width at V, tightest there, + z_power √V: the chance to have stopped *by* that number is larger
V           σ² (1 − ρ²) (1/n_c + 1/n_t),  ρ the correlation with the CUPED covariate
"""

import math
from statistics import NormalDist
from typing import Literal

from policies.errors import Rejected
from policies.experiments.sequential import half_width, mixture

NORMAL = NormalDist()
Method = Literal["sequential", "fixed"]


def detectable(
    units: float, sd: float, *, alpha: float, power: float, method: Method, split: float = 0.5, correlation: float = 0.0
) -> float:
    """The effect that `units` of both arms show with a chance of `power`. `split`: the treatment's part of them."""
    _checked(sd, alpha, power, split, correlation)
    variance = sd**2 * (1 - correlation**2) / (units * split * (1 - split))
    luck = NORMAL.inv_cdf(power) * math.sqrt(variance)
    if method == "fixed":
        return NORMAL.inv_cdf(1 - alpha / 2) * math.sqrt(variance) + luck
    return half_width(variance, mixture(variance, alpha), alpha) + luck


def units_needed(
    effect: float,
    sd: float,
    *,
    alpha: float,
    power: float,
    method: Method,
    split: float = 0.5,
    correlation: float = 0.0,
) -> int:
    """Units of both arms that show an effect with a chance of `power`."""
    if not effect:
        raise Rejected("No number of units shows an effect of 0", at="$.effect")
    one = detectable(1.0, sd, alpha=alpha, power=power, method=method, split=split, correlation=correlation)
    return math.ceil((one / abs(effect)) ** 2)  # both half-widths shrink by 1/√n when planned there


def _checked(sd: float, alpha: float, power: float, split: float, correlation: float) -> None:
    if not sd > 0 or not math.isfinite(sd):
        raise Rejected(f"Expected a standard deviation above 0, got {sd:g}", at="$.sd")
    for name, value in (("alpha", alpha), ("power", power), ("split", split)):
        if not 0 < value < 1:
            raise Rejected(f"Expected a number between 0 and 1, got {value:g}", at=f"$.{name}")
    if not -1 < correlation < 1:
        raise Rejected(f"Expected a correlation between -1 and 1, got {correlation:g}", at="$.correlation")
