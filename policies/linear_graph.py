"""A linear model of φ as a score graph: what algorithms with m columns of θ share, whatever they make of the columns.

    scores = Θᵀφ,  φ = [1, context, slot one-hot | items, crosses] in slot 0, so position is not read as quality

Arrays   `base` (1 + c, m), `pool` (d, m), `crosses` (u, J, m), of the weighted reward when the surface has one objective,
         else (o, …) of each one's, weighed in the graph by the input `weights`; without an array where a side has no features
Scores   (n, m), O(m n d) and O(m x) for x crosses
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from policies import graphs
from policies.algorithm import Problem
from policies.features import Encoder, crossed
from policies.ridge import columns, effects
from policies.types import F32, F64, I64, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def chosen(problem: Problem) -> list[int]:
    """Objectives the policy weighs, by their place in the surface's order. Sums are kept of all."""
    return [i for i, name in enumerate(problem.objectives) if name in problem.weights]


def weights_of(problem: Problem) -> F64:
    """Default weights of those chosen, (o,)."""
    return np.array(list(problem.weights.values()), np.float64)


def arrays_of(problem: Problem, theta: F64) -> Arrays:
    """θ (o, D, m) of the chosen objectives as the graph's arrays, float32. With one objective it is weighed here."""
    parts = parts_of(problem, theta)
    if len(theta) == 1:
        parts = {name: weights_of(problem)[0] * part[0] for name, part in parts.items()}
    return {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}


def parts_of(problem: Problem, theta: F64) -> dict[str, F64]:
    """θ (o, D, m) where the graph looks for it: base (o, 1 + c, m), pool (o, d, m), crosses (o, u, J, m); none that is empty."""
    encoder, crosses = problem.encoder, folded(problem.encoder)
    c, d = encoder.context_size, encoder.item_size
    effect = theta[:, effects(columns(problem))]
    parts = {
        "base": theta[:, : 1 + c].copy(),
        "pool": effect[:, :d],
        "crosses": np.zeros((len(theta), *crosses.context.shape, theta.shape[2])),
    }
    parts["crosses"][:, *crosses.place.T] = effect[:, d:]
    if problem.slots > 1:
        parts["base"][:, 0] += theta[:, 1 + c]  # slot 0
    return {name: part for name, part in parts.items() if part.size}


class Crosses(NamedTuple):
    """The crosses by the item column they multiply: u such columns, each with up to J of the context's.

    So a request sums J context values times weights for each of u columns and multiplies items once, instead of forming
    n × x products: 320 crosses of 100 candidates under 256 draws took 70 µs instead of 450.

    columns (u,)   item columns that have crosses
    context (u, J) context columns of each, c (a zero) where it has fewer
    place (x, 2)   where cross column j is in (u, J)
    """

    columns: I64
    context: I64
    place: I64


def folded(encoder: Encoder) -> Crosses:
    of_context, of_item = encoder.cross
    item_columns, group = np.unique(of_item, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=len(item_columns))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    context = np.full((len(item_columns), int(sizes.max(initial=0))), encoder.context_size)
    context[group, rank] = of_context
    return Crosses(item_columns, context, np.column_stack([group, rank]))


