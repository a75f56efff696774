"""An encoder that learns to tell people apart by what they did so far: Sim2Rec's idea, for `study long_term`.

    u_i   what a step showed: clickbait, reward, logit SAT before and after it           (action, reward, observation)
    z_t   [Σ_{i ≤ t} f(u_i) / (t + 1), exp(−t/5)], f a network: the context, whatever the order of steps
    h     a network on z_t: estimates of choc, memory and sensitivity, in the units `Sigmoid` reads them in

A simulator knows whom it simulates: f and h are taught by squared error to tell people of the set of simulators, who live under moves
around levels of their own. No formula of the world is written into f or h. The policy that is told h(z) is searched over the same simulators
as every other. Torch learns; playing is numpy.

Source    Luo et al. 2023 (Sim2Rec, arXiv 2305.04832): a variational encoder of groups and an LSTM, learned with the policy by PPO
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.one_thread import one_thread
from policies.types import F32, F64
from policies.worlds.long_term_world import HORIZON, INNOVATION, KALE, NOISE, Seen, Users
from services.studies.long_term_policies import Sigmoid, logit

SHOWN, WIDTH, CONTEXT = 4, 24, 24
PUPILS, RATE = 64, 1e-2  # people in an update, and Adam's first step, which is annealed to nothing
# standard deviations of what is to be told, over the set of simulators: errors count in these
SPREADS = 5.0, 0.058, 0.058
SCALES = np.array([[12.0, 0.8, 0.5], [5.0, 0.1, 0.1]])  # means and units of `Sigmoid`
Weights = dict[str, F32]


def initial(seed: int) -> Weights:
    rng = np.random.default_rng([seed, 35])
    sizes = {"f_in": (SHOWN, WIDTH), "f_out": (WIDTH, CONTEXT), "h_in": (CONTEXT + 1, WIDTH), "h_out": (WIDTH, 3)}
    made: Weights = {}
    for name, shape in sizes.items():
        made[name] = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        made[f"{name}_bias"] = np.zeros(shape[1], np.float32)
    return made


def shown(clickbait: F64, reward: F64, before: F64, after: F64) -> F32:
    """(…, 4)"""
    return np.stack([2 * clickbait - 1, reward / 5 - 1, before, after], axis=-1).astype(np.float32)


def body(w: Any, name: str, x: Any, tanh: Callable[[Any], Any]) -> Any:
    """One hidden layer, of numpy's or torch's arrays."""
    hidden = tanh(x @ w[f"{name}_in"] + w[f"{name}_in_bias"])
    return hidden @ w[f"{name}_out"] + w[f"{name}_out_bias"]


class Encoding(Sigmoid):
    """`Sigmoid` told the encoder's estimates."""

    def __init__(self, theta: F64, people: int, weights: Weights) -> None:
        super().__init__(theta, people, 0.0)
        self._weights = weights
        self._sum: NDArray[Any] = np.zeros((len(self.theta), CONTEXT), np.float32)

    def person(self, seen: Seen) -> tuple[F64, F64, F64]:
        if seen.step == 0:
            self._sum = np.zeros_like(self._sum)
        else:
            told = shown(seen.clickbait, seen.reward, logit(self._satisfaction), logit(seen.satisfaction))
            self._sum = self._sum + body(self._weights, "f", told, np.tanh)
        self._satisfaction = seen.satisfaction
        begun = np.full((len(self._sum), 1), np.exp(-seen.step / 5), np.float32)
        z = np.concatenate([self._sum / np.float32(seen.step + 1), begun], axis=1)
        choc, memory, sensitivity = (SCALES[0] + SCALES[1] * body(self._weights, "h", z, np.tanh)).T
        return choc, memory, sensitivity


@one_thread
def teach(people: Callable[[int], Users], seed: int, updates: int, horizon: int = HORIZON) -> tuple[Weights, float]:
    """An encoder taught on `people(number)`, fresh ones each update, and the last one's squared error in variances."""
    weights = {name: torch.tensor(w, requires_grad=True) for name, w in initial(seed).items()}
    adam = torch.optim.Adam(list(weights.values()), lr=RATE)
    rng, steps = np.random.default_rng([seed, 34]), np.arange(horizon + 1.0)
    counts = torch.tensor(steps[:, None, None] + 1, dtype=torch.float32)
    begun = torch.tensor(np.tile(np.exp(-steps / 5)[:, None, None], (1, PUPILS, 1)), dtype=torch.float32)
    error = torch.zeros(())
    for number in range(updates):
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - number / updates)
        those = people(number)
        told, nothing = torch.from_numpy(lived(those, rng, horizon)), torch.zeros(1, PUPILS, CONTEXT)
        total = torch.cat([nothing, body(weights, "f", told, torch.tanh).cumsum(dim=0)])
        found = body(weights, "h", torch.cat([total / counts, begun], dim=2), torch.tanh)
        off = (found - _wanted(those)) * torch.tensor(SCALES[1] / SPREADS, dtype=torch.float32)
        error = (off**2).mean()
        adam.zero_grad()
        error.backward()
        adam.step()
    return {name: w.detach().numpy().copy() for name, w in weights.items()}, float(error.detach())


def _wanted(people: Users) -> Tensor:
    true = np.stack([people.choc, people.memory, people.sensitivity], axis=1)
    return torch.tensor((true - SCALES[0]) / SCALES[1], dtype=torch.float32)


def lived(people: Users, rng: np.random.Generator, horizon: int) -> F32:
    """(H, U, 4): what is shown of people under moves around a level of each one's own."""
    count = len(people)
    moves = np.clip(rng.random(count) + rng.choice([0.05, 0.3], count) * rng.normal(size=(horizon, count)), 0, 1)
    odds, exposure = np.zeros((horizon + 1, count)), np.zeros(count)
    for step in range(horizon):
        exposure = people.memory * exposure - 2 * (moves[step] - 0.5) + INNOVATION * rng.normal(size=count)
        odds[step + 1] = people.sensitivity * exposure
    mean = (moves * people.choc + (1 - moves) * KALE) / (1 + np.exp(-odds[:-1]))
    return shown(moves, mean + NOISE * rng.normal(size=moves.shape), odds[:-1], odds[1:])
