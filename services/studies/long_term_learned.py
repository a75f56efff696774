"""A policy that finds out with whom it deals: a learned encoder of what a person did so far, and a policy told what it says.

    u_t   what a step showed: clickbait, reward, logit SAT before and after it
    z_t   Σ_{i ≤ t} f(u_i) / (t + 1), f a network: the context, a set encoder over (action, reward, observation)
    x_t   what is seen now: exp(−left/3), exp(−step/5), logit SAT, last clickbait
    c_t   sigmoid(4 · g([x_t, z_t])), g a network; without inference it is told x_t alone

First f is taught, with a head that is thrown away, to tell the memory, sensitivity and choc of simulated people under random moves: a
simulator knows whom it simulates. Then f and g learn together: the simulators are ours and smooth in c, so the gradient of the mean
reward of a horizon goes through them, noise held fixed, on fresh people of the set each time, Adam's step annealed to nothing. The policy that is
judged is shown neither a person nor which simulator they are of, and no formula of the world is written into f or g.

Source    Luo et al. 2023 (Sim2Rec, arXiv 2305.04832), whose encoders are a variational one of groups and an LSTM, and which learns by PPO
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from policies.one_thread import one_thread
from policies.types import F64
from policies.worlds.long_term_world import HORIZON, INNOVATION, KALE, NOISE, Seen, Users

SHOWN, SEEN, CONTEXT, WIDTH, STEEP = 4, 4, 16, 32, 4.0
TAUGHT, PUPILS = 300, 64  # updates of the encoder alone, people in each
RATE, FIRST_RATE, LONGEST = 1e-2, 3e-3, 1.0  # Adam's first steps of both phases; a longer gradient is cut to this norm
People = Callable[[int], Users]  # fresh ones for an update's number


class Network(torch.nn.Module):
    """`encodes` False: the policy alone, told nothing of the past."""

    def __init__(self, encodes: bool) -> None:
        super().__init__()
        nn = torch.nn
        self.encodes = encodes
        self.encoder = nn.Sequential(
            nn.Linear(SHOWN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CONTEXT)
        )
        self.body = nn.Sequential(
            nn.Linear(SEEN + CONTEXT * encodes, WIDTH),
            nn.Tanh(),
            nn.Linear(WIDTH, WIDTH),
            nn.Tanh(),
            nn.Linear(WIDTH, 1),
        )

    def moves(self, x: Tensor, total: Tensor, step: int) -> Tensor:
        """Clickbait (U,) of what is seen (U, 4) and of the sum of what was encoded in `step` steps (U, z)."""
        told = torch.cat([x, total / (step + 1)], dim=1) if self.encodes else x
        return torch.sigmoid(STEEP * self.body(told)[:, 0])


def seen(step: int, odds: Tensor, clickbait: Tensor, horizon: int = HORIZON) -> Tensor:
    """(U, 4)"""
    every = torch.ones_like(odds)
    near, begun = float(np.exp(-(horizon - 1 - step) / 3)), float(np.exp(-step / 5))
    return torch.stack([every * near, every * begun, odds, clickbait], dim=1)


def shown(clickbait: Tensor, reward: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """(…, 4)"""
    return torch.stack([2 * clickbait - 1, reward / 10, before, after], dim=-1)


def lived(network: Network, people: Users, luck: F64) -> Tensor:
    """(U,) sums of rewards under luck (horizon, 2, U), as `long_term_world.play` has them; gradients go through the simulator."""
    memory, sensitivity, choc = (_tensor(a) for a in (people.memory, people.sensitivity, people.choc))
    noise = _tensor(luck)
    exposure, last, total = (torch.zeros(len(people)) for _ in range(3))
    odds, encoded = torch.zeros(len(people)), torch.zeros(len(people), CONTEXT)
    for step in range(len(luck)):
        last = network.moves(seen(step, odds, last, len(luck)), encoded, step)
        reward = (last * choc + (1 - last) * KALE) * torch.sigmoid(odds) + NOISE * noise[step, 0]
        total = total + reward
        exposure = memory * exposure - 2 * (last - 0.5) + INNOVATION * noise[step, 1]
        before, odds = odds, sensitivity * exposure
        if network.encodes:
            encoded = encoded + network.encoder(shown(last, reward, before, odds))
    return total


class Played:
    """A network as a policy of the world; starts again at step 0."""

    def __init__(self, network: Network, people: int, horizon: int = HORIZON) -> None:
        self.network, self.horizon = network, horizon
        self._encoded, self._odds = torch.zeros(people, CONTEXT), torch.zeros(people)

    @one_thread
    def __call__(self, at: Seen) -> F64:
        odds = _tensor(np.log(at.satisfaction / (1 - at.satisfaction)))
        clickbait, reward = _tensor(at.clickbait), _tensor(at.reward)
        with torch.no_grad():
            if at.step == 0:
                self._encoded = torch.zeros_like(self._encoded)
            elif self.network.encodes:
                self._encoded = self._encoded + self.network.encoder(shown(clickbait, reward, self._odds, odds))
            self._odds = odds
            c = self.network.moves(seen(at.step, odds, clickbait, self.horizon), self._encoded, at.step)
        return c.numpy().astype(np.float64)


@one_thread
def learn(people: People, encodes: bool, seed: int, updates: int, horizon: int = HORIZON) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(encodes)
        if encodes:
            teach(network, people, seed, min(TAUGHT, 10 * updates), horizon)
    rng = np.random.default_rng([seed, 33])

    def loss(number: int) -> Tensor:
        those = people(number)
        return -lived(network, those, rng.normal(size=(horizon, 2, len(those)))).mean() / horizon

    descend(list(network.body.parameters()) + list(network.encoder.parameters()) * encodes, loss, updates, RATE)
    return network


def teach(network: Network, people: People, seed: int, updates: int, horizon: int = HORIZON) -> float:
    """The encoder learns to tell people apart; the last update's squared error, in variances of what is to be told."""
    head = torch.nn.Sequential(torch.nn.Linear(CONTEXT + 1, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 3))
    rng = np.random.default_rng([seed, 34])
    counts = torch.arange(1, horizon + 1.0)[:, None, None]
    error = 0.0

    def loss(number: int) -> Tensor:
        nonlocal error
        those = people(number)
        moves, odds = wander(those, rng, horizon)
        before, after = odds[:-1], odds[1:]
        reward = (moves * those.choc + (1 - moves) * KALE) / (1 + np.exp(-before)) + NOISE * rng.normal(
            size=moves.shape
        )
        told = shown(*(_tensor(a) for a in (moves, reward, before, after)))
        mean = network.encoder(told).cumsum(dim=0) / (counts + 1)
        begun = torch.exp(-counts / 5).expand(horizon, len(those), 1)
        wanted = np.stack(
            [(those.choc - 13) / 6, (those.memory - 0.8) / 0.058, (those.sensitivity - 0.5) / 0.058], axis=1
        )
        found = ((head(torch.cat([mean, begun], dim=2)) - _tensor(wanted)) ** 2).mean()
        error = float(found.detach())
        return found

    descend([*network.encoder.parameters(), *head.parameters()], loss, updates, FIRST_RATE)
    return error


def wander(people: Users, rng: np.random.Generator, horizon: int = HORIZON) -> tuple[F64, F64]:
    """Random moves (H, U) around a level of each person's own, and the logits of satisfaction they lead to (H + 1, U)."""
    moves = np.clip(rng.random(len(people)) + 0.3 * rng.normal(size=(horizon, len(people))), 0, 1)
    exposure = np.zeros((horizon + 1, len(people)))
    for step in range(horizon):
        luck = INNOVATION * rng.normal(size=len(people))
        exposure[step + 1] = people.memory * exposure[step] - 2 * (moves[step] - 0.5) + luck
    return moves, people.sensitivity * exposure


def descend(parameters: list[torch.nn.Parameter], loss: Callable[[int], Tensor], updates: int, rate: float) -> None:
    adam = torch.optim.Adam(parameters, lr=rate)
    for number in range(updates):
        for group in adam.param_groups:
            group["lr"] = rate * (1 - number / updates)
        adam.zero_grad()
        loss(number).backward()  # type: ignore[no-untyped-call]  # torch tells no types of it
        torch.nn.utils.clip_grad_norm_(parameters, LONGEST)
        adam.step()


def _tensor(array: F64) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)
