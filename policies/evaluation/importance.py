"""Importance sampling, slot by slot: no model, w = π/β of the slot's item given the logged slots before it.

    ips           mean Σ_t w_t r_t                                 unbiased; its error grows with w
    snips         Σ_t Σ_i w_it r_it / Σ_i w_it                     bias O(1/N), never outside the rewards' range
    clipped_ips   mean Σ_t min(w_t, cap) r_t                       bias −E Σ_t (w_t − cap)⁺ r_t, estimated beside it

With one slot this is the textbook. With more, it is the value of following the target at one slot at a time, the slots
before it as logged: right for the slate where a slot's reward depends on its own item alone and β and π do not depend on the
slots before (else `rips`, `iips`).

Source   Horvitz & Thompson 1952; Swaminathan & Joachims 2015 (self-normalised); Strehl et al. 2010 (clipped)
"""

import numpy as np

from policies.evaluation.estimate import Estimate, Estimator, Ratio, mean_of, supported
from policies.evaluation.logged import Logged

ASSUMES = "logged propensities are true, and the target shows nothing that the log could not (support)"


def ips(logged: Logged) -> Estimate:
    """Raises nothing beyond what `checked` does."""
    return Estimate("ips", (mean_of((logged.ratios * logged.rewards).sum(axis=1)),), logged.units)


def snips(logged: Logged) -> Estimate:
    """Raises Rejected when all weights of a slot are 0."""
    w = logged.ratios
    slots = range(w.shape[1])
    parts = tuple(Ratio(w[:, t] * logged.rewards[:, t], supported(w[:, t])) for t in slots)
    return Estimate("snips", parts, logged.units)


def clipped_ips(logged: Logged, cap: float) -> Estimate:
    """details: `bias` (what clipping took away in this log), `clipped_share` of slots, `removed_weight` (mean (w − cap)⁺)."""
    w = logged.ratios
    excess = np.maximum(w - cap, 0.0)
    kept = (np.minimum(w, cap) * logged.rewards).sum(axis=1)
    details = {
        "cap": cap,
        "bias": -float((excess * logged.rewards).sum(axis=1).mean()),
        "clipped_share": float((excess > 0).sum() / max(1, logged.present.sum())),
        "removed_weight": float(excess.sum(axis=1).mean()),
    }
    return Estimate("clipped_ips", (mean_of(kept),), logged.units, details)


IMPORTANCE = (
    Estimator("ips", ips, ASSUMES, "mean Σ_t w_t r_t", "Horvitz & Thompson, JASA 1952", unbiased=True),
    Estimator(
        "snips",
        snips,
        f"{ASSUMES}; bias O(1/N)",
        "Σ_t Σ_i w_it r_it / Σ_i w_it",
        "Swaminathan & Joachims, NeurIPS 2015",
    ),
    Estimator(
        "clipped_ips",
        clipped_ips,
        f"{ASSUMES}; bias −E Σ_t (w_t − cap)⁺ r_t, reported",
        "mean Σ_t min(w_t, cap) r_t",
        "Strehl, Langford, Li & Kakade, NeurIPS 2010",
        options={"cap": 100.0},
    ),
)
