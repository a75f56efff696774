"""Epsilon-greedy on the ridge mean: the best candidate, and with probability ε any.

    p = (1 − ε) 1[· is the best of R_t] + ε/∣R_t∣,  score = Θᵀφ,  ε = `floor`; the tied split the best's share

State    S, B, Y, n of `policies.ridge`, without the prior: shards add, corrections subtract
Scores   (n, 1): the mean of the model of `policies.ridge_fitting`. O(n d)
Learn    O(D²) an example
Source   Sutton & Barto, Reinforcement Learning, 2018, 2.2; ε as Vowpal Wabbit has it by default
"""

from typing import Annotated, Literal

from msgspec import Meta

from policies.algorithm import Algorithm
from policies.ridge import merge
from policies.ridge_fitting import RidgeOptions, carry, learner
from policies.ridge_mean import graph, publish, reference


class EpsilonGreedy(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model.

    floor      ε
    """

    floor: Annotated[float, Meta(ge=0, le=1)] = 0.05
    head: Literal["draws"] = "draws"
    draws: Literal[1] = 1


ALGORITHM = Algorithm(
    name="epsilon_greedy",
    summary="the best by a ridge model, and with probability epsilon any",
    source="Sutton & Barto, 2018",
    config=EpsilonGreedy,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "corrects", "contextual", "predicts"}),
)
