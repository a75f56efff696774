"""SquareCB: inverse gap weighting on the ridge mean.

    p(a) = 1 / (∣R_t∣ + γ (ŷ* − ŷ_a)), the rest to the best,  γ = γ₀ n^ρ / span,  ŷ = Θᵀφ

State    S, B, Y, n of `policies.ridge`, without the prior: shards add, corrections subtract
Scores   (n, 1): the mean of the model of `policies.ridge_fitting`. O(n d)
Learn    O(D²) an example

n is Σ w at the publish, at least 1; span what the weighted reward can span by the objectives' ranges (1 each without one), so
that γ has no unit. The bundle carries 1/γ as the draw's temperature, and every decision logs it: a decision is replayed
with the γ it was made with. Weights that come with a request change the gaps and not γ.

Source   Foster & Rakhlin, ICML 2020 (arXiv 2002.04926); γ₀ = 10, ρ = ½ as Vowpal Wabbit has them by default
"""

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from policies import ridge_mean
from policies.algorithm import Algorithm, Problem, Published
from policies.ridge import merge
from policies.ridge_fitting import RidgeOptions, carry, fit, learner, spans
from policies.ridge_mean import graph, reference
from policies.types import Arrays


class SquareCB(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model.

    gamma_scale     γ₀
    gamma_exponent  ρ
    temperature     is found: 1/γ
    """

    head: Literal["inverse_gap"] = "inverse_gap"
    draws: Literal[1] = 1
    temperature: Literal[1] = 1
    gamma_scale: Annotated[float, Meta(gt=0, le=1e9)] = 10.0  # more is greedy in every float the draw knows
    gamma_exponent: Annotated[float, Meta(ge=0, le=1)] = 0.5


def publish(config: SquareCB, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """Θ in the arrays of `policies.linear_graph`, m = 1, and the draw's temperature 1/γ. Raises Corrupt('nonfinite')."""
    model = fit(config, problem, sums, now)
    span = float(np.abs(model.weights) @ spans(problem)) or 1.0
    gamma = config.gamma_scale * max(model.examples, 1.0) ** config.gamma_exponent / span
    return ridge_mean.published(model, 1 / gamma, gamma=gamma)


ALGORITHM = Algorithm(
    name="squarecb",
    summary="inverse gap weighting of a ridge model's scores, greedier the more it has learned",
    source="Foster & Rakhlin, ICML 2020",
    config=SquareCB,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "corrects", "contextual", "predicts"}),
)
