"""The network of `neural_linear` in numpy, its hash, and the two problems it stands between.

    x = [1, context, items, crosses]  →  relu(xᵀ first)  →  ψ = relu(·ᵀ second + second_bias)  →  last layer

The network never sees a slot: position is the last layer's, so that scoring can set it to slot 0.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from policies.algorithm import Problem
from policies.algorithms.neural_linear.config import NeuralLinear
from policies.features import Encoder
from policies.linear_graph import parts_of, times_phi
from policies.ridge import columns, phi
from policies.surface import FeatureSpec, Vector
from policies.types import F32, F64, Arrays

WEIGHTS = ("first", "second", "second_bias")
# of a bundle's arrays: those of a linear model each, and no linear model of the features
FIRST, LAST = "first_", "last_"
COUNTS = ("updates", "steps", "skipped", "refused", "rebuilt", "since")  # of a trainer's state, see `training`
Held = Mapping[str, NDArray[np.generic]]


def below(problem: Problem) -> Problem:
    """What the network reads: φ without slots."""
    return replace(problem, slots=1)


def above(config: NeuralLinear, problem: Problem) -> Problem:
    """What the last layer reads: the problem as it is, items having the network's outputs for further columns, behind their own; or,
    not `wide`, these alone."""
    return replace(problem, encoder=_outputs(problem.encoder, config.features, config.wide))


@lru_cache(maxsize=256)  # one a surface version and width: asked for at every publish
def _outputs(encoder: Encoder, features: int, wide: bool) -> Encoder:
    spec, outputs = encoder.spec, Vector(size=features)
    if not wide:
        return Encoder(FeatureSpec(context=spec.context, items={"network": outputs}))
    last = max(spec.items, default="") + "~"  # no feature's name, and sorted behind all of them
    return Encoder(FeatureSpec(context=spec.context, items={**spec.items, last: outputs}, cross=spec.cross))


def output_columns(config: NeuralLinear, problem: Problem) -> slice:
    """Where in the last layer's φ the network's outputs are."""
    encoder = above(config, problem).encoder
    end = len(columns(above(config, problem))) - len(encoder.cross_names)
    return slice(end - config.features, end)


def widened(config: NeuralLinear, items: F32, psi: F32) -> F32:
    """The items (N, ·) of the last layer, of those of the surface and the network's outputs."""
    return np.concatenate([items, psi], axis=1) if config.wide else psi


def initial(config: NeuralLinear, problem: Problem) -> Arrays:
    """First weights (He et al. 2015), float32: first (1 + c + d + x, hidden), second (hidden, features), second_bias (features,)."""
    rng, width = np.random.default_rng([config.seed, 1]), len(columns(below(problem)))

    def weights(rows: int, units: int) -> F32:
        bound = np.sqrt(6 / rows)
        return rng.uniform(-bound, bound, (rows, units)).astype(np.float32)

    return {
        "first": weights(width, config.hidden),
        "second": weights(config.hidden, config.features),
        "second_bias": np.zeros(config.features, np.float32),
    }


def fingerprint(weights: Held) -> NDArray[np.uint64]:
    """BLAKE2b-64 of the weights (1,): what sums over a network's outputs carry."""
    said = hashlib.blake2b(digest_size=8)
    for name in WEIGHTS:
        array = np.ascontiguousarray(weights[name], "<f4")
        said.update(f"{name}{array.shape}".encode())
        said.update(array.tobytes())
    return np.frombuffer(said.digest(), "<u8").astype(np.uint64)


def features(problem: Problem, weights: Held, context: F32, items: F32) -> F32:
    """ψ (N, features) of encoded contexts (N, c) and items (N, d)."""
    x = phi(below(problem), context, items, np.zeros(len(items), np.int64))
    return _second(weights, x @ weights["first"].astype(np.float64)).astype(np.float32)


def served(problem: Problem, weights: Held) -> Arrays:
    """The weights as the graph's arrays, the first layer where a linear model's columns are."""
    first = parts_of(below(problem), weights["first"].astype(np.float64)[None])
    arrays: Arrays = {FIRST + name: np.ascontiguousarray(part[0], np.float32) for name, part in first.items()}
    return arrays | {name: np.array(weights[name], np.float32) for name in WEIGHTS[1:]}


def outputs(problem: Problem, arrays: Held, inputs: Mapping[str, F32]) -> F32:
    """ψ (n, features) of a request's candidates, from the arrays of a bundle: the graph's word for word."""
    theta = {
        name.removeprefix(FIRST): array.astype(np.float64) for name, array in arrays.items() if name.startswith(FIRST)
    }
    return _second(arrays, times_phi(below(problem), theta, dict(inputs))).astype(np.float32)


def _second(weights: Held, first: F64) -> F64:
    second, bias = (weights[name].astype(np.float64) for name in WEIGHTS[1:])
    made: F64 = np.maximum(np.maximum(first, 0) @ second + bias, 0)
    return made
