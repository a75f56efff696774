"""Ridge regression's mean as the only column of scores: what algorithms share that explore by the draw and not by the scores.

score = Θᵀφ, Θ of `policies.ridge_fitting` averaged over λ
"""

from typing import TYPE_CHECKING

import numpy as np

from policies import linear_graph
from policies.algorithm import Problem, Published
from policies.ridge_fitting import Fit, RidgeOptions, fit
from policies.types import F32, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto


def publish(config: RidgeOptions, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """Θ in the arrays of `policies.linear_graph`, m = 1. Raises Corrupt('nonfinite')."""
    return published(fit(config, problem, sums, now))


def published(model: Fit, temperature: float | None = None, **diagnostics: float) -> Published:
    return model.published(model.mean[:, :, None], temperature, **diagnostics)


def graph(config: RidgeOptions, problem: Problem) -> "ModelProto":
    return linear_graph.graph("ridge_mean", problem, 1)


def reference(config: RidgeOptions, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    return linear_graph.reference(problem, arrays, inputs).astype(np.float32)
