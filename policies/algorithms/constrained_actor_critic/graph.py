"""The score graph: the actors of `network.py` as ONNX nodes, their weights as initialisers that are also inputs."""

from typing import TYPE_CHECKING

import numpy as np

from policies import graphs
from policies.algorithm import Problem
from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic, roles
from policies.algorithms.constrained_actor_critic.network import DEAD, initial, served
from policies.types import Arrays

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
        "root": np.array(np.sqrt(max(1, d)), np.float32),
        "columns": graphs.whole(1),
        "rows": graphs.whole(0),
        "step": np.array(-1, np.int64),
        "dead": np.array(DEAD, np.float32),
        "unit": np.array(1, np.float32),
        "per_policy": graphs.whole(p, 1, g * d),
        "hidden": graphs.whole(p, 1, u),
        "ones": np.ones((p, 1, 1), np.float32),
        "wants_shape": graphs.whole(p, d + config.embedding),
    }
    # what the unit has lived through
    padded = add("Concat", ["one", add("Unsqueeze", ["context", "rows"], "context_row")], "padded", axis=1)
    lived = add("Concat", ["nothing", "history"], "lived", axis=0)
    size = add("ReduceMax", [add("Abs", [lived], "sizes"), "columns"], "size", keepdims=1)
    live = add("Sign", [size], "live")  # (h + 1, 1)
    rows = add("Squeeze", [add("Shape", [lived], "rows_of", start=0, end=1), "rows"], "count_of")
    oldest = add("Add", [rows, "step"], "oldest")
    ages = add("Cast", [add("Range", [oldest, "step", "step"], "ages_whole")], "ages", to=1)
    age = add("Unsqueeze", [ages, "columns"], "age")
    ask = add("Div", [add("Reshape", [add("MatMul", [padded, "query"], "asked"), "heads"], "ask_rows"), "root"], "ask")
    raw = add("Sub", [add("Gemm", [lived, ask], "match", transB=1), add("Mul", [age, "slope"], "stale")], "raw")
    logit = add("Add", [raw, add("Mul", [add("Sub", ["unit", live], "gone"), "dead"], "away")], "logit")
    share = add("Mul", [add("Softmax", [logit], "attention", axis=0), live], "share")  # nothing seen: all zero
    pooled = add("Reshape", [add("Gemm", [share, lived], "pooled_rows", transA=1), "per_policy"], "pooled")
    count = add("ReduceSum", [live, "rows"], "count", keepdims=1)
    total = add("ReduceSum", [lived, "rows"], "total", keepdims=1)
    mean = add("Div", [total, add("Max", [count, "unit"], "at_least_one")], "mean")
    often = add("Log", [add("Add", [count, "unit"], "count_and_one")], "often")
    common = add("Concat", [padded, mean, often], "common", axis=1)
    # what each policy makes of it
    of_all = add("Reshape", [add("MatMul", [common, "shared"], "of_all_row"), "hidden"], "of_all")
    before = add("Add", [of_all, add("MatMul", [pooled, "seen"], "of_history")], "before")
    state = add("Concat", ["ones", add("Relu", [before], "units")], "state", axis=2)
    wants = add("Reshape", [add("MatMul", [state, "actor"], "wants_rows"), "wants_shape"], "wants")
    # what the candidates are
    constants |= {"first": graphs.whole(0), "second": graphs.whole(1), "end": graphs.whole(1 + d)}
    bias = add("Slice", ["tower", "first", "second", "rows"], "tower_bias")
    tower = add("Slice", ["tower", "second", "end", "rows"], "tower_rows")
    learned = add("Relu", [add("Gemm", ["items", tower, bias], "tower_out")], "learned")
    known = add("Concat", ["items", learned], "known", axis=1)
    log = add("LogSoftmax", [add("Gemm", [known, wants], "z", transB=1)], "log", axis=0)  # (n, P)

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
    add("MatMul", [log, add("Unsqueeze", [mixed, "columns"], "mixture")], "scores")
    changing = served(initial(config, problem, p), p)
    return graphs.model("constrained_actor_critic", nodes, inputs, changing, constants=constants)
