"""Given order: the caller's own ranking, with a real probability behind it.

Scores   (n, 1), minus the candidate's position: the first remaining candidate gets 1 − ε + ε/∣R_t∣ in each slot, every
         other ε/∣R_t∣, so a log of this policy supports evaluation of another
"""

from typing import TYPE_CHECKING

import numpy as np

from policies import graphs
from policies.algorithm import Algorithm, Config, Problem, Published
from policies.types import F32, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto


class GivenOrder(Config, frozen=True):
    """No options of its own."""


def graph(config: GivenOrder, problem: Problem) -> "ModelProto":
    nodes = [
        graphs.node("Shape", ["items"], "count", start=0, end=1),
        graphs.node("Squeeze", ["count", "axis"], "n"),
        graphs.node("Range", ["zero", "n", "one"], "position"),
        graphs.node("Cast", ["position"], "number", to=1),  # 1 = float32
        graphs.node("Neg", ["number"], "column"),
        graphs.node("Unsqueeze", ["column", "last"], "scores"),
    ]
    constants: Arrays = {"axis": graphs.whole(0), "last": graphs.whole(1), "zero": np.array(0), "one": np.array(1)}
    return graphs.model("given_order", nodes, {"items": ("n", problem.encoder.item_size)}, constants=constants)


def publish(config: GivenOrder, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    return Published(arrays={})


def reference(config: GivenOrder, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    return -np.arange(len(inputs["items"]), dtype=np.float32)[:, None]


ALGORITHM = Algorithm(
    name="given_order",
    summary="the caller's own ranking, with a floor of exploration",
    source="",
    config=GivenOrder,
    graph=graph,
    publish=publish,
    reference=reference,
    inputs=("items",),
    traits=frozenset({"ordered"}),
)
