"""Every estimator against a case computed by hand, intervals and diagnostics against what they must be."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.errors import Rejected
from policies.evaluation.diagnostics import calibration, design_ess, diagnose, inverse_z
from policies.evaluation.estimators import ESTIMATORS
from policies.evaluation.intervals import bootstrap, delta, skewed, standard_error
from policies.evaluation.logged import Logged, checked, one_slot
from policies.evaluation.models import time_blocks, with_model

# Four decisions of one slot: w = π/β = 2, 1/2, 0, 1.
HAND = Logged(
    rewards=np.array([[1.0], [0.0], [1.0], [0.5]]),
    behaviour=np.array([[0.25], [0.5], [0.5], [0.5]]),
    target=np.array([[0.5], [0.25], [0.0], [0.5]]),
    present=np.ones((4, 1), bool),
    units=np.array([7, 7, 8, 9]),
    times=np.arange(4.0),
    predicted=np.array([[0.5], [0.5], [0.5], [0.0]]),
    expected=np.array([[0.75], [0.25], [0.5], [0.5]]),
)


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("ips", {}, (2 + 0 + 0 + 0.5) / 4),
        ("snips", {}, 2.5 / 3.5),
        ("clipped_ips", {"cap": 1.5}, (1.5 + 0 + 0 + 0.5) / 4),
        ("dm", {}, 2 / 4),
        ("dr", {}, (2 + (2 * 0.5 - 0.5 * 0.5 + 0 + 0.5)) / 4),
        ("sndr", {}, 2 / 4 + 1.25 / 3.5),
        ("switch_dr", {"tau": 1.0}, (2 + (-0.5 * 0.5 + 0.5)) / 4),
        # λ = 2: λw/(w² + λ) = 4/6, 1/2.25, 0, 2/3
        ("dros", {"shrinkage": 2.0}, (2 + (4 / 6 * 0.5 - 1 / 2.25 * 0.5 + 2 / 3 * 0.5)) / 4),
    ],
)
def test_by_hand(name: str, options: dict[str, float], value: float) -> None:
    assert ESTIMATORS[name](HAND, **options).value == pytest.approx(value)


def test_clipping_says_what_it_took() -> None:
    details = ESTIMATORS["clipped_ips"](HAND, cap=1.5).details
    assert details["bias"] == pytest.approx(-0.5 / 4)
    assert details["clipped_share"] == 1 / 4
    assert details["removed_weight"] == pytest.approx(0.5 / 4)


def test_two_slots_add_up() -> None:
    two = Logged(
        rewards=np.array([[1.0, 1.0], [1.0, 0.0]]),
        behaviour=np.array([[0.5, 0.25], [0.5, 1.0]]),
        target=np.array([[1.0, 0.5], [0.25, 1.0]]),
        present=np.array([[True, True], [True, False]]),
        units=np.arange(2),
        times=np.arange(2.0),
    )
    assert ESTIMATORS["ips"](two).value == pytest.approx((2 + 2 + 0.5) / 2)
    assert ESTIMATORS["snips"](two).value == pytest.approx(2.5 / 2.5 + 2 / 3)


def test_mrdr_by_hand() -> None:
    """One feature, one earlier decision a block: θ of the second block from the first decision alone, ridge 1 with a constant."""
    log = one_slot(
        np.array([1.0, 1.0]),
        np.array([0, 1]),
        np.array([[0.5, 0.5], [0.5, 0.5]]),
        np.array([[0.75, 0.25], [0.75, 0.25]]),
        features=np.array([[[1.0], [0.0]], [[1.0], [0.0]]]),
    )
    # first: w = 1.5, ρ = 1.5, ζ = 1.5·1 − 0.75 = 0.75.  (I + zzᵀ)θ = z·1.5 with z = (0.75, 1): θ = 1.5 z / (1 + ∣z∣²)
    theta = 1.5 * 0.75 / (1 + 0.75**2 + 1)
    # first decision has no model (ips: 1.5); second: w = 0.5, q = 0, e = 0.75 θ
    assert ESTIMATORS["mrdr"](log).value == pytest.approx((1.5 + 0.75 * theta + 0.5) / 2)


def test_models_see_earlier_blocks_only() -> None:
    rng = np.random.default_rng(1)
    n = 200
    log = one_slot(
        rng.random(n),
        rng.integers(3, size=n),
        np.full((n, 3), 1 / 3),
        rng.dirichlet(np.ones(3), n),
        features=rng.normal(size=(n, 3, 2)),
    )
    changed = replace(log, rewards=np.where(np.arange(n)[:, None] >= 100, 5.0, log.rewards))
    before, after = with_model(log), with_model(changed)
    block = time_blocks(log.times)
    first_changed = block == block[100]
    assert before.predicted is not None
    assert after.predicted is not None
    assert np.isnan(before.predicted[block == 0]).all()
    assert (before.predicted[20:100] == after.predicted[20:100]).all()
    assert (before.predicted[first_changed] == after.predicted[first_changed]).all()  # its own block is not looked at
    assert (before.predicted[block > block[100]] != after.predicted[block > block[100]]).all()
    # one second, one block: nothing earlier to learn from
    assert np.isnan(with_model(replace(log, times=np.zeros(n))).predicted).all()


@settings(deadline=None)  # other tests share the cores
@given(arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 9).map(float)))
def test_equal_times_share_a_block(times: np.ndarray) -> None:
    block = time_blocks(np.sort(times))
    assert (np.diff(block) >= 0).all()
    assert all(len(set(block[np.sort(times) == t])) == 1 for t in times)


def test_dr_keeps_its_expectation_under_an_adaptive_model() -> None:
    """Mean of dr over 1,000 logs of 40 decisions, with a model fitted on the log itself, within 4 standard errors."""
    rng = np.random.default_rng(3)
    behaviour, target, pays = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5]), np.array([0.2, 0.5, 0.9])
    found = []
    for _ in range(1_000):
        items = rng.choice(3, size=40, p=behaviour)
        rewards = (rng.random(40) < pays[items]).astype(float)
        log = one_slot(rewards, items, np.tile(behaviour, (40, 1)), np.tile(target, (40, 1)), features=EYE)
        found.append(ESTIMATORS["dr"](with_model(log)).value)
    assert abs(np.mean(found) - target @ pays) < 4 * np.std(found) / math.sqrt(len(found))


EYE = np.tile(np.eye(3), (40, 1, 1))


def test_clustered_standard_error_by_hand() -> None:
    found = ESTIMATORS["ips"](HAND)
    v = 2.5 / 4
    sums = np.array([2 - v + 0 - v, 0 - v, 0.5 - v])  # units 7, 7, 8, 9
    assert standard_error(found) == pytest.approx(math.sqrt(3 / 2 * (sums**2).sum()) / 4)
    assert standard_error(replace(found, units=np.zeros(4, int))) == math.inf


def test_bootstrap_and_delta_agree_on_a_large_log() -> None:
    rng = np.random.default_rng(5)
    n = 20_000
    log = one_slot(
        rng.random(n), rng.integers(4, size=n), np.full((n, 4), 0.25), np.tile([0.4, 0.3, 0.2, 0.1], (n, 1)),
        units=rng.integers(5_000, size=n),
    )  # fmt: skip
    for name in ("ips", "snips"):
        found = ESTIMATORS[name](log)
        one, other = delta(found), bootstrap(found, seed=1, replicates=400)
        assert other == bootstrap(found, seed=1, replicates=400)
        assert other.width == pytest.approx(one.width, rel=0.15)
        assert abs(other.low - one.low) < 0.1 * one.width
    assert delta(ESTIMATORS["snips"](log)).width < delta(ESTIMATORS["ips"](log)).width


def test_a_skewed_interval_by_hand() -> None:
    """Moved by the skewness of its units' sums, as wide as before; never off its value."""
    found = ESTIMATORS["ips"](HAND)
    v = 2.5 / 4
    sums = np.array([2 - v + 0 - v, 0 - v, 0.5 - v])  # units 7, 7, 8, 9
    z = NormalDist().inv_cdf(0.975)
    q = (sums**3).sum() / (sums**2).sum() ** 1.5
    moved = standard_error(found) * q * (1 + 2 * z**2) / 6
    assert q > 0
    assert skewed(found).low == pytest.approx(delta(found).low + moved)
    assert skewed(found).high == pytest.approx(delta(found).high + moved)
    two = replace(found, units=np.array([1, 1, 1, 2]))
    assert (skewed(two).low, skewed(two).high) == (delta(two).low, delta(two).high)
    lonely = one_slot(np.eye(400)[0], np.zeros(400, int), np.tile([0.5, 0.5], (400, 1)), np.tile([0.5, 0.5], (400, 1)))
    once = ESTIMATORS["ips"](lonely)
    assert skewed(once, 0.999).low <= once.value <= skewed(once, 0.999).high


