"""Our own algorithms as players of one-slot streams: encoder, learner, publish and draw as the service has them, without the service.

The surface is written from a stream's shapes alone (a vector of context; arms as a vector, or as names where they have no
features; all products of the two), and an algorithm runs with its default options: one configuration for every stream.
Scores come from the algorithm's numpy reference, which the contract suite holds equal to the ONNX graph.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np

from policies.algorithm import Learner, Problem, draw_settings
from policies.bundle import item_rows
from policies.features import Encoder
from policies.registry import algorithm
from policies.sequences import Transitions
from policies.slate import draw
from policies.surface import FeatureSpec, Objective
from policies.training import Trainer
from policies.types import F32, I64, Arrays, Changes, DrawSettings, item_hashes
from services.replay.streams import Stream


def features(stream: Stream) -> dict[str, Any]:
    """Feature spec of a stream. Arms without features are told apart by name."""
    size, width = stream.context.shape[1], stream.arms.shape[1]
    arm: dict[str, Any] = {"type": "vector", "size": width}
    if not width:
        arm = {"type": "category", "values": [f"arm-{k:03}" for k in range(len(stream.arms))]}
    return {
        "context": {"x": {"type": "vector", "size": size}},
        "items": {"arm": arm},
        "cross": [["x", "arm"]],
    }


class Slatewise:
    """An algorithm of the registry, one slot, a bundle every `every` decisions. The n-th decision is made in second n."""

    def __init__(
        self,
        stream: Stream,
        seed: int,
        *,
        name: str = "linear_thompson",
        every: int = 10,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._algorithm = algorithm(name)
        self._config = msgspec.convert(options or {}, self._algorithm.config)
        encoder = Encoder(msgspec.convert(features(stream), FeatureSpec))
        reward = {"reward": Objective(kind="reward", range=(0.0, 1.0))}
        self._problem = Problem(encoder, reward, {"reward": 1.0}, 1)
        names = [f"arm-{k:03}" for k in range(len(stream.arms))]
        self._hashes = item_hashes(names)
        if stream.arms.shape[1]:
            self._arms = encoder.rows([{"arm": row.tolist()} for row in stream.arms], "$.arms")
        else:
            self._arms = encoder.rows([{"arm": name} for name in names], "$.arms")
        if self._algorithm.trainer is not None:
            self._learner: Learner | Taught = Taught(self._algorithm.trainer(self._config, self._problem))
        elif self._algorithm.learner is not None:
            self._learner = self._algorithm.learner(self._config, self._problem)
        else:
            raise TypeError(f"{name} does not learn")
        self._rng = np.random.default_rng([seed, 4])
        self._seed, self._every, self._number, self._now = seed, every, 0, 0.0
        self._rows: list[Row] = []
        self._last: Row | None = None
        self._made, self._settings = self._publish()

    def choose(self, context: F32, candidates: I64) -> int:
        items, hashes, self._now = self._arms[candidates], self._hashes[candidates], self._now + 1
        inputs: Arrays = {"context": context.astype(np.float32), "items": items}
        if "item_rows" in self._algorithm.inputs:
            inputs["item_rows"] = item_rows(self._made, hashes)
        scores = self._algorithm.reference(self._config, self._problem, self._made, inputs)  # type: ignore[arg-type]  # rows are int64
        slate = draw(np.ascontiguousarray(scores), 1, self._rng.random(1), self._settings)
        position = int(slate.items[0])
        self._last = Row(context, items[position], hashes[position], float(slate.propensities[0]), self._now, 0.0)
        return position

    def learn(self, reward: float) -> None:
        if self._last is None:
            raise RuntimeError("nothing was chosen yet")
        self._rows.append(self._last._replace(reward=reward))
        if len(self._rows) == self._every:
            self._learner.learn(_changes(self._rows))
            self._rows.clear()
            self._made, self._settings = self._publish()

    def close(self) -> None:
        self._rows.clear()

    def _publish(self) -> tuple[Arrays, DrawSettings]:
        self._number += 1
        seed = self._seed * 1_000_003 + self._number
        made = self._algorithm.publish(self._config, self._problem, self._learner.arrays(), self._now, seed)
        return made.arrays, draw_settings(self._config, made.temperature)


class Taught:
    """A trainer as the learner of choices that have settled, each a sequence of its own, with nothing but what was chosen for candidates."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def learn(self, changes: Changes) -> None:
        self._trainer.train(transitions(changes))

    def arrays(self) -> Arrays:
        return self._trainer.arrays()


def transitions(changes: Changes) -> Transitions:
    """New examples of one slot each, as sequences that end there."""
    n, d = changes.items.shape
    each = np.arange(1, n + 1, dtype=np.uint64)
    return Transitions(
        context=changes.context,
        candidates=changes.items[:, None],
        items=changes.item_hashes[:, None],
        allowed=np.ones((n, 1), bool),
        slate=np.zeros((n, 1), np.int64),
        propensities=changes.propensities[:, None],
        present=changes.present_after[:, None] > 0,
        rewards=changes.rewards_after[:, None],
        history=np.zeros((n, 0, d), np.float32),
        history_items=np.zeros((n, 0), np.uint64),
        lived=np.zeros((n, 0), bool),
        next_context=np.zeros_like(changes.context),
        next_history=np.zeros((n, 0, d), np.float32),
        next_history_items=np.zeros((n, 0), np.uint64),
        next_lived=np.zeros((n, 0), bool),
        terminal=np.ones(n, bool),
        elapsed=np.zeros(n),
        units=each,
        sessions=each,
        times=changes.times,
        goals=np.full(n, -1),
        goal_propensities=np.ones(n),
    )


class Row(NamedTuple):
    """A choice that was heard about."""

    context: F32
    item: F32
    hashed: np.uint64
    propensity: float
    time: float
    reward: float


def _changes(rows: list[Row]) -> Changes:
    """New examples of one slot each."""
    n = len(rows)
    return Changes(
        context=np.array([r.context for r in rows], np.float32),
        items=np.array([r.item for r in rows], np.float32),
        slots=np.zeros(n, np.int64),
        slates=np.arange(n),
        times=np.array([r.time for r in rows]),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=np.array([[r.reward] for r in rows]),
        item_hashes=np.array([r.hashed for r in rows]),
        propensities=np.array([r.propensity for r in rows]),
    )
