"""The reward models inside DM and DR: ridge regression, each time block predicted from the blocks before it only.

    with_model              θ minimises Σ (r − φᵀθ)² + λ∣θ∣² over slots
    with_variance_model     θ minimises Σ (ρ − c − ζᵀθ)² + λ∣θ∣² over decisions,  ρ = Σ_t w_t r_t,  ζ = Σ_t w_t φ_t − φ̄_t:
                            ρ − ζᵀθ is what dr makes of a decision, so this is the model of least variance (MRDR)
    predicted = φᵀθ,  expected = φ̄ᵀθ,  φ̄ = E_π φ given the logged slots before

A linear model's mean over the target is the model of the mean features: φ̄ is all that is needed of the other candidates.
What is predicted for a decision is a function of what came before it: the log may be collected adaptively, and dr keeps
its expectation. The first block has no model (NaN).

Source   Hoerl & Kennard 1970; Farajtabar, Chow & Ghavamzadeh, ICML 2018 (least variance)
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from policies.errors import Rejected
from policies.evaluation.logged import Logged
from policies.types import F64, I64

BLOCKS = 10  # a tenth of the log stays without a model; more refits than that change little where N is large
RIDGE = 1.0  # as much doubt as one example of unit length outweighs


def time_blocks(times: F64, blocks: int = BLOCKS) -> I64:
    """Block of each decision (N,), ascending, about equally large; equal times are never parted."""
    edges = times[np.arange(1, blocks) * len(times) // blocks]
    return np.searchsorted(edges, times, side="right")


def with_model(logged: Logged, ridge: float = RIDGE, blocks: int = BLOCKS) -> Logged:
    """`logged` with `predicted` and `expected` of the least squared error. Raises Rejected when there are no features."""
    phi, _ = _features(logged)
    return _predicted(logged, _refits(logged, phi, logged.rewards, ridge, blocks))


def with_variance_model(logged: Logged, ridge: float = RIDGE, blocks: int = BLOCKS) -> Logged:
    """`logged` with the model that makes dr's variance least. Raises Rejected when there are no features."""
    phi, mean_phi = _features(logged)
    w = logged.ratios
    zeta = np.concatenate([(w[:, :, None] * phi - mean_phi).sum(axis=1), np.ones((len(logged), 1))], axis=1)
    rho = (w * logged.rewards).sum(axis=1)
    fits = _refits(logged, zeta[:, None], rho[:, None], ridge, blocks)
    return _predicted(logged, ((rows, theta[:-1]) for rows, theta in fits))  # the last is the constant c


def _features(logged: Logged) -> tuple[F64, F64]:
    """φ and φ̄ (N, K, d), 0 where there is no slot."""
    if logged.features is None or logged.expected_features is None:
        raise Rejected("A model needs features", at="$.features", code="no_features")
    there = logged.present[:, :, None]
    return np.where(there, logged.features, 0.0), np.where(there, logged.expected_features, 0.0)


def _refits(logged: Logged, X: F64, y: F64, ridge: float, blocks: int) -> Iterator[tuple[slice, F64]]:
    """(rows of a block, θ from the blocks before it): X (N, m, d), y (N, m). θ is NaN for the first."""
    width = X.shape[-1]
    A: F64 = ridge * np.eye(width)
    b: F64 = np.zeros(width)
    block = time_blocks(logged.times, blocks)
    for each in np.unique(block):
        rows = slice(*np.searchsorted(block, (each, each + 1)).tolist())
        yield rows, np.asarray(np.linalg.solve(A, b) if rows.start else np.full(width, np.nan), np.float64)
        x = X[rows].reshape(-1, width)
        A += x.T @ x
        b += x.T @ y[rows].reshape(-1)


def _predicted(logged: Logged, fits: Iterator[tuple[slice, F64]]) -> Logged:
    phi, mean_phi = _features(logged)
    predicted, expected = np.zeros(logged.rewards.shape), np.zeros(logged.rewards.shape)
    for rows, theta in fits:
        predicted[rows] = np.where(logged.present[rows], phi[rows] @ theta, 0.0)
        expected[rows] = np.where(logged.present[rows], mean_phi[rows] @ theta, 0.0)
    return replace(logged, predicted=predicted, expected=expected)
