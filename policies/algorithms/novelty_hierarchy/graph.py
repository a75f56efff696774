"""Both graphs: `network.py` as ONNX nodes, weights as initialisers that are also inputs. They share the state's features."""

from typing import TYPE_CHECKING

import numpy as np

from policies import graphs
from policies.algorithm import Problem
from policies.algorithms.novelty_hierarchy.config import NoveltyHierarchy, read
from policies.algorithms.novelty_hierarchy.network import SERVED, initial
from policies.novelty import LEAST
from policies.types import Arrays

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


class Drawing:
    """Nodes and constants of one graph, in the order they were added."""

    def __init__(self, config: NoveltyHierarchy, problem: Problem) -> None:
        self.nodes: list[NodeProto] = []
        self.config, self.encoder = config, problem.encoder
        weights = initial(config, problem)
        self.changing: Arrays = {name: weights[name] for name in SERVED}
        self.constants: Arrays = {
            "one": np.ones((1, 1), np.float32),
            "unit": np.array(1, np.float32),
            "nothing": np.zeros((1, self.encoder.item_size), np.float32),
            "rows": graphs.whole(0),
            "columns": graphs.whole(1),
            "least": np.array(LEAST, np.float32),
            "tiny": np.array(1e-9, np.float32),
            "keeps": np.array(1 - config.recent, np.float32),
            "step": np.array(-1, np.int64),
        }

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(graphs.node(kind, inputs, output, **attributes))
        return output

    def directions(self, of: str) -> str:
        """See `novelty.directions`."""
        square = self.add("ReduceSum", [self.add("Mul", [of, of], f"{of}_square"), "columns"], f"{of}_sum", keepdims=1)
        length = self.add("Max", [self.add("Sqrt", [square], f"{of}_root"), "least"], f"{of}_length")
        return self.add("Div", [of, length], f"{of}_directions")

    def features(self) -> str:
        """φ (1, f). A row of zeros is put before the history, so that no node ever meets an empty one."""
        add = self.add
        lived = add("Concat", ["nothing", "history"], "lived", axis=0)
        size = add("ReduceMax", [add("Abs", [lived], "sizes"), "columns"], "size", keepdims=1)
        live = add("Sign", [size], "live")  # (h + 1, 1)
        count = add("ReduceSum", [live, "rows"], "count", keepdims=1)
        number = add("Squeeze", [add("Shape", [lived], "rows_of", start=0, end=1), "rows"], "number")
        oldest = add("Add", [number, "step"], "oldest")
        ages = add("Cast", [add("Range", [oldest, "step", "step"], "ages_whole")], "ages", to=1)
        powers = add("Unsqueeze", [add("Pow", ["keeps", ages], "fades"), "columns"], "powers")
        faded = add("Mul", [live, powers], "faded")
        total = add("Max", [add("ReduceSum", [faded, "rows"], "faded_sum", keepdims=1), "tiny"], "faded_total")
        share = add("Div", [faded, total], "share")
        even = add("Div", [live, add("Max", [count, "unit"], "at_least_one")], "even")
        way = self.directions(lived)
        cosines = add("Gemm", [way, way], "cosines", transB=1)
        earlier = add("Trilu", [cosines, "step"], "earlier", upper=0)  # below the diagonal; zeros elsewhere
        close = add("ReduceMax", [earlier, "columns"], "close", keepdims=1)
        new = add("Sub", ["unit", close], "lived_new")
        parts = [add("Unsqueeze", ["context", "rows"], "context_row")]
        for name, weight in (("mean", even), ("recent", share)):
            parts.append(add("Gemm", [weight, lived], f"{name}_item", transA=1))
            parts.append(add("Gemm", [weight, new], f"{name}_new", transA=1))
            if weight == even:
                parts.append(add("Log", [add("Add", [count, "unit"], "count_and_one")], "often"))
        return add("Concat", parts, "features", axis=1)

    def body(self, name: str, x: str) -> str:
        """(1, out), see `network.body`."""
        one = self.add("Concat", ["one", x], f"{name}_one", axis=1)
        hidden = self.add("Relu", [self.add("MatMul", [one, f"{name}_in"], f"{name}_before")], f"{name}_hidden")
        wide = self.add("Concat", [one, hidden], f"{name}_wide", axis=1)
        return self.add("MatMul", [wide, f"{name}_out"], f"{name}_body")

    def inputs(self) -> dict[str, tuple[int | str, ...]]:
        return {"context": (self.encoder.context_size,), "history": ("h", self.encoder.item_size)}


def graph(config: NoveltyHierarchy, problem: Problem) -> "ModelProto":
    """Reads context, items, history and goal."""
    read(config, problem)
    made = Drawing(config, problem)
    made.constants["strengths"] = config.strengths.astype(np.float32)
    made.constants["heard"] = np.array(float(config.novel), np.float32)
    wants = made.body("worker", made.features())
    relevance = made.add("Gemm", ["items", wants], "relevance", transB=1)
    near = made.add("Gemm", [made.directions("items"), "lived_directions"], "near", transB=1)
    close = made.add("ReduceMax", [near, "columns"], "item_close", keepdims=1)  # the row of zeros gives the 0 in max
    new = made.add("Sub", ["unit", close], "item_new")
    asked = made.add("MatMul", ["goal", "strengths"], "asked")
    strength = made.add("Add", [made.add("Mul", ["own", "heard"], "own_heard"), asked], "strength")
    made.add("Add", [relevance, made.add("Mul", [new, strength], "pull")], "scores")
    inputs = {**made.inputs(), "items": ("n", made.encoder.item_size), "goal": (config.goals,)}
    changing = {name: made.changing[name] for name in SERVED[:3]}
    return graphs.model("novelty_worker", made.nodes, inputs, changing, constants=made.constants)


def manager(config: NoveltyHierarchy, problem: Problem) -> "ModelProto":
    """Reads context and history."""
    made = Drawing(config, problem)
    made.constants["read"] = read(config, problem).astype(np.float32)[None]
    told = made.add("Mul", [made.features(), "read"], "told")
    made.add("Squeeze", [made.body("manager", told), "rows"], "goal_logits")
    changing = {name: made.changing[name] for name in SERVED[3:]}
    return graphs.model(
        "novelty_manager", made.nodes, made.inputs(), changing, constants=made.constants, output="goal_logits"
    )
