"""The trainer: transitions into replay, minibatches to the learners, and what is judged over all of them.

Running scales, KL's price κ and the multipliers μ live here, in one place whatever the number of learners, and go to them as
columns of the batch. Minibatches are drawn from a generator of the update's number, so state is a function of the
calls in their order and nothing random needs to be saved.

    κ   up by a tenth in log when a policy's KL is above its bound, down when below, within `KAPPA`
    μ   moves by rate · gap, the gap in running standard deviations of a slate's reward, and only when the 95% interval of the
        self-normalised mean (Σwr / Σw, delta method, w = π_1/β of the whole slate) over the last `window` settled decisions
        excludes the threshold; at its bound with the threshold still excluded the objective is `infeasible`: said, not hidden
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.algorithm import Problem
from policies.algorithms.constrained_actor_critic import network, rows_fast
from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic, Roles, roles
from policies.one_thread import one_thread
from policies.replay import Replay
from policies.rllib import Group
from policies.sequences import Transitions
from policies.types import F64, Arrays, Mask

FORGETS = 0.01  # share of a new minibatch in the running moments, once a hundred have been seen
# dearer, and a log of several policies, near to which nobody is, makes copies that serve no objective
KAPPA = 1e-3, 0.3
LARGEST_WEIGHT = 20.0  # of a decision in the judged mean, as everywhere
Z95 = 1.959964
FRONT = frozenset({"history", "next_history", "lived", "next_lived"})
READ = ("context", "candidates", "allowed", "slate", "present", "history", "next_context", "next_history", "terminal")


class ActorCriticTrainer:
    """See `policies.training.Trainer`. `close` lets go of remote learners."""

    def __init__(self, config: ConstrainedActorCritic, problem: Problem) -> None:
        self.config, self.problem, self.roles = config, problem, roles(config, problem)
        p = len(self.roles)
        self._replay = Replay(config.replay, FRONT)
        self._group = _group(config, problem, self.roles)
        self._group.load(dict(network.initial(config, problem, p)))
        self._moments: dict[str, F64] = {
            "mean": np.zeros(p),  # of a slate's reward
            "square": np.ones(p),  # its second moment
            "deviation": np.ones(p),  # second moment of the advantage
            "kappa": np.ones(p),
            "multiplier": np.zeros(p),
        }
        self._updates, self._credit, self._skipped, self._refused = 0, 0.0, 0, 0

    @one_thread
    def train(self, batch: Transitions) -> dict[str, float]:
        columns, bad = self._columns(batch)
        self._refused += bad
        self._skipped += bad > 0
        rows = len(columns["slate"])
        if rows:
            self._replay.add(columns)
            self._credit += rows * self.config.replay_ratio
        found: list[F64] = []
        while self._credit >= self.config.minibatch and len(self._replay) >= self._group.learners:
            self._credit -= self.config.minibatch
            measured = self._update()
            if measured is not None:
                found.append(measured)
        metrics = self._said(np.mean(found, axis=0)) if found else {}
        if rows and self.config.mode == "lagrangian":
            metrics |= self._judge()
        return metrics | {
            "skipped": float(self._skipped),
            "refused_transitions": float(self._refused),
            "updates": float(self._updates),
            "replay": float(len(self._replay)),
        }

    def arrays(self) -> Arrays:
        held: Arrays = {f"moment.{name}": value.copy() for name, value in self._moments.items()}
        counts = np.array([self._updates, self._skipped, self._refused], np.int64)
        return (
            self._group.arrays() | self._replay.arrays() | held | {"counts": counts, "credit": np.array([self._credit])}
        )

    def load(self, arrays: Arrays) -> None:
        self._group.load(arrays)
        self._replay.load(arrays)
        self._moments = {name: np.array(arrays[f"moment.{name}"], np.float64) for name in self._moments}
        self._updates, self._skipped, self._refused = (int(n) for n in arrays["counts"])
        self._credit = float(arrays["credit"][0])

    def close(self) -> None:
        self._group.close()

    def _columns(self, batch: Transitions) -> tuple[dict[str, NDArray[Any]], int]:
        """What learners read, float32, and how many transitions were refused because a number in them is not finite."""
        parts, most = self.roles, max(1, self.problem.history)
        columns: dict[str, NDArray[Any]] = {name: getattr(batch, name) for name in READ}
        good: Mask = np.ones(len(batch), np.bool_)
        for name, alive in (("history", batch.lived), ("next_history", batch.next_lived)):
            seen = np.asarray(columns[name], np.float32)
            columns[name], columns[name.replace("history", "lived")], sound = rows_fast.lives(seen, alive, most)
            good &= sound
        with np.errstate(all="ignore"):  # what is not finite is refused below
            columns["rewards"] = batch.rewards[:, :, list(parts.places)] * parts.signs
            columns["log_propensities"] = np.log(batch.propensities)
            for name, value in columns.items():
                if name not in ("allowed", "slate"):
                    columns[name] = np.ascontiguousarray(value, np.float32)
        columns |= self._sampled(columns)
        for name, value in columns.items():
            if value.dtype == np.float32 and name not in FRONT:
                good &= rows_fast.finite(value)
        bad = int((~good).sum())
        if bad:
            columns = {name: value[good] for name, value in columns.items()}
        return columns, bad

    def _sampled(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Candidates of N decisions cut to the drawn and `undrawn` others, `slate` renumbered; `log_left_out` (N,) is the log of
        how many each of the others stands for. Which ones is a function of how many transitions came before."""
        slate, allowed, most = columns["slate"], columns["allowed"], self.config.undrawn
        if allowed.shape[1] <= slate.shape[1] + most:
            return {"log_left_out": np.zeros(len(slate), np.float32)}
        rng = np.random.default_rng([self.config.seed, 1, self._replay.added])
        seeds = rng.integers(2**63 - 1, size=len(slate))
        cut, may, places, undrawn, kept = rows_fast.chosen(columns["candidates"], allowed, slate, most, seeds)
        left_out = np.log(np.maximum(undrawn, 1) / np.maximum(kept, 1)).astype(np.float32)
        return {"candidates": cut, "allowed": may, "slate": places, "log_left_out": left_out}

    def _update(self) -> F64 | None:
        """One minibatch; what was measured, (measures, P), or None when the step was not finite and not taken."""
        rng = np.random.default_rng([self.config.seed, self._updates])
        self._updates += 1
        size = max(self._group.learners, self.config.minibatch - self.config.minibatch % self._group.learners)
        columns = self._replay.rows(rng.integers(len(self._replay), size=size))
        if self._updates == 1:
            self._first_scales(columns)
        shape = (size, len(self.roles))
        for name, value in self._controls().items():
            columns[name] = np.broadcast_to(value.astype(np.float32), shape)
        results = np.mean(np.asarray(self._group.update(columns), np.float64), axis=0)
        if results[-1] > 0 or not np.isfinite(results).all():
            self._skipped += 1
            return None
        measured: F64 = results[:-1].reshape(-1, len(self.roles))
        self._follow(measured)
        return measured

    def _first_scales(self, columns: Mapping[str, Any]) -> None:
        reward = (columns["rewards"] * columns["present"][:, :, None]).sum(axis=1, dtype=np.float64)
        self._moments["mean"], self._moments["square"] = reward.mean(axis=0), np.square(reward).mean(axis=0)

    def _controls(self) -> dict[str, F64]:
        return {
            "scale": self._scale(),
            "deviation": np.sqrt(np.maximum(self._moments["deviation"], 1e-12)),
            "bound": self._moments["kappa"],
            "multiplier": self._moments["multiplier"],
        }

    def _scale(self) -> F64:
        """Running standard deviation of a slate's reward, 1 where it has never moved."""
        variance = self._moments["square"] - np.square(self._moments["mean"])
        return np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), 1.0)

    def _follow(self, measured: F64) -> None:
        """Running moments and κ after an update."""
        from policies.algorithms.constrained_actor_critic.losses import PER_POLICY

        found = dict(zip(PER_POLICY, measured, strict=True))
        share = max(FORGETS, 1 / self._updates)
        for name, seen in (("mean", "reward"), ("square", "square"), ("deviation", "advantage")):
            self._moments[name] = (1 - share) * self._moments[name] + share * found[seen]
        step = np.clip(found["kl"] / self.config.bound - 1, -1, 1)
        self._moments["kappa"] = np.clip(self._moments["kappa"] * np.exp(0.1 * step), *KAPPA)

    def _said(self, measured: F64) -> dict[str, float]:
        from policies.algorithms.constrained_actor_critic.losses import PER_POLICY

        found, names = dict(zip(PER_POLICY, measured, strict=True)), self.roles.names
        said: dict[str, float] = {}
        for i, name in enumerate(names):
            for ours, theirs in (
                ("critic_loss", "critic"), ("actor_loss", "actor"), ("kl", "kl"), ("clipped_share", "clipped"),
                ("entropy", "entropy"),
            ):  # fmt: skip
                said[f"{ours}_{name}"] = float(found[theirs][i])
            # 0: what critics promise is what comes; in units of the objective's scale
            said[f"value_gap_{name}"] = float(found["value"][i] - found["target"][i])
            said[f"kl_price_{name}"] = float(self._moments["kappa"][i])
        return said

    def _judge(self) -> dict[str, float]:
        """Thresholds against the window's self-normalised means; moves μ."""
        parts, said = self.roles, dict[str, float]()
        held: dict[str, NDArray[Any]] = self._replay.newest(self.config.window)
        weights = self._weights(held)
        reward = (held["rewards"] * held["present"][:, :, None]).sum(axis=1, dtype=np.float64)  # (N, P)
        total = weights.sum()
        mean = weights @ reward / total
        half = Z95 * np.sqrt(np.square(weights[:, None] * (reward - mean)).sum(axis=0)) / total
        for i, name in enumerate(parts.names):
            said[f"value_{name}"] = float(parts.signs[i] * mean[i])
            if i == 0 or np.isnan(parts.thresholds[i]):
                continue
            wanted = parts.signs[i] * parts.thresholds[i]
            gap = (wanted - mean[i]) / self._scale()[i]  # above 0: violated
            mu = self._moments["multiplier"]
            excluded = abs(wanted - mean[i]) > half[i]
            if excluded:
                mu[i] = np.clip(mu[i] + self.config.multiplier_rate * gap, 0, self.config.multiplier_max)
            stuck = excluded and gap > 0 and mu[i] >= self.config.multiplier_max
            said[f"multiplier_{name}"], said[f"infeasible_{name}"] = float(mu[i]), float(stuck)
        return said

    def _weights(self, held: Mapping[str, NDArray[Any]]) -> F64:
        """π_1/β of each whole slate (N,), at most 20: numpy's own forward pass, slot by slot."""
        w = self._group.weights()
        z = network.logits(
            network.actor(w, 0),
            1,
            *(held[name].astype(np.float64) for name in ("context", "history", "candidates")),
        )[0]
        return slate_weights(z / self.config.temperature, held)


