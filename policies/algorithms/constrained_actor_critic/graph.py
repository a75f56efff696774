"""The score graph: the actors of `network.py` as ONNX nodes, their weights as initialisers that are also inputs."""

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from policies import graphs
from policies.algorithm import Problem
from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic, roles
from policies.algorithms.constrained_actor_critic.network import DEAD, initial, served
from policies.types import Arrays

FLOAT, BOOL = int(TensorProto.FLOAT), int(TensorProto.BOOL)
ONE = numpy_helper.from_array(np.ones(1, np.float32))

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def graph(config: ConstrainedActorCritic, problem: Problem) -> "ModelProto":
    """Reads context, items, history and, where the surface has several objectives, weights.

    A row of zeros is put before the history, so that no node ever meets an empty one.
    """
    parts = roles(config, problem)
    p, g, u = len(parts), config.attention, config.hidden
    c, d = problem.encoder.context_size, problem.encoder.item_size
    nodes: list[NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(graphs.node(kind, inputs, output, **attributes))
        return output

    constants: Arrays = {
        "one": np.ones((1, 1), np.float32),
        "nothing": np.zeros((1, d), np.float32),
        "heads": graphs.whole(p * g, d),
        "columns": graphs.whole(1),
        "rows": graphs.whole(0),
        "first": graphs.whole(0),
        "dead": np.array(DEAD, np.float32),
        "unit": np.array(1, np.float32),
        "per_policy": graphs.whole(p, 1, g * d),
        "hidden": graphs.whole(p, 1, u),
        "ones": np.ones((p, 1, 1), np.float32),
        "wants_shape": graphs.whole(p, d + config.embedding),
    }
    # what the unit has lived through: everything (…, h + 1), so that whatever runs over interactions runs along memory
    padded = add("Concat", ["one", add("Unsqueeze", ["context", "rows"], "context_row")], "padded", axis=1)
    lived = add("Concat", ["nothing", "history"], "lived", axis=0)
    says = add("Cast", [add("ReduceL1", [lived, "columns"], "size", keepdims=0)], "says", to=BOOL)
    live = add("Cast", [says], "live", to=FLOAT)
    each = add("ConstantOfShape", [add("Shape", [lived], "count_of", start=0, end=1)], "each", value=ONE)
    ages = add("CumSum", [each, "first"], "ages", exclusive=1, reverse=1)  # 0 of the newest
    stale = add("Gemm", ["slope", add("Unsqueeze", [ages, "rows"], "age")], "stale", transA=1, alpha=-1.0)
    ask = add("Reshape", [add("MatMul", [padded, "query"], "asked"), "heads"], "ask")
    match = add("Gemm", [ask, lived, stale], "match", transB=1, alpha=1 / max(1, d) ** 0.5)
    share = add("Softmax", [add("Where", [says, match, "dead"], "logit")], "share", axis=1)
    # dead rows are zeros
    pooled = add("Reshape", [add("MatMul", [share, lived], "pooled_rows"), "per_policy"], "pooled")
    count = add("ReduceSum", [live, "rows"], "count", keepdims=1)
    total = add("ReduceSum", [lived, "rows"], "total", keepdims=1)
    mean = add("Div", [total, add("Max", [count, "unit"], "at_least_one")], "mean")
    often = add("Unsqueeze", [add("Log", [add("Add", [count, "unit"], "count_and_one")], "often_of"), "rows"], "often")
    common = add("Concat", [padded, mean, often], "common", axis=1)
    # what each policy makes of it
    of_all = add("Reshape", [add("MatMul", [common, "shared"], "of_all_row"), "hidden"], "of_all")
    before = add("Add", [of_all, add("MatMul", [pooled, "seen"], "of_history")], "before")
    state = add("Concat", ["ones", add("Relu", [before], "units")], "state", axis=2)
    wants = add("Reshape", [add("MatMul", [state, "actor"], "wants_rows"), "wants_shape"], "wants")
    # what the candidates are
    constants |= {"second": graphs.whole(1), "end": graphs.whole(1 + d)}
    bias = add("Slice", ["tower", "first", "second", "rows"], "tower_bias")
    tower = add("Slice", ["tower", "second", "end", "rows"], "tower_rows")
    learned = add("Relu", [add("Gemm", ["items", tower, bias], "tower_out")], "learned")
    known = add("Concat", ["items", learned], "known", axis=1)
    log = add("LogSoftmax", [add("Gemm", [wants, known], "z", transB=1)], "log", axis=1)  # (P, n)

    inputs: dict[str, tuple[int | str, ...]] = {"context": (c,), "items": ("n", d), "history": ("h", d)}
    if len(problem.weights) > 1:
        inputs["weights"] = (len(problem.weights),)
        constants |= {
            "places": graphs.whole(*parts.places[1:]) if p > 1 else np.zeros(0, np.int64),
            "scales": parts.scales[1:].astype(np.float32),
            "low": np.array(-config.weight_bound, np.float32),
            "high": np.array(config.weight_bound, np.float32),
            "main": np.ones(1, np.float32),
        }
        asked = add("Div", [add("Gather", ["weights", "places"], "named"), "scales"], "wished")
        mixed = add("Concat", ["main", add("Clip", [asked, "low", "high"], "within")], "mixed", axis=0)
    else:
        constants["mixed"] = np.ones(1, np.float32)
        mixed = "mixed"
    add("Gemm", [log, add("Unsqueeze", [mixed, "columns"], "mixture")], "scores", transA=1)
    changing = served(initial(config, problem, p), p)
    return graphs.model("constrained_actor_critic", nodes, inputs, changing, constants=constants)
