"""Score graph of `recurrent_slate`: the unit's clicks become a state under every draw, items are scored by their distance to it."""

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from policies import graphs, item_draws
from policies.algorithm import Problem
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.algorithms.recurrent_slate.model import group_columns
from policies.types import Arrays

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def graph(config: RecurrentSlate, problem: Problem) -> "ModelProto":
    m, size, hidden, c = config.draws, config.size, config.hidden, problem.encoder.context_size
    groups, gru = len(group_columns(config, problem)), config.state == "gru"
    begins = hidden if gru else size
    changing: Arrays = {
        "means": np.zeros((groups + 1, size), np.float32),
        "scales": np.ones((groups + 1, size), np.float32),
        "keys": np.zeros(0, np.int64),
        "starts": np.zeros((m, begins), np.float32),
        "of_context": np.zeros((c, begins), np.float32),
        "turn": np.zeros(item_draws.BYTES, np.int64),
    }
    shapes: dict[str, graphs.Shape] = {"means": ("rows", size), "scales": ("rows", size), "keys": ("known",)}
    inputs: dict[str, graphs.Shape] = dict.fromkeys(("item_rows", "group_rows", "item_keys"), ("n",))
    inputs["history_rows"] = ("h",)
    constants: Arrays = {
        **item_draws.constants(m, size),
        "none": graphs.whole(0),
        "groups": graphs.whole(groups + 1),
        "without": graphs.whole(-1),
        "by_draw": graphs.whole(-1, m, size),
        "middle": graphs.whole(1),
        "final": graphs.whole(2),
    }
    nodes: list[NodeProto] = []

    def add(kind: str, sources: list[str], output: str, **attributes: object) -> str:
        nodes.append(graphs.node(kind, sources, output, **attributes))
        return output

    def vectors(rows: str, keys: str, name: str) -> str:
        """(…, m, size) draws of the vectors in rows of the tables."""
        nodes.extend(item_draws.nodes(keys, f"{name}_z", f"{name}_z"))
        noise = add("Reshape", [f"{name}_z", "by_draw"], f"{name}_noise")
        scale = add("Unsqueeze", [add("Gather", ["scales", rows], f"{name}_scales"), "middle"], f"{name}_scale")
        mean = add("Unsqueeze", [add("Gather", ["means", rows], f"{name}_means"), "middle"], f"{name}_mean")
        return add("Add", [mean, add("Mul", [scale, noise], f"{name}_scaled")], f"{name}_vectors")

    seen = add("Not", [add("Less", ["history_rows", "none"], "past_unseen")], "past_seen")
    past = add("Compress", ["history_rows", seen], "past_rows", axis=0)
    clicked = vectors(past, add("Gather", ["keys", past], "past_keys"), "past")
    start = "starts"
    if c:
        inputs["context"] = (c,)
        start = add("Add", ["starts", add("MatMul", ["context", "of_context"], "of_unit")], "start")
    if gru:
        changing |= {
            "gru_W": np.zeros((1, 3 * hidden, size), np.float32),
            "gru_R": np.zeros((1, 3 * hidden, hidden), np.float32),
            "gru_B": np.zeros((1, 6 * hidden), np.float32),
            "out": np.zeros((hidden, size), np.float32),
            "out_b": np.zeros(size, np.float32),
        }
        constants |= {"nothing": np.zeros((1, m, size), np.float32), "first": graphs.whole(0)}
        sequence = add("Concat", ["nothing", clicked], "sequence", axis=0)
        first = add("Unsqueeze", [start, "first"], "first_state")
        sources = [sequence, "gru_W", "gru_R", "gru_B", "", first]
        node = graphs.node("GRU", sources, "gru", hidden_size=hidden, linear_before_reset=1)
        node.output[:] = ["", "last_state"]
        nodes.append(node)
        last = add("Squeeze", ["last_state", "first"], "last")
        state = add("Add", [add("MatMul", [last, "out"], "read"), "out_b"], "state")
    else:
        changing["gammas"] = np.full(m, 0.5, np.float32)
        constants |= {"one": np.ones(1, np.float32), "zero": graphs.whole(0), "ones": graphs.whole(1)}
        constants["down"] = np.array(-1, np.int64)
        count = add("Shape", [past], "count")
        newest = add("Squeeze", [add("Sub", [count, "ones"], "before_last")], "clicks_after_first")
        later = add("Range", [newest, "down", "down"], "clicks_after")  # h − 1 … 0
        exponents = add(
            "Unsqueeze", [add("Cast", [later], "exponents", to=TensorProto.FLOAT), "ones"], "exponents_column"
        )
        decay = add("Pow", ["gammas", exponents], "decay")
        share = add("Mul", [decay, add("Sub", ["one", "gammas"], "rest")], "share")
        own = add("Pow", ["gammas", add("Cast", [count], "all_clicks", to=TensorProto.FLOAT)], "own")
        weights = add("Concat", [add("Unsqueeze", [own, "zero"], "own_row"), share], "weights_of", axis=0)
        rows = add("Concat", [add("Unsqueeze", [start, "zero"], "start_row"), clicked], "path", axis=0)
        weighted = add("Mul", [rows, add("Unsqueeze", [weights, "final"], "weights_column")], "weighted")
        state = add("ReduceSum", [weighted, "zero"], "state", keepdims=0)
    unseen = add("Less", ["item_rows", "none"], "unseen")
    ungrouped = add("Less", ["group_rows", "none"], "ungrouped")
    of_group = add("Sub", ["group_rows", "groups"], "of_group")  # rows of groups come last, that of none the very last
    fallback = add("Where", [ungrouped, "without", of_group], "fallback")
    rows = add("Where", [unseen, fallback, "item_rows"], "rows")
    candidates = vectors(rows, "item_keys", "item")
    apart = add("Sub", [candidates, state], "apart")
    distance = add("ReduceSum", [add("Mul", [apart, apart], "squares"), "final"], "distance", keepdims=0)
    add("Neg", [distance], "scores")
    return graphs.model("recurrent_slate", nodes, inputs, changing, shapes, constants)
