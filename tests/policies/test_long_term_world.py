"""`long_term_world`: references agree with simulation, and the oracle is above what is constant."""

import numpy as np
import pytest

from policies.types import F64
from policies.worlds import long_term_world as world
from policies.worlds.long_term_world import LongTermEnv, Oracle, Seen, Users

PEOPLE = world.users(6, world.UNSEEN, 1)
MANY = Users(*(np.tile(a, 100) for a in (PEOPLE.memory, PEOPLE.sensitivity, PEOPLE.choc)))
HORIZON = 20
ORACLE = Oracle(PEOPLE, HORIZON)


def constant(c: float) -> world.Policy:
    return lambda seen: np.full(len(seen.satisfaction), c)


def test_constants_are_worth_what_simulation_says() -> None:
    for c in (0.0, 0.35, 1.0):
        exact = np.tile(world.constant_values(PEOPLE, np.array([c]), HORIZON)[0], 100)
        gap = world.play(MANY, constant(c), 3, HORIZON) - exact
        assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(len(gap))


def test_the_oracle_is_worth_what_its_induction_says_and_more_than_any_constant() -> None:
    class Everybody(Oracle):
        """The same table for every copy of a person."""

        def __init__(self) -> None:
            self.people, self.table = MANY, np.tile(ORACLE.table, (1, 100, 1))

    gap = world.play(MANY, Everybody(), 3, HORIZON) - np.tile(ORACLE.values, 100)
    assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(len(gap)) + 0.002 * ORACLE.values.mean()  # the grid's own error
    best = world.constant_values(PEOPLE, world.ACTIONS, HORIZON).max(axis=0)
    assert (ORACLE.values > best).all()
    assert ORACLE.values.mean() > 1.02 * best.mean()


def test_the_last_step_of_the_oracle_is_greedy() -> None:
    chosen = ORACLE(Seen(HORIZON - 1, np.full(6, 0.5), np.zeros(6), np.zeros(6)))
    assert np.array_equal(chosen, (PEOPLE.choc > world.KALE).astype(float))


def test_clickbait_spoils_satisfaction() -> None:
    seen: list[F64] = []

    def policy(at: Seen) -> F64:
        seen.append(at.satisfaction)
        return np.ones(6)

    world.play(PEOPLE, policy, 1, 10)
    assert (np.array(seen[-1]) < 0.2).all()
    assert (seen[0] == 0.5).all()


def test_luck_is_shared_and_users_are_drawn_as_said() -> None:
    assert np.array_equal(world.play(PEOPLE, constant(0.3), 5), world.play(PEOPLE, constant(0.3), 5))
    many = world.users(20_000, 14.0, 2)
    assert abs(many.choc.mean() - 14) < 4 * 3 / np.sqrt(20_000)
    assert many.memory.min() >= 0.7
    assert many.memory.max() <= 0.9


def test_the_environment_is_the_world() -> None:
    pytest.importorskip("gymnasium")
    env = LongTermEnv(horizon=5)
    observations, _ = env.spaces()
    seen, _ = env.reset(seed=4)
    total, over = 0.0, False
    while not over:
        assert observations.contains(seen)
        seen, reward, _, over, _ = env.step(np.array([0.4]))
        total += reward
    assert total == pytest.approx(world.play(world.users(1, 14.0, 4), constant(0.4), 4, 5)[0])
    with pytest.raises(ValueError, match="reset first"):
        env.step([0.4])
    env.reset(seed=4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        env.step([1.5])
