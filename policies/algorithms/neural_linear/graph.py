"""Score graph of `neural_linear`: two layers, then the linear model of every draw over what they say of a candidate."""

from typing import TYPE_CHECKING

import numpy as np

from policies import graphs
from policies.algorithm import Problem
from policies.algorithms.neural_linear import network
from policies.algorithms.neural_linear.config import NeuralLinear
from policies.linear_graph import Linear

if TYPE_CHECKING:
    from onnx import ModelProto


def graph(config: NeuralLinear, problem: Problem) -> "ModelProto":
    net, last = Linear(network.below(problem)), Linear(network.above(config, problem), items="known")
    net.scores(net.arrays(config.hidden, prefix=network.FIRST), config.hidden, "first")
    net.add("Gemm", [net.add("Relu", ["first"], "units"), "second", "second_bias"], "turned")
    if config.wide:
        net.add("Concat", ["items", net.add("Relu", ["turned"], "outputs")], "known", axis=1)
    else:
        net.add("Relu", ["turned"], "known")
    net.changing |= {
        "second": np.zeros((config.hidden, config.features), np.float32),
        "second_bias": np.zeros(config.features, np.float32),
    }
    last.scores(last.weighed(config.draws, prefix=network.LAST), config.draws)
    shared = {node.name for node in net.nodes}  # both begin with the context and its intercept
    nodes = [*net.nodes, *(node for node in last.nodes if node.name not in shared)]
    inputs = net.inputs | {name: shape for name, shape in last.inputs.items() if name != "known"}
    constants = net.constants | last.constants
    return graphs.model("neural_linear", nodes, inputs, net.changing | last.changing, constants=constants)