class Linear:
    """The nodes of Θᵀφ, for an algorithm to add its own after them.

    inputs, changing, constants, nodes  what `graphs.model` takes
    items                               the name under which the graph has the candidates' features (n, d)
    """

    def __init__(self, problem: Problem, items: str = "items") -> None:
        self.encoder, self.objectives, self.items = problem.encoder, len(chosen(problem)), items
        self.crosses = folded(self.encoder)
        self.inputs: dict[str, graphs.Shape] = {items: ("n", self.encoder.item_size)}
        self.changing: Arrays = {}
        self.constants: Arrays = {}
        self.nodes: list[NodeProto] = []
        if self.objectives > 1:
            self.inputs["weights"] = (self.objectives,)
        if self.encoder.context_size:
            self.inputs["context"] = (self.encoder.context_size,)
            self.constants["one"] = np.ones(1, np.float32)
            self.add("Concat", ["one", "context"], "situation", axis=0)

    def add(self, kind: str, sources: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(graphs.node(kind, sources, output, **attributes))
        return output

    def shapes(self, m: int) -> dict[str, tuple[int, ...]]:
        """Of the arrays for m columns."""
        c, d = self.encoder.context_size, self.encoder.item_size
        shapes = {"base": (1 + c, m), "pool": (d, m), "crosses": (*self.crosses.context.shape, m)}
        return {name: shape for name, shape in shapes.items() if shape[0]}

    def arrays(self, m: int, *leading: int, prefix: str = "") -> dict[str, str]:
        """Arrays for m columns that a publish replaces, by name; `leading` axes stand before those of the columns."""
        shapes = self.shapes(m)
        self.changing |= {prefix + name: np.zeros((*leading, *shape), np.float32) for name, shape in shapes.items()}
        return {name: prefix + name for name in shapes}

    def weighed(self, m: int, prefix: str = "") -> dict[str, str]:
        """Arrays for m columns of each objective, weighed by the input `weights` where there are several."""
        if self.objectives == 1:
            return self.arrays(m, prefix=prefix)
        self.constants["flat"] = graphs.whole(self.objectives, -1)
        held, shapes = self.arrays(m, self.objectives, prefix=prefix), self.shapes(m)
        for name, shape in shapes.items():
            self.constants[f"{name}_shape"] = graphs.whole(*shape)
            flat = self.add("Reshape", [held[name], "flat"], f"{name}_flat")
            row = self.add("MatMul", ["weights", flat], f"{name}_row")
            held[name] = self.add("Reshape", [row, f"{name}_shape"], f"{name}_weighted")
        return held

    def scores(self, held: dict[str, str], m: int, output: str = "scores") -> str:
        """Nodes up to `output` (n, m), of the arrays under these names."""
        bias = held["base"]
        if self.encoder.context_size:
            bias = self.add("MatMul", ["situation", bias], f"{output}_bias")
        if not self.encoder.item_size:
            self.constants[f"{output}_columns"] = graphs.whole(m)
            rows = self.add("Shape", [self.items], f"{output}_rows", start=0, end=1)
            shape = self.add("Concat", [rows, f"{output}_columns"], f"{output}_shape", axis=0)
            return self.add("Expand", [bias, shape], output)
        effect = held["pool"]
        if len(self.crosses.columns):
            self.constants |= {
                "zero": np.zeros(1, np.float32),
                "of_context": self.crosses.context[:, None, :],
                "of_item": self.crosses.columns[:, None],
                f"{output}_each": graphs.whole(-1, m),
            }
            padded = self.add("Concat", ["context", "zero"], f"{output}_padded", axis=0)
            values = self.add("Gather", [padded, "of_context"], f"{output}_values")
            summed = self.add("MatMul", [values, held["crosses"]], f"{output}_summed")
            change = self.add("Reshape", [summed, f"{output}_each"], f"{output}_change")
            effect = self.add("ScatterND", [effect, "of_item", change], f"{output}_effect", reduction="add")
        return self.add("Gemm", [self.items, effect, bias], output)

    def model(self, name: str) -> "ModelProto":
        return graphs.model(name, self.nodes, self.inputs, self.changing, constants=self.constants)


def graph(name: str, problem: Problem, m: int) -> "ModelProto":
    """The model whose scores are the columns themselves."""
    linear = Linear(problem)
    linear.scores(linear.weighed(m), m)
    return linear.model(name)


def reference(problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F64:
    """(n, m) word for word: weighted θ, times φ with every cross written out."""
    theta: dict[str, F64] = {n: np.asarray(arrays[n], float) for n in ("base", "pool", "crosses") if n in arrays}
    if len(chosen(problem)) > 1:
        theta = {name: np.tensordot(inputs["weights"].astype(float), array, 1) for name, array in theta.items()}
    return times_phi(problem, theta, inputs)


def times_phi(problem: Problem, theta: dict[str, F64], inputs: dict[str, F32]) -> F64:
    """Θᵀφ (n, m) of arrays without an axis of objectives."""
    context, items = np.asarray(inputs.get("context", np.zeros(0)), float), inputs["items"].astype(float)
    situation = np.concatenate([[1.0], context]) @ theta["base"]
    scores: F64 = np.broadcast_to(situation, (len(items), len(situation)))
    if "pool" in theta:
        scores = scores + items @ theta["pool"]
    if "crosses" in theta:
        group, rank = folded(problem.encoder).place.T
        scores = scores + crossed(problem.encoder, context, items) @ theta["crosses"][group, rank]
    return scores
