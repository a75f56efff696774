"""Whole slates: what is assumed about how a slot's reward depends on the other slots decides which weights are enough.

    slate_ips        mean W Σ_t r_t                               W = Π_t w_t        nothing; also for whole-slate rewards
    rips             mean Σ_t W_t r_t                             W_t = Π_{s ≤ t} w_s    cascade: on the slots before only
    cascade_dr       mean Σ_t W_{t−1} e_t + W_t (r_t − q_t)       the same, with a model: unbiased whatever the model
    iips             mean Σ_t ρ_t r_t                             ρ_t marginals      on the slot's own item only
    pseudo_inverse   mean (q_πᵀ Γ_β† 1_s) Σ_t r_t                 additive: a whole-slate reward that is a sum over slots

w_t = π/β given the logged slots before. Variances fall from top to bottom, assumptions grow.

Source   McInerney et al., KDD 2020 (rips); Kiyohara et al., WSDM 2022 (cascade_dr); Li et al., KDD 2018 (iips);
         Swaminathan et al., NeurIPS 2017 (pseudo-inverse)
"""

import numpy as np

from policies.errors import Rejected
from policies.evaluation.doubly_robust import model
from policies.evaluation.estimate import Estimate, Estimator, mean_of
from policies.evaluation.importance import ASSUMES
from policies.evaluation.logged import Logged


def slate_ips(logged: Logged) -> Estimate:
    return Estimate("slate_ips", (mean_of(logged.weights * logged.totals),), logged.units)


def rips(logged: Logged) -> Estimate:
    return Estimate("rips", (mean_of((logged.prefix_ratios * logged.rewards).sum(axis=1)),), logged.units)


def cascade_dr(logged: Logged) -> Estimate:
    """`predicted` may also be a model of this slot and all after it; the expectation is the same, the variance smaller."""
    q, e, details = model(logged)
    W = logged.prefix_ratios
    before = np.concatenate([np.ones((len(W), 1)), W[:, :-1]], axis=1)
    values = (before * e + W * (logged.rewards - q)).sum(axis=1)
    return Estimate("cascade_dr", (mean_of(values),), logged.units, details)


def iips(logged: Logged) -> Estimate:
    """monte_carlo_error: of the replays, errors of a decision's slots taken to go the same way."""
    marginals = logged.marginals
    assert marginals is not None  # `needs` has looked
    values = (marginals.slot * logged.rewards).sum(axis=1)
    error = np.abs(marginals.slot_error * logged.rewards).sum(axis=1)
    return Estimate("iips", (mean_of(values),), logged.units, {}, float(np.sqrt((error**2).sum()) / len(logged)))


def pseudo_inverse(logged: Logged) -> Estimate:
    """details: `missed`, the target's mass that the replays saw nothing of, mean over decisions: the order of the bias. Raises
    Rejected for marginals without Γ."""
    marginals = logged.marginals
    assert marginals is not None  # `needs` has looked
    if np.isnan(marginals.slate).all():
        raise Rejected("Pairs of slots were not counted", at="$.marginals.slate", code="no_marginals")
    error = marginals.slate_error * logged.totals
    details = {"missed": float(marginals.missed.mean())}
    value = mean_of(marginals.slate * logged.totals)
    return Estimate("pseudo_inverse", (value,), logged.units, details, float(np.sqrt((error**2).sum()) / len(logged)))


SLATES = (
    Estimator(
        "slate_ips",
        slate_ips,
        ASSUMES,
        "mean Π_t w_t Σ_t r_t",
        "Horvitz & Thompson, JASA 1952",
        weighting="slate",
        unbiased=True,
    ),
    Estimator(
        "rips",
        rips,
        f"{ASSUMES}; a slot's reward depends on its own item and those before it (cascade)",
        "mean Σ_t W_t r_t, W_t = Π_{s ≤ t} w_s",
        "McInerney et al., KDD 2020",
        weighting="prefix",
        unbiased=True,
    ),
    Estimator(
        "cascade_dr",
        cascade_dr,
        f"{ASSUMES}; a slot's reward depends on its own item and those before it (cascade)",
        "mean Σ_t W_{t−1} e_t + W_t (r_t − q_t)",
        "Kiyohara et al., WSDM 2022",
        weighting="prefix",
        needs=("model",),
        unbiased=True,
    ),
    Estimator(
        "iips",
        iips,
        f"{ASSUMES}; a slot's reward depends on its own item only",
        "mean Σ_t ρ_t r_t, ρ_t the ratio of slot marginals",
        "Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay & Wen, KDD 2018",
        weighting="marginal",
        needs=("marginals",),
    ),
    Estimator(
        "pseudo_inverse",
        pseudo_inverse,
        f"{ASSUMES}; the slate's reward is a sum over slots of what each item adds",
        "mean (q_πᵀ Γ_β† 1_s) Σ_t r_t",
        "Swaminathan et al., NeurIPS 2017",
        weighting="marginal",
        needs=("marginals",),
    ),
)
