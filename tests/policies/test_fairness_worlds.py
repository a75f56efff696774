"""Worlds in which exposure matters: auctions by hand, budgets, switches, creators who leave, gymnasium's signatures."""

import numpy as np
import pytest

from policies.worlds.ads_world import AdsEnv, AdsWorld, true_counts
from policies.worlds.creator_world import CreatorEnv, CreatorWorld
from policies.worlds.switches import Switches


def test_nobody_outside_an_audience_sees_an_ad_and_the_best_mostly_wins() -> None:
    world, rng = AdsWorld(1, units=2_000), np.random.default_rng(0)
    shown = world.auction(world.arrive(20_000, rng), rng)
    of = world.clusters[shown.units]
    assert world.audience[of, shown.ads].all()
    assert (shown.eligible == world.audience[of]).all()
    assert shown.value == pytest.approx(world.values[of, shown.ads])
    assert world.spent.sum() == pytest.approx(shown.value.sum())
    assert 0.6 * world.optimum < shown.value.mean() < world.optimum
    delivered, eligible = true_counts(world, shown)
    assert delivered.sum() == 20_000
    assert eligible.sum() == shown.eligible.sum()


def test_a_budget_that_is_spent_ends_an_ad_until_the_next_day() -> None:
    world, rng = AdsWorld(1, units=2_000, budget=0.5), np.random.default_rng(0)
    for _ in range(40):
        shown = world.auction(world.arrive(500, rng), rng, day=20_000)
    gone = np.flatnonzero(world.spent >= world.budget * 20_000)
    assert len(gone)
    assert not np.isin(world.auction(world.arrive(500, rng), rng, day=20_000).ads, gone).any()
    world.pass_time(500, rng, new_day=True)
    assert not world.spent.any()
    assert (shown.ads >= 0).any()


def test_switches_of_ads() -> None:
    rng = np.random.default_rng(0)
    world = AdsWorld(1, units=500, switches=Switches(loss=0.5, duplicates=0.1, drift=0.01, turnover=0.001))
    before, values = world.audience.copy(), world.values.copy()
    shown = world.auction(world.arrive(4_000, rng), rng)
    heard = world.heard(shown, rng)
    assert abs(len(heard) - 2_200) < 4 * np.sqrt(4_000)
    assert len(set(heard.tolist())) < len(heard)
    world.pass_time(100, rng)
    assert (world.values != values).any()
    assert (world.audience != before).any()
    still = AdsWorld(1, units=500)
    assert (still.values == values).all()  # a function of the seed
    still.pass_time(100, rng)
    assert (still.values == values).all()


def test_creators_leave_when_they_starve_and_not_before() -> None:
    world = CreatorWorld(1, creators=4, need=0.4, patience=2, switches=Switches())
    assert not len(world.pass_period(np.array([8.0, 1.0, 1.0, 0.0])))  # 0.4 · 10 / 4 = 1 is enough
    assert world.hungry.tolist() == [0, 0, 0, 1]
    assert not len(world.pass_period(np.array([8.0, 0.5, 0.5, 1.0])))  # fed again
    assert world.pass_period(np.array([9.0, 0.5, 0.5, 0.0])).tolist() == [1, 2]
    assert world.here.tolist() == [True, False, False, True]
    new = CreatorWorld(1, creators=4, patience=1, switches=Switches(turnover=1.0))
    new.pass_period(np.array([1.0, 0, 0, 0]))
    assert new.here.all()  # somebody came in everybody's place


def test_environments_have_gymnasiums_signatures() -> None:
    auctions = AdsEnv(batch=200, steps=2, units=500)
    seen, _ = auctions.reset(seed=3)
    assert seen.shape == (40, 4)
    observation, action = auctions.spaces
    seen, reward, over, cut, told = auctions.step(action.sample())
    assert observation.contains(seen)
    assert told["regret"] == pytest.approx(auctions.world.optimum - reward)
    assert (over, cut) == (False, False)
    assert auctions.step(action.sample())[3]
    people = CreatorEnv(steps=2)
    seen, _ = people.reset(seed=3)
    observation, action = people.spaces
    assert observation.contains(seen)
    best = np.argsort(-seen, axis=1)[:, :3]
    assert people.step(best)[4]["regret"] == pytest.approx(0.0)
    assert people.step(action.sample())[3]
