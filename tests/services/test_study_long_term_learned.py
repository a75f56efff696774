"""The learned encoder of `study long_term`: it lives in the world that is judged, sees no more than it may, and learns."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from policies.worlds import long_term_world as world  # noqa: E402  # after the check for torch
from policies.worlds.long_term_world import Users  # noqa: E402
from services.studies import long_term_learned as learned  # noqa: E402

HORIZON = 12
PEOPLE = world.users(5, 14.0, 3)


def network(encodes: bool) -> learned.Network:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return learned.Network(encodes)


@pytest.mark.parametrize("encodes", [True, False])
def test_it_is_trained_in_the_world_that_is_judged(encodes: bool) -> None:
    """The same people and luck: the sums that gradients go through are those of `world.play`, twice from the beginning."""
    policy = learned.Played(network(encodes), len(PEOPLE), HORIZON)
    rng = np.random.default_rng([7, 22])
    luck = np.stack([rng.normal(size=(2, len(PEOPLE))) for _ in range(HORIZON)])
    wanted = learned.lived(policy.network, PEOPLE, luck).detach().numpy()
    for _ in range(2):
        np.testing.assert_allclose(world.play(PEOPLE, policy, 7, HORIZON), wanted, rtol=1e-4)


def test_what_came_of_a_move_changes_the_next_one_only_where_the_past_is_encoded() -> None:
    """People who differ in choc alone show it in their rewards alone."""
    twins = Users(np.array([0.8, 0.8]), np.array([0.5, 0.5]), np.array([6.0, 20.0]))
    for encodes in (True, False):
        moves: list[np.ndarray] = []
        policy = learned.Played(network(encodes), 2, HORIZON)

        def watched(seen: world.Seen, policy: learned.Played = policy, moves: list[np.ndarray] = moves) -> np.ndarray:
            same = np.repeat(seen.satisfaction[:1], 2)  # the exposure's own noise is of nobody's taste
            moves.append(policy(world.Seen(seen.step, same, np.repeat(seen.clickbait[:1], 2), seen.reward)))
            return moves[-1]

        world.play(twins, watched, 7, HORIZON)
        assert moves[0][0] == moves[0][1]
        assert (moves[-1][0] != moves[-1][1]) == encodes


def test_it_learns_whom_it_deals_with() -> None:
    """Taught for a moment, the encoder tells people apart better than their mean does, whose error is about one."""
    error = learned.teach(network(True), lambda number: world.users(32, 14.0, number), 1, 60, horizon=40)
    assert error < 0.9


def test_it_learns_to_earn() -> None:
    fresh = [world.users(24, 14.0, number) for number in range(40)]
    made = learned.learn(fresh.__getitem__, False, 1, 40, HORIZON)
    people = world.users(200, 14.0, 99)
    start, end = (
        world.play(people, learned.Played(of, len(people), HORIZON), 1, HORIZON).mean() for of in (network(False), made)
    )
    assert end > 1.1 * start
