"""`session_world`: its numbers are what its docstring says, luck is shared between policies, and the conflict is real."""

import numpy as np
import pytest

from policies import slate
from policies.types import F64, I64, DrawSettings
from policies.worlds.session_world import OBJECTIVES, Glance, SessionEnv, SessionWorld, drawn

WORLD = SessionWorld(0)


def test_draws_as_the_service_does() -> None:
    """The draw for many people at once is `slate.draw` under head softmax, propensities included."""
    rng = np.random.default_rng(3)
    scores = (3 * rng.normal(size=(50, 8))).astype(np.float32)
    u = rng.random((50, 4))
    rows, propensities = drawn(scores.astype(float), u, floor=0.1, temperature=0.7)
    for i in range(50):
        one = slate.draw(scores[i][:, None], 4, u[i], DrawSettings("softmax", 0.1, temperature=0.7))
        assert one.items.tolist() == rows[i].tolist()
        np.testing.assert_allclose(propensities[i], one.propensities, rtol=1e-9)


def test_a_policy_so_sure_that_the_rest_underflows_still_draws() -> None:
    rows, propensities = drawn(np.array([[5000.0, 0.0, -5000.0]]), np.array([[0.5, 0.5, 0.5]]), floor=0.0)
    assert rows.tolist() == [[0, 1, 2]]
    assert propensities.tolist() == [[1.0, 1.0, 1.0]]


def test_expected_responses_are_the_means() -> None:
    """What was watched, liked and hated in the first step is what `Glance.expected` says, at 4 standard errors."""
    lived = WORLD.people(4_000, 7).step(WORLD.uniform)
    expected = np.take_along_axis(lived.seen.expected, lived.slate[:, :, None], axis=1) * WORLD.examined[None, :, None]
    gap = (lived.rewards - expected)[:, :, 1:].sum(axis=1)
    assert (np.abs(gap.mean(axis=0)) <= 4 * gap.std(axis=0) / np.sqrt(len(gap))).all()
    watch = lived.rewards[:, :, 0]
    assert watch.max() <= 60
    mean = expected[:, :, 0]  # seconds beyond 60 are cut: E min(mX, 60), X ~ Gamma(2, ½), is m − (60 + m)e^(−120/m)
    cut = watch - (mean - (60 + mean) * np.exp(-120 / mean))
    assert abs(cut.mean()) <= 4 * cut.mean(axis=1).std() / np.sqrt(len(cut))


def test_the_same_people_with_the_same_luck() -> None:
    """Two policies meet the same candidates; the same slates get the same answers, those of another seed others."""
    one, other = (WORLD.people(200, 5) for _ in range(2))
    first, second = one.step(WORLD.uniform), other.step(WORLD.careful(20.0))
    assert np.array_equal(first.seen.rows, second.seen.rows)
    again = WORLD.people(200, 5).step(WORLD.uniform)
    assert np.array_equal(first.rewards, again.rewards)
    assert not np.array_equal(first.rewards, WORLD.people(200, 6).step(WORLD.uniform).rewards)


def test_who_maximises_watching_pays_with_the_guardrails() -> None:
    """Likes fall and hates rise by more than 10% against a policy that is careful, for more seconds a slate."""
    greedy, careful = (WORLD.simulate(WORLD.careful(price), 300, 15, 4)[0].per_decision for price in (0.0, 40.0))
    assert greedy[0] > 1.02 * careful[0]
    assert greedy[1] < 0.9 * careful[1]
    assert greedy[2] > 1.1 * careful[2]


def test_transitions_are_what_happened() -> None:
    """A unit's next state is its next decision's state; who left for good is terminal; nobody's last open step is there."""
    _, made = WORLD.simulate(WORLD.uniform, 60, 12, 9)
    assert made.terminal.any()
    assert not np.isnan(made.rewards).any()
    for unit in np.unique(made.units):
        mine = made.rows(made.units == unit)
        assert (np.diff(mine.times) > 0).all()
        assert not mine.terminal[:-1].any()
        np.testing.assert_array_equal(mine.next_history[:-1], mine.history[1:])
        np.testing.assert_array_equal(mine.next_context[:-1], mine.context[1:])
        np.testing.assert_allclose(mine.elapsed[:-1], np.diff(mine.times))
        shown = np.take_along_axis(mine.items, mine.slate, axis=1)
        np.testing.assert_array_equal(mine.history_items[1:, -WORLD.slots :], shown[:-1])
        assert (np.diff(mine.sessions.astype(int)) == (mine.elapsed[:-1] > 1_000)).all()
        if mine.terminal[-1]:
            assert not mine.next_history[-1].any()
            assert not mine.next_context[-1].any()
    assert made.rewards.shape[2] == len(OBJECTIVES)


def test_environment_has_gymnasiums_signatures() -> None:
    env = SessionEnv(WORLD, steps=30)
    observation, info = env.reset(seed=3)
    assert {name: value.shape for name, value in observation.items()} == {
        "context": (WORLD.encoder.context_size,),
        "items": (20, WORLD.encoder.item_size),
        "history": (20, WORLD.encoder.item_size),
    }
    total = 0.0
    for _ in range(30):
        observation, reward, terminated, truncated, info = env.step(np.array([0, 1, 2, 3]))
        total += reward
        assert info["rewards"][:, 0].sum() == pytest.approx(reward)
        if terminated or truncated:
            break
    assert total > 0
    with pytest.raises(ValueError, match="different candidate numbers"):
        env.step(np.array([1, 1, 2, 3]))
    again, _ = env.reset(seed=3)
    first, _ = SessionEnv(WORLD).reset(seed=3)
    assert all(np.array_equal(again[name], first[name]) for name in first)


def test_environment_fits_its_spaces() -> None:
    pytest.importorskip("gymnasium", reason="an option of whoever wants the spaces")
    env = SessionEnv(WORLD)
    seen, action = env.spaces()
    assert seen.contains(env.reset(seed=1)[0])
    assert action.contains(np.array([0, 1, 2, 19]))


def only_first(seen: Glance, u: F64) -> tuple[I64, F64]:
    slate = np.tile(np.arange(u.shape[1]), (len(u), 1))
    return slate, np.ones(slate.shape)


def test_two_steps_at_least() -> None:
    with pytest.raises(ValueError, match="two steps"):
        WORLD.simulate(only_first, 3, 1, 0)
