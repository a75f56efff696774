"""The trainer of `neural_linear`: the only file of it that needs torch.

    loss = mean over the slots of a minibatch, weighed by age, of Σ_o (r̂_o − r_o / rms_o)² / 2 + decay ‖weights‖² / 2
    r̂ = headᵀ φ, φ as the last layer reads it,   rms_o² = Y_oo / n of the sums

Every objective of the surface has its say, in units of its own rewards, whatever a policy weighs it by: a change of weights changes
no network.

The head is the last layer's stand-in while the network learns, by gradients and without a posterior; nobody is served it. Slots
not seen, and pinned ones, are in no loss and in no sum. Minibatches are drawn from a generator of the update's number, so state
is a function of the calls in their order and nothing random needs to be saved.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.adam import adam
from policies.algorithm import Problem
from policies.algorithms.neural_linear import last_layer, network
from policies.algorithms.neural_linear.config import NeuralLinear
from policies.forgetting import half_life_seconds
from policies.linear_graph import chosen
from policies.one_thread import one_thread
from policies.replay import Replay
from policies.ridge import columns, phi
from policies.ridge_fitting import fit
from policies.sequences import Transitions
from policies.types import F64, Arrays, Mask

CLIP = 10.0  # norm of a gradient, rewards in units of their root mean square: wild ones move the moments no further
TINY = float(np.finfo(float).tiny)
PARAMETERS = (*network.WEIGHTS, "head")


class NeuralLinearTrainer:
    """See `policies.training.Trainer`. Two networks: `_weights` is trained, `_served` is what sums and bundles are of."""

    def __init__(self, config: NeuralLinear, problem: Problem) -> None:
        self.config, self.problem, self._last = config, problem, network.above(config, problem)
        self._own = chosen(problem)
        self._outputs = network.output_columns(config, problem)
        self._half_life = half_life_seconds(config.half_life)
        weights = network.initial(config, problem)
        self._served: Arrays = {name: value.copy() for name, value in weights.items()}
        weights["head"] = np.zeros((len(columns(self._last)), len(self._own)), np.float32)
        self._weights = {name: _tensor(value).requires_grad_() for name, value in weights.items()}
        self._moments = [{name: torch.zeros_like(value) for name, value in self._weights.items()} for _ in range(2)]
        self._sums = last_layer.begin(config, problem)
        self._replay = Replay(config.replay)
        self._counts = dict.fromkeys(network.COUNTS, 0)
        self._credit, self._slot_weight = 0.0, 1.0

    @one_thread
    def train(self, batch: Transitions) -> dict[str, float]:
        decisions, refused = self._decisions(batch)
        counts, new = self._counts, len(decisions["times"])
        counts["refused"] += refused
        counts["skipped"] += refused > 0
        if new:
            last_layer.learn(self._sums, self.config, self.problem, self._served, decisions, self._slot_weight)
            self._replay.add(decisions)
            self._credit += new * self.config.replay_ratio
            counts["since"] += new
        losses = []
        while self._credit >= self.config.minibatch and len(self._replay):
            self._credit -= self.config.minibatch
            losses.append(self._step())
        if new and counts["since"] >= self.config.refresh * len(self._replay):
            self._refresh()
        found = [loss for loss in losses if loss is not None]
        said = {"loss": float(np.mean(found))} if found else {}
        return said | {
            "skipped": float(counts["skipped"]),
            "refused_transitions": float(counts["refused"]),
            "updates": float(counts["updates"]),
            "rebuilt": float(counts["rebuilt"]),
            "replay": float(len(self._replay)),
        }

    # -- state ---------------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        made: Arrays = {name: value.detach().numpy().copy() for name, value in self._weights.items()}
        for order, moments in enumerate(self._moments, 1):
            made |= {f"moment{order}.{name}": value.numpy().copy() for name, value in moments.items()}
        made |= {f"served.{name}": value.copy() for name, value in self._served.items()}
        made |= last_layer.stored(self._sums, self._served) | self._replay.arrays()
        return made | {
            "counts": np.array(list(self._counts.values()), np.int64),
            "running": np.array([self._credit, self._slot_weight]),
        }

    def load(self, arrays: Arrays) -> None:
        """Raises ValueError when the arrays are of other options, Corrupt('network') when sums and network do not belong together."""
        for name, value in self._weights.items():
            if arrays[name].shape != tuple(value.shape):
                raise ValueError(f"{name} is of other options: {arrays[name].shape}, expected {tuple(value.shape)}")
        served: Arrays = {name: np.array(arrays[f"served.{name}"], np.float32) for name in network.WEIGHTS}
        sums = last_layer.sums_in(self.config, self.problem, arrays, served)
        self._served = served
        self._sums = last_layer.begin(self.config, self.problem)
        self._sums.load(sums)
        self._weights = {name: _tensor(arrays[name]).requires_grad_() for name in PARAMETERS}
        self._moments = [{name: _tensor(arrays[f"moment{order}.{name}"]) for name in PARAMETERS} for order in (1, 2)]
        self._replay.load(arrays)
        self._counts = dict(zip(network.COUNTS, np.asarray(arrays["counts"]).tolist(), strict=True))
        self._credit, self._slot_weight = np.asarray(arrays["running"], float).tolist()

    # -- what is learned from ------------------------------------------------------------------------------------------

    def _decisions(self, batch: Transitions) -> tuple[dict[str, NDArray[Any]], int]:
        """The slots of every decision, and how many decisions were refused because a number in them is not finite."""
        there, every = batch.slate >= 0, np.arange(len(batch))[:, None]
        items = batch.candidates[every, np.maximum(batch.slate, 0)] * there[:, :, None]
        with np.errstate(over="ignore"):  # what no float32 holds is refused below
            small = batch.rewards.astype(np.float32)
        made: dict[str, NDArray[Any]] = {
            "context": batch.context,
            "items": self._wide(items),
            "present": self._wide(batch.present & there),
            "rewards": self._wide(batch.rewards),
            "times": batch.times,
        }
        good: Mask = np.ones(len(batch), bool)
        for value in (small, *(made[name] for name in ("context", "items", "times"))):
            good &= np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
        return {name: value[good] for name, value in made.items()}, int((~good).sum())

    def _wide(self, slots: NDArray[Any]) -> NDArray[Any]:
        """(N, k, …), as many slots as the surface has."""
        made = np.zeros((len(slots), self.problem.slots, *slots.shape[2:]), slots.dtype)
        made[:, : slots.shape[1]] = slots[:, : self.problem.slots]
        return made

    # -- the network ---------------------------------------------------------------------------------------------------

    def _step(self) -> float | None:
        """One step; its loss, or None where it was not finite and not taken, or where no slot was seen."""
        rng = np.random.default_rng([self.config.seed, 2, self._counts["updates"]])
        self._counts["updates"] += 1
        decisions = self._replay.rows(rng.integers(len(self._replay), size=self.config.minibatch))
        if not decisions["present"].any():
            return None
        loss = self._loss(decisions)
        gradients = torch.autograd.grad(loss, [self._weights[name] for name in PARAMETERS])
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        if not np.isfinite([float(loss.detach()), norm]).all():
            self._counts["skipped"] += 1
            return None
        scaled = [gradient * (CLIP / max(norm, CLIP)) for gradient in gradients]
        self._counts["steps"] += 1
        named = dict(zip(PARAMETERS, scaled, strict=True))
        adam(self._weights, self._moments, named, self._counts["steps"], self.config.learning_rate)
        return float(loss.detach())

    def _loss(self, decisions: Arrays) -> Tensor:
        here, mine = decisions["present"], self._weights
        slates, slots = np.nonzero(here)
        context, items = decisions["context"][slates].astype(np.float32), decisions["items"][here].astype(np.float32)
        silent = network.widened(self.config, items, np.zeros((len(slots), self.config.features), np.float32))
        x = _tensor(phi(network.below(self.problem), context, items, slots))
        known = _tensor(phi(self._last, context, silent, slots))
        rewards: F64 = decisions["rewards"][here].astype(np.float64)[:, self._own]
        ages = (decisions["times"][slates].astype(np.float64) - decisions["times"].max()) / self._half_life
        psi = torch.relu(torch.relu(x @ mine["first"]) @ mine["second"] + mine["second_bias"])
        away = known @ mine["head"] + psi @ mine["head"][self._outputs] - _tensor(rewards / self._scales())
        weights = _tensor(np.exp2(ages))
        size = torch.stack([(value**2).sum() for value in mine.values()]).sum()
        return (weights @ (away**2).sum(dim=1) / weights.sum() + self.config.decay * size) / 2

    def _scales(self) -> F64:
        """Root mean square of each objective's rewards (o,), 1 where all were 0."""
        sums = self._sums.sums
        rms: F64 = np.sqrt(np.diag(sums["Y"])[self._own] / max(float(sums["n"][0]), TINY))
        return np.where(rms > 0, rms, 1.0)

    def _refresh(self) -> None:
        """Serve the network as it is now, with sums of its own. One that has not moved keeps its sums."""
        weights: Arrays = {name: self._weights[name].detach().numpy().copy() for name in network.WEIGHTS}
        if network.fingerprint(weights)[0] == network.fingerprint(self._served)[0]:
            return
        newest = self._replay.newest(len(self._replay))
        if self.problem.slots > 1:
            now = float(newest["times"].astype(np.float64).max())
            self._slot_weight = fit(self.config, self._last, self._sums.arrays(), now).slot_weight
        self._served, self._sums = weights, last_layer.begin(self.config, self.problem)
        last_layer.learn(self._sums, self.config, self.problem, weights, newest, self._slot_weight)
        self._counts["since"] = 0
        self._counts["rebuilt"] += 1


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
