"""The graph that linear algorithms share, on surfaces with next to nothing: no features, no context, no crosses, one slot or several."""

from typing import Any

import numpy as np
import pytest

from policies import bundle
from policies.algorithm import Problem
from policies.features import Encoder
from policies.registry import ALGORITHMS
from policies.surface import FeatureSpec, Number, Objective, Vector
from streaming.scorer import score
from tests.contracts.algorithm_contract import START

LINEAR = ("linear_thompson", "epsilon_greedy", "softmax", "linucb", "squarecb", "bootstrap", "logistic_thompson")
SPECS = {
    "nothing": FeatureSpec(),
    "context alone": FeatureSpec(context={"x": Vector(size=2)}),
    "items alone": FeatureSpec(items={"y": Number()}),
    "no crosses": FeatureSpec(context={"x": Number()}, items={"y": Vector(size=3)}),
    "one cross of two columns": FeatureSpec(
        context={"x": Number(), "z": Vector(size=2)}, items={"y": Number(), "w": Number()}, cross=[("z", "w")]
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_surfaces_with_next_to_nothing_are_scored(name: str) -> None:
    """The bundle is built, which holds graph against reference, passes its gate, and scores as many as are asked about."""
    algorithm: Any = ALGORITHMS[name]
    config = algorithm.config()
    for spec in SPECS.values():
        for objectives in (1, 2):
            for slots in (1, 3):
                encoder = Encoder(spec)
                kinds = {f"o{i}": Objective(f"o{i}", range=(-1, 1 + i)) for i in range(objectives)}
                problem = Problem(encoder, kinds, {f"o{i}": 1.0 - 2 * i for i in range(objectives)}, slots)
                result = algorithm.publish(config, problem, {}, START, 1)
                made = bundle.build(
                    algorithm, config, problem, result, surface="s", policy="p", key="k", config_hash="c", number=1, seed=1,
                    created_at=START, trained_through={}, epoch=1, score=score,
                )  # fmt: skip
                bundle.verify(made, schema=encoder.schema, score=score, algorithm=name)
                asked = {
                    "context": np.zeros(encoder.context_size, np.float32),
                    "weights": np.ones(objectives, np.float32),
                }
                asked["items"] = np.zeros((5, encoder.item_size), np.float32)
                found = score(made.graph, made.arrays, {i: asked[i] for i in made.manifest.inputs})
                assert found.shape == (5, made.manifest.draws)
                assert np.isfinite(found).all()
