"""Score graphs: the few lines of ONNX that every algorithm shares.

Names and shapes are the fixed vocabulary of `architecture.md` 1. What changes at a publish is an initialiser that is also
an input: a session runs without it, and a new array needs no new session.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, load_from_string, numpy_helper

from policies.types import Arrays

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 18
IR_VERSION = 9  # what opset 18 came with; readers of older onnxruntime accept it
TYPES = dict.fromkeys(("item_rows", "group_rows", "item_keys", "history_rows"), TensorProto.INT64)

Shape = Sequence[int | str]


def model(
    name: str,
    nodes: Sequence["NodeProto"],
    inputs: Mapping[str, Shape],
    changing: Arrays | None = None,
    shapes: Mapping[str, Shape] | None = None,
    constants: Arrays | None = None,
    output: str = "scores",
) -> "ModelProto":
    """ONNX model with one output: `scores` f32[n, m], or that of a manager, `goal_logits` f32[g].

    inputs    name → shape of what a request brings (float32, rows int64)
    changing  arrays replaced at a publish, with what they hold until then; `shapes` names their free dimensions
    constants arrays that belong to the graph
    """
    changing, constants, shapes = changing or {}, constants or {}, shapes or {}
    wanted = [helper.make_tensor_value_info(i, TYPES.get(i, TensorProto.FLOAT), list(s)) for i, s in inputs.items()]
    wanted += [
        helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(a.dtype), list(shapes.get(i, a.shape)))
        for i, a in changing.items()
    ]
    made_of = ["n", "m"] if output == "scores" else ["g"]
    scores = helper.make_tensor_value_info(output, TensorProto.FLOAT, made_of)
    graph = helper.make_graph(
        list(nodes),
        name,
        wanted,
        [scores],
        [numpy_helper.from_array(a, i) for i, a in {**changing, **constants}.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="slatewise")
    made.ir_version = IR_VERSION
    return made


def node(kind: str, inputs: Sequence[str], output: str, **attributes: object) -> "NodeProto":
    """One node with one output, named after it."""
    return helper.make_node(kind, list(inputs), [output], name=output, **attributes)


def whole(*numbers: int) -> NDArray[np.int64]:
    """int64 vector: what shapes, axes and rows are in ONNX."""
    return np.array(numbers, np.int64)


def requested(graph: bytes) -> dict[str, Shape]:
    """The inputs a request must bring, by name with their shapes: those that no initialiser stands for."""
    body = load_from_string(graph).graph
    changing = {array.name for array in body.initializer}
    return {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in body.input
        if i.name not in changing
    }
