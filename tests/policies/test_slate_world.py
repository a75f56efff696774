"""Eide's simulator: what it states is what happens in it. And the switches that every world shares."""

from itertools import combinations

import numpy as np
import pytest

from policies.errors import Rejected
from policies.worlds.slate_world import NONE, SlateSession, SlateWorld
from policies.worlds.switches import Switches, arrivals, drifted, replaced

DRAWS = 40_000


def one(seed: int = 3, **options: object) -> SlateWorld:
    """A world in which every user is the same one."""
    world = SlateWorld(seed, users=DRAWS, items=40, groups=4, slots=3, **options)  # type: ignore[arg-type] - options by name
    world.state[:] = world.state[0]
    return world


def test_clicks_come_as_often_as_stated() -> None:
    world, rng = one(), np.random.default_rng(1)
    slates = np.tile(np.append(world.best(slice(0, 1))[0, :2], 17), (DRAWS, 1))
    chances = world.chances(slates[:1], slice(0, 1))[0]
    position = world.click(slates, rng.random(DRAWS))
    for t, chance in enumerate(chances):
        assert abs((position == t).mean() - chance) <= 4 * np.sqrt(chance * (1 - chance) / DRAWS)
    assert 0.05 < (position == NONE).mean() < 0.95, "the test says something about clicks and about none"


def test_a_click_moves_the_state_and_nothing_else_does() -> None:
    world = one()
    before, slates = world.state.copy(), np.tile(world.best(slice(0, 1)), (DRAWS, 1))
    position = world.click(slates, np.random.default_rng(1).random(DRAWS))
    wanted = before.copy()
    for user in np.flatnonzero(position != NONE)[:50]:
        wanted[user] = 0.9 * before[user] + 0.1 * world.vectors[slates[user, position[user]]]
        np.testing.assert_allclose(world.state[user], wanted[user])
    still = position == NONE
    assert np.array_equal(world.state[still], before[still])


def test_a_chance_against_the_formula_by_hand() -> None:
    world = one()
    world.state[0], world.vectors[:2] = [0, 0], [[0.3, 0.4], [0.1, 0]]  # distances 0.5 and 0.1
    a, b, c = np.exp(-2.5), np.exp(-0.5), np.exp(-5 * np.linalg.norm(world.vectors[2]))
    found = world.chances(np.array([[0, 1, 2]]), slice(0, 1))[0]
    np.testing.assert_allclose(found, np.array([a, b, c]) / (1 + a + b + c))


def test_no_slate_beats_the_best_one() -> None:
    world = SlateWorld(5, users=4, items=12, groups=3, slots=3)
    every = np.array(list(combinations(range(12), 3)))
    for user in range(4):
        chances = world.chances(every, np.full(len(every), user)).sum(axis=1)
        best = world.chances(world.best(slice(user, user + 1)), slice(user, user + 1)).sum()
        np.testing.assert_allclose(best, chances.max())
        np.testing.assert_allclose(world.regret(every, np.full(len(every), user)), best - chances, atol=1e-12)


def test_the_best_among_some_is_the_best_of_those() -> None:
    world, among = SlateWorld(5, users=20, items=12, groups=3, slots=3), np.array([1, 4, 5, 9])
    found = world.best(among=among)
    assert np.isin(found, among).all()
    every = np.array(list(combinations(among, 3)))
    for user in range(20):
        top = max(world.chances(slate[None], slice(user, user + 1)).sum() for slate in every)
        np.testing.assert_allclose(world.chances(found[user][None], slice(user, user + 1)).sum(), top)


@pytest.mark.parametrize("items", [9, 40])
def test_random_slates_are_uniform(items: int) -> None:
    world = SlateWorld(1, users=1, items=items, slots=3)
    slates = world.random_slates(30_000, np.random.default_rng(2))
    assert (np.diff(np.sort(slates, axis=1)) > 0).all()
    for t in range(3):
        share = np.bincount(slates[:, t], minlength=items) / len(slates)
        assert np.abs(share - 1 / items).max() <= 4.5 * np.sqrt((1 / items) / len(slates))


