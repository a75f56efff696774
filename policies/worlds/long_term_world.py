"""Chocolate or kale: clickbait pays now and spoils satisfaction, which pays later. The optimum is known by dynamic programming.

    NPE′ = m NPE − 2 (c − ½) + ε,  ε ~ N(0, 0.05²)     net positive exposure, 0 at first;  c ∈ [0, 1] clickbait shown
    SAT  = sigmoid(k NPE)
    r    ~ N((c · choc + (1 − c) · kale) · SAT, 0.5²)

    m ~ U(0.7, 0.9), k ~ U(0.4, 0.6), kale = 4, choc ~ N(μ, 3²) a person, at least 1; horizon 140

μ is a simulator's own: 14 is the one nobody trains on, others lie in 6 … 21 with a gap around it. A person sees SAT, the last
reward and the step, never m, k or choc.

Switches  a second is a step. Drift walks choc (at least 1), turnover replaces a person's chocolate by another, worth N(μ, 3²) anew. Delay, loss
          and duplicates are of rewards on their way to the policy, which sees the one that arrived last, perhaps an old one
          again. `Oracle` and `constant_values` are those of a world in which all are off

Oracle    backward induction a person over a grid of NPE and of c, noise by 3-point Gauss-Hermite, linear between grid points:
          knows m, k, choc. Its value is that of playing its table, simulated
Constant  the best c that is the same always: NPE is then Gaussian with known moments, so values are exact to quadrature
Source    Luo et al. 2023 (Sim2Rec, arXiv 2305.04832); RecSim's long-term-satisfaction environment, arXiv 1909.04847
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from policies.types import F64
from policies.worlds.session_world import sigmoid
from policies.worlds.switches import Late, Switches, drifted, replaced

HORIZON, KALE, SPREAD = 140, 4.0, 3.0
MEMORY, SENSITIVITY = (0.7, 0.9), (0.4, 0.6)
INNOVATION, NOISE = 0.05, 0.5
UNSEEN = 14.0
TRAINED = (6.0, 8.0, 10.0, 11.0, 17.0, 19.0, 21.0)  # 6 … 21 with a gap around the unseen one
GRID = np.linspace(-11.0, 11.0, 177)  # |NPE| ≤ 1/(1 − 0.9) and some noise
ACTIONS = np.linspace(0.0, 1.0, 21)
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Users:
    """U people: memory m, sensitivity k, choc, each (U,); `mean` is the simulator's μ."""

    memory: F64
    sensitivity: F64
    choc: F64
    mean: float = field(default=UNSEEN, kw_only=True)

    def __len__(self) -> int:
        return len(self.choc)


@dataclass(frozen=True, slots=True)
class Seen:
    """Before a step, (U,) each: number of the step, satisfaction, last clickbait and the reward heard last (0 at first)."""

    step: int
    satisfaction: F64
    clickbait: F64
    reward: F64


Policy = Callable[[Seen], F64]  # → clickbait (U,)


def users(count: int, mean: float, seed: int) -> Users:
    rng = np.random.default_rng([seed, 21])
    return Users(rng.uniform(*MEMORY, count), rng.uniform(*SENSITIVITY, count), liking(mean, count, rng), mean=mean)


def liking(mean: float, count: int, rng: np.random.Generator) -> F64:
    """What chocolate is worth to as many people."""
    return np.maximum(1.0, rng.normal(mean, SPREAD, count))


def changed(people: Users, switches: Switches, rng: np.random.Generator) -> Users:
    """What drift and turnover make of them in a step."""
    choc = np.maximum(1.0, drifted(switches, people.choc, 1.0, rng))
    new = replaced(switches, len(people), 1.0, rng)
    if len(new):
        choc[new] = liking(people.mean, len(new), rng)
    return replace(people, choc=choc)


def earned(people: Users, clickbait: F64, exposure: F64) -> F64:
    """Expected reward (…, U)."""
    return np.asarray((clickbait * people.choc + (1 - clickbait) * KALE) * sigmoid(people.sensitivity * exposure))


def play(people: Users, policy: Policy, seed: int, horizon: int = HORIZON, switches: Switches | None = None) -> F64:
    """(U,) sums of rewards. Luck is a function of the seed, whatever the policy (common random numbers)."""
    rng, passing = np.random.default_rng([seed, 22]), np.random.default_rng([seed, 24])
    switches = switches or Switches()
    exposure, last, known = np.zeros(len(people)), np.zeros(len(people)), np.zeros(len(people))
    total, late = np.zeros(len(people)), Late(switches, np.random.default_rng([seed, 25]))
    for step in range(horizon):
        luck = rng.normal(size=(2, len(people)))
        c = np.clip(policy(Seen(step, sigmoid(people.sensitivity * exposure), last, known)), 0.0, 1.0)
        reward = earned(people, c, exposure) + NOISE * luck[0]
        total += reward
        late.send(reward, step)
        known, people = late.receive(known, step), changed(people, switches, passing)
        exposure, last = people.memory * exposure - 2 * (c - 0.5) + INNOVATION * luck[1], c
    return total


