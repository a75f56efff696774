"""Logistic Thompson sampling: one shared Bernoulli model a surface, by Laplace's approximation.

    P(r = 1) = σ(θᵀφ),  φ = [1, context, slot one-hot | items, crosses],  θ ~ N(c e₁, Λ⁻¹), Λ = λ right of the bar, 1 left
    A = Σ w p(1−p) φφᵀ,  b = Σ w (r − p + p(1−p) φᵀθ_e) φ,  p = σ(φᵀθ_e)
    draws of N(Θ, (Λ + gA)⁻¹),  Θ = (Λ + gA)⁻¹ (gb + Λ c e₁),  score = Σ weight (low + span σ(θᵀφ)),  g = 2^(index − now/H)

State    A, b of each objective at points θ_e that stay fixed for an epoch, and the sums of `policies.ridge`: `learner.py`, which
         says how epochs end, and what of "shards add, corrections subtract" holds across them
Scores   (n, m): expected reward under m posterior draws, in slot 0, so position is not read as quality. O(m n d o)
Learn    O(o D²) an example

c, the log odds of the mean reward, is the prior's middle of the intercept; λ is inferred like linear_thompson's, by the evidence
of the expansion. Where clicks are rare, the variance p(1−p) of a click falls with its chance, which a linear model does not
know: what is seldom clicked is known with fewer examples.

Source   Chapelle & Li, NeurIPS 2011, algorithm 3 (Laplace, regularised logistic regression, diagonal there and full here)
"""

from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta

from policies import forgetting
from policies.algorithm import Addend, Algorithm, Problem, Published
from policies.algorithms.logistic_thompson import learner as learning
from policies.algorithms.logistic_thompson.learner import (
    LogisticLearner,
    dispersion,
    expanded,
    log_odds,
    merge,
    quadratic,
    ranges,
)
from policies.errors import Corrupt
from policies.linear_graph import Linear, chosen, parts_of, times_phi, weights_of
from policies.ridge import columns, effects, sums_of
from policies.ridge_fitting import RidgeOptions, discount, fit
from policies.types import F32, F64, Arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto


class LogisticThompson(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model; `prior` is the precision of an effect on the log odds.

    spread       multiplies the posterior's standard deviation, as for linear_thompson
    first_epoch  examples after which a partition's first epoch ends
    """

    first_epoch: Annotated[int, Meta(ge=1)] = 64
    spread: Annotated[float, Meta(ge=0)] = 0.7


def learner(config: LogisticThompson, problem: Problem) -> LogisticLearner:
    return LogisticLearner(problem, forgetting.half_life_seconds(config.half_life), config.grid, config.first_epoch)


def carry(config: LogisticThompson, problem: Problem, own: Arrays, addends: "Sequence[Addend]", now: float) -> Arrays:
    return learning.carry(problem, own, addends, now)


def publish(config: LogisticThompson, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """The arrays of `policies.linear_graph` with an axis of objectives in front, and `weight` (1,) where there is one objective.

    Raises Corrupt('nonfinite').
    """
    state = sums or learner(config, problem).arrays()
    held, own, effect = sums_of(state), chosen(problem), effects(columns(problem))
    g = discount(held, forgetting.half_life_seconds(config.half_life), now)
    if not all(np.isfinite(array).all() for array in (held["S"], held["B"], state["A"], state["b"])):
        raise Corrupt("nonfinite", "the sums are not finite")
    c = log_odds(held, g)
    A, b = np.asarray(state["A"], float), np.asarray(state["b"], float)
    if not state["epoch"][0]:
        A, b = expanded(held["S"], held["B"], c)
    rng, theta, priors = np.random.default_rng(seed), np.empty((len(own), len(effect), config.draws)), []
    spreads = dispersion(learning.unit(problem), state, A, now)
    for i, o in enumerate(own):
        each = g / spreads[o]
        found = quadratic(each * A[o], each * b[:, o], float(c[o]), effect, config.grid)
        shares = found.unit_shares()
        theta[i] = found.draw(shares, config.draws, config.spread, rng)[0]
        theta[i, 0] += c[o]
        priors.append(float(shares @ np.log2(found.grid)))
    rho = fit(config, learning.unit(problem), sums, now).rho if problem.slots > 1 else 0.0
    arrays: Arrays = {name: np.ascontiguousarray(p, np.float32) for name, p in parts_of(problem, theta).items()}
    if len(own) == 1:
        arrays["weight"] = weights_of(problem).astype(np.float32)
    diagnostics = {
        "examples": g * float(held["n"][0]),
        "rho": rho,
        "prior": float(np.exp2(np.mean(priors))),
        "epoch": float(state["epoch"][0]),
        "dispersion": float(np.mean(spreads[own])),
    }
    return Published(arrays, 1 / (1 + (problem.slots - 1) * rho), diagnostics)


def graph(config: LogisticThompson, problem: Problem) -> "ModelProto":
    linear, own, m = Linear(problem), chosen(problem), config.draws
    held = linear.arrays(m, len(own))
    weights = "weights" if linear.objectives > 1 else "weight"
    if linear.objectives == 1:
        linear.changing["weight"] = np.zeros(1, np.float32)
    parts = []
    for i, o in enumerate(own):
        low, high = ranges(problem)[o]
        linear.constants |= {
            f"which{i}": np.array(i),
            f"low{i}": np.array(low, np.float32),
            f"span{i}": np.array(high - low, np.float32),
        }
        one = {name: linear.add("Gather", [name, f"which{i}"], f"{name}{i}", axis=0) for name in held}
        p = linear.add("Sigmoid", [linear.scores(one, m, f"odds{i}")], f"chance{i}")
        expected = linear.add("Add", [linear.add("Mul", [p, f"span{i}"], f"spanned{i}"), f"low{i}"], f"expected{i}")
        weight = linear.add("Gather", [weights, f"which{i}"], f"weight{i}", axis=0)
        parts.append(linear.add("Mul", [expected, weight], f"part{i}"))
    linear.add("Sum", parts, "scores")
    return linear.model("logistic_thompson")


def reference(config: LogisticThompson, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    own = chosen(problem)
    weights = np.asarray(inputs["weights"] if len(own) > 1 else arrays["weight"], float)
    held = {name: np.asarray(array, float) for name, array in arrays.items() if name != "weight"}
    scores: F64 = np.zeros((len(inputs["items"]), config.draws))
    for i, o in enumerate(own):
        low, high = ranges(problem)[o]
        z = times_phi(problem, {name: array[i] for name, array in held.items()}, inputs)
        scores = scores + weights[i] * (low + (high - low) / (1 + np.exp(-np.clip(z, -700, 700))))  # exp holds 709
    return scores.astype(np.float32)


ALGORITHM = Algorithm(
    name="logistic_thompson",
    summary="Thompson sampling on one shared logistic model, for clicks and other rewards of yes and no",
    source="Chapelle & Li, NeurIPS 2011",
    config=LogisticThompson,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "contextual", "uses_draws", "epochs", "predicts", "odds"}),
)