def slate_weights(z: F64, held: Mapping[str, NDArray[Any]]) -> F64:
    """Product over present slots of softmax(z)/β, (N,), at most 20. z (N, n)."""
    rows = held["slate"]
    drawn = np.zeros((len(z), z.shape[1] + 1), bool)
    drawn[np.arange(len(z))[:, None], np.where(rows >= 0, rows, z.shape[1])] = True
    left = np.where(held["allowed"], z, -np.inf)
    often = np.where(drawn[:, :-1], 1.0, np.exp(held["log_left_out"].astype(np.float64))[:, None])
    log, every = np.zeros(len(z)), np.arange(len(z))
    for t in range(held["slate"].shape[1]):
        row = held["slate"][:, t]
        there = (row >= 0) & np.isfinite(left[every, row])
        top = left.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # nothing left to draw: not a row of `there`
            total = top[:, 0] + np.log((often * np.exp(left - top)).sum(axis=1))
            chosen = left[every, row] - total - held["log_propensities"][:, t]
        log += np.where(there & (held["present"][:, t] > 0), chosen, 0.0)
        left[every[there], row[there]] = -np.inf
    return np.minimum(np.exp(np.minimum(log, np.log(LARGEST_WEIGHT))), LARGEST_WEIGHT)


def _group(config: ConstrainedActorCritic, problem: Problem, parts: Roles) -> Group:
    from policies.algorithms.constrained_actor_critic.learner import Network, SteadyLearner

    model = {
        "policies": len(parts),
        "shapes": network.shapes(config, problem, len(parts)),
        "terms": {
            "mode": config.mode,
            "discounts": parts.discounts.tolist(),
            "strengths": parts.strengths.tolist(),
            "clip": config.clip,
            "entropy": config.entropy,
            "temperature": config.temperature,
        },
    }
    return Group(
        Network, SteadyLearner, model, learners=config.learners, learning_rate=config.learning_rate, clip_norm=10.0
    )
