"""Every promise of `algorithm_contract`, kept by every algorithm of the registry; and planted faults, caught by it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies import ridge_fitting
from policies.algorithm import Algorithm, Problem, Published
from policies.algorithms import constrained_actor_critic, hierarchical_thompson, linear_thompson, popular
from policies.algorithms.logistic_thompson.learner import LogisticLearner
from policies.registry import ALGORITHMS
from policies.ridge import RidgeLearner
from policies.training import Trainer
from policies.types import F32, Arrays, Changes
from tests.contracts import training_contract
from tests.contracts.algorithm_contract import CHECKS

assert training_contract.PASTS  # importing it registers its promises


SLOW = {"beats_uniform", "draws_what_it_logs"}  # half the time of all promises; groups change nothing about them


class ByGenre(hierarchical_thompson.HierarchicalThompson, frozen=True):
    """Items in groups, which no surface has by default."""

    group: str | None = "genre"


def promises() -> Iterator[Any]:
    by_genre = replace(hierarchical_thompson.ALGORITHM, name="hierarchical_thompson_by_genre", config=ByGenre)
    for algorithm in (*ALGORITHMS.values(), by_genre):
        for name, (function, needs, without) in CHECKS.items():
            if algorithm is by_genre and name in SLOW:
                continue
            if needs <= algorithm.traits and not without & algorithm.traits:
                yield pytest.param(function, algorithm, id=f"{algorithm.name}-{name}")


@pytest.mark.parametrize(("promise", "algorithm"), list(promises()))
def test_promise(promise: Any, algorithm: Algorithm) -> None:
    promise(algorithm)


def learning(change: Any) -> Algorithm:
    """linear_thompson with one thing wrong in what its learner is told."""

    class Faulty(RidgeLearner):
        def learn(self, changes: Changes) -> None:
            super().learn(change(changes))

    def learner(config: Any, problem: Problem) -> RidgeLearner:
        return Faulty(problem, ridge_fitting.learner(config, problem).half_life)

    return replace(linear_thompson.ALGORITHM, learner=learner)


def forgets_on_arrival() -> Algorithm:
    clock = [1_764_000_000.0]

    def stamped(changes: Changes) -> Changes:
        clock[0] += 60
        return replace(changes, times=np.full(len(changes), clock[0]))

    return learning(stamped)


def publishes_its_own_sums(config: Any, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    made = linear_thompson.publish(config, problem, sums, now, seed)
    return replace(made, arrays={**made.arrays, "mean": sums["B"]})


def off_by_the_slot(config: Any, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    return linear_thompson.reference(config, problem, {**arrays, "base": arrays["base"] * 1.01}, inputs)


def learns_backwards(changes: Changes) -> Changes:
    return replace(changes, rewards_after=-changes.rewards_after)


def starts_again(config: Any, problem: Problem, own: Arrays, addends: Any, now: float) -> Arrays:
    return own


def forgets_the_table(config: Any, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    made = popular.publish(config, problem, sums, now, seed)
    return replace(made, arrays={**made.arrays, "table": made.arrays["table"] * np.nan})


def epochs(*, forget_when: bool = False, drop_the_young: bool = False) -> Algorithm:
    """logistic_thompson that expands everything at its newest point, or that adds only those that have expansions."""
    sound = ALGORITHMS["logistic_thompson"]

    class Forgetful(LogisticLearner):
        def _expansion(self, x: Any, at: Any, o: int) -> Any:
            return super()._expansion(x, np.full_like(at, len(self.since) - 1), o)

    def learner(config: Any, problem: Problem) -> LogisticLearner:
        return Forgetful(problem, np.inf, config.grid, config.first_epoch)

    def merge(parts: Any) -> Arrays:
        return sound.merge([dict(part, epoch=np.ones(1)) for part in parts])  # type: ignore[misc] - it has one

    if forget_when:
        return replace(sound, learner=learner)
    return replace(sound, merge=merge) if drop_the_young else sound


def forgets_its_momentum() -> Algorithm:
    """constrained_actor_critic whose trainer loads weights and replay, and starts the optimiser again."""

    def trainer(config: Any, problem: Problem) -> Trainer:
        from policies.algorithms.constrained_actor_critic.training import ActorCriticTrainer

        class Forgetful(ActorCriticTrainer):
            def load(self, arrays: Arrays) -> None:
                super().load({name: value for name, value in arrays.items() if not name.startswith("mean.")})

        return Forgetful(config, problem)

    return replace(constrained_actor_critic.ALGORITHM, trainer=trainer)


FAULTS = {
    "correction_equals_the_final_reward": learning(
        lambda c: replace(c, rewards_before=np.zeros_like(c.rewards_before))
    ),
    "pieces_in_any_order_learn_the_same": forgets_on_arrival(),
    "forgetting_is_by_event_time": forgets_on_arrival(),
    "a_new_half_life_keeps_what_was_learned": replace(linear_thompson.ALGORITHM, carry=starts_again),
    "features_come_and_go_on_a_live_surface": replace(linear_thompson.ALGORITHM, carry=starts_again),
    "what_is_taken_back_after_an_epoch_takes_what_it_brought": epochs(forget_when=True),
    "parts_of_different_epochs_still_add": epochs(drop_the_young=True),
    "old_snapshots_stay_still": replace(linear_thompson.ALGORITHM, publish=publishes_its_own_sums),
    "onnx_equals_reference": replace(linear_thompson.ALGORITHM, reference=off_by_the_slot),
    "beats_uniform": learning(learns_backwards),
    "unseen_item_accepted": replace(popular.ALGORITHM, publish=forgets_the_table),
    "training_resumes_where_it_was": forgets_its_momentum(),
    "order_of_candidates_irrelevant": ALGORITHMS["given_order"],
}


@pytest.mark.parametrize("promise", list(FAULTS))
def test_planted_fault_is_caught(promise: str) -> None:
    with pytest.raises(AssertionError):
        CHECKS[promise][0](FAULTS[promise])
