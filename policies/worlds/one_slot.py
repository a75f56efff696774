"""One-slot worlds with a known best arm: what a contextual bandit is told to solve, in three shapes.

    linear  r = ½ + aᵀWx + bᵀa + e, e ~ N(0, 0.1²), cut to [0, 1]
    clicks  P(r = 1) = σ(−3.5 + 6 (aᵀWx + bᵀa)): some 5% of uniform choices are clicked
    drift   as linear, with W(t) = cos(πt/T) W₁ + sin(πt/T) W₂ and no b: at the end every taste is the opposite of what it was

Eight arms a ~ N(0, I₄), fixed; contexts x ~ N(0, I₄); entries of W ~ N(0, (0.15/4)²), so that aᵀWx varies by 0.15, and of b ~
N(0, 0.05²). `expected` is exact for clicks; for the other two it is the mean before the noise, cut to [0, 1]. Everything is a
function of the seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from policies.types import F32, F64

CONTEXT, FEATURES, ARMS = 4, 4, 8
TASTE, QUALITY, NOISE = 0.15 / 4, 0.05, 0.1
BASE, STEEP = -3.5, 6.0


@dataclass(frozen=True, slots=True)
class Rounds:
    """T rounds over K arms: context (T, c), arms (K, d), rewards (T, K) drawn for every arm, expected (T, K) their means."""

    context: F32
    arms: F32
    rewards: F64
    expected: F64


def linear(seed: int, rounds: int) -> Rounds:
    rng, x, a = _drawn(seed, rounds)
    W, b = _tastes(rng), QUALITY * rng.standard_normal(FEATURES)
    return _noisy(rng, x, a, 0.5 + x @ W @ a.T + a @ b)


def clicks(seed: int, rounds: int) -> Rounds:
    rng, x, a = _drawn(seed, rounds)
    W, b = _tastes(rng), QUALITY * rng.standard_normal(FEATURES)
    p = 1 / (1 + np.exp(-(BASE + STEEP * (x @ W @ a.T + a @ b))))
    rewards = (rng.random(p.shape) < p).astype(np.float64)
    return Rounds(x.astype(np.float32), a.astype(np.float32), rewards, p)


def drift(seed: int, rounds: int) -> Rounds:
    rng, x, a = _drawn(seed, rounds)
    turned = np.pi * np.arange(rounds)[:, None] / rounds
    first, second = x @ _tastes(rng) @ a.T, x @ _tastes(rng) @ a.T
    return _noisy(rng, x, a, 0.5 + np.cos(turned) * first + np.sin(turned) * second)


def _drawn(seed: int, rounds: int) -> tuple[np.random.Generator, F64, F64]:
    rng = np.random.default_rng([seed, 17])
    return rng, rng.standard_normal((rounds, CONTEXT)), rng.standard_normal((ARMS, FEATURES))


def _tastes(rng: np.random.Generator) -> F64:
    """W (c, d)."""
    return TASTE * rng.standard_normal((CONTEXT, FEATURES))


def _noisy(rng: np.random.Generator, x: F64, a: F64, mean: F64) -> Rounds:
    rewards = np.clip(mean + NOISE * rng.standard_normal(mean.shape), 0, 1)
    return Rounds(x.astype(np.float32), a.astype(np.float32), rewards, np.clip(mean, 0, 1))


WORLDS: dict[str, Callable[[int, int], Rounds]] = {"linear": linear, "clicks": clicks, "drift": drift}