def test_new_items_come_in_every_group_and_keep_what_was_there() -> None:
    world = SlateWorld(1, users=3, items=20, groups=4)
    before, ids = world.vectors.copy(), list(world.ids)
    rows = world.add(2)
    assert np.array_equal(rows, np.arange(20, 28))
    assert np.array_equal(np.bincount(world.group[rows]), [2, 2, 2, 2])
    assert np.array_equal(world.vectors[:20], before)
    assert world.ids[:20] == ids
    assert len(set(world.ids)) == 28
    assert np.linalg.norm(world.vectors[rows] - world.centres[world.group[rows]], axis=1).max() < 5 * 0.3


def test_switches_change_the_world_and_nothing_without_them_does() -> None:
    quiet = SlateWorld(1, users=2_000, items=200)
    state, ids = quiet.state.copy(), list(quiet.ids)
    assert not len(quiet.pass_time())
    assert np.array_equal(quiet.state, state)
    assert quiet.ids == ids
    moving = SlateWorld(1, users=2_000, items=200, switches=Switches(drift=0.2, turnover=0.1))
    groups, before = moving.group.copy(), moving.vectors.copy()
    rows = moving.pass_time(4)
    assert abs((moving.state - state).std() - 0.4) < 4 * 0.4 / np.sqrt(2 * 4_000)
    gone = 1 - 0.9**4
    assert abs(len(rows) / 200 - gone) < 4 * np.sqrt(gone * (1 - gone) / 200)
    assert np.array_equal(moving.group, groups), "a new item takes the place of one of its group"
    assert {moving.ids[row] for row in rows}.isdisjoint(ids)
    assert (moving.vectors[rows] != before[rows]).all()


def test_what_arrives_and_when() -> None:
    times = np.arange(20_000.0)
    rows, at = arrivals(Switches(delay=50.0, loss=0.1, duplicates=0.05), times, np.random.default_rng(4))
    counts = np.bincount(rows, minlength=len(times))
    assert abs((counts == 0).mean() - 0.1) < 4 * np.sqrt(0.09 / len(times))
    assert abs((counts == 2).sum() / (counts > 0).sum() - 0.05) < 4 * np.sqrt(0.0475 / len(times))
    waited = at - times[rows]
    assert waited.min() >= 0
    assert abs(waited.mean() - 50) < 4 * 50 / np.sqrt(len(rows))
    assert (np.diff(at) >= 0).all()
    rows, at = arrivals(Switches(), times[::-1].copy(), np.random.default_rng(4))
    assert np.array_equal(at, times)
    assert np.array_equal(rows, np.arange(20_000)[::-1])


def test_a_switch_that_is_off_draws_nothing() -> None:
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    off = Switches()
    arrivals(off, np.zeros(3), rng)
    drifted(off, np.zeros(3), 1.0, rng)
    replaced(off, 3, 1.0, rng)
    assert rng.random() == other.random()


@pytest.mark.parametrize(
    ("switch", "value"),
    [("loss", 1.5), ("delay", -1.0), ("drift", float("nan")), ("turnover", -0.1), ("delay", np.inf)],
)
def test_a_switch_out_of_range_is_named(switch: str, value: float) -> None:
    with pytest.raises(Rejected, match=switch):
        Switches(**{switch: value})


@pytest.mark.parametrize(("name", "value"), [("users", 0), ("slots", 0), ("items", 4), ("gamma", 1.1), ("groups", 0)])
def test_a_world_that_cannot_be_is_named(name: str, value: float) -> None:
    with pytest.raises(Rejected, match=name):
        SlateWorld(1, **{name: value})  # type: ignore[arg-type] - one option at a time


def test_a_session_is_one_user_of_the_world() -> None:
    session = SlateSession(steps=6, items=30, groups=3, slots=3)
    first, _ = session.reset(seed=8)
    assert first.tolist() == [NONE] * 6
    assert session.observation_space.contains(first)
    total, clicked = 0.0, []
    for step in range(6):
        slate = session.world.best()[0]
        assert session.action_space.contains(slate)
        seen, reward, terminated, truncated, info = session.step(slate)
        assert session.observation_space.contains(seen)
        assert info["regret"] == 0.0
        assert reward == float(info["position"] != NONE)
        if reward:
            clicked.append(slate[info["position"]])
        assert seen.tolist() == [NONE] * (6 - len(clicked)) + clicked
        assert not terminated
        assert truncated == (step == 5)
        total += reward
    assert total >= 2
    again, _ = session.reset(seed=8)
    assert again.tolist() == [NONE] * 6
    with pytest.raises(Rejected, match="action"):
        session.step(np.array([1, 1, 2]))
