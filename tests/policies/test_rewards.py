"""Reward rules: the meaning of each aggregate, silence, credit and range, and that only the set of what was heard counts."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.rewards import AGGREGATES, LIMIT, WHOLE_SLATE, Heard, RewardRule
from policies.surface import Aggregate, Objective

STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine is no failure


def heard(*values: float, position: int = 0, kind: str = "play") -> list[Heard]:
    return [Heard(position, kind, value, float(at)) for at, value in enumerate(values)]


def reward(objective: Objective, said: Sequence[Heard], k: int = 1, position: int = 0) -> float:
    return float(RewardRule({"it": objective})(k, said)[0][position, 0])


@pytest.mark.parametrize(
    ("aggregate", "values", "expected"),
    [
        ("sum", [1, 2, 4], 7),
        ("max", [1, 4, 2], 4),
        ("min", [2, 1, 4], 1),
        ("mean", [1, 2, 6], 3),
        ("first", [2, 1, 4], 2),
        ("last", [2, 4, 1], 1),
        ("sum", [-1, -2, -4], -7),
        ("max", [-3, -1, -2], -1),
        ("min", [-1, -3, -2], -3),
        ("mean", [-1, -2, -6], -3),
        ("first", [-2, -1], -2),
        ("last", [-2, -1], -1),
        ("sum", [0.0], 0),
        ("max", [0.0, -1.0], 0),
    ],
)
@pytest.mark.parametrize("default", [0.0, -5.0, 3.0])
def test_the_default_is_never_part_of_an_aggregate(
    aggregate: Aggregate, values: list[float], expected: float, default: float
) -> None:
    """All-negative feedback under `max` is negative: silence alone earns the default."""
    objective = Objective("play", aggregate, default=default)
    assert reward(objective, heard(*values)) == expected
    assert reward(objective, []) == default
    assert reward(objective, heard(*values), k=2, position=1) == default


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_negative_value_is_itself(aggregate: Aggregate) -> None:
    assert reward(Objective("play", aggregate, default=1.0), heard(-2.5)) == -2.5


def test_feedback_of_another_kind_leaves_the_default() -> None:
    rewards, clipped = RewardRule({"it": Objective("play", default=-1.0)})(2, heard(5, kind="like"))
    assert rewards.tolist() == [[-1], [-1]]
    assert clipped == 0


def test_two_objectives_may_hear_one_kind() -> None:
    rule = RewardRule(
        {"all": Objective("play"), "best": Objective("play", "max"), "like": Objective("like", default=0.5)}
    )
    assert rule(2, [*heard(1, 4, position=1), *heard(3, kind="like")])[0].tolist() == [[0, 0, 3], [5, 4, 0.5]]
    assert rule.silence.tolist() == [0, 0, 0.5]


@pytest.mark.parametrize("objective", [Objective("play", better="lower"), Objective("play", scale=7.0)])
def test_rewards_are_raw(objective: Objective) -> None:
    """`better` and `scale` act on weights, so that changing them relearns nothing."""
    assert reward(objective, heard(2)) == reward(objective, heard(1, 1)) == 2


def test_first_and_last_follow_the_time_and_ties_the_value() -> None:
    said = [Heard(0, "play", 2, 7.0), Heard(0, "play", 5, 3.0), Heard(0, "play", 4, 3.0), Heard(0, "play", 1, 7.0)]
    for order in (said, said[::-1]):
        assert reward(Objective("play", "first"), order) == 4
        assert reward(Objective("play", "last"), order) == 2


@pytest.mark.parametrize("values", [[1e11, 0.1, -1e11], [1e11, -1e11, 0.1], [0.1, 1e11, -1e11]])
def test_sums_are_exact_in_every_order(values: list[float]) -> None:
    assert reward(Objective("play"), heard(*values)) == 0.1
    assert reward(Objective("play", "mean"), heard(*values)) == 0.1 / 3


@pytest.mark.parametrize(
    ("values", "expected", "count"),
    [([70], 60, 1), ([40, 30], 60, 1), ([-5], 0, 1), ([60], 60, 0), ([0], 0, 0), ([80, -30], 50, 0)],
)
def test_the_range_clips_the_number_of_a_slot_and_counts_it(values: list[float], expected: float, count: int) -> None:
    rewards, clipped = RewardRule({"it": Objective("play", range=(0, 60))})(3, heard(*values, position=1))
    assert (rewards[1, 0], clipped) == (expected, count)


def test_without_a_range_sums_stay_finite() -> None:
    for values in ([1e308], [1e308, 1e308], [1e308] * 5):
        assert reward(Objective("play"), heard(*values)) == LIMIT
        assert reward(Objective("play"), heard(*[-value for value in values])) == -LIMIT


@pytest.mark.parametrize(
    ("credit", "said", "expected"),
    [
        ("equal", heard(8, position=WHOLE_SLATE), [2, 2, 2, 2]),
        ("equal", heard(5, 3, position=WHOLE_SLATE), [2, 2, 2, 2]),
        ("equal", [*heard(8, position=WHOLE_SLATE), *heard(1, position=2)], [2, 2, 3, 2]),
        ("equal", heard(-8, position=WHOLE_SLATE), [-2, -2, -2, -2]),
        ("clicked", heard(8, position=WHOLE_SLATE), [2, 2, 2, 2]),
        ("clicked", [*heard(8, position=WHOLE_SLATE), *heard(1, position=2, kind="click")], [9, 9, 8, 9]),
        ("clicked", [*heard(8, position=WHOLE_SLATE), *heard(1, position=2)], [9, 9, 9, 9]),
        (
            "clicked",
            [*heard(8, position=WHOLE_SLATE), *heard(1, position=2, kind="click"), *heard(1, position=0, kind="like")],
            [4, 9, 4, 9],
        ),
        ("clicked", [*heard(8, position=WHOLE_SLATE), *heard(0, position=2, kind="click")], [2, 2, 2, 2]),
        ("clicked", [*heard(8, position=WHOLE_SLATE), *heard(-1, position=2, kind="click")], [2, 2, 2, 2]),
        ("clicked", [*heard(8, position=WHOLE_SLATE), *heard(1, position=2, kind="hide")], [2, 2, 2, 2]),
    ],
)
def test_whole_slate_rewards_are_credited(credit: str, said: list[Heard], expected: list[float]) -> None:
    """With default 9, to see who kept silent; a hide is feedback that is better lower, so no click."""
    objectives = {"buy": Objective("play", default=9.0), "hide": Objective("hide", better="lower")}
    rule = RewardRule(objectives, credit)  # type: ignore[arg-type]  # the table holds text
    assert rule(4, said)[0][:, 0].tolist() == expected


def test_whole_slate_rewards_are_clipped_in_every_slot() -> None:
    assert RewardRule({"it": Objective("play", range=(0, 1))})(4, heard(8, position=WHOLE_SLATE))[1] == 4


def test_an_empty_slate_has_no_rewards() -> None:
    for said in ([], heard(3, position=WHOLE_SLATE), heard(3, 4, position=WHOLE_SLATE)):
        rewards, clipped = RewardRule({"it": Objective("play")})(0, said)
        assert (rewards.shape, clipped) == ((0, 1), 0)


def test_a_returned_array_is_the_callers_own() -> None:
    rule = RewardRule({"it": Objective("play")})
    rule(2, [])[0][:] = 99
    assert rule(2, [])[0].tolist() == [[0], [0]]


K = 4
POSITIONS, KINDS = st.integers(WHOLE_SLATE, K - 1), st.sampled_from(["play", "like", "hide", "other"])
VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e300, 1e300))
HEARD = st.lists(st.builds(Heard, POSITIONS, KINDS, VALUES, st.integers(0, 3).map(float)), max_size=8)
OBJECTIVES = st.tuples(st.sampled_from(list(AGGREGATES)), st.sampled_from([None, (-2.0, 2.0), (0.0, 1.0)])).map(
    lambda pair: {
        "watch": Objective("play", pair[0], range=pair[1]),
        "like": Objective("like", "max", default=0.25),
        "hide": Objective("hide", pair[0], better="lower"),
    }
)
CREDITS = st.sampled_from(["equal", "clicked"])


def as_written(objective: Objective, credit: str, said: Sequence[Heard], unwanted: set[str]) -> list[float]:
    """The docstring, slot by slot, without a thought for speed."""
    mine = [h for h in said if h.kind == objective.kind]
    clicked = {h.position for h in said if h.value > 0 and h.position != WHOLE_SLATE and h.kind not in unwanted}
    sharing = clicked if credit == "clicked" and clicked else set(range(K))

    def total(position: int) -> float | None:
        dated = sorted((h.at, min(max(h.value, -1e12), 1e12)) for h in mine if h.position == position)
        return AGGREGATES[objective.aggregate](dated) if dated else None

    low, high = objective.range or (-LIMIT, LIMIT)
    rewards = []
    for position in range(K):
        own, whole = total(position), total(WHOLE_SLATE) if position in sharing else None
        parts = [part for part in (own, whole and whole / len(sharing)) if part is not None]
        rewards.append(min(max(sum(parts), low), high) if parts else objective.default)
    return rewards


@STEADY
@given(OBJECTIVES, CREDITS, HEARD, st.randoms(use_true_random=False))
def test_rewards_follow_the_rule_in_any_order(objectives, credit, said, random) -> None:  # type: ignore[no-untyped-def]
    rule = RewardRule(objectives, credit)
    rewards, clipped = rule(K, said)
    for column, objective in enumerate(objectives.values()):
        np.testing.assert_allclose(rewards[:, column], as_written(objective, credit, said, {"hide"}), rtol=1e-12)
    turned = list(said)
    random.shuffle(turned)
    again, same_count = rule(K, turned)
    assert (again.tobytes(), same_count) == (rewards.tobytes(), clipped)
    assert np.isfinite(rewards).all()


@STEADY
@given(st.floats(-1e6, 1e6), st.integers(1, 20))
def test_equal_credit_gives_away_exactly_the_reward(whole: float, k: int) -> None:
    rewards, _ = RewardRule({"it": Objective("play")})(k, heard(whole, position=WHOLE_SLATE))
    assert math.fsum(rewards[:, 0]) == pytest.approx(whole, rel=1e-12)
