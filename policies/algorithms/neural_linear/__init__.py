"""Thompson sampling on a Bayesian linear layer over what a network has learned to see in a candidate.

    ψ = relu(second · relu(first · [1, context, items, crosses])),   r = θᵀ[1, context, slot one-hot | items, ψ, crosses] + e

The posterior of θ, its draws and σ are `linear_thompson`'s, see `policies.ridge_fitting`, with ψ beside items and crosses, or, not
`wide`, in their place (Riquelme et al.): same prior outside the sums, same forgetting, position scored in slot 0, a slot's weight
1/(1+(k−1)ρ̂). The network is taken as given.

State    weights in training and as served, Adam's moments, the newest `replay` decisions, and S, B, Y, n over the outputs of the
         served network, with its hash
Scores   (n, m), O(n (d h + h f + (d + f) m)) for h hidden units and f features
Learn    `training.py`, torch: every settled decision enters the sums at once, O(D²), and the replay; gradient steps train a second copy
         of the network. When a tenth of the decisions kept are new, that copy is served from then on

A change of network leaves no sum over its outputs that means anything: all sums are rebuilt from the decisions kept, under the new network, with the
rewards they settled with and ρ̂ as the sums before had it. Kept is what the newest `replay` decisions say (10,000); lost is what
older ones said, so no more than (1 + refresh) · `replay` decisions are ever in the sums. Sums and network that do not belong together are
refused by name, at a publish and at a load. Of features that come or go, and of feedback after settling, nothing is carried over.

Source   Riquelme, Tucker & Snoek, ICLR 2018, arXiv 1802.09127 (NeuralLinear); Cheng et al. 2016, arXiv 1606.07792 (wide and deep)
"""

from dataclasses import replace

import numpy as np

from policies import linear_graph
from policies.algorithm import Algorithm, Problem, Published
from policies.algorithms.neural_linear import last_layer, network
from policies.algorithms.neural_linear.config import NeuralLinear
from policies.algorithms.neural_linear.graph import graph
from policies.errors import Corrupt
from policies.ridge_fitting import fit
from policies.training import Trainer
from policies.types import F32, Arrays


def trainer(config: NeuralLinear, problem: Problem) -> Trainer:
    """Imports torch."""
    from policies.algorithms.neural_linear.training import NeuralLinearTrainer

    return NeuralLinearTrainer(config, problem)


def publish(config: NeuralLinear, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """The served network, and a pool of posterior draws over its outputs. Raises Corrupt('nonfinite' | 'network')."""
    if sums:
        weights: Arrays = {name: sums[f"served.{name}"] for name in network.WEIGHTS}
    else:
        weights = network.initial(config, problem)
    if not all(np.isfinite(value.astype(np.float64)).all() for value in weights.values()):
        raise Corrupt("nonfinite", "the weights are not finite")
    held = last_layer.sums_in(config, problem, sums, weights)
    model = fit(config, network.above(config, problem), held, now)
    draws = model.posterior.draws(model.shares, config.draws, config.spread, np.random.default_rng(seed))
    counts = dict(zip(network.COUNTS, np.asarray(sums["counts"]).tolist(), strict=True)) if sums else {}
    made = model.published(draws, **{name: float(count) for name, count in counts.items()})
    last = {network.LAST + name: array for name, array in made.arrays.items()}
    return replace(made, arrays=last | network.served(problem, weights))


def reference(config: NeuralLinear, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    theta = {name.removeprefix(network.LAST): array for name, array in arrays.items() if name.startswith(network.LAST)}
    seen = {**inputs, "items": network.widened(config, inputs["items"], network.outputs(problem, arrays, inputs))}
    return linear_graph.reference(network.above(config, problem), theta, seen).astype(np.float32)


ALGORITHM = Algorithm(
    name="neural_linear",
    summary="Thompson sampling on a Bayesian linear layer over the features a network learns",
    source="Riquelme et al., ICLR 2018",
    config=NeuralLinear,
    graph=graph,
    trainer=trainer,
    publish=publish,
    reference=reference,
    shaping=("hidden", "features", "wide"),
    inputs=("context", "items", "weights"),
    traits=frozenset({"trains", "contextual", "uses_draws", "predicts"}),
)
