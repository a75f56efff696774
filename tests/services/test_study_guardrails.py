"""The guardrails study's own parts: its behaviour is the policy it says, its Pareto weights are the smallest combination."""

import numpy as np

from policies import ridge, slate
from policies.algorithm import draw_settings
from policies.algorithms import linear_thompson
from policies.worlds.session_world import SessionWorld
from services.studies.guardrails import gain
from services.studies.guardrails_ways import WEIGHTS, changes, problem, smallest, thompson


def test_the_behaviour_draws_what_linear_thompson_publishes() -> None:
    """Slates and propensities for many people at once are those of reference scores and the draw, person by person."""
    world = SessionWorld(4)
    asked, config = problem(world, WEIGHTS), linear_thompson.LinearThompson(draws=16)
    learner = ridge.RidgeLearner(asked, np.inf)
    learner.learn(changes(world.simulate(world.uniform, 60, 4, 1)[1]))
    policy = thompson(config, asked, learner.arrays(), 3)
    people = world.people(25, 2)
    seen = people.glance(np.arange(25), np.random.default_rng(0))
    u = np.random.default_rng(1).random((25, world.slots))
    rows, propensities = policy(seen, u)
    made = linear_thompson.publish(config, asked, learner.arrays(), 0.0, 3)
    for i in range(25):
        inputs = {"context": seen.context[i], "items": seen.items[i]}
        inputs["weights"] = np.array(list(asked.weights.values()), np.float32)
        scores = linear_thompson.ALGORITHM.reference(config, asked, made.arrays, inputs)
        one = slate.draw(scores, world.slots, u[i], draw_settings(config, made.temperature))
        assert one.items.tolist() == rows[i].tolist()
        np.testing.assert_allclose(propensities[i], one.propensities, rtol=1e-9)


def test_the_smallest_combination() -> None:
    """Of orthogonal gradients the weights are inverse to their squares; of one inside the others' hull, none of it is needed."""
    np.testing.assert_allclose(smallest(np.diag([1.0, 2.0, 4.0]), 4_000), np.array([4, 2, 1]) / 7, atol=2e-3)
    gradients = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    weights = smallest(gradients @ gradients.T, 4_000)
    np.testing.assert_allclose(weights, [0.5, 0.5, 0], atol=2e-3)


def test_gains_are_turned_so_that_more_is_better() -> None:
    """Somebody who hates less gains by it, against whom hates more."""
    world = SessionWorld(4)
    greedy, careful = (world.simulate(world.careful(price), 200, 8, 1)[0] for price in (0.0, 80.0))
    found = gain(careful, greedy)
    assert found[1] > 0
    assert found[2] > 0
    np.testing.assert_allclose(found[2], 1 - careful.per_decision[2] / greedy.per_decision[2])
