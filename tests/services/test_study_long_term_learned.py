"""The learned encoder of `study long_term`: what it is taught is what it meets, and it tells people apart."""

import numpy as np
import pytest

from policies.types import F64
from policies.worlds import long_term_world as world
from policies.worlds.long_term_world import KALE, NOISE, Seen, Users
from services.studies import long_term

pytest.importorskip("torch")

HORIZON = 30


def test_what_is_shown_in_lessons_is_what_the_world_does() -> None:
    """SAT before and after, and the reward between: the world's own equations hold in every row, but for their noise."""
    from services.studies.long_term_learned import lived

    people = world.users(200, 14.0, 2)
    told = lived(people, np.random.default_rng(3), HORIZON).astype(float)
    moves, rewards, before, after = (told[..., 0] + 1) / 2, 5 * (told[..., 1] + 1), told[..., 2], told[..., 3]
    off = rewards - (moves * people.choc + (1 - moves) * KALE) / (1 + np.exp(-before))
    assert abs(off.mean()) < 4 * NOISE / np.sqrt(off.size)
    assert off.std() == pytest.approx(NOISE, rel=0.05)
    drift = after / people.sensitivity - (people.memory * before / people.sensitivity - 2 * (moves - 0.5))
    assert drift.std() == pytest.approx(world.INNOVATION, rel=0.05)
    assert np.array_equal(before[1:], after[:-1])


def test_it_is_told_in_play_what_it_was_told_in_lessons() -> None:
    """Twice from the beginning, the second time as if nothing had been; who earns more on the same moves is thought to love chocolate more."""
    from services.studies.long_term_learned import Encoding, shown, teach

    people = [long_term.together((6.0, 20.0), 64, number) for number in range(60)]
    weights, error = teach(people.__getitem__, 1, len(people), HORIZON)
    assert error < 0.9  # of one who always tells the mean it is 1.6
    twins = Users(np.full(2, 0.8), np.full(2, 0.5), np.array([6.0, 20.0]))
    policy = Encoding(np.zeros((1, 11)), 2, weights)
    found: list[F64] = []

    def trying(seen: Seen) -> F64:
        found.append(policy.person(seen)[0])
        return np.full(2, 0.4)

    for _ in range(2):
        world.play(twins, trying, 3, HORIZON)
    assert found[0][0] == found[0][1]  # nothing was seen yet
    assert np.array_equal(found[0], found[HORIZON])
    assert np.array_equal(found[-1], found[HORIZON - 1])
    assert found[-1][1] - found[-1][0] > 4.0
    one = shown(np.array([0.4]), np.array([3.0]), np.array([0.1]), np.array([-0.2]))
    np.testing.assert_allclose(one, [[-0.2, -0.4, 0.1, -0.2]], rtol=1e-6)


def test_an_order_of_steps_makes_no_context() -> None:
    from services.studies.long_term_learned import Encoding, initial

    rng = np.random.default_rng(5)
    rewards, ends = rng.random(4), []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        policy = Encoding(np.zeros((1, 11)), 1, initial(2))
        policy.person(Seen(0, np.full(1, 0.5), np.zeros(1), np.zeros(1)))
        for step, i in enumerate(order, 1):  # SAT stands still, so that steps differ by their rewards alone
            told = policy.person(Seen(step, np.full(1, 0.5), np.full(1, 0.3), rewards[i : i + 1]))
        ends.append(np.concatenate(told))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)
    assert long_term.Sigmoid.size(inferring=True) == 11
