"""Softmax (Boltzmann) exploration on the ridge mean; for a slate, Plackett-Luce.

    p ∝ exp(Θᵀφ / temperature) over R_t, then the floor

State    S, B, Y, n of `policies.ridge`, without the prior: shards add, corrections subtract
Scores   (n, 1): the mean of the model of `policies.ridge_fitting`. O(n d)
Learn    O(D²) an example

The temperature is in the unit of the weighted reward and does not fall: what is worse by one temperature gets 37% of the
best's chance for ever, so it never stops paying for what it knows (Cesa-Bianchi et al., NeurIPS 2017).

Source   Plackett, Applied Statistics 24, 1975; Sutton & Barto, Reinforcement Learning, 2018, 2.8
"""

from typing import Annotated, Literal

from msgspec import Meta

from policies.algorithm import Algorithm
from policies.ridge import merge
from policies.ridge_fitting import RidgeOptions, carry, learner
from policies.ridge_mean import graph, publish, reference


class Softmax(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model.

    temperature  difference of the weighted reward that changes the chance by a factor of e
    """

    head: Literal["softmax"] = "softmax"
    draws: Literal[1] = 1
    temperature: Annotated[float, Meta(gt=0)] = 0.05


ALGORITHM = Algorithm(
    name="softmax",
    summary="chances that grow exponentially with a ridge model's score (Plackett-Luce)",
    source="Plackett, 1975",
    config=Softmax,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "corrects", "contextual", "predicts"}),
)
