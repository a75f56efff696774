"""LinUCB with one shared ridge model a surface: the mean, and how far the reward may be above it.

    score = Θᵀφ + α σ √(φᵀA⁻¹φ)

State    S, B, Y, n of `policies.ridge`, without the prior: shards add, corrections subtract
Scores   (n, 1). The graph holds a root of A⁻¹, as columns of θ beside the mean: √(φᵀA⁻¹φ) = ‖Rᵀφ‖. O(n d D)
Learn    O(D²) an example

σ is inferred like the rest of the model (`policies.ridge_fitting`), so α has no unit; A⁻¹σ² is averaged over λ. The best
is drawn with the floor around it, and the tied split its share, so that propensities are real where LinUCB by the book has
none. Weights that come with a request change mean and σ exactly, and A⁻¹ not: its λ stays the one of the default weights.

Source   Li, Chu, Langford, Schapire, WWW 2010 (arXiv 1003.0146), with features shared by all arms (its hybrid part)
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta

from policies import graphs, linear_graph
from policies.algorithm import Algorithm, Problem, Published
from policies.linear_graph import Linear, parts_of, times_phi
from policies.ridge import columns, merge
from policies.ridge_fitting import RidgeOptions, carry, fit, learner
from policies.types import F32, F64, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto


class LinUCB(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model.

    alpha      standard deviations that a candidate is credited with
    """

    head: Literal["draws"] = "draws"
    draws: Literal[1] = 1
    alpha: Annotated[float, Meta(ge=0)] = 1.0


def publish(config: LinUCB, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """Θ in the arrays of `policies.linear_graph`, and αR beside it under `root_…`, D columns. Raises Corrupt('nonfinite').

    One objective: RRᵀ = σ²A⁻¹. Several: RRᵀ = A⁻¹ by the default weights, and `noise` (o, o) is Ψ.
    """
    model = fit(config, problem, sums, now)
    variance = model.shares * model.posterior.variance(model.weights)
    made = model.published(model.mean[:, :, None])
    arrays = dict(made.arrays)
    if len(model.weights) > 1:
        variance = variance / max(float(variance.sum()), np.finfo(float).tiny)
        noise: F64 = np.einsum("l,lij->ij", model.shares, model.posterior.noise)
        arrays["noise"] = noise.astype(np.float32)
    root = parts_of(problem, config.alpha * model.posterior.root(variance)[None])
    arrays |= {f"root_{name}": np.ascontiguousarray(part[0], np.float32) for name, part in root.items()}
    return replace(made, arrays=arrays)


def graph(config: LinUCB, problem: Problem) -> "ModelProto":
    linear, D = Linear(problem), len(columns(problem))
    mean = linear.scores(linear.weighed(1), 1, "mean")
    each = linear.scores(linear.arrays(D, prefix="root_"), D, "turned")
    linear.constants["across"] = graphs.whole(1)
    width = linear.add("ReduceL2", [each, "across"], "width", keepdims=1)
    if linear.objectives > 1:
        linear.changing["noise"] = np.zeros((linear.objectives,) * 2, np.float32)
        linear.constants["none"] = np.zeros(1, np.float32)
        variance = linear.add("MatMul", [linear.add("MatMul", ["weights", "noise"], "noisy"), "weights"], "variance")
        sigma = linear.add("Sqrt", [linear.add("Max", [variance, "none"], "positive")], "sigma")
        width = linear.add("Mul", [width, sigma], "scaled")
    linear.add("Add", [mean, width], "scores")
    return linear.model("linucb")


def reference(config: LinUCB, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    root = {name.removeprefix("root_"): np.asarray(a, float) for name, a in arrays.items() if name.startswith("root_")}
    width = np.linalg.norm(times_phi(problem, root, inputs), axis=1, keepdims=True)
    if "noise" in arrays:
        weights = inputs["weights"].astype(float)
        width = width * np.sqrt(max(float(weights @ arrays["noise"].astype(float) @ weights), 0.0))
    return np.asarray(linear_graph.reference(problem, arrays, inputs) + width, np.float32)


ALGORITHM = Algorithm(
    name="linucb",
    summary="the best by a ridge model's mean and its uncertainty, optimistically",
    source="Li et al., WWW 2010",
    config=LinUCB,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "corrects", "contextual"}),
)
