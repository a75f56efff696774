"""Logged and full-information data as a world: unbiased, exact where all is known, and every switch does what it says."""

from dataclasses import replace

import numpy as np
import pytest

from policies.errors import Rejected
from policies.types import F64
from policies.worlds.replay_world import Heard, ReplayWorld, Rounds
from policies.worlds.switches import Switches

T, N = 400, 6


def full(seed: int = 0, rounds: int = T) -> Rounds:
    """Every reward known; an item is liked where its feature agrees with the context."""
    rng = np.random.default_rng(seed)
    context = rng.choice([-1.0, 1.0], (rounds, 1)).astype(np.float32)
    items = np.linspace(-0.4, 1, N).astype(np.float32)[:, None]
    rewards = np.round(0.5 + 0.4 * context * items.T + rng.uniform(-0.1, 0.1, (rounds, N)), 3)
    return Rounds(context, items, np.tile(np.arange(N), (rounds, 1)), rewards.astype(float))


def logged(known: Rounds, law: F64, seed: int = 1) -> Rounds:
    """The same data as a policy of fixed probabilities `law` (n,) would have logged it."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(N, len(known), p=law)
    rewards = np.full(known.rewards.shape, np.nan)
    rewards[np.arange(len(known)), drawn] = known.rewards[np.arange(len(known)), drawn]
    return replace(known, rewards=rewards, logged=drawn, propensities=law[drawn])


def choose(observation: dict[str, np.ndarray]) -> int:  # type: ignore[type-arg]  # of two kinds
    """The last item on offer for people who like the last, else the first."""
    rows = np.flatnonzero(observation["offered"])
    return int(rows[-1] if observation["context"][0] > 0 else rows[0])


def played(world: ReplayWorld) -> tuple[list[float], list[float], list[Heard]]:
    """(rewards of counted rounds, regrets, feedback in the order it arrived)."""
    rewards, regrets, heard = [], [], []
    observation, _ = world.reset(seed=5)
    while not world.done:
        observation, reward, ended, last, info = world.step(np.array([choose(observation)]))
        assert not ended
        assert last == world.done
        if info["counted"]:
            rewards.append(reward)
        regrets.append(info["regret"])
        heard += info["arrived"]
    return rewards, regrets, heard + world.leftover()


def test_of_full_information_every_round_counts_and_regret_is_exact() -> None:
    known = full()
    rewards, regrets, heard = played(ReplayWorld(known))
    wanted = np.where(known.context[:, 0] > 0, known.rewards[:, -1], known.rewards[:, 0])
    assert sorted(rewards) == pytest.approx(sorted(wanted))
    assert sorted(regrets) == pytest.approx(sorted(known.rewards.max(axis=1) - wanted))
    assert [one.reward for one in heard] == rewards
    assert [one.round for one in heard] == list(range(T))


@pytest.mark.parametrize(
    "law", [np.full(N, 1 / N), np.array([0.05, 0.1, 0.1, 0.2, 0.25, 0.3])], ids=["uniform", "skewed"]
)
def test_rejection_replay_is_unbiased_and_without_the_rejection_it_is_not(law: F64) -> None:
    known = full(rounds=4_000)
    truth = float(np.where(known.context[:, 0] > 0, known.rewards[:, -1], known.rewards[:, 0]).mean())
    rewards, _, _ = played(ReplayWorld(logged(known, law)))
    error = np.std(rewards) / np.sqrt(len(rewards))
    assert abs(np.mean(rewards) - truth) <= 4 * error
    expected = 4_000 * law.min()
    assert abs(len(rewards) - expected) <= 4 * np.sqrt(expected)
    if law[0] < law[-1]:  # without the rejection, people who like the last item would count six times as often
        naive, _, _ = played(ReplayWorld(replace(logged(known, law), propensities=np.full(4_000, law.min()))))
        assert abs(np.mean(naive) - truth) > 4 * np.std(naive) / np.sqrt(len(naive))


def test_slates_earn_the_sum_and_miss_the_best_sum() -> None:
    known = full()
    world = ReplayWorld(known, slots=3)
    world.reset(seed=1)
    rewards = world.rewards()
    _, reward, _, _, info = world.step(np.array([4, 0, 2]))
    assert reward == pytest.approx(rewards[[4, 0, 2]].sum())
    assert info["regret"] == pytest.approx(np.sort(rewards)[-3:].sum() - reward)
    assert [one.slot for one in info["arrived"]] == [0, 1, 2]


def test_a_seed_is_an_order_and_everything_follows_from_it() -> None:
    switches = Switches(delay=3, loss=0.2, duplicates=0.2, drift=0.02, turnover=0.01)
    known = full()
    first, again = (played(ReplayWorld(known, switches=switches)) for _ in range(2))
    assert first == again
    world = ReplayWorld(known)
    one, _ = world.reset(seed=1)
    world.reset()
    orders = [world._order.tolist()]
    world.reset(seed=1)
    assert world._order.tolist() != orders[0]
    assert np.array_equal(world._observation()["context"], one["context"])


def test_what_arrives_is_late_lost_and_twice_as_the_switches_say() -> None:
    known = full(rounds=4_000)
    rewards, _, heard = played(ReplayWorld(known, switches=Switches(loss=0.25, duplicates=0.1)))
    assert len(rewards) == 4_000  # scoring sees all
    expected = 4_000 * 0.75 * 1.1
    assert abs(len(heard) - expected) <= 4 * np.sqrt(4_000 * 0.75)
    assert len(set(heard)) < len(heard)
    world, late = ReplayWorld(known, switches=Switches(delay=20.0)), []
    observation, _ = world.reset(seed=5)
    for step in range(2_000):
        observation, _, _, _, info = world.step(np.array([choose(observation)]))
        late += [step - one.round for one in info["arrived"]]
    assert np.mean(late) == pytest.approx(20.0, rel=0.15)
    assert len(late) + len(world.leftover()) == 2_000


def test_drift_moves_rewards_by_its_own_size_and_stays_in_the_range() -> None:
    known = full(rounds=200)
    flat = replace(known, rewards=np.full(known.rewards.shape, 0.5))
    flat.rewards[0, 0], flat.rewards[0, 1] = 0.0, 1.0  # the range
    moved = []
    for seed in range(40):
        world = ReplayWorld(flat, seed, switches=Switches(drift=0.01))
        world.reset(seed=seed)
        for _ in range(100):
            world.step(np.array([0]))
        moved.append(world._offset)
        assert (world.rewards() >= 0).all()
        assert (world.rewards() <= 1).all()
    spread = np.std(np.concatenate(moved))
    assert spread == pytest.approx(0.01 * np.sqrt(100), rel=4 / np.sqrt(2 * 40 * N))


def test_turnover_brings_items_under_names_never_used() -> None:
    known = full(rounds=2_000)
    world = ReplayWorld(known, switches=Switches(turnover=0.02))
    observation, _ = world.reset(seed=5)
    names, seen = set(), 0
    while not world.done:
        rows = np.flatnonzero(observation["offered"])
        assert len(rows) == N // 2
        names |= {world.ids[row] for row in rows}
        observation, _, _, _, _ = world.step(rows[:1])
        seen += 1
    assert seen == 2_000
    expected = 2_000 * 0.02 * N / 2
    assert abs(len(names) - N / 2 - expected) <= 4 * np.sqrt(expected)


def test_under_turnover_a_logged_round_waits_for_its_item() -> None:
    known = logged(full(rounds=2_000), np.full(N, 1 / N))
    world = ReplayWorld(known, switches=Switches(turnover=0.001))
    observation, _ = world.reset(seed=2)
    rounds = 0
    while not world.done:
        row = world._order[world._step]
        assert world.active[known.offered[row, known.logged[row]]]  # type: ignore[index]  # it is logged
        observation, _, _, _, _ = world.step(np.flatnonzero(observation["offered"])[:1])
        rounds += 1
    assert 0.4 * 2_000 < rounds < 0.6 * 2_000


def test_the_spaces_are_gymnasiums_and_hold_what_is_given() -> None:
    world = ReplayWorld(full(), slots=2)
    observation, info = world.reset(seed=0)
    assert info == {}
    assert world.observation_space.contains(observation)
    assert world.action_space.contains(np.array([0, 5]))
    while not world.done:
        observation, *_ = world.step(np.array([0, 1]))
    assert world.observation_space.contains(observation)
    with pytest.raises(Rejected, match="no rounds left"):
        world.step(np.array([0, 1]))


@pytest.mark.parametrize("action", [[0], [0, 0], [0, 9], [-1, 1], [0, 3]])
def test_slates_that_are_none_are_refused(action: list[int]) -> None:
    known = full()
    offered = known.offered.copy()
    offered[:, 3] = -1
    with pytest.raises(Rejected):
        ReplayWorld(replace(known, offered=offered), slots=2).step(np.array(action))


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"rewards": np.full((T, N), np.nan)}, "$.rewards"),
        ({"offered": np.full((T, N), 9)}, "$.offered"),
        ({"logged": np.zeros(T, int)}, "$.propensities"),
        ({"logged": np.zeros(T, int), "propensities": np.zeros(T)}, "$.propensities"),
        ({"logged": np.full(T, 7), "propensities": np.ones(T)}, "$.logged"),
        ({"rewards": np.zeros((T, 2))}, "$.rewards"),
        ({"context": np.zeros((0, 1), np.float32)}, "$.context"),
    ],
)
def test_data_that_is_none_is_refused_by_field(change: dict[str, np.ndarray], at: str) -> None:  # type: ignore[type-arg]  # of two kinds
    with pytest.raises(Rejected) as found:
        ReplayWorld(replace(full(), **change))  # type: ignore[arg-type]  # by name
    assert found.value.at == at
