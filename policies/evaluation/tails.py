"""The worst decisions: conditional value at risk of a decision's whole reward under the target.

    CVaR_τ = max_η η − E_π[(η − R)⁺]/τ       the mean of the worst share τ of decisions; τ = 1 is the mean
    cvar     the same under the weighted empirical distribution Σ_i W_i δ(R_i)/Σ_i W_i,  W = Π_t w_t;  η its τ-quantile

Source   Rockafellar & Uryasev 2000; Huang, Leqi, Lipton & Azizzadenesheli, NeurIPS 2021 (off-policy risk assessment)
"""

import numpy as np

from policies.errors import Rejected
from policies.evaluation.estimate import Estimate, Estimator, Ratio, supported
from policies.evaluation.importance import ASSUMES
from policies.evaluation.logged import Logged


def cvar(logged: Logged, tail: float) -> Estimate:
    """details: `quantile` η, below which the tail lies. Contributions take η as known, which is exact to first order.

    Raises Rejected for a tail above 1, and when all weights are 0.
    """
    if tail > 1:
        raise Rejected("A tail is a share of decisions", at="$.tail", code="bad_option")
    w, totals = supported(logged.weights), logged.totals
    order = np.argsort(totals, kind="stable")
    below = np.cumsum(w[order])
    at = np.searchsorted(below, tail * below[-1] * (1 - 1e-12))  # rounding of the last sum must not step past it
    eta = float(totals[order[min(at, len(order) - 1)]])
    shortfall = np.maximum(eta - totals, 0.0) / tail
    part = Ratio(w * (eta - shortfall), w)
    return Estimate("cvar", (part,), logged.units, {"tail": tail, "quantile": eta})


TAILS = (
    Estimator(
        "cvar",
        cvar,
        f"{ASSUMES}; bias O(1/N)",
        "max_η η − Σ_i W_i (η − R_i)⁺ / (τ Σ_i W_i)",
        "Huang, Leqi, Lipton & Azizzadenesheli, NeurIPS 2021",
        weighting="slate",
        options={"tail": 0.1},
    ),
)
