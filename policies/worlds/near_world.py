"""A one-slot world where what people want is near them: no linear model of features and their products can say so.

    r ~ Bernoulli(0.1 + 0.8 exp(−‖x − a‖² / (2 · 0.4²))),   contexts x and 16 arms a uniform in [−1, 1]²

With φ of x, a and every xᵢaⱼ a linear model has the products of ‖x − a‖² = ‖x‖² − 2xᵀa + ‖a‖² and not its last term: of two arms in
the right direction it prefers the farther one. Everything is a function of the seed.
"""

import numpy as np

from policies.types import F64
from policies.worlds.one_slot import Rounds

SIZE, ARMS = 2, 16
BASE, GAIN, REACH = 0.1, 0.8, 0.4


def near(seed: int, rounds: int) -> Rounds:
    rng = np.random.default_rng([seed, 23])
    arms, x = rng.uniform(-1, 1, (ARMS, SIZE)), rng.uniform(-1, 1, (rounds, SIZE))
    square: F64 = ((x[:, None] - arms) ** 2).sum(axis=2)
    expected = BASE + GAIN * np.exp(-square / (2 * REACH**2))
    rewards = (rng.random(expected.shape) < expected).astype(np.float64)
    return Rounds(x.astype(np.float32), arms.astype(np.float32), rewards, expected)
