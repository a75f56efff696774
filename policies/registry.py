"""Every algorithm there is: one line each. Adding one touches nothing else."""

from policies.algorithm import Algorithm
from policies.algorithms import (
    bootstrap,
    constrained_actor_critic,
    epsilon_greedy,
    given_order,
    hierarchical_thompson,
    linear_thompson,
    linucb,
    logistic_thompson,
    neural_linear,
    novelty_hierarchy,
    popular,
    recurrent_slate,
    softmax,
    squarecb,
    uniform,
)
from policies.errors import Rejected

ALGORITHMS: dict[str, Algorithm] = {
    "uniform": uniform.ALGORITHM,
    "given_order": given_order.ALGORITHM,
    "popular": popular.ALGORITHM,
    "linear_thompson": linear_thompson.ALGORITHM,
    "hierarchical_thompson": hierarchical_thompson.ALGORITHM,
    "epsilon_greedy": epsilon_greedy.ALGORITHM,
    "softmax": softmax.ALGORITHM,
    "linucb": linucb.ALGORITHM,
    "squarecb": squarecb.ALGORITHM,
    "bootstrap": bootstrap.ALGORITHM,
    "logistic_thompson": logistic_thompson.ALGORITHM,
    "constrained_actor_critic": constrained_actor_critic.ALGORITHM,
    "novelty_hierarchy": novelty_hierarchy.ALGORITHM,
    "recurrent_slate": recurrent_slate.ALGORITHM,
    "neural_linear": neural_linear.ALGORITHM,
}


def algorithm(name: str, at: str = "$.algorithm") -> Algorithm:
    """The algorithm of a name. Raises Rejected, naming those there are."""
    if name not in ALGORITHMS:
        raise Rejected(
            f"No algorithm {name!r}; there are {', '.join(sorted(ALGORITHMS))}", at=at, code="unknown_algorithm"
        )
    return ALGORITHMS[name]
