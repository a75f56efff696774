"""Linear Thompson sampling with one shared ridge model a surface.

    r = θᵀφ + e,  φ = [1, context, slot one-hot | items, crosses],  e ~ N(0, σ²),  θ ~ N(0, σ²/λ) right of the bar, N(0, σ²) left
    A = Λ + gS,  Θ = A⁻¹gB,  Ψ = (2β₀ + g(Y − BᵀΘ)) / (2α₀ + gn),  draws Θ + A^(−½) Z Ψ^(½),  g = 2^(index − now/H)

State    S, B, Y, n of `policies.ridge`, without the prior: shards add, corrections subtract
Scores   (n, m): m posterior draws times n candidates, in slot 0, so position is not read as quality. O(m n d)
Learn    O(D²) an example

λ is not set but inferred (`policies.ridge_posterior`), and every λ gets its share of the draws. So rare clicks widen the
prior's hold instead of making the first lucky item a winner.

Source   Agrawal & Goyal, ICML 2013 (sampling); Bishop, Pattern Recognition and Machine Learning, 2006, 3.5 (evidence)
"""

from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta

from policies import linear_graph
from policies.algorithm import Algorithm, Problem, Published
from policies.ridge import merge
from policies.ridge_fitting import RidgeOptions, carry, fit, learner
from policies.types import F32, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto


class LinearThompson(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model.

    spread     multiplies the posterior's standard deviation; 1 is Thompson sampling by the book. 0.7 halves the variance, the
               reshaping with α = 0.5 of Chapelle & Li, NeurIPS 2011: less regret at every finite horizon they tried
    """

    spread: Annotated[float, Meta(ge=0)] = 0.7


def publish(config: LinearThompson, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """A pool of posterior draws in the arrays of `policies.linear_graph`. Raises Corrupt('nonfinite')."""
    model = fit(config, problem, sums, now)
    rng = np.random.default_rng(seed)
    return model.published(model.posterior.draws(model.shares, config.draws, config.spread, rng))


def graph(config: LinearThompson, problem: Problem) -> "ModelProto":
    return linear_graph.graph("linear_thompson", problem, config.draws)


def reference(config: LinearThompson, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    return linear_graph.reference(problem, arrays, inputs).astype(np.float32)


ALGORITHM = Algorithm(
    name="linear_thompson",
    summary="Thompson sampling on one shared linear model of features, crosses and slots",
    source="Agrawal & Goyal, ICML 2013",
    config=LinearThompson,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "corrects", "contextual", "uses_draws", "predicts"}),
)
