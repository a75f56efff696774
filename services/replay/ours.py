"""Our own algorithm as a player of one-slot streams: encoder, learner, publish and draw as the service has them, without the service.

The surface is written from a stream's shapes alone (a vector of context; arms as a vector, or as names where they have no
features; all products of the two), and the algorithm runs with its default options: one configuration for every stream.
Scores come from the algorithm's numpy reference, which the contract suite holds equal to the ONNX graph.
"""

from typing import Any

import msgspec
import numpy as np

from policies.algorithm import Problem
from policies.features import Encoder
from policies.registry import algorithm
from policies.slate import draw
from policies.surface import FeatureSpec, Objective
from policies.types import F32, I64, Arrays, Changes, DrawSettings
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
    """linear_thompson, one slot, a bundle every `every` decisions."""

    def __init__(self, stream: Stream, seed: int, *, every: int = 10, options: dict[str, Any] | None = None) -> None:
        self._algorithm = algorithm("linear_thompson")
        self._config = msgspec.convert(options or {}, self._algorithm.config)
        encoder = Encoder(msgspec.convert(features(stream), FeatureSpec))
        reward = {"reward": Objective(kind="reward", range=(0.0, 1.0))}
        self._problem = Problem(encoder, reward, {"reward": 1.0}, 1)
        if stream.arms.shape[1]:
            self._arms = encoder.rows([{"arm": row.tolist()} for row in stream.arms], "$.arms")
        else:
            self._arms = encoder.rows([{"arm": f"arm-{k:03}"} for k in range(len(stream.arms))], "$.arms")
        if self._algorithm.learner is None:
            raise TypeError("linear_thompson has a learner")
        self._learner = self._algorithm.learner(self._config, self._problem)
        self._settings = DrawSettings(self._config.head, self._config.floor, 1.0, self._config.temperature)
        self._rng = np.random.default_rng([seed, 4])
        self._seed, self._every, self._number = seed, every, 0
        self._rows: list[tuple[F32, F32, float, float]] = []
        self._last: tuple[F32, F32, float] | None = None
        self._pool = self._publish()

    def choose(self, context: F32, candidates: I64) -> int:
        items = self._arms[candidates]
        inputs = {"context": context.astype(np.float32), "items": items}
        scores = self._algorithm.reference(self._config, self._problem, self._pool, inputs)
        slate = draw(np.ascontiguousarray(scores), 1, self._rng.random(1), self._settings)
        position = int(slate.items[0])
        self._last = (context, items[position], float(slate.propensities[0]))
        return position

    def learn(self, reward: float) -> None:
        if self._last is None:
            raise RuntimeError("nothing was chosen yet")
        context, item, propensity = self._last
        self._rows.append((context, item, propensity, reward))
        if len(self._rows) == self._every:
            self._learner.learn(_changes(self._rows))
            self._rows.clear()
            self._pool = self._publish()

    def close(self) -> None:
        self._rows.clear()

    def _publish(self) -> Arrays:
        self._number += 1
        seed = self._seed * 1_000_003 + self._number
        return self._algorithm.publish(self._config, self._problem, self._learner.arrays(), 0.0, seed).arrays


def _changes(rows: list[tuple[F32, F32, float, float]]) -> Changes:
    """New examples of one slot each; no forgetting is configured, so all share time zero."""
    n = len(rows)
    return Changes(
        context=np.array([r[0] for r in rows], np.float32),
        items=np.array([r[1] for r in rows], np.float32),
        slots=np.zeros(n, np.int64),
        slates=np.arange(n),
        times=np.zeros(n),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=np.array([[r[3]] for r in rows]),
        item_hashes=np.zeros(n, np.uint64),
        propensities=np.array([r[2] for r in rows]),
    )