def constant_values(people: Users, clickbait: F64, horizon: int = HORIZON) -> F64:
    """(a, U) expected sums of rewards of constants (a,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()
    c = clickbait[:, None]
    mean, variance = np.zeros((len(clickbait), len(people))), np.zeros(len(people))
    total = np.zeros_like(mean)
    for _ in range(horizon):
        for point, weight in zip(points, weights, strict=True):
            total += weight * earned(people, c, mean + point * np.sqrt(variance))
        mean, variance = people.memory * mean - 2 * (c - 0.5), people.memory**2 * variance + INNOVATION**2
    return total


def best_constant(people: Users) -> float:
    """The c of `ACTIONS` that is best on average over these people."""
    return float(ACTIONS[constant_values(people, ACTIONS).mean(axis=1).argmax()])


class Oracle:
    """Knows everybody. values (U,) by its own backward induction; as a policy it is told the exposure, which SAT reveals to it."""

    def __init__(self, people: Users, horizon: int = HORIZON) -> None:
        self.people = people
        n, g = len(people), len(GRID)
        self.table = np.empty((horizon, n, g), np.int8)
        worth = np.zeros((n, g))
        later = self._later()
        now = np.stack([earned(people, np.full(n, a), GRID[:, None]).T for a in ACTIONS], axis=2)  # (U, g, a)
        for step in range(horizon - 1, -1, -1):
            q = now + sum(
                w * ((1 - share) * np.take_along_axis(worth, low.reshape(n, -1), 1).reshape(low.shape)
                     + share * np.take_along_axis(worth, low.reshape(n, -1) + 1, 1).reshape(low.shape))
                for w, (low, share) in zip(_WEIGHTS, later, strict=True)
            )  # fmt: skip
            self.table[step] = q.argmax(axis=2)
            worth = q.max(axis=2)
        self.values: F64 = worth[:, g // 2].copy()

    def _later(self) -> list[tuple[Any, F64]]:
        """A noise point each: where the next exposure falls, (U, g, a) lower grid point and share of the upper one."""
        width = GRID[1] - GRID[0]
        made = []
        for point in _POINTS:
            coming = self.people.memory[:, None, None] * GRID[:, None] - 2 * (ACTIONS - 0.5) + INNOVATION * point
            at = np.clip((coming - GRID[0]) / width, 0, len(GRID) - 1.001)
            low = at.astype(np.int64)
            made.append((low, at - low))
        return made

    def __call__(self, seen: Seen) -> F64:
        odds = np.log(seen.satisfaction / (1 - seen.satisfaction)) / self.people.sensitivity
        at = np.clip(np.rint((odds - GRID[0]) / (GRID[1] - GRID[0])), 0, len(GRID) - 1).astype(np.int64)
        return np.asarray(ACTIONS[self.table[seen.step, np.arange(len(at)), at]])


class LongTermEnv:
    """One person after another with gymnasium's signatures: observation [step / horizon, SAT, last c, reward heard last / 10], action c.

    `spaces` needs gymnasium, nothing else does.
    """

    def __init__(self, mean: float = UNSEEN, horizon: int = HORIZON, switches: Switches | None = None) -> None:
        self.mean, self.horizon, self.switches = mean, horizon, switches or Switches()
        self._seed = -1
        self._start(0)

    def _start(self, seed: int) -> None:
        self._seed, self._person = seed, users(1, self.mean, seed)
        self._rng = np.random.default_rng([seed, 22])
        self._passing, self._late = (
            np.random.default_rng([seed, 24]),
            Late(self.switches, np.random.default_rng([seed, 25])),
        )
        self._step, self._exposure, self._last, self._known = 0, 0.0, 0.0, np.zeros(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[F64, dict[str, Any]]:
        self._start(self._seed + 1 if seed is None else seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[F64, float, bool, bool, dict[str, Any]]:
        c = float(np.asarray(action).reshape(-1)[0])
        if not 0 <= c <= 1:
            raise ValueError(f"an action is clickbait from 0 to 1, got {action!r}")
        if self._step >= self.horizon:
            raise ValueError("the horizon was reached: reset first")
        luck = self._rng.normal(size=(2, 1))[:, 0]
        reward = float(earned(self._person, np.array([c]), np.array([self._exposure]))[0] + NOISE * luck[0])
        self._exposure = float(self._person.memory[0] * self._exposure - 2 * (c - 0.5) + INNOVATION * luck[1])
        self._late.send(np.array([reward]), self._step)
        self._known = self._late.receive(self._known, self._step)
        self._person = changed(self._person, self.switches, self._passing)
        self._step, self._last = self._step + 1, c
        return self._observation(), reward, False, self._step >= self.horizon, {}

    def spaces(self) -> tuple[Any, Any]:
        """(observation space, action space)."""
        from gymnasium import spaces

        low, high = np.array([0, 0, 0, -np.inf]), np.array([1, 1, 1, np.inf])
        return spaces.Box(low, high, dtype=np.float64), spaces.Box(0.0, 1.0, (1,), np.float64)

    def _observation(self) -> F64:
        satisfaction = sigmoid(self._person.sensitivity * self._exposure)[0]
        return np.array([self._step / self.horizon, satisfaction, self._last, self._known[0] / 10])
