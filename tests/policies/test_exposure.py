"""Exposure of groups: what is entitled and owed by hand, boosts that are no person's, prefixes that hold or are said to yield."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.reranking.acting import Acting
from policies.reranking.exposure import (
    SOURCE,
    Fair,
    Law,
    Owed,
    boosts,
    entitled,
    looks_of,
    prefix_constraints,
    regrouped,
    sampled,
    stepped,
)
from policies.reranking.within import PASSED_OVER, stacked
from policies.slate import draw
from policies.types import DrawSettings

LAW = Law(gain=0.5, most=2.0, window=100.0)
EVEN = np.array([1.0, 1.0])


def test_a_group_gets_its_share_of_the_looks_or_all_that_its_candidates_can_take() -> None:
    looks = np.array([1.0, 0.5, 0.5])
    assert entitled(np.array([3.0, 1.0]), np.array([9, 9]), looks).tolist() == [1.5, 0.5]
    assert entitled(EVEN, np.array([9, 0]), looks).tolist() == [2.0, 0.0]  # nobody there: nothing owed
    assert entitled(np.array([3.0, 1.0]), np.array([1, 9]), looks).tolist() == [
        1.0,
        1.0,
    ]  # one candidate, the best slot
    assert entitled(np.array([1.0, 0.0]), np.array([9, 9]), looks).tolist() == [2.0, 0.0]  # what is not named
    assert entitled(EVEN, np.array([1, 1]), looks).tolist() == [1.0, 1.0]
    assert not entitled(EVEN, np.array([0, 0]), looks).any()
    assert looks_of((), 3).tolist() == [1.0, 1 / math.log2(3), 0.5]
    assert looks_of((1.0, 0.25), 4).tolist() == [1.0, 0.25, 0.25, 0.25]


def test_what_is_owed_leaks_grows_and_stands_still_at_the_clip() -> None:
    state = stepped(LAW, Owed(np.zeros(2)), np.array([5.0, 5.0]), np.array([8.0, 2.0]), 100.0)
    assert state.owed.tolist() == [-3.0, 3.0]
    assert state.per_sync == 10.0
    assert boosts(LAW, state) == pytest.approx([-0.15, 0.15])  # K = 0.5 / 10
    leak = math.exp(-1.0)
    state = stepped(LAW, state, np.array([50.0, 50.0]), np.array([100.0, 0.0]), 100.0)
    assert state.owed == pytest.approx([-3 * leak - 50, 3 * leak + 50])
    assert state.per_sync == pytest.approx((10 * leak + 100) / (leak + 1))
    clipped = Owed(np.array([-600.0, 600.0]), 100.0, 1.0)  # K · 600 = 3
    assert boosts(LAW, clipped).tolist() == [-2.0, 2.0]
    stuck = stepped(LAW, clipped, np.array([50.0, 50.0]), np.array([100.0, 0.0]), 1.0)
    assert stuck.owed == pytest.approx(math.exp(-0.01) * clipped.owed)  # leaks, does not grow
    back = stepped(LAW, clipped, np.array([50.0, 50.0]), np.array([0.0, 100.0]), 1.0)
    assert back.owed == pytest.approx(math.exp(-0.01) * clipped.owed + [50.0, -50.0])
    assert stepped(LAW, clipped, np.zeros(2), np.zeros(2), 1.0).per_sync == pytest.approx(100.0)  # nobody came
    assert regrouped(state, np.array([1, -1, 0])).owed.tolist() == [state.owed[1], 0.0, state.owed[0]]


def test_a_sample_of_candidates_stands_for_all_of_them() -> None:
    """Over many decisions each candidate is told of once a decision (4 standard errors); what was shown always is."""
    candidates, decisions, shown = 40, 2_000, np.array([7, 3])
    told = np.zeros(candidates)
    for i in range(decisions):
        rows, weights = sampled(candidates, f"d{i}", shown)
        assert {3, 7} <= set(rows.tolist())
        assert rows.tolist() == sorted(rows.tolist())
        assert weights.sum() == pytest.approx(candidates)
        told[rows] += weights
    error = math.sqrt((candidates / 16 - 1) / decisions)
    assert abs(told / decisions - 1).max() < 4 * error
    rows, weights = sampled(9, "d", shown)
    assert (rows.tolist(), weights.tolist()) == (list(range(9)), [1.0] * 9)


def test_the_loop_settles_with_a_sync_of_delay_and_does_not_without_the_bound() -> None:
    """A plant in which a boost of b moves a share by at most b/2, seen one sync late."""

    def swing(gain: float) -> float:
        law, state, before = Law(gain, 50.0, 1e9), Owed(np.zeros(2)), np.zeros(2)
        shares = []
        for _ in range(400):
            share = float(np.clip(0.8 + (before[0] - before[1]) / 2, 0, 1))
            before = boosts(law, state)
            delivered = 100 * np.array([share, 1 - share])
            state = stepped(law, state, np.array([50.0, 50.0]), delivered, 1.0)
            shares.append(share)
        return float(np.ptp(shares[-50:])) + abs(float(np.mean(shares[-50:])) - 0.5)

    assert swing(0.9) < 1e-3
    assert swing(3.0) > 0.1  # what `validate` refuses


def test_delivered_is_what_the_distributions_say() -> None:
    scores = np.array([[3.0, 1.0], [2.0, 4.0], [1.0, 0.0], [0.0, 2.0]], np.float32)
    codes, shares = np.array([0, 1, 1, -1]), EVEN
    fair = Fair(codes, ["a", "b"], np.zeros(2), shares, (1.0, 0.5))
    slate = draw(scores, 2, np.array([0.1, 0.9]), DrawSettings(floor=0.2), full=True)
    assert slate.distributions is not None
    delivered, owed, drawn, of = fair.delivered(slate)
    by_hand = slate.distributions[0] + 0.5 * slate.distributions[1]
    assert delivered == pytest.approx([by_hand[0], by_hand[1] + by_hand[2]])
    assert owed.tolist() == [0.75, 0.75]
    assert of.tolist() == codes[slate.items].tolist()
    assert drawn.sum() == pytest.approx(sum(v for v, g in zip((1.0, 0.5), of, strict=True) if g >= 0))


def test_a_boost_is_the_groups_and_in_units_of_the_scores() -> None:
    scores = np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32)
    fair = Fair(np.array([0, 1, -1] * 3), ["a", "b"], np.array([-0.5, 0.5]), EVEN)
    boost = fair.acting(scores).boosts[SOURCE]
    assert len(set(boost[:3])) == 3
    assert boost.tolist() == boost[:3].tolist() * 3  # items of a group get the same
    assert boost[2] == 0.0
    assert fair.acting(10 * scores).boosts[SOURCE] == pytest.approx(10 * boost)
    assert fair.acting(np.ones((9, 32), np.float32)).boosts[SOURCE].tolist() == [0.0] * 9
    assert not Fair(fair.codes, fair.groups, np.zeros(2), EVEN).acting(scores).boosts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-1, 2), min_size=1, max_size=12),
    st.integers(1, 8),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.integers(0, 2**31),
)
def test_prefixes_hold_or_are_said_to_have_yielded(kinds: list[int], k: int, shares: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, codes, total = ["a", "b", "c"], np.array(kinds), max(1.0, sum(shares))
    least = {group: share / total for group, share in zip(groups, shares, strict=True)}
    most = {"a": min(1.0, least["a"] + 0.3)}
    constraints = prefix_constraints("g", least, most, codes, groups, k)
    ready = Acting(constraints=stacked(constraints, len(kinds), k)).ready(len(kinds), k)
    scores = rng.standard_normal((len(kinds), 16)).astype(np.float32)
    slate = draw(scores, k, rng.random(k), DrawSettings(floor=0.1), full=True, **ready.arguments)
    assert slate.distributions is not None
    assert slate.distributions.sum(axis=1) == pytest.approx(np.ones(len(slate.items)))
    assert slate.acts is not None
    yielded = {one.name for one, acts in zip(constraints, slate.acts.tolist(), strict=True) if PASSED_OVER in acts}
    shown = codes[slate.items]
    for place, group in enumerate(groups):
        held = np.add.accumulate(shown == place)
        for t, count in enumerate(held.tolist(), 1):
            assert f"prefix:g>={group}" in yielded or count >= math.floor(least[group] * t + 1e-9)
            assert group != "a" or "prefix:g<=a" in yielded or count <= math.ceil(most["a"] * t - 1e-9)


def test_a_prefix_that_can_be_kept_never_yields() -> None:
    """Three groups of ten, shares that add up to 1, ten slots: a slate exists, so none may be passed over."""
    groups, codes = ["a", "b", "c"], np.repeat(np.arange(3), 10)
    constraints = prefix_constraints("g", {"a": 0.5, "b": 0.3, "c": 0.2}, {}, codes, groups, 10)
    ready, rng = Acting(constraints=stacked(constraints, 30, 10)).ready(30, 10), np.random.default_rng(1)
    scores = (rng.standard_normal((30, 8)) + 5 * (codes == 2)[:, None]).astype(np.float32)
    for _ in range(50):
        slate = draw(scores, 10, rng.random(10), DrawSettings(floor=0.1), **ready.arguments)
        assert slate.acts is not None
        assert PASSED_OVER not in slate.acts
        assert np.bincount(codes[slate.items]).tolist() == [5, 3, 2]
