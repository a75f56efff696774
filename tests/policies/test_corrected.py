"""`silence: corrected`: sums as if every decision had weighed the share of its feedback that has come, whoever learns them."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import corrected as correcting
from policies.algorithm import Addend, Problem
from policies.corrected import LEAST, PARTS, CorrectedLearner, Young, corrected, settled
from policies.delays import BUCKETS, EDGES, Curve, bucket_of, heard_once
from policies.registry import ALGORITHMS
from policies.ridge import sums_of
from policies.types import Arrays, Changes, Delays
from tests.contracts.algorithm_contract import BOTH, DAY, PROBLEM, SLOTS, START, TWO, evidence, same

HORIZON = DAY / 4
NOW = START + DAY
ABLE = sorted(name for name, one in ALGORITHMS.items() if "corrects" in one.traits)


def late(problem: Problem) -> Problem:
    return replace(problem, horizon=HORIZON)


def learner(name: str, problem: Problem, *batches: Changes, **options: Any) -> CorrectedLearner:
    algorithm = corrected(ALGORITHMS[name])
    assert algorithm.learner is not None
    made = algorithm.learner(algorithm.config(**options), late(problem))
    for batch in batches:
        made.learn(batch)
    assert isinstance(made, CorrectedLearner)
    return made


def told(seed: int, slates: int = 60, objectives: int = 1) -> Changes:
    """Random slates of a day, each heard about once, some time within the horizon."""
    changes = evidence(seed, slates, objectives=objectives)
    rng = np.random.default_rng([seed, 1])
    changes.rewards_after[::SLOTS] = 0.5  # everyone is heard about
    return replace(changes, delays=heard_once(changes, rng.uniform(0, HORIZON, slates), np.zeros(objectives), HORIZON))


@pytest.mark.parametrize("name", ABLE)
def test_what_is_older_than_the_horizon_counts_as_ever(name: str) -> None:
    plain, changes = ALGORITHMS[name], told(3)
    assert plain.learner is not None
    whole = plain.learner(plain.config(), PROBLEM)
    whole.learn(changes)
    now = NOW + HORIZON * (1 + 1 / PARTS)
    mine = corrected(plain).publish(plain.config(), late(PROBLEM), learner(name, PROBLEM, changes).arrays(), now, 7)
    theirs = plain.publish(plain.config(), PROBLEM, whole.arrays(), now, 7)
    same(mine.arrays, theirs.arrays, 1e-6)
    assert mine.slot_weight == pytest.approx(theirs.slot_weight)


@pytest.mark.parametrize("name", ABLE)
def test_the_young_wait_until_delays_are_known(name: str) -> None:
    """As if only what is older than the horizon had been learned."""
    plain, changes = ALGORITHMS[name], told(4)
    old = changes.of(changes.times < (np.floor((NOW - HORIZON) / (HORIZON / PARTS))) * (HORIZON / PARTS))
    assert 0 < len(old) < len(changes)
    assert plain.learner is not None
    waited = plain.learner(plain.config(), PROBLEM)
    waited.learn(old)
    found, _ = settled(plain, late(PROBLEM), learner(name, PROBLEM, changes).arrays(), NOW)
    for sums, value in waited.arrays().items():
        if sums in (*correcting.WEIGHTS, *correcting.REWARDS, "Y"):
            np.testing.assert_allclose(_rows(found, sums, waited.arrays()), value, atol=1e-9, err_msg=sums)


def _rows(found: Arrays, name: str, wanted: Arrays) -> Any:
    """Of tables by item the rows that are wanted: items seen only lately are there with nothing."""
    if "item_hashes" in wanted and len(found[name]) == len(found["item_hashes"]):
        return found[name][np.isin(found["item_hashes"], wanted["item_hashes"])]
    return found[name]


@pytest.mark.parametrize("name", ["linear_thompson", "hierarchical_thompson", "bootstrap", "popular"])
@pytest.mark.parametrize("half_life", [None, "3h"])
def test_a_decision_weighs_its_share_and_its_rewards_count_in_full(name: str, half_life: str | None) -> None:
    """Of every decision the share F of its reward was heard: S, n and B are those of decisions that weigh F, heard in full."""
    objectives = {**BOTH, "watch": msgspec.structs.replace(BOTH["watch"], default=0.25)}
    problem = Problem(TWO.encoder, objectives, {"click": 1.0, "watch": 0.0}, SLOTS, horizon=HORIZON)
    plain, full = ALGORITHMS[name], told(5, 80, 2)
    defaults = np.array([0.0, 0.25])
    curve = Curve(np.ones(BUCKETS), 1e6, HORIZON)
    width = HORIZON / PARTS
    part = np.floor(full.times / width)
    share = curve.between(np.maximum(NOW - (part + 1) * width, 0.0), np.maximum(NOW - part * width, 0.0))
    heard = defaults + share[:, None] * (full.rewards_after - defaults)
    weighs = plain.learner(plain.config(half_life=half_life), problem)  # type: ignore[misc,call-arg] - it learns
    weighs.learn(replace(full, weights=full.weights * share, delays=None))
    known = Delays(
        np.full(2 * BUCKETS, START - 2 * HORIZON),
        np.repeat([0, 1], BUCKETS),
        np.tile(np.arange(BUCKETS), 2),
        np.ones(2 * BUCKETS),
        np.full(2 * BUCKETS, 1e6),
    )
    mine = corrected(plain).learner(plain.config(half_life=half_life), problem)  # type: ignore[misc,call-arg]
    mine.learn(replace(full, rewards_after=heard, delays=known))
    found, _ = settled(plain, problem, mine.arrays(), NOW)
    for sums, value in weighs.arrays().items():
        if sums in (*correcting.WEIGHTS, *correcting.REWARDS):
            np.testing.assert_allclose(found[sums], value, rtol=1e-9, atol=1e-9 * np.abs(value).max(), err_msg=sums)


def test_objectives_that_come_sooner_are_scaled_to_those_that_come_later() -> None:
    """A policy that weighs both has one A: each of its B is what that A expects."""
    young = Young([], np.array([0.0, HORIZON / 2]), np.array([HORIZON / 4, HORIZON * 0.6]))
    sooner = Curve(np.append(np.ones(50), np.zeros(14)), 1e3, HORIZON)
    later = Curve(np.append(np.zeros(50), np.ones(14)), 1e3, HORIZON)
    early, late_ = (curve.between(young.youngest, young.oldest) for curve in (sooner, later))
    weight, scale = correcting.weighed([sooner, later], [1.0, 0.1], young)
    np.testing.assert_allclose(weight, late_)
    np.testing.assert_allclose(scale, np.stack([late_ / early, np.ones(2)], axis=1))
    for few in ([sooner, replace(later, decisions=LEAST - 1)], [replace(sooner, decisions=LEAST - 1), later]):
        weight, scale = correcting.weighed(few, [1.0, 0.1], young)
        assert not weight.any()
        assert not scale.any()
    weight, scale = correcting.weighed([sooner, replace(later, decisions=0.0)], [1.0, 0.0], young)
    np.testing.assert_allclose(weight, early)  # nobody waits for what weighs nothing
    np.testing.assert_allclose(scale, np.stack([np.ones(2), early], axis=1))


@pytest.mark.parametrize("name", ABLE)
def test_pieces_shards_and_restarts_learn_the_same(name: str) -> None:
    changes = told(6, 90, 2)
    algorithm = corrected(ALGORITHMS[name])
    assert algorithm.merge is not None
    assert changes.delays is not None
    whole = learner(name, TWO, changes).arrays()
    one, two = learner(name, TWO), learner(name, TWO)
    for i in np.random.default_rng(8).permutation(np.unique(changes.slates)).tolist():
        here = changes.of(changes.slates == i)
        delays = Delays(*(column[changes.delays.times == here.times[0]] for column in changes.delays))
        (one if i % 3 else two).learn(replace(here, delays=delays))
        if i == 10:
            again = learner(name, TWO)
            again.load({name: np.array(array) for name, array in one.arrays().items()})
            one = again
    merged = algorithm.merge([one.arrays(), two.arrays()])
    assert merged.keys() == whole.keys()
    for sums, array in whole.items():
        if sums in ("columns", "item_hashes", "pending_parts", "pending.item_hashes"):
            np.testing.assert_array_equal(merged[sums], array, err_msg=sums)
        else:
            size = float(np.abs(np.where(np.isfinite(array), array, 0)).max(initial=0))
            np.testing.assert_allclose(merged[sums], array, rtol=1e-9, atol=1e-9 * size, err_msg=sums)
    same(
        algorithm.publish(algorithm.config(), late(TWO), merged, NOW, 3).arrays,
        algorithm.publish(algorithm.config(), late(TWO), whole, NOW, 3).arrays,
        1e-5,
    )


def test_memory_stays_at_a_horizon_of_parts() -> None:
    changes = evidence(9, 400, spread=10 * DAY)
    made = learner("linear_thompson", PROBLEM, changes).arrays()
    newest = int(np.floor(changes.times.max() / (HORIZON / PARTS)))
    assert made["pending_parts"].min() > newest - PARTS - 2
    assert len(made["pending_parts"]) <= PARTS + 2
    D = len(made["S"])
    assert made["pending.S"].shape == (len(made["pending_parts"]) * D * (D + 1) / 2,)


def test_what_delays_are_like_is_carried_to_the_next_version() -> None:
    """… of the same horizon, so a change of features does not wait for 200 decisions again; addends count by their own F."""
    algorithm = corrected(ALGORITHMS["linear_thompson"])
    assert algorithm.carry is not None
    changes = told(10, 600)
    before = learner("linear_thompson", PROBLEM, changes).arrays()
    own = learner("linear_thompson", PROBLEM).arrays()
    addend = Addend(late(PROBLEM), before)
    made = algorithm.carry(algorithm.config(), late(PROBLEM), own, [addend], NOW)
    mine, _ = settled(ALGORITHMS["linear_thompson"], late(PROBLEM), before, NOW)
    for name in ("S", "B", "Y", "n"):
        np.testing.assert_allclose(sums_of(made)[name], sums_of(mine)[name], rtol=1e-9, atol=1e-9, err_msg=name)
    published = algorithm.publish(algorithm.config(), late(PROBLEM), made, NOW, 1)
    alone = algorithm.publish(algorithm.config(), late(PROBLEM), before, NOW, 1)
    assert published.diagnostics["early_decisions.click"] == pytest.approx(alone.diagnostics["early_decisions.click"])
    assert alone.diagnostics["early_decisions.click"] >= LEAST
    assert published.diagnostics["early.click"] == pytest.approx(0.5, abs=0.12)
    other = replace(PROBLEM, horizon=HORIZON / 2)
    fresh = algorithm.carry(algorithm.config(), other, own, [addend], NOW)
    assert algorithm.publish(algorithm.config(), other, fresh, NOW, 1).diagnostics["early_decisions.click"] == 0


def test_a_curve_is_the_share_that_has_come() -> None:
    rng = np.random.default_rng(11)
    delays = np.minimum(rng.exponential(HORIZON / 20, 20_000), HORIZON)
    curve = Curve(np.bincount(bucket_of(delays, HORIZON), minlength=BUCKETS).astype(float), 2e4, HORIZON)
    for age in HORIZON * np.array([0.001, 0.01, 0.05, 0.2, 0.7]):
        p = float((delays <= age).mean())
        assert float(curve.share(np.array([age]))[0]) == pytest.approx(p, abs=0.02)
    assert curve.share(np.array([0.0, HORIZON, 2 * HORIZON])).tolist() == [0.0, 1.0, 1.0]
    assert bucket_of(np.array([-5.0, 0.0, HORIZON, 9 * HORIZON]), HORIZON).tolist() == [0, 0, BUCKETS - 1, BUCKETS - 1]
    assert float(EDGES[-1]) == 1.0
    assert Curve(np.zeros(BUCKETS), 0.0, HORIZON).share(np.array([1.0, HORIZON])).tolist() == [0.0, 1.0]


def test_young_silence_does_not_lower_what_is_expected() -> None:
    """A reward of 0.3 whose feedback takes half a horizon in the mean: eight streams, 4 standard errors."""
    off = {"corrected": [], "eager": []}  # type: dict[str, list[float]]
    for seed in range(8):
        rng = np.random.default_rng([seed, 12])
        changes = evidence(seed, 1500)
        delays = rng.exponential(HORIZON / 2, 1500)
        wanted = (rng.random((len(changes), 1)) < 0.3) & np.repeat(delays <= HORIZON, SLOTS)[:, None]
        come = wanted & (changes.times + np.repeat(delays, SLOTS) <= NOW)[:, None]
        heard = np.where(come.reshape(-1, SLOTS).any(axis=1), delays, np.nan)
        seen = replace(changes, rewards_after=come.astype(float))
        seen = replace(seen, delays=heard_once(seen, heard, np.zeros(1), HORIZON))
        made = learner("linear_thompson", PROBLEM, seen).arrays()
        sums, [curve] = settled(ALGORITHMS["linear_thompson"], late(PROBLEM), made, NOW)
        assert curve.decisions > LEAST
        for name, one in (("corrected", sums), ("eager", made)):
            held = sums_of(one)
            off[name].append(
                float(held["B"][0, 0] / held["n"][0]) - float((changes.weights @ wanted)[0] / changes.weights.sum())
            )
    error = {name: np.std(each, ddof=1) / np.sqrt(8) for name, each in off.items()}
    assert abs(np.mean(off["corrected"])) < 4 * error["corrected"]
    assert np.mean(off["eager"]) < -4 * error["eager"]


def test_only_sums_that_add_can_be_corrected() -> None:
    for name, algorithm in ALGORITHMS.items():
        if name not in ABLE:
            with pytest.raises(ValueError, match=name):
                corrected(algorithm)
    assert set(ABLE) == {
        "bootstrap",
        "epsilon_greedy",
        "hierarchical_thompson",
        "linear_thompson",
        "linucb",
        "popular",
        "softmax",
        "squarecb",
    }
