"""The study of regret: floors that are what they say, players that are judged by what a choice is worth, every algorithm playing."""

import numpy as np
import pytest

from policies.worlds.one_slot import WORLDS
from services.replay.ours import Slatewise
from services.replay.peers import Uniform, play
from services.replay.streams import Stream
from services.studies import regret


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_worlds_are_functions_of_their_seed_and_expect_what_they_pay(name: str) -> None:
    made, again, other = WORLDS[name](3, 4_000), WORLDS[name](3, 4_000), WORLDS[name](4, 4_000)
    assert np.array_equal(made.rewards, again.rewards)
    assert not np.array_equal(made.expected, other.expected)
    assert made.rewards.min() >= 0
    assert made.rewards.max() <= 1
    inside = (made.expected > 0.3) & (made.expected < 0.7) | (name == "clicks")  # where the noise is not cut
    off = (made.rewards - made.expected)[inside]
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size)


def test_what_is_wanted_at_the_end_of_the_drift_is_the_opposite() -> None:
    made = WORLDS["drift"](1, 2_000)
    start, end = made.expected[:100] - 0.5, made.expected[-100:] - 0.5
    x = made.context.astype(float)

    def tastes(context: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(context, expected, rcond=None)[0].ravel()

    assert np.corrcoef(tastes(x[:100], start), tastes(x[-100:], end))[0, 1] < -0.9


def test_floors_by_hand() -> None:
    rewards = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.2, 0.5]])
    every = np.tile(np.arange(3), (3, 1))
    stream = Stream("s", np.zeros((3, 1), np.float32), np.zeros((3, 0), np.float32), every, rewards)
    assert regret.floors_of(stream) == pytest.approx({"uniform": 3.7 / 9, "best constant": 0.5, "oracle": 2.5 / 3})
    worth = Stream("s", stream.context, stream.arms, every, rewards, worth=1 - rewards)
    assert regret.floors_of(worth)["oracle"] == pytest.approx((1 + 1 + 1) / 3)
    some = np.array([[0.0, np.nan, np.nan], [np.nan, 0.4, np.nan], [0.2, np.nan, np.nan]])
    logged = Stream("s", stream.context, stream.arms, every, some, np.array([0, 1, 0]))
    assert regret.floors_of(logged) == pytest.approx({"uniform": 0.25, "best constant": 0.4})


def test_a_choice_is_judged_by_its_worth_and_learned_from_its_reward() -> None:
    stream = Stream(
        "s",
        np.zeros((50, 1), np.float32),
        np.zeros((2, 0), np.float32),
        np.tile(np.arange(2), (50, 1)),
        np.ones((50, 2)),
        worth=np.full((50, 2), 0.25),
    )
    assert play(stream, Uniform(stream, 0)) == [0.25] * 50


@pytest.mark.parametrize("name", regret.OURS)
def test_every_algorithm_plays(name: str) -> None:
    """And earns more than uniform choice in the linear world, four standard errors above it over its rounds."""
    stream = regret.worlds(300)["linear"](2)
    gain = np.array(play(stream, Slatewise(stream, 2, name=name, every=20))) - stream.worth.mean(axis=1)  # type: ignore[union-attr] - a world knows
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


def test_offers_are_part_of_the_round_and_the_same_for_a_seed() -> None:
    whole = regret.worlds(30)["linear"](0)
    some = whole.offered(1, 3)
    assert some.candidates.shape == (30, 3)
    assert np.array_equal(some.candidates, whole.offered(1, 3).candidates)
    assert np.array_equal(some.rewards, np.take_along_axis(whole.rewards, some.candidates, 1))
    assert all(len(set(row)) == 3 for row in some.candidates.tolist())


def test_the_table_names_losses() -> None:
    """Two seeds in the worlds: every verdict is there, also where it is against us; floors stand beside."""
    pytest.importorskip("vowpalwabbit", reason="pip install 'slatewise[bench]'")
    pytest.importorskip("mabwiser", reason="pip install 'slatewise[bench]'")
    study = regret.run(True, 2, None)
    wins, means, against, left = study.tables
    assert [row[0] for row in wins.rows] == ["linear", "clicks", "drift"]
    assert {row[0] for row in means.rows} >= {*regret.OURS, *regret.PEERS, "floor: oracle", "floor: best constant"}
    assert [row[0] for row in against.rows] == list(regret.OURS)
    assert len(left.rows) == len(regret.OURS) + len(regret.PEERS)
    ours, peer = np.array([0.4, 0.5, 0.6]), np.array([0.5, 0.6, 0.7])
    assert regret.compared(ours, peer) == pytest.approx((-100 / 6, -100 / 6, -100 / 6, False))
    assert regret.compared(peer, peer)[3]
    rows = [
        ["drift", "vw squarecb", "-3.0 [-5.0, -1.0]", False, "linucb", ""],
        ["linear", "vw", "+1 [0, 2]", True, "", ""],
    ]
    assert regret.missed(rows) == [
        f"missed on drift: linear_thompson − vw squarecb is -3.0 [-5.0, -1.0] %; {regret.WHY['drift']}"
    ]
