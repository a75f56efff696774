"""Stochastic variational inference for `recurrent_slate`, in torch: the only file of it that needs torch.

    loss = KL(q ∥ p)/R − mean over a minibatch of log P(what was clicked | slate, z),  z and the slate's vectors of one draw of q

A step takes `batch` of the R decisions kept, draws all parameters once, and moves them by Adam. The items' prior is set to its
empirical Bayes value before every step, so the KL pulls every item towards its group as it stands. Randomness is a function
of the seed and the number of steps made, so a state that was stored goes on as the one that was not.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies import item_draws
from policies.adam import adam
from policies.algorithm import Problem
from policies.algorithms.recurrent_slate import model
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.one_thread import one_thread
from policies.sequences import Transitions
from policies.types import F32, I64, Arrays, Mask

NOISE = 0.5  # a new item starts half a prior's standard deviation from its group: all at one point would learn nothing
ITEM = ("item_mean", "item_log_scale")
KEPT = ("past", "shown", "clicked", "present", "context")
NONE = -1  # no item


class SlateTrainer:
    """Parameters, Adam's moments and the decisions kept, all in named arrays.

    past (R, H)  rows of items clicked before, oldest first, NONE behind;  shown (R, k) rows of the slate, NONE where not seen
    clicked (R, k)  which of them were clicked on;  context (R, c)
    """

    def __init__(self, config: RecurrentSlate, problem: Problem) -> None:
        self.config, self.problem = config, problem
        self._columns = model.group_columns(config, problem)
        self._weights = np.array(list(problem.weights.values()))
        self._groups: model.Groups | None = None
        self.load(model.initial(config, problem))

    # -- state ---------------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        made: Arrays = {"item_hashes": self._hashes, "item_group": self._group, "counts": self._counts}
        made |= {name: tensor.detach().numpy() for name, tensor in self._parameters.items()}
        for order, moments in enumerate(self._moments, 1):
            made |= {f"moment{order}.{name}": tensor.numpy() for name, tensor in moments.items()}
        made |= {f"replay.{name}": value for name, value in self._replay.items()}
        if self._groups is not None:
            made |= {f"groups.{name}": value for name, value in zip(self._groups._fields, self._groups, strict=True)}
        return {name: np.array(value) for name, value in made.items()}

    def load(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave, or first weights. Raises ValueError when they are of other sizes or another state."""
        wanted = model.initial(self.config, self.problem)
        names = [name for name, value in wanted.items() if value.dtype.kind == "f"]
        for name in names:
            if name not in arrays or arrays[name].shape[-1:] != wanted[name].shape[-1:]:
                raise ValueError(f"{name} is of other options: size, hidden and state make a model of their own")
        self._hashes: NDArray[np.uint64] = arrays["item_hashes"].astype(np.uint64)
        self._group: I64 = arrays["item_group"].astype(np.int64)
        self._parameters = {name: _tensor(arrays[name]).requires_grad_() for name in names}
        self._moments = [
            {name: _tensor(arrays.get(f"moment{order}.{name}", np.zeros_like(arrays[name]))) for name in names}
            for order in (1, 2)
        ]
        self._counts = arrays.get("counts", np.zeros(3, np.int64)).astype(np.int64)  # steps, skipped, decisions
        H, k, c = self.problem.history, self.problem.slots, self.problem.encoder.context_size
        empty = {
            "past": np.zeros((0, H), np.int64),
            "shown": np.zeros((0, k), np.int64),
            "clicked": np.zeros((0, k), np.bool_),
            "context": np.zeros((0, c), np.float32),
        }
        self._replay: dict[str, NDArray[np.generic]] = {
            name: np.array(arrays.get(f"replay.{name}", value)) for name, value in empty.items()
        }
        self._groups = None
        if "groups.mean" in arrays:
            self._groups = model.Groups(*(arrays[f"groups.{name}"].astype(float) for name in model.Groups._fields))

    # -- learning ------------------------------------------------------------------------------------------------------

    @one_thread
    def train(self, batch: Transitions) -> dict[str, float]:
        """Keep the decisions and make `steps` gradient steps over all that are kept; means over the steps."""
        if len(batch):
            self._keep(batch)
        kept = len(self._replay["past"])
        losses, likelihoods, skipped = [], [], 0
        for _ in range(self.config.steps if kept else 0):
            loss, likelihood = self._step(kept)
            skipped += not np.isfinite(loss)
            losses.append(loss)
            likelihoods.append(likelihood)
        self._counts += [0, skipped, len(batch)]
        made = {"skipped": float(skipped), "items": float(len(self._hashes)), "kept": float(kept)}
        if len(losses) > skipped:
            made |= {"loss": float(np.nanmean(losses)), "log_likelihood": float(np.nanmean(likelihoods))}
        return made

    def _keep(self, batch: Transitions) -> None:
        each = np.arange(len(batch))[:, None]
        there = (batch.slate >= 0) & batch.present
        hashes = np.where(there, batch.items[each, np.maximum(batch.slate, 0)], 0)
        features = batch.candidates[each, np.maximum(batch.slate, 0)]
        self._meet(
            np.concatenate([hashes[there], batch.history_items[batch.lived]]),
            np.concatenate([features[there], batch.history[batch.lived]]),
        )
        H, k = self.problem.history, self.problem.slots
        past = self._front(self._rows(batch.history_items, batch.lived), H)
        rewards = (batch.rewards @ self._weights > 0) & there
        new: dict[str, NDArray[np.generic]] = {
            "past": past,
            "shown": _wide(self._rows(hashes, there), k, NONE),
            "clicked": _wide(rewards, k, False),
            "context": batch.context.astype(np.float32),
        }
        keep = self.config.replay
        self._replay = {name: np.concatenate([self._replay[name], value])[-keep:] for name, value in new.items()}

    def _rows(self, hashes: NDArray[np.uint64], there: Mask) -> I64:
        return np.where(there, np.searchsorted(self._hashes, hashes), NONE)

    @staticmethod
    def _front(rows: I64, width: int) -> I64:
        """The last `width` items of each row that are any, moved to the front in their order."""
        order = np.argsort(rows < 0, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        many = (rows >= 0).sum(axis=1)
        at = np.maximum(many - width, 0)[:, None] + np.arange(width)
        inside = at < many[:, None]
        found = np.take_along_axis(rows, np.minimum(at, max(rows.shape[1] - 1, 0)), axis=1) if rows.shape[1] else at
        return np.where(inside, found, NONE)

    def _meet(self, hashes: NDArray[np.uint64], features: F32) -> None:
        """Rows for items not met before, each drawn near its group; what is kept names the new rows."""
        distinct, first = np.unique(hashes, return_index=True)
        new = ~np.isin(distinct, self._hashes)
        if not new.any():
            return
        shown = features[first[new]][:, self._columns]
        group = np.where(shown.any(axis=1), shown.argmax(axis=1), -1) if len(self._columns) else np.full(new.sum(), -1)
        known = self._now()
        spread = np.sqrt(known.spread[group])[:, None]
        keys = item_draws.keys_of(distinct[new])
        z = item_draws.normals(keys, item_draws.turn(self.config.seed), 1, self.config.size)
        born = {
            "item_mean": known.mean[group] + NOISE * spread * z,
            "item_log_scale": np.broadcast_to(np.log(spread), z.shape),
        }
        every = np.union1d(self._hashes, distinct[new])
        old, fresh = np.searchsorted(every, self._hashes), np.searchsorted(every, distinct[new])
        for name in ITEM:
            for tensors, value in ((self._parameters, born[name]), *((moments, None) for moments in self._moments)):
                table = np.zeros((len(every), self.config.size), np.float32)
                table[old] = tensors[name].detach().numpy()
                if value is not None:
                    table[fresh] = value
                tensors[name] = _tensor(table)
            self._parameters[name].requires_grad_()
        groups = np.zeros(len(every), np.int64)
        groups[old], groups[fresh] = self._group, group
        moved = np.append(old, NONE)  # NONE stays
        for name in ("past", "shown"):
            self._replay[name] = moved[self._replay[name]]
        self._hashes, self._group = every, groups

    def _now(self) -> model.Groups:
        mean = self._parameters["item_mean"].detach().numpy().astype(float)
        variance = np.exp(2 * self._parameters["item_log_scale"].detach().numpy().astype(float))
        self._groups = model.groups_of(mean, variance, self._group, len(self._columns), self._groups)
        return self._groups

    def _step(self, kept: int) -> tuple[float, float]:
        rng = np.random.default_rng([self.config.seed, 2, int(self._counts[0])])
        self._counts[0] += 1
        rows = rng.integers(kept, size=min(self.config.batch, kept))
        likelihood = self._log_likelihood(rows, rng)
        loss = self._divergence() / kept - likelihood
        if not torch.isfinite(loss):
            return float("nan"), float("nan")
        names = list(self._parameters)
        gradients = torch.autograd.grad(loss, [self._parameters[name] for name in names])
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            return float("nan"), float("nan")
        t = int(self._counts[0] - self._counts[1])
        found = dict(zip(names, gradients, strict=True))
        adam(self._parameters, self._moments, found, t, self.config.learning_rate)
        return float(loss.detach()), float(likelihood.detach())

    # -- the model -----------------------------------------------------------------------------------------------------

    def _log_likelihood(self, rows: I64, rng: np.random.Generator) -> Tensor:
        """Mean log probability of what was clicked, of decisions `rows`, under one draw of q."""
        mine = self._parameters

        def drawn(mean: str, scale: str) -> Tensor:
            noise = torch.from_numpy(rng.standard_normal(mine[mean].shape).astype(np.float32))
            return mine[mean] + mine[scale].exp() * noise

        items = drawn("item_mean", "item_log_scale")
        start = drawn("start", "start_log_scale") + torch.from_numpy(self._replay["context"][rows]) @ mine["of_context"]
        gamma = torch.sigmoid(drawn("gamma", "gamma_log_scale"))
        past = np.asarray(self._replay["past"][rows], np.int64)
        longest = int((past >= 0).sum(axis=1).max(initial=0))
        state = self._state(items, start, gamma, past[:, :longest])
        shown = torch.from_numpy(self._replay["shown"][rows])
        scores = -((state[:, None] - items[shown.clamp(min=0)]) ** 2).sum(dim=2)
        scores = scores.masked_fill(shown < 0, float("-inf"))
        none = mine["no_click"].expand(len(rows), 1)
        logs = torch.log_softmax(torch.cat([none, scores], dim=1), dim=1)
        clicked = torch.from_numpy(self._replay["clicked"][rows])
        chosen = torch.cat([~clicked.any(dim=1, keepdim=True), clicked], dim=1)
        return torch.where(chosen, logs, torch.zeros(())).sum() / len(rows)

    def _state(self, items: Tensor, start: Tensor, gamma: Tensor, past: I64) -> Tensor:
        lived = torch.from_numpy(past >= 0)
        vectors = items[torch.from_numpy(np.maximum(past, 0))] * lived[:, :, None]
        count = lived.sum(dim=1, keepdim=True)
        if self.config.state == "linear":
            later = (count - 1 - torch.arange(past.shape[1])).clamp(min=0)  # clicks after each
            weights = (1 - gamma) * gamma**later * lived
            return gamma**count * start + (weights[:, :, None] * vectors).sum(dim=1)
        mine = self._parameters
        steps = torch.cat([vectors.new_zeros(len(past), 1, vectors.shape[2]), vectors], dim=1)
        weights = [mine[name] for name in ("gru_W", "gru_R", "gru_b", "gru_c")]
        states, _ = torch.gru(steps, start[None], weights, True, 1, 0.0, True, False, True)  # one layer, batch first
        last = states[torch.arange(len(past)), count[:, 0]]
        return last @ mine["out"] + mine["out_b"]

    def _divergence(self) -> Tensor:
        """KL of q from the prior, and −log prior of the point estimates, up to constants."""
        known, mine = self._now(), self._parameters
        place = self._group  # −1 is the last row
        spread = torch.from_numpy(known.spread[place].astype(np.float32))[:, None]
        centre = torch.from_numpy(known.mean[place].astype(np.float32))
        variance = (2 * mine["item_log_scale"]).exp()
        square = (mine["item_mean"] - centre) ** 2 + variance
        total = (square / spread - 2 * mine["item_log_scale"]).sum() / 2
        for name in ("start", "gamma"):
            scale = mine[f"{name}_log_scale"]
            total = total + (mine[name] ** 2 + (2 * scale).exp() - 2 * scale).sum() / 2
        for name in ("of_context", *model.WEIGHTS[self.config.state]):
            total = total + (mine[name] ** 2).sum() / 2
        return total


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _wide(rows: NDArray[np.generic], width: int, fill: int | bool) -> NDArray[np.generic]:
    """(N, width), cut or filled."""
    made = np.full((len(rows), width), fill, rows.dtype)
    made[:, : rows.shape[1]] = rows[:, :width]
    return made
