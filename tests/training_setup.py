"""A trainer small enough for tests, in numpy: softmax policy gradient with momentum over a replay of what it was given.

    scores = items · (θ + M Σ history)      ∇ = Σ (r/p) ∇ log π, rewards of a slot, clipped weights

Its state is a function of its calls and their order: momentum and sampling from the replay see to it that every one counts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from policies import graphs
from policies.algorithm import Algorithm, Config, Problem, Published
from policies.registry import ALGORITHMS
from policies.sequences import Transitions
from policies.types import F32, F64, Arrays

RATE, MOMENTUM, KEPT, SAMPLE, CLIP = 0.05, 0.5, 256, 32, 20.0


class Gradients:
    """Rows of (∇θ, ∇M) of every example, kept in a ring; a step takes the new ones and a sample of the old."""

    def __init__(self, config: Config, problem: Problem) -> None:
        d = problem.encoder.item_size
        self._arrays: Arrays = {
            "theta": np.zeros(d),
            "M": np.zeros((d, d)),
            "velocity": np.zeros(d + d * d),
            "replay": np.zeros((KEPT, d + d * d)),
            "seen": np.zeros(1, np.int64),
            "steps": np.zeros(1, np.int64),
            "returns": np.zeros(2),
        }
        self._d = d

    def train(self, batch: Transitions) -> dict[str, float]:
        mine, examples, total = self._arrays, [], 0.0
        if not np.isfinite(batch.rewards).all():
            return {"skipped": 1.0}
        for i in range(len(batch)):
            past = batch.history[i].sum(axis=0, dtype=np.float64)
            items = batch.candidates[i][batch.allowed[i]].astype(np.float64)
            for slot in np.flatnonzero(batch.present[i]):
                row = batch.slate[i, slot]
                logits = items @ (mine["theta"] + mine["M"] @ past)
                pi = np.exp(logits - logits.max())
                away = batch.candidates[i, row] - (pi / pi.sum()) @ items
                weight = min(1.0 / batch.propensities[i, slot], CLIP) * batch.rewards[i, slot, 0]
                examples.append(weight * np.concatenate([away, np.outer(away, past).ravel()]))
                total += batch.rewards[i, slot, 0]
        new = np.array(examples).reshape(len(examples), -1)
        rng = np.random.default_rng(int(mine["steps"][0]))
        old = mine["replay"][rng.integers(0, KEPT, SAMPLE)]
        step = np.concatenate([new.reshape(-1, old.shape[1]), old]).mean(axis=0)
        mine["velocity"] = MOMENTUM * mine["velocity"] + RATE * step
        mine["theta"] = mine["theta"] + mine["velocity"][: self._d]
        mine["M"] = mine["M"] + mine["velocity"][self._d :].reshape(self._d, self._d)
        for example in new:
            mine["replay"][int(mine["seen"][0]) % KEPT] = example
            mine["seen"] = mine["seen"] + 1
        mine["steps"] = mine["steps"] + 1
        mine["returns"] = mine["returns"] + [total, float(batch.terminal.sum())]
        return {"loss": -float(step @ step), "reward": total}

    def arrays(self) -> Arrays:
        return self._arrays

    def load(self, arrays: Arrays) -> None:
        self._arrays = {name: np.array(array) for name, array in arrays.items()}


def _graph(config: Config, problem: Problem) -> Any:
    d = problem.encoder.item_size
    return graphs.model(
        "gradients",
        [
            graphs.node("ReduceSum", ["history", "axis"], "past", keepdims=0),
            graphs.node("MatMul", ["M", "past"], "pull"),
            graphs.node("Add", ["theta", "pull"], "taste"),
            graphs.node("MatMul", ["items", "taste"], "flat"),
            graphs.node("Unsqueeze", ["flat", "one"], "scores"),
        ],
        {"items": ["n", d], "history": ["h", d]},
        {"theta": np.zeros(d, np.float32), "M": np.zeros((d, d), np.float32)},
        constants={"axis": graphs.whole(0), "one": graphs.whole(1)},
    )


def _publish(config: Config, problem: Problem, arrays: Arrays, now: float, seed: int) -> Published:
    made: Arrays = {name: np.asarray(arrays[name], np.float32) for name in ("theta", "M")}
    return Published(made, diagnostics={"seen": float(np.asarray(arrays["seen"])[0])})


def _reference(config: Config, problem: Problem, arrays: Arrays, inputs: Mapping[str, Any]) -> F32:
    taste: F64 = np.asarray(arrays["theta"], float) + np.asarray(arrays["M"], float) @ inputs["history"].sum(axis=0)
    return np.asarray(inputs["items"] @ taste, np.float32)[:, None]


class SoftmaxConfig(Config, frozen=True, kw_only=True):
    head: Any = "softmax"


ALGORITHM = Algorithm(
    name="gradients",
    summary="policy gradient for tests",
    source="Williams 1992",
    config=SoftmaxConfig,
    graph=_graph,
    publish=_publish,
    reference=_reference,
    inputs=("items", "history"),
    trainer=Gradients,
    traits=frozenset({"learns", "contextual"}),
)


class Failing(Gradients):
    """Stops at its third call, as a library may."""

    def train(self, batch: Transitions) -> dict[str, float]:
        if int(self.arrays()["steps"][0]) == 2:
            raise ValueError("singular")
        return super().train(batch)


@contextmanager
def registered(algorithm: Algorithm = ALGORITHM) -> Iterator[None]:
    """The algorithm is in the registry meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALGORITHMS, algorithm.name, algorithm)
        yield


# -- goals ---------------------------------------------------------------------------------------------------------------

GOALS = 4


class GoalConfig(SoftmaxConfig, frozen=True, kw_only=True):
    goal_steps: int = 3


def _goal_graph(config: Config, problem: Problem) -> Any:
    d = problem.encoder.item_size
    return graphs.model(
        "goals",
        [
            graphs.node("MatMul", ["G", "goal"], "taste"),
            graphs.node("MatMul", ["items", "taste"], "flat"),
            graphs.node("Unsqueeze", ["flat", "one"], "scores"),
        ],
        {"items": ["n", d], "goal": [GOALS]},
        {"G": np.zeros((d, GOALS), np.float32)},
        constants={"one": graphs.whole(1)},
    )


def _manager_graph(config: Config, problem: Problem) -> Any:
    c = problem.encoder.context_size
    return graphs.model(
        "manager",
        [graphs.node("MatMul", ["C", "context"], "goal_logits")],
        {"context": [c]},
        {"C": np.zeros((GOALS, c), np.float32)},
        output="goal_logits",
    )


WITH_GOALS = Algorithm(
    name="with_goals",
    summary="goals for tests",
    source="tests",
    config=GoalConfig,
    graph=_goal_graph,
    publish=lambda config, problem, arrays, now, seed: Published(
        {
            "G": np.linspace(-3, 3, problem.encoder.item_size * GOALS, dtype=np.float32).reshape(-1, GOALS)
            + np.float32(seed),
            "C": np.linspace(-1, 1, GOALS * problem.encoder.context_size, dtype=np.float32).reshape(GOALS, -1),
        }
    ),
    reference=lambda config, problem, arrays, inputs: (inputs["items"] @ (arrays["G"] @ inputs["goal"]))[:, None],
    inputs=("items", "goal"),
    manager=_manager_graph,
    manage=lambda config, problem, arrays, inputs: np.asarray(arrays["C"], np.float32) @ inputs["context"],
    trainer=Gradients,
    traits=frozenset({"contextual"}),
)
