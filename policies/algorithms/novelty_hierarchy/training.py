"""The trainer: transitions into replay for the worker, completed stretches of sessions into another for the manager.

Minibatches are drawn from a generator of the update's number, so state is a function of the calls in their order and nothing
random needs to be saved. Moments of rewards and returns run along and travel with the state. With every minibatch of the
worker comes one of the manager, once a sixteenth of its own has been completed. What is served is the running mean of the
weights over updates (Polyak & Juditsky 1992): a policy gradient of rare acceptances is mostly noise, and Adam walks with it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.adam import adam
from policies.algorithm import Problem
from policies.algorithms.novelty_hierarchy import losses, network
from policies.algorithms.novelty_hierarchy.config import NoveltyHierarchy, read
from policies.algorithms.novelty_hierarchy.sessions import Waiting
from policies.novelty import novelty
from policies.one_thread import one_thread
from policies.replay import Replay
from policies.sequences import Transitions
from policies.types import F64, Arrays, Mask

FORGETS = 0.01  # share of a new minibatch in the running moments, once a hundred have been seen
SESSION_GAP = 1_800.0  # seconds without a decision: the next one is another session's, as everywhere on the web
FEW = 16  # the manager learns once it has a minibatch's 16th of stretches
WAITS = ("unit", "session", "time", "reward", "terminal", "chosen")
MANAGER = ("manager_in", "manager_out", "goals_in", "goals_out")
MOMENTS = {"reward": 1.0, "advantage": 1.0, "return": 0.0, "return_square": 1.0}


class HierarchyTrainer:
    """See `policies.training.Trainer`."""

    def __init__(self, config: NoveltyHierarchy, problem: Problem) -> None:
        self.config, self.problem, self._told = config, problem, read(config, problem)
        self._weights = {n: _tensor(w).requires_grad_() for n, w in network.initial(config, problem).items()}
        self._adam = [{n: torch.zeros_like(w) for n, w in self._weights.items()} for _ in range(2)]
        self._average = {n: self._weights[n].detach().clone() for n in network.SERVED}
        self._replay, self._stretches = Replay(config.replay), Replay(config.epochs)
        self._waiting = Waiting(
            config.manager_discount, config.next_session, config.goal_steps, config.return_seconds, config.waiting
        )
        self._moments, self._alike = dict(MOMENTS), losses.neighbours(config.goals)
        self._counts = dict.fromkeys(("updates", "skipped", "refused", "worker_steps", "manager_steps"), 0)
        self._credit, self._now = 0.0, -np.inf

    @one_thread
    def train(self, batch: Transitions) -> dict[str, float]:
        columns, bad = self._columns(batch)
        self._counts["refused"] += bad
        self._counts["skipped"] += bad > 0
        rows = len(columns["slate"])
        if rows:
            self._now = max(self._now, float(columns["time"].max()))
            self._wait(columns)
            columns = {name: value for name, value in columns.items() if name not in WAITS}
            self._replay.add(columns)
            self._credit += rows * self.config.replay_ratio
        found: list[dict[str, float]] = []
        while self._credit >= self.config.minibatch and len(self._replay):
            self._credit -= self.config.minibatch
            found.append(self._update())
        names = sorted({name for each in found for name in each})
        said = {name: float(np.mean([each[name] for each in found if name in each])) for name in names}
        return said | {
            "skipped": float(self._counts["skipped"]),
            "refused_transitions": float(self._counts["refused"]),
            "updates": float(self._counts["updates"]),
            "replay": float(len(self._replay)),
            "stretches": float(self._stretches.added),
            "waiting": float(len(self._waiting)),
            "waiting_dropped": float(self._waiting.dropped),
            "own_novelty": float(self._weights["own"].detach()[0]),
        }

    def arrays(self) -> Arrays:
        held: Arrays = {name: w.detach().numpy().copy() for name, w in self._weights.items()}
        for order, moments in enumerate(self._adam, 1):
            held |= {f"moment{order}.{name}": m.numpy().copy() for name, m in moments.items()}
        held |= {f"{network.AVERAGE}{name}": w.numpy().copy() for name, w in self._average.items()}
        held |= self._replay.arrays() | self._waiting.arrays()
        held |= {f"stretches.{name}": value for name, value in self._stretches.arrays().items()}
        return held | {
            "moments": np.array([self._moments[name] for name in MOMENTS]),
            "counts": np.array(list(self._counts.values()), np.int64),
            "credit": np.array([self._credit]),
            "now": np.array([np.nan_to_num(self._now, neginf=-1e300)]),  # checkpoints hold finite numbers only
        }

    def load(self, arrays: Arrays) -> None:
        """Raises ValueError when the arrays are of other options."""
        for name, shape in network.shapes(self.config, self.problem).items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} is of other options: {arrays[name].shape}, expected {shape}")
            self._weights[name] = _tensor(arrays[name]).requires_grad_()
            for order, moments in enumerate(self._adam, 1):
                moments[name] = _tensor(arrays[f"moment{order}.{name}"])
        self._average = {name: _tensor(network.served(arrays, name)) for name in network.SERVED}
        mine = "stretches."
        self._replay.load(arrays)
        self._stretches.load({n.removeprefix(mine): a for n, a in arrays.items() if n.startswith(mine)})
        self._waiting.load(arrays)
        self._moments = dict(zip(MOMENTS, np.asarray(arrays["moments"], float).tolist(), strict=True))
        self._counts = dict(zip(self._counts, np.asarray(arrays["counts"]).tolist(), strict=True))
        self._credit, self._now = float(arrays["credit"][0]), float(arrays["now"][0])

    # -- what is learned from -----------------------------------------------------------------------------------------

    def _columns(self, batch: Transitions) -> tuple[dict[str, NDArray[Any]], int]:
        """What updates read, and how many transitions were refused because a number in them is not finite."""
        config, every = self.config, np.arange(len(batch))[:, None]
        there = batch.present & (batch.slate >= 0)
        history = np.where(batch.lived[:, :, None], batch.history, np.float32(0))
        following = np.where(batch.next_lived[:, :, None], batch.next_history, np.float32(0))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            reward = np.where(there, batch.rewards @ np.array(list(self.problem.weights.values())), 0.0)
            new = novelty(batch.candidates, history)
            accepted = (reward > 0) * np.where(there, new[every, np.maximum(batch.slate, 0)], 0.0)
            goal = (batch.goals[:, None] == np.arange(config.goals)).astype(np.float32)
            columns: dict[str, NDArray[Any]] = {
                "phi": network.features(batch.context, history, config.recent),
                "next_phi": network.features(batch.next_context, following, config.recent),
                "items": batch.candidates,
                "new": new,
                "allowed": batch.allowed.astype(np.float32),
                "slate": batch.slate,
                "present": there,
                "log_propensities": np.log(batch.propensities),
                "shaped": reward + config.shaping * config.novel * accepted,
                "over": batch.terminal | (batch.elapsed > SESSION_GAP),
                "goal": goal * float(config.managed),
            }
            for name, value in columns.items():
                if name != "slate":
                    columns[name] = np.ascontiguousarray(value, np.float32)
        columns |= {"unit": batch.units, "session": batch.sessions, "time": batch.times, "reward": reward.sum(axis=1)}
        good: Mask = np.ones(len(batch), bool)
        for value in columns.values():
            if value.dtype.kind == "f":
                good &= np.isfinite(value.reshape(len(batch), -1)).all(axis=1)
        columns["terminal"], columns["chosen"] = batch.terminal, batch.goals
        return {name: value[good] for name, value in columns.items()}, int((~good).sum())

    def _wait(self, columns: dict[str, NDArray[Any]]) -> None:
        """Decisions of units that were named, to wait for what their goals brought; of nobody, nobody comes back."""
        named = columns["unit"] != 0
        if not self.config.managed or not named.any():
            return
        rows = {name: columns[name][named] for name in WAITS}
        told = (columns["phi"] * self._told).astype(np.float32)[named]
        made = self._waiting.take(rows | {"told": told}, self._now)
        if len(made["return"]):
            hot = (made["chosen"][:, None] == np.arange(self.config.goals)).astype(np.float32)
            self._stretches.add({"told": made["told"], "goal": hot, "return": made["return"]})

    # -- learning ------------------------------------------------------------------------------------------------------

    def _update(self) -> dict[str, float]:
        rng = np.random.default_rng([self.config.seed, self._counts["updates"]])
        self._counts["updates"] += 1
        size, moments = self.config.minibatch, self._moments
        share = max(FORGETS, 1 / self._counts["updates"])
        batch = self._replay.rows(rng.integers(len(self._replay), size=size))
        square = float(np.square(np.asarray(batch["shaped"], float).sum(axis=1)).mean())
        moments["reward"] = (1 - share) * moments["reward"] + share * square
        batch["shaped"] = batch["shaped"] / np.sqrt(max(moments["reward"], 1e-12))
        batch["deviation"] = np.full((size, 1), np.sqrt(max(moments["advantage"], 1e-12)))
        loss, seen = losses.worker(
            self._weights,
            _tensors(batch),
            _tensor(self.config.strengths),
            novel=float(self.config.novel),
            discount=self.config.discount,
            clip=self.config.clip,
            entropy=self.config.entropy,
            temperature=self.config.temperature,
        )
        said = {name: float(value.detach()) for name, value in seen.items()}
        if self._step(loss, [name for name in self._weights if name not in MANAGER], "worker_steps"):
            moments["advantage"] = (1 - share) * moments["advantage"] + share * said["advantage"]
        if len(self._stretches) * FEW >= size:
            rows = self._stretches.rows(rng.integers(len(self._stretches), size=size))
            total: F64 = np.asarray(rows["return"], np.float64)
            moments["return"] = (1 - share) * moments["return"] + share * float(total.mean())
            moments["return_square"] = (1 - share) * moments["return_square"] + share * float(np.square(total).mean())
            spread = np.sqrt(max(moments["return_square"] - moments["return"] ** 2, 1e-12))
            rows["return"] = (total - moments["return"]) / spread
            loss, seen = losses.manager(self._weights, _tensors(rows), self._alike, entropy=self.config.goal_entropy)
            self._step(loss, list(MANAGER), "manager_steps")
            said |= {name: float(value.detach()) for name, value in seen.items()}
        with torch.no_grad():
            for name, mean in self._average.items():
                mean.lerp_(self._weights[name], max(1 - self.config.averaging, 1 / self._counts["updates"]))
        return {name: value for name, value in said.items() if np.isfinite(value)}

    def _step(self, loss: Tensor, names: list[str], count: str) -> bool:
        """One step of Adam; none, and counted, when anything is not finite."""
        gradients = torch.autograd.grad(loss, [self._weights[name] for name in names])
        if not torch.isfinite(loss) or not all(bool(torch.isfinite(g).all()) for g in gradients):
            self._counts["skipped"] += 1
            return False
        self._counts[count] += 1
        found = dict(zip(names, gradients, strict=True))
        adam(self._weights, self._adam, found, self._counts[count], self.config.learning_rate)
        return True


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _tensors(batch: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.asarray(value, np.int64)) if name == "slate" else _tensor(value)
        for name, value in batch.items()
    }
