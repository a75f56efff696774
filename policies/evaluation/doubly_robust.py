"""A reward model q and importance weights together, slot by slot: q = `predicted`, e = `expected` = E_π q, w = π/β.

    dm          mean Σ_t e_t                                       as good as the model; decisions without one are left out
    dr          mean Σ_t e_t + w_t (r_t − q_t)                     unbiased whatever the model
    sndr        mean Σ_t e_t + Σ_t Σ_i w_it (r_it − q_it)/Σ_i w_it
    switch_dr   mean Σ_t e_t + 1[w_t ≤ τ] w_t (r_t − q_t)          the model alone where weights are large
    dros        mean Σ_t e_t + λw_t/(w_t² + λ) (r_t − q_t)         weights shrunk: λ → ∞ is dr, λ → 0 is dm
    mrdr        dr with the model that makes dr's own variance least (`with_variance_model`)

Where no earlier decision could be learned from, q = e = 0: all but dm are ips there. Slots are read as `importance` reads them.

Source   Dudík, Langford & Li, ICML 2011; Wang, Agarwal & Dudík, ICML 2017; Su et al., ICML 2020; Farajtabar et al., ICML 2018
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from policies.errors import Rejected
from policies.evaluation.estimate import Estimate, Estimator, Ratio, mean_of, supported
from policies.evaluation.importance import ASSUMES
from policies.evaluation.logged import Logged
from policies.evaluation.models import with_variance_model
from policies.types import F64


def model(logged: Logged) -> tuple[F64, F64, dict[str, float]]:
    """(q, e, details), both (N, K), 0 where there is no model; details count the decisions without."""
    assert logged.predicted is not None  # `needs` has looked
    assert logged.expected is not None
    known = np.isfinite(logged.predicted) & np.isfinite(logged.expected)
    unknown = float((~known).any(axis=1).sum())
    details = {"without_model": unknown} if unknown else {}
    return np.where(known, logged.predicted, 0.0), np.where(known, logged.expected, 0.0), details


def dm(logged: Logged) -> Estimate:
    """Contributions take the model as known: intervals say nothing of its error. Raises Rejected when no decision has one."""
    _, e, details = model(logged)
    assert logged.expected is not None
    known = np.asarray(np.isfinite(logged.expected).all(axis=1), np.float64)
    if not known.any():
        raise Rejected("No decision has a model", at="$.expected", code="no_model")
    return Estimate("dm", (Ratio(e.sum(axis=1) * known, known),), logged.units, details)


def _corrected(name: str, logged: Logged, trust: Callable[[F64], F64]) -> Estimate:
    q, e, details = model(logged)
    values = (e + trust(logged.ratios) * (logged.rewards - q)).sum(axis=1)
    return Estimate(name, (mean_of(values),), logged.units, details)


def dr(logged: Logged) -> Estimate:
    return _corrected("dr", logged, lambda w: w)


def sndr(logged: Logged) -> Estimate:
    """Raises Rejected when all weights of a slot are 0."""
    q, e, details = model(logged)
    w, left = logged.ratios, logged.rewards - q
    slots = range(w.shape[1])
    parts = (mean_of(e.sum(axis=1)), *(Ratio(w[:, t] * left[:, t], supported(w[:, t])) for t in slots))
    return Estimate("sndr", parts, logged.units, details)


def switch_dr(logged: Logged, tau: float) -> Estimate:
    """details: `switched_share` of slots left to the model."""
    found = _corrected("switch_dr", logged, lambda w: w * (w <= tau))
    switched = float((logged.ratios > tau).sum() / max(1, logged.present.sum()))
    return replace(found, details={**found.details, "tau": tau, "switched_share": switched})


def dros(logged: Logged, shrinkage: float) -> Estimate:
    found = _corrected("dros", logged, lambda w: shrinkage * w / (w**2 + shrinkage))
    return replace(found, details={**found.details, "shrinkage": shrinkage})


def mrdr(logged: Logged) -> Estimate:
    """Fits its own model on the features: a given one is not looked at."""
    return replace(dr(with_variance_model(logged)), estimator="mrdr")


DOUBLY_ROBUST = (
    Estimator(
        "dm",
        dm,
        "the reward model is right; intervals leave out its error",
        "mean Σ_t e_t",
        "Beygelzimer & Langford, KDD 2009",
        weighting="none",
        needs=("model",),
    ),
    Estimator(
        "dr",
        dr,
        ASSUMES,
        "mean Σ_t e_t + w_t (r_t − q_t)",
        "Dudík, Langford & Li, ICML 2011",
        needs=("model",),
        unbiased=True,
    ),
    Estimator(
        "sndr",
        sndr,
        f"{ASSUMES}; bias O(1/N)",
        "mean Σ_t e_t + Σ_t Σ_i w_it (r_it − q_it) / Σ_i w_it",
        "Thomas & Brunskill, ICML 2016 (weighted doubly robust, one step)",
        needs=("model",),
    ),
    Estimator(
        "switch_dr",
        switch_dr,
        f"{ASSUMES}; the model is right where w > τ",
        "mean Σ_t e_t + 1[w_t ≤ τ] w_t (r_t − q_t)",
        "Wang, Agarwal & Dudík, ICML 2017",
        needs=("model",),
        options={"tau": 10.0},
    ),
    Estimator(
        "dros",
        dros,
        f"{ASSUMES}; the model is right where weights are shrunk",
        "mean Σ_t e_t + λ w_t / (w_t² + λ) (r_t − q_t)",
        "Su, Dimakopoulou, Krishnamurthy & Dudík, ICML 2020",
        needs=("model",),
        options={"shrinkage": 100.0},
    ),
    Estimator(
        "mrdr",
        mrdr,
        ASSUMES,
        "mean Σ_t e_t + w_t (r_t − q_t), q of the least variance",
        "Farajtabar, Chow & Ghavamzadeh, ICML 2018",
        needs=("features",),
        unbiased=True,
    ),
)