def test_skewed_covers_where_delta_lies_too_low() -> None:
    """A reward in twenty, 300 decisions: delta misses above in more than twice as many of 400 logs as skewed does."""
    rng = np.random.default_rng(11)
    behaviour, target, pays = np.tile([0.7, 0.3], (300, 1)), np.tile([0.3, 0.7], (300, 1)), np.array([0.02, 0.06])
    truth, above = 0.3 * 0.02 + 0.7 * 0.06, np.zeros(2)
    for _ in range(400):
        items = (rng.random(300) < 0.3).astype(int)
        found = ESTIMATORS["ips"](one_slot((rng.random(300) < pays[items]) * 1.0, items, behaviour, target))
        above += [way(found).high < truth for way in (delta, skewed)]
    assert above[0] > 2 * above[1]
    assert above[0] > 400 * 0.05


def test_repeated_units_widen_the_interval() -> None:
    """A log copied four times says no more, if the copies are of the same units."""
    found = ESTIMATORS["ips"](HAND)
    four = Logged(*(np.repeat(getattr(HAND, name), 4, axis=0) for name in ("rewards", "behaviour", "target", "present", "units", "times")))  # fmt: skip
    assert standard_error(ESTIMATORS["ips"](four)) == pytest.approx(standard_error(found))


def test_effective_sizes_by_hand() -> None:
    seen = diagnose(HAND, cap=1.5)
    assert seen.ess == pytest.approx(3.5**2 / 5.25)
    assert seen.rewarded_ess == pytest.approx(2.5**2 / 4.25)
    assert diagnose(replace(HAND, rewards=np.zeros((4, 1)))).rewarded_ess == 0
    assert math.isnan(seen.design_ess)
    assert seen.clipped_share == 1 / 4
    assert seen.unmatched_share == 1 / 4
    assert seen.largest == 2
    designed = replace(HAND, design=np.array([[1.0], [2.0], [3.0], [np.nan]]))
    assert design_ess(designed) == pytest.approx(4 / 2)
    beyond = replace(HAND, design=np.array([[1.0], [np.inf], [3.0], [1.0]]))
    assert diagnose(beyond).unsupported == 1
    assert diagnose(beyond).design_ess == 0


