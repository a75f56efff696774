"""The study of logs with every rule on: its world counts out what the draw does, and a target's value is what drawing it earns."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from policies.evaluation.conditionals import conditionals
from policies.evaluation.truth import Truth
from services.studies import rules_coverage
from services.studies.rules_world import GROUPS, SLOTS, Chances, Configuration, RulesWorld

BOOSTS = np.array([-0.4, 0.7])


@cache
def made() -> tuple[RulesWorld, Configuration, list[rules_coverage.Target]]:
    world = RulesWorld(rules_coverage.SEED)
    return world, *rules_coverage.targets(world)


def played(n: int, seed: int) -> rules_coverage.Log:
    return rules_coverage.played(*made(), n, np.random.default_rng(seed))


def slates(found: Configuration, cell: int, count: int, seed: int) -> np.ndarray:
    rng, acts = np.random.default_rng(seed), found.acts(BOOSTS)
    return np.array([found.draw(cell, acts[cell], rng.random(SLOTS)).items for _ in range(count)])


@pytest.mark.parametrize("name", ["logged", "all"])
def test_chances_are_those_of_the_draw_and_of_forced_slates(name: str) -> None:
    _, behaviour, several = made()
    found = behaviour if name == "logged" else several[-1].configuration
    acts, laws, rng = found.acts(BOOSTS), found.chances(BOOSTS), np.random.default_rng(1)
    truth = Truth()
    for i in range(1_500):
        cell = i % len(laws)
        query = found.queries[cell]
        slate = found.draw(cell, acts[cell], rng.random(SLOTS))
        law = laws[cell].at(slate.items[None])[0]
        assert slate.distributions is not None
        assert law.tobytes() == slate.distributions.tobytes()
        for slot, row, p in zip(slate.slots.tolist(), slate.items.tolist(), law, strict=True):
            truth.add(slot, dict(zip(query.ids, p.tolist(), strict=True)), query.ids[row], float(p[row]))
        if i < 60:  # what `slatewise evaluate` makes of the same slate
            forced = conditionals(
                found.model[cell],
                slate.slots.tolist(),
                slate.items.tolist(),
                found._settings[cell],
                pins=query.pins,
                **acts[cell].arguments,
            )
            np.testing.assert_allclose(forced, law, atol=1e-12)
    assert truth.worst_z < 4
    for one in laws:
        assert one.reached[-1].sum() == pytest.approx(1.0)


def test_everything_acts_in_the_log() -> None:
    _, behaviour, _ = made()
    for act, query in zip(behaviour.acts(BOOSTS), behaviour.queries, strict=True):
        assert act.boosts is not None
        assert np.ptp(act.boosts) > 0
        assert act.within is not None
        assert len(act.within.ops) >= 4  # cap, quota, spacing, prefix, and what some have seen
        assert act.within.weights[0] > 0
        assert len(act.within.covers) == 1
        assert "i7" not in query.ids  # the filter
    assert {len(act.within.ops) for act in behaviour.acts(BOOSTS) if act.within} == {4, 5}
    assert [query.pins for query in behaviour.queries] == [None, None, {1: 2}, {1: 2}, None, None]


def test_values_are_what_the_target_earns_when_it_is_drawn() -> None:
    world, _, several = made()
    found = several[-1].configuration
    rng, count = np.random.default_rng(3), 600
    earned = [world.clicks(cell, slates(found, cell, count, cell), rng).sum(axis=1) for cell in range(len(world.cells))]
    value = world.value(found.chances(BOOSTS))
    error = np.sqrt(sum(each.var() / count for each in earned)) / len(earned)
    assert abs(np.mean([each.mean() for each in earned]) - value) < 4 * error


def test_counters_move_with_what_was_delivered() -> None:
    """Every target has another value in the log's moments than without boosts, but where what is owed changes nothing."""
    log = played(600, 2)
    assert all(len(np.unique(values)) == rules_coverage.SYNCS for values in log.values)
    assert log.logged[3].ratios[:100] == pytest.approx(1.0)  # `gain`: the same until the counters are read
    assert np.ptp(log.logged[3].ratios[200:]) > 0.1


def test_intervals_hold_and_another_value_is_found_out() -> None:
    log = played(1_200, 5)
    for logged, values in zip(log.logged, log.values, strict=True):
        assert abs(logged.prefix_ratios.mean(axis=0) - 1).max() < 0.25
        found = rules_coverage.intervals(logged)
        assert set(found) == {"slate_ips, delta", "rips, delta", "cascade_dr, delta", "empirical Bernstein", "betting"}
        assert all(values.mean() in found[name] for name in ("empirical Bernstein", "betting"))
    wrong = replace(log.logged[0], behaviour=np.clip(log.logged[0].behaviour * 1.3, 0, 1))  # propensities a third off
    assert log.values[0].mean() not in rules_coverage.intervals(wrong)["rips, delta"]


def test_support_is_measured() -> None:
    half = np.array([0.5, 0.5, 0.0])
    one, other = Chances((half,)), Chances((np.array([0.2, 0.5, 0.3]),))
    assert rules_coverage.outside([one, one], [one, other]) == pytest.approx(0.15)
    assert len(GROUPS) == 2
