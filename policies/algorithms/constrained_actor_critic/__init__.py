"""Two-stage constrained actor-critic: raise one objective while others hold, for slates, learned off-policy from the stream.

    δ_i = r_i + γ_i V_i(s′) − V_i(s),   A_it = slot reward_it − the slate's mean + δ_i/k, in running standard deviations
    stage 1    π_i for each auxiliary i: −E_β[min(π_i/β, c) A_i log π_i], KL(π_i‖β) bounded
    stage 2    π* ∝ Π π_i^(λ_i/L) · exp(A_1/L), L = Σ λ_i: −E_β[min(Π π_i^(λ_i/L)/β, c) exp(A_1/L) log π_θ]
    lagrangian one policy on (A_1 + Σ μ_i A_i)/(1 + Σ μ_i), μ_i ≥ 0 moved by what settled decisions say of the thresholds

State    weights, Adam's moments, replay, running scales, multipliers: named arrays
Scores   (n, 1) log π_1 + Σ w_i log π_i of a state made of context and history: `network.py`, drawn by head `softmax`
Learn    `losses.py` through RLlib's learners; one critic an objective with its own discount

Two-stage promises no threshold: it stays near policies that serve the auxiliaries. Request weights other than the policy's own
come without any claim about guardrails.

Source   Cai et al. 2023 (arXiv 2302.01680); Lagrangian mode arXiv 2310.04373
"""

import numpy as np

from policies.algorithm import Algorithm, Problem, Published
from policies.algorithms.constrained_actor_critic import network
from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic, roles
from policies.algorithms.constrained_actor_critic.graph import graph
from policies.errors import Corrupt
from policies.training import Trainer
from policies.types import F32, Arrays


def trainer(config: ConstrainedActorCritic, problem: Problem) -> Trainer:
    """Imports torch and ray."""
    from policies.algorithms.constrained_actor_critic.training import ActorCriticTrainer

    return ActorCriticTrainer(config, problem)


def publish(config: ConstrainedActorCritic, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """The actors' weights; of nothing learned, those of `network.initial`. Raises Corrupt('nonfinite')."""
    parts = roles(config, problem)
    arrays = network.served(sums or network.initial(config, problem, len(parts)), len(parts))
    if not all(np.isfinite(value.astype(float)).all() for value in arrays.values()):
        raise Corrupt("nonfinite", "the weights are not finite")
    if not sums:
        return Published(arrays, diagnostics={"updates": 0.0})
    diagnostics = {"updates": float(sums["counts"][0]), "skipped": float(sums["counts"][1])}
    for name, multiplier in zip(parts.names[1:], sums["moment.multiplier"][1:], strict=True):
        diagnostics[f"multiplier_{name}"] = float(multiplier)
    return Published(arrays, diagnostics=diagnostics)


def reference(config: ConstrainedActorCritic, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    parts = roles(config, problem)
    weights = inputs["weights"].astype(np.float64) if len(problem.weights) > 1 else None
    context, history, items = (inputs[name][None].astype(np.float64) for name in ("context", "history", "items"))
    held = network.unserved(arrays, config, len(parts))
    found = network.scores(held, network.mixture(config, parts, weights), context, history, items)
    return np.asarray(found[0, :, None], np.float32)


ALGORITHM = Algorithm(
    name="constrained_actor_critic",
    summary="one objective raised while others hold: an actor-critic over sessions, two-stage or Lagrangian",
    source="Cai et al. 2023, arXiv 2302.01680",
    config=ConstrainedActorCritic,
    graph=graph,
    trainer=trainer,
    publish=publish,
    reference=reference,
    shaping=("main", "keep", "hidden", "attention", "embedding"),
    inputs=("context", "items", "history", "weights"),
    traits=frozenset({"trains", "contextual"}),
)
