"""`novelty_world`: its numbers are what its docstring says, luck is shared, and novelty brings people back where it pays."""

import numpy as np
import pytest

from policies.novelty import novelty
from policies.worlds.novelty_world import BLURS, TASTE, TELLS, WISH, NoveltyEnv, NoveltyWorld
from policies.worlds.session_world import sigmoid

WORLD, SILENT = NoveltyWorld(0), NoveltyWorld(0, pays=0.0)


def test_expected_acceptances_are_the_means() -> None:
    people = WORLD.people(2_000, 7)
    for _ in range(4):
        lived = people.step(WORLD.uniform)
    expected = np.take_along_axis(lived.seen.expected, lived.made.slate, axis=1) * WORLD.examined
    gap = (lived.rewards - expected).sum(axis=1)
    assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(len(gap))


def test_chances_are_the_formula() -> None:
    people = WORLD.people(300, 3)
    people.step(WORLD.uniform)
    wish, taste = people.wish, people.taste
    np.testing.assert_allclose(wish, WISH * (people.nature + people.mood))
    lived = people.step(WORLD.uniform)
    new = novelty(lived.seen.items, lived.seen.history)
    liked = np.einsum("und,ud->un", WORLD.vectors[lived.seen.rows], taste[lived.who])
    wanted = sigmoid(-1.2 + TASTE * liked + wish[lived.who, None] * (new - 0.5))
    np.testing.assert_allclose(lived.seen.expected, wanted, rtol=1e-9)


def test_the_same_people_with_the_same_luck() -> None:
    one, other, again = (WORLD.people(200, 5) for _ in range(3))
    first, second = one.step(WORLD.uniform), other.step(WORLD.careful(1.0))
    assert np.array_equal(first.seen.rows, second.seen.rows)
    assert np.array_equal(first.rewards, again.step(WORLD.uniform).rewards)
    assert not np.array_equal(first.rewards, WORLD.people(200, 6).step(WORLD.uniform).rewards)


def test_the_context_tells_nature_and_mood_equally_well() -> None:
    people, names = WORLD.people(4_000, 2), WORLD.encoder.context_names
    assert [name.split(":")[0] for name in names] == ["explorer", "mood"]
    given = WORLD.encoder.context({"explorer": 0.25, "mood": -0.5})
    assert given.tolist() == [0.25, -0.5]  # a number from −1 to 1 is its own code: the world writes codes
    for told, true in zip(people.context.T, (people.nature, people.mood), strict=True):
        off = told - TELLS * true
        inside = np.abs(TELLS * true) < 0.5  # nothing is cut there
        assert abs(off[inside].std() - BLURS) < 4 * BLURS / np.sqrt(2 * inside.sum())


def test_nature_and_mood_are_both_needed_and_weigh_alike() -> None:
    """The sign of the wish, all that an order by novelty can use, is wrong for one in four who knows but one of them."""
    people = WORLD.people(4_000, 4)
    for known in (people.nature, people.mood):
        wrong = (np.sign(known) != np.sign(people.wish)).mean()
        assert abs(wrong - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4_000)


def test_the_mood_is_another_in_every_session_and_nature_stays() -> None:
    people = WORLD.people(400, 6)
    mood, told, nature = people.mood.copy(), people.context.copy(), people.nature.copy()
    lived = people.step(WORLD.uniform)
    back = lived.who[lived.ended & ~lived.gone]
    assert np.flatnonzero(people.mood != mood).tolist() == back.tolist()
    assert np.flatnonzero(people.context[:, 1] != told[:, 1]).tolist() == back.tolist()
    assert np.array_equal(people.nature, nature)
    assert np.array_equal(people.context[:, 0], told[:, 0])


def test_an_observer_is_between_the_floor_and_who_knows() -> None:
    for world in (WORLD, SILENT):
        floor = world.simulate(world.uniform, 300, 12, 2)[0].per_person
        assert (
            1.1 * floor
            < world.observer_value(300, 12, 2).per_person
            < 0.95 * world.reference_value(300, 12, 2).per_person
        )


def test_delight_brings_people_back_only_where_novelty_pays() -> None:
    """What is wished for against random slates, at the same people: more returns; where it does not pay, the same people return."""
    value, floor = (WORLD.simulate(policy, 800, 15, 4)[0] for policy in (WORLD.careful(1.0), WORLD.uniform))
    assert value.returned > floor.returned + 0.03
    assert WORLD.reference_value(300, 10, 1).per_person > 1.3 * WORLD.simulate(WORLD.uniform, 300, 10, 1)[0].per_person
    one, two = (SILENT.simulate(policy, 800, 15, 4)[0] for policy in (SILENT.careful(1.0), SILENT.uniform))
    assert one.returned == two.returned
    assert np.array_equal(one.sessions, two.sessions)


def test_transitions_are_sessions() -> None:
    value, lived = WORLD.simulate(WORLD.uniform, 100, 12, 1)
    order = np.lexsort((lived.times, lived.units))
    units, sessions, ends = lived.units[order], lived.sessions[order], lived.terminal[order]
    same = units[1:] == units[:-1]
    assert np.array_equal(same & (sessions[1:] != sessions[:-1]), same & ends[:-1])
    on = np.flatnonzero(~ends)
    follows = order[on[on + 1 < len(order)] + 1]
    mine = order[on[on + 1 < len(order)]]
    both = lived.units[follows] == lived.units[mine]  # the last of a unit may wait for its next one
    assert np.array_equal(lived.history[follows[both]], lived.next_history[mine[both]])
    assert not lived.next_history[lived.terminal].any()
    here = lived.history_items != 0
    assert np.array_equal(here, lived.lived)
    assert set(lived.history_items[here].tolist()) <= set(WORLD.hashes.tolist())
    assert value.accepted.sum() >= lived.rewards.sum()


def test_the_environment_speaks_gymnasium() -> None:
    pytest.importorskip("gymnasium")
    env = NoveltyEnv(WORLD, steps=3)
    observations, actions = env.spaces()
    seen, info = env.reset(seed=2)
    assert info == {"begins": True}
    for number in range(3):
        assert observations.contains(seen)
        seen, reward, gone, over, _ = env.step(np.array([0, 1]))
        assert actions.contains(np.array([0, 1]))
        assert reward in (0.0, 1.0, 2.0)
        if gone:
            with pytest.raises(ValueError, match="reset first"):
                env.step(np.array([0, 1]))
            break
        assert over == (number == 2)
    env.reset(seed=2)
    for wrong in ([0, 0], [0], [0, 99]):
        with pytest.raises(ValueError, match=r"candidate numbers|candidates are numbered"):
            env.step(np.array(wrong))