def test_design_sees_what_observed_is_blind_to() -> None:
    """An arm the log shows once in 10⁶ and the target half of the time: never hit, so the observed size looks fine."""
    n = 20_000
    behaviour, target = np.array([1 - 1e-6, 1e-6]), np.array([0.5, 0.5])
    log = one_slot(np.ones(n), np.zeros(n, int), np.tile(behaviour, (n, 1)), np.tile(target, (n, 1)))
    seen = diagnose(log)
    assert seen.ess == pytest.approx(n)
    assert seen.design_ess < 1
    assert not seen.weights_ok


@pytest.mark.parametrize("arm", [0, 3, 9])
def test_a_wrong_propensity_is_caught(arm: int) -> None:
    """20% on an arm with p ≥ .05, 20,000 decisions of a policy that changes: by calibration and by the mean weight."""
    rng = np.random.default_rng(arm)
    n = 20_000
    truth = 0.05 + 0.5 * rng.dirichlet(np.ones(10), n)  # sums to 1, every arm ≥ .05
    items = (rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(max=9)
    assert calibration(truth, items).ok
    assert abs(inverse_z(truth[np.arange(n), items], np.full(n, 10))) < 4
    wrong = truth.copy()
    wrong[:, arm] *= 1.2
    wrong /= wrong.sum(axis=1, keepdims=True)
    caught = calibration(wrong, items)
    assert not caught.ok
    assert caught.arm == arm
    assert caught.worst < -4
    target = np.zeros((n, 10))
    target[:, arm] = 1.0
    assert diagnose(one_slot(np.ones(n), items, truth, target)).weights_ok
    assert not diagnose(one_slot(np.ones(n), items, wrong, target)).weights_ok


def test_inverse_propensities_catch_a_floor_that_is_not_drawn() -> None:
    rng = np.random.default_rng(0)
    p = np.where(rng.random(20_000) < 0.93, 0.9, 0.1)
    assert abs(inverse_z(p, np.full(20_000, 2))) > 4
    assert inverse_z(np.ones(5), np.ones(5, int)) == 0
    assert inverse_z(np.full(5, 0.5), np.ones(5, int)) == math.inf


def test_distributions_are_looked_at() -> None:
    with pytest.raises(Rejected, match="distribution"):
        one_slot(np.ones(1), np.zeros(1, int), np.array([[0.5, 0.6]]), np.array([[0.5, 0.5]]))


def test_one_part_of_a_model_is_not_enough() -> None:
    with pytest.raises(Rejected, match="come together"):
        checked(replace(HAND, expected=None))
    with pytest.raises(Rejected, match="not finite"):
        checked(replace(HAND, features=np.full((4, 1, 2), np.nan), expected_features=np.ones((4, 1, 2))))
