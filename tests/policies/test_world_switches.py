"""Delay, loss, duplicates, drift and turnover in the worlds of sequences: each does what it says, and off they do nothing."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from policies.types import F32, F64
from policies.worlds import long_term_world
from policies.worlds.long_term_world import LongTermEnv, Seen, Users
from policies.worlds.novelty_world import NoveltyWorld
from policies.worlds.session_world import STEP_SECONDS, SessionWorld
from policies.worlds.switches import Heard, Switches, all_arrives, heard, settled

LOSSY = Switches(delay=90.0, loss=0.2, duplicates=0.1)


def told_as_said(found: Heard, rewards: F64, times: F64) -> None:
    """Of `LOSSY`, at 4 standard errors: how many never came, how many twice, how late, and that they say what was."""
    happened = rewards != 0
    counts = np.zeros(rewards.shape, int)
    np.add.at(counts, (found.rows, found.slots, found.objectives), 1)
    assert not counts[~happened].any()
    n, here = happened.sum(), (counts > 0).sum()
    assert abs(1 - here / n - 0.2) < 4 * np.sqrt(0.16 / n)
    assert abs((counts == 2).sum() / here - 0.1) < 4 * np.sqrt(0.09 / here)
    assert np.array_equal(found.values, rewards[found.rows, found.slots, found.objectives])
    waited = found.at - times[found.rows]
    assert waited.min() >= 0
    assert abs(waited.mean() - 90) < 4 * 90 / np.sqrt(len(waited))
    assert (np.diff(found.at) >= 0).all()


def test_responses_in_sessions_are_late_lost_and_twice() -> None:
    world, quiet = SessionWorld(3, switches=LOSSY), SessionWorld(3)
    people, same = world.people(1_500, 5), quiet.people(1_500, 5)
    parts, others = ([p.step(world.uniform) for _ in range(3)] for p in (people, same))
    assert np.array_equal(people.rewards, same.rewards), "people did the same"
    told_as_said(people.heard(parts[0]), parts[0].rewards, parts[0].at)
    whole = same.transitions(others).rewards
    for horizon, share in ((np.inf, 0.8), (60.0, 0.8 * (1 - 0.9 * np.exp(-60 / 90) - 0.1 * np.exp(-120 / 90)))):
        known = people.transitions(parts, horizon).rewards
        happened = whole != 0
        assert np.array_equal(known[known != 0], whole[known != 0]), "what is known is what was, once"
        assert abs((known[happened] != 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / happened.sum())


def test_acceptances_are_late_lost_and_twice() -> None:
    world = NoveltyWorld(3, switches=LOSSY)
    people = world.people(4_000, 5)
    parts = [people.step(world.uniform) for _ in range(2)]
    told_as_said(people.heard(parts[0]), parts[0].rewards[:, :, None], parts[0].at)
    made = people.transitions(parts)
    true = np.concatenate([parts[0].rewards, parts[1].rewards[parts[1].ended]])
    lost = (true != 0) & (made.rewards[:, :, 0] == 0)
    assert abs(lost.sum() / true.sum() - 0.2) < 4 * np.sqrt(0.16 / true.sum())
    assert people.accepted.sum() == sum(part.rewards.sum() for part in parts), "values are what people did"


@pytest.mark.parametrize("kind", [SessionWorld, NoveltyWorld])
def test_items_are_replaced_and_transitions_keep_what_was_shown(kind: Any) -> None:
    rate = 0.002  # a second
    world = kind(3, switches=Switches(turnover=rate))
    first, vectors = dict(zip(world.hashes.tolist(), world.items, strict=True)), world.items.copy()
    people = world.people(80, 4)
    parts = [people.step(world.uniform) for _ in range(6)]
    every: dict[int, F32] = {**first}
    stayed = np.isin(world.hashes, list(first)).mean()
    expected = (1 - rate) ** (6 * STEP_SECONDS)
    assert abs(stayed - expected) < 4 * np.sqrt(expected * (1 - expected) / 60)
    assert len(set(world.ids)) == 60
    assert (world.items != vectors).any(axis=1).mean() == pytest.approx(1 - stayed, abs=0.02)
    made = people.transitions(parts)
    now: dict[int, F32] = dict(zip(world.hashes.tolist(), world.items, strict=True))
    for row, column in zip(*np.nonzero(made.items), strict=True):
        every.setdefault(int(made.items[row, column]), made.candidates[row, column])
        assert np.array_equal(every[int(made.items[row, column])], made.candidates[row, column]), "an id is one item"
    assert not set(now) <= set(first)
    for name, vector in now.items():
        assert name not in every or np.array_equal(every[name], vector)
    for row, column in zip(*np.nonzero(made.lived), strict=True):
        assert np.array_equal(every[int(made.history_items[row, column])], made.history[row, column])


def test_tastes_of_types_walk() -> None:
    world, still = SessionWorld(3, switches=Switches(drift=0.01)), SessionWorld(3)
    people = world.people(5, 1)
    for _ in range(10):
        people.step(world.uniform)
    walked = (world.taste - still.taste).ravel()
    wanted = 0.01 * np.sqrt(10 * STEP_SECONDS)
    assert abs(walked.std() / wanted - 1) < 4 / np.sqrt(2 * len(walked))


def test_tastes_of_persons_walk_on_the_sphere() -> None:
    world = NoveltyWorld(3, switches=Switches(drift=0.005))
    people = world.people(3_000, 1)
    before = people.taste.copy()
    people.step(world.uniform)
    np.testing.assert_allclose(np.linalg.norm(people.taste, axis=1), 1)
    away = 1 - (before * people.taste).sum(axis=1)  # of a small step of size s in 7 directions: s² · 7 / 2
    wanted = 0.005**2 * STEP_SECONDS * 7 / 2
    assert abs(away.mean() / wanted - 1) < 4 * np.sqrt(2 / 7 / 3_000) + 0.01  # and the curve of the sphere


def test_off_nothing_is_drawn_or_changed() -> None:
    kinds: list[Any] = [SessionWorld, NoveltyWorld]
    for kind in kinds:
        world = kind(2)
        made, again = (world.simulate(world.uniform, 40, 6, 1)[1] for _ in range(2))
        assert world.ids == kind(2).ids
        assert not len(world.pass_time(1e6))
        for field in fields(made):
            assert getattr(made, field.name).tobytes() == getattr(again, field.name).tobytes()
    rewards, rng = np.ones((3, 2, 1)), np.random.default_rng(1)
    assert all_arrives(Switches(drift=1.0, turnover=1.0))
    assert settled(Switches(), rewards, np.zeros(3), 0.0, rng) is rewards
    assert rng.random() == np.random.default_rng(1).random()
    assert len(heard(Switches(), rewards, np.zeros(3), rng).rows) == 6


# clickbait

PEOPLE = long_term_world.users(400, long_term_world.UNSEEN, 1)


def seen_rewards(switches: Switches, people: Users = PEOPLE, steps: int = 12) -> F64:
    """(steps, U) the reward a policy that never changes is told of before each step."""
    told: list[F64] = []

    def policy(seen: Seen) -> F64:
        told.append(seen.reward.copy())
        return np.full(len(seen.reward), 0.4)

    long_term_world.play(people, policy, 3, steps, switches)
    return np.array(told)


def test_rewards_come_late_never_or_twice() -> None:
    true = seen_rewards(Switches())[1:]  # row t: the reward of step t
    lossy = seen_rewards(Switches(loss=0.3))
    kept = lossy[1:] == lossy[:-1]
    assert abs(kept.mean() - 0.3) < 4 * np.sqrt(0.21 / kept.size)
    assert np.array_equal(lossy[1:][~kept], true[~kept])
    assert not seen_rewards(Switches(loss=1.0)).any()
    late = seen_rewards(Switches(delay=2.0))
    assert not late[1].any(), "nothing arrives in the moment it is sent"
    soon = late[2] == true[0]  # the reward of step 0 is the only one that can have come by the end of step 1
    wanted = 1 - np.exp(-1 / 2.0)
    assert abs(soon.mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / soon.size)
    once, twice = (seen_rewards(Switches(delay=1.0, duplicates=share)) for share in (0.0, 1.0))

    def again(told: F64) -> int:
        """How often a number came back after another."""
        return int(((told[2:] == told[:-2]) & (told[2:] != told[1:-1])).sum())

    assert again(once) == 0
    assert again(twice) > 20


def test_chocolate_walks_and_is_replaced() -> None:
    many = long_term_world.users(4_000, 20.0, 1)
    walked = long_term_world.changed(many, Switches(drift=0.5), np.random.default_rng(1)).choc - many.choc
    assert abs(walked.std() / 0.5 - 1) < 4 / np.sqrt(2 * 4_000) + 0.001  # a few are held at 1
    new = long_term_world.changed(many, Switches(turnover=0.25), np.random.default_rng(1)).choc
    moved = new != many.choc
    assert abs(moved.mean() - 0.25) < 4 * np.sqrt(0.1875 / 4_000)
    assert abs(new[moved].mean() - 20.0) < 4 * long_term_world.SPREAD / np.sqrt(moved.sum())
    assert long_term_world.changed(many, Switches(), np.random.default_rng(1)).choc.tolist() == many.choc.tolist()
    assert not np.array_equal(seen_rewards(Switches(turnover=0.5))[-1], seen_rewards(Switches())[-1])


def test_the_environment_has_the_same_switches() -> None:
    switches = Switches(delay=1.5, loss=0.2, duplicates=0.3, drift=0.4, turnover=0.1)
    told = seen_rewards(switches, long_term_world.users(1, 14.0, 3))
    env = LongTermEnv(horizon=12, switches=switches)
    seen, _ = env.reset(seed=3)
    for known in told[:, 0]:
        assert seen[3] * 10 == pytest.approx(known)
        seen, *_ = env.step([0.4])
    assert len(set(told[:, 0])) > 3
