"""The torch side: the network of `network.py` as an RLlib module, and a learner that takes its losses from `losses.py`.

Imported only where something learns: torch and ray come with it.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from policies.algorithms.constrained_actor_critic.losses import Outputs, Terms, losses
from policies.algorithms.constrained_actor_critic.network import DEAD


class Network(TorchRLModule):  # type: ignore[misc]  # ray ships no types
    """Parameters named and shaped by `model_config["shapes"]`, all zero until they are loaded."""

    def setup(self) -> None:
        for name, shape in self.model_config["shapes"].items():
            setattr(self, name, torch.nn.Parameter(torch.zeros(shape)))
        self.policies: int = self.model_config["policies"]

    def states(self, rows: slice, context: Tensor, history: Tensor, live: Tensor) -> Tensor:
        """(Q', B, U) without the leading 1, see `network.states`; live (B, H) is 1 where a row of the history says anything.
        Rows that say nothing are zeros, so whatever attends to them pools nothing."""
        query, slope, shared, seen = (getattr(self, name)[rows] for name in ("query", "slope", "shared", "seen"))
        b, h, d = history.shape
        q, g, c1, _ = query.shape
        padded = torch.cat([torch.ones(b, 1), context], dim=1)
        asks = padded @ (query.permute(2, 0, 1, 3).reshape(c1, q * g * d) / d**0.5)
        ages = torch.arange(h - 1, -1, -1, dtype=history.dtype)
        away = ((1 - live) * DEAD)[:, None] - slope.reshape(q * g, 1) * ages
        share = torch.softmax(torch.baddbmm(away, asks.reshape(b, q * g, d), history.transpose(1, 2)), dim=2)
        pooled = torch.bmm(share, history).reshape(b, q, g * d).transpose(0, 1)  # (Q', B, g d)
        count = live.sum(dim=1, keepdim=True)
        common = torch.cat([padded, history.sum(dim=1) / count.clamp(min=1), torch.log1p(count)], dim=1)
        of_all = (common @ shared.permute(1, 0, 2).reshape(common.shape[1], -1)).reshape(b, q, -1).transpose(0, 1)
        return torch.relu(torch.baddbmm(of_all, pooled, seen))

    def logits(self, state: Tensor, items: Tensor) -> Tensor:
        """z (B, P, n) of candidates (B, n, d)."""
        wants = _affine(state, self.actor).permute(1, 2, 0)  # (B, d + e, P)
        learned = torch.relu(torch.nn.functional.linear(items, self.tower[1:].T, self.tower[0]))
        d = items.shape[2]
        return torch.baddbmm(torch.bmm(items, wants[:, :d]), learned, wants[:, d:]).transpose(1, 2).contiguous()

    def values(self, state: Tensor) -> Tensor:
        """V (B, P)."""
        return _affine(state, self.critic)[:, :, 0].T

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        p = self.policies
        state = self.states(slice(0, 2 * p), batch["context"], batch["history"], batch["lived"])
        with torch.no_grad():
            after = self.states(slice(p, 2 * p), batch["next_context"], batch["next_history"], batch["next_lived"])
            coming = self.values(after) * (1 - batch["terminal"])[:, None]
        return {"z": self.logits(state[:p], batch["candidates"]), "value": self.values(state[p:]), "coming": coming}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        p = self.policies
        state = self.states(slice(0, p), batch["context"], batch["history"], batch["lived"])
        return {"z": self.logits(state, batch["candidates"])}


def _affine(state: Tensor, weights: Tensor) -> Tensor:
    """[1, state] weights for each of Q: (Q, B, U), (Q, 1 + U, m) → (Q, B, m)."""
    return torch.baddbmm(weights[:, :1], state, weights[:, 1:])


class SteadyLearner(TorchLearner):  # type: ignore[misc]  # ray ships no types
    """Takes no step whose gradient is not finite, and says so. `update` also gives what the loss `measured`, as one vector."""

    _measured: Tensor
    _skipped = 0.0

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Any) -> Tensor:
        terms = Terms(**self.module[module_id].unwrapped().model_config["terms"])
        loss, self._measured = losses(terms, Outputs(**fwd_out), batch)
        return loss

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        found = torch.stack([gradient.sum() for gradient in gradients_dict.values()]).sum()
        self._skipped = 0.0 if bool(torch.isfinite(found)) else 1.0
        if not self._skipped:
            super().apply_gradients(gradients_dict)

    def update(self, *, training_data: TrainingData, **_: Any) -> dict[str, Any]:
        """One gradient step on the batch, without what RLlib measures, splits and averages around its own."""
        training_data.validate()
        training_data.solve_refs()
        self._weights_seq_no += 1
        batches = training_data.batch.policy_batches
        self._update({name: {key: _tensor(value) for key, value in batch.items()} for name, batch in batches.items()})
        return {"measured": np.append(self._measured.detach().numpy(), self._skipped)}


def _tensor(value: NDArray[Any]) -> Tensor:
    """The array's own memory; of what Ray lent for reading, a copy."""
    return torch.from_numpy(np.require(value, requirements=("C", "W")))
