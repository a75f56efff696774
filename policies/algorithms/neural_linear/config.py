"""Options of `neural_linear`."""

from typing import Annotated

from msgspec import Meta

from policies.ridge_fitting import RidgeOptions

Positive = Annotated[float, Meta(gt=0)]


class NeuralLinear(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model, which are the last layer's.

    spread         multiplies the posterior's standard deviation, as in `linear_thompson`
    hidden         units of the network's first layer;   features: of its second, which the last layer is over
    wide           whether the last layer also has the items and crosses as they are, as `linear_thompson` does
    replay         settled decisions kept, the newest ones: what the network learns from, and sums are rebuilt from
    refresh        share of the decisions kept that must be new before what is served takes the network as trained since
    minibatch, replay_ratio   decisions a gradient step reads; times each is read on average
    learning_rate  of Adam;   decay: weight of the squared size of the network's weights in the loss
    seed           of first weights and minibatches
    """

    spread: Annotated[float, Meta(ge=0)] = 0.7
    hidden: Annotated[int, Meta(ge=1, le=1024)] = 64
    features: Annotated[int, Meta(ge=1, le=256)] = 16
    wide: bool = True
    replay: Annotated[int, Meta(ge=1)] = 10_000
    refresh: Annotated[float, Meta(gt=0, le=1)] = 0.1
    minibatch: Annotated[int, Meta(ge=1)] = 128
    replay_ratio: Positive = 16.0
    learning_rate: Positive = 1e-2
    decay: Annotated[float, Meta(ge=0)] = 1e-4
    seed: Annotated[int, Meta(ge=0)] = 0
