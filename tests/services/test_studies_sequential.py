"""Studies `novelty` and `long_term`: policies are drawn as the service draws them, estimates are what they estimate, quick runs tell all."""

from dataclasses import replace

import numpy as np

from policies import slate
from policies.algorithm import draw_settings
from policies.algorithms import novelty_hierarchy
from policies.algorithms.novelty_hierarchy import network
from policies.types import F64, Arrays
from policies.worlds import long_term_world as world
from policies.worlds.long_term_world import Seen, Users
from policies.worlds.novelty_world import NoveltyWorld
from services.scoring.goals import propensities
from services.studies import long_term, novelty

WORLD = NoveltyWorld(0)


def test_goals_and_slates_are_drawn_as_the_service_draws_them() -> None:
    asked, rng = novelty.problem(WORLD), np.random.default_rng(2)
    config = novelty.CONFIG
    w: Arrays = {
        name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in network.shapes(config, asked).items()
    }
    people = WORLD.people(12, 3)
    people.step(WORLD.uniform)
    seen = people.glance(np.flatnonzero(people.here), rng)
    seen = replace(seen, begins=np.ones(len(seen.rows), bool))
    u: F64 = rng.random((len(seen.rows), 3))
    made = novelty.agent(config, asked, w | {"counts": np.zeros(5)})(seen, u)
    for i in range(len(seen.rows)):
        inputs = {"context": seen.context[i], "history": seen.history[i], "items": seen.items[i]}
        p = propensities(novelty_hierarchy.manage(config, asked, w, inputs), config.floor)
        assert made.goals[i] == np.searchsorted(np.cumsum(p), u[i, 2], side="right")
        np.testing.assert_allclose(made.goal_propensities[i], p[made.goals[i]], rtol=1e-5)
        goal = np.eye(8, dtype=np.float32)[made.goals[i]]
        scores = novelty_hierarchy.reference(config, asked, w, inputs | {"goal": goal})
        one = slate.draw(scores, 2, u[i, :2], draw_settings(config))
        assert one.items.tolist() == made.slate[i].tolist()
        np.testing.assert_allclose(one.propensities, made.propensities[i], rtol=1e-4)
    later = novelty.agent(config, asked, w | {"counts": np.zeros(5)})(
        replace(seen, begins=~seen.begins, goals=np.full(len(u), 5)), u
    )
    assert (later.goals == 5).all()  # within a session the goal is kept


def test_estimates_find_the_person() -> None:
    people = Users(np.array([0.72, 0.88]), np.array([0.42, 0.58]), np.array([9.0, 18.0]))
    policy = long_term.Sigmoid(np.zeros((1, 11)), 2, 13.0)
    rng = np.random.default_rng(1)
    found: list[tuple[F64, F64, F64]] = []

    def trying(seen: Seen) -> F64:
        found.append(policy.person(seen))
        return rng.random(2)

    world.play(people, trying, 3)
    choc, memory, sensitivity = found[-1]
    np.testing.assert_allclose(choc, people.choc, atol=0.5)
    np.testing.assert_allclose(memory, people.memory, atol=0.03)
    np.testing.assert_allclose(sensitivity, people.sensitivity, atol=0.03)


def test_the_search_beats_what_it_starts_from() -> None:
    theta = long_term.search((14.0,), lambda theta, count: long_term.Sigmoid(theta, count, 14.0), 11, 1, 4)
    people = world.users(40, 14.0, 5)
    start, end = (
        world.play(people, long_term.Sigmoid(t[None], 40, 14.0), 1).mean() for t in (np.zeros_like(theta), theta)
    )
    assert end > 1.02 * start


def test_quick_runs_have_floors_and_references() -> None:
    small = novelty.Size(people=20, rounds=2, steps=4, judged=60, life=5)
    played = novelty.play(0.0, small, 1)
    assert list(played) == [
        "uniform (floor)", "novelty_hierarchy", *novelty.AGAINST, "observer (knows the formula, sees the same)", "reference (knows everybody)"
    ]  # fmt: skip
    accepted = {name: value.per_person for name, value in played.items()}
    assert accepted["reference (knows everybody)"] == max(accepted.values())
    assert len({value.returned for value in played.values()}) == 1  # the same people, and nothing brings them back
    found = long_term.play(1, 3, 1, 1)
    assert found["oracle (dynamic programming)"] == max(found.values())
