"""Uniform: every remaining candidate is as likely as any other. The floor everything else is measured against.

Scores   (n, 1), all zero: the draw splits ties evenly, so p = 1/∣R_t∣ under every head and floor
"""

from typing import TYPE_CHECKING

import numpy as np

from policies import graphs
from policies.algorithm import Algorithm, Config, Problem, Published
from policies.types import F32, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto


class Uniform(Config, frozen=True):
    """No options of its own."""


def graph(config: Uniform, problem: Problem) -> "ModelProto":
    nodes = [
        graphs.node("Shape", ["items"], "n", start=0, end=1),
        graphs.node("Concat", ["n", "one"], "shape", axis=0),
        graphs.node("ConstantOfShape", ["shape"], "scores"),
    ]
    return graphs.model(
        "uniform", nodes, {"items": ("n", problem.encoder.item_size)}, constants={"one": graphs.whole(1)}
    )


def publish(config: Uniform, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    return Published(arrays={})


def reference(config: Uniform, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    return np.zeros((len(inputs["items"]), 1), np.float32)


ALGORITHM = Algorithm(
    name="uniform",
    summary="every candidate equally likely",
    source="",
    config=Uniform,
    graph=graph,
    publish=publish,
    reference=reference,
    inputs=("items",),
)
