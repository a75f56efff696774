"""The worlds of the off-policy studies are what they say, and a fault in what they study would show."""

from dataclasses import replace

import numpy as np
import pytest

from policies.evaluation import gate as rules
from policies.evaluation.logged import design
from services.studies import gate, gate_service, ope_coverage, ope_skewness
from streaming.events import Shadow


@pytest.mark.parametrize("scenario", gate.scenarios(), ids=lambda each: each.name)
def test_candidates_are_as_much_better_as_stated(scenario: gate.Scenario) -> None:
    stated = {"better by 10%": 0.1, "better by 30%": 0.3, "worse by 1%": -0.01}.get(scenario.name, 0.0)
    pays = scenario.pays()
    assert ((pays >= 0) & (pays <= 1)).all()
    live, candidate = pays.mean(axis=0) @ gate.LIVE, pays.mean(axis=0) @ scenario.candidate
    assert live == pytest.approx(gate.REWARD)
    assert candidate / live - 1 == pytest.approx(stated, abs=1e-9)
    assert abs(pays[0] - pays[1]).max() > 0.05  # contexts do differ


def test_hours_are_played_as_stated() -> None:
    scenario = gate.scenarios()[3]
    arms, rewards, live, candidate = gate.hour(np.random.default_rng(0), scenario, 6, 500)
    assert np.bincount(arms.ravel(), minlength=4) / arms.size == pytest.approx(live, abs=0.02)
    assert not np.allclose(live, gate.LIVE)
    assert rewards.mean() == pytest.approx(1.5 * gate.REWARD, abs=0.02)
    assert (candidate == scenario.candidate).all()


def test_the_study_s_gate_is_the_gate_and_finds_what_is_better() -> None:
    scenarios = {each.name: each for each in gate.scenarios()}
    when, agreed = gate.promoted(np.random.default_rng(0), scenarios["better by 30%"], 20, 120, 0.05)
    assert agreed.all()
    assert np.isfinite(when).mean() > 0.8
    when, agreed = gate.promoted(np.random.default_rng(0), scenarios["bold choices, exactly equal"], 40, 60, 0.05)
    assert agreed.all()
    assert np.isinf(when).all()


def test_a_canary_that_favours_the_candidate_is_caught() -> None:
    """Sent with a tenth but weighed as a fifth: exactly equal candidates are no longer equal, and the study shows it."""
    rng = np.random.default_rng(0)
    honest = rules.Canary(0.1, (0.0, 1.0))
    assert gate.canaries(rng, honest, 0.0, 20_000, 20, looks=10)[0].mean() == 0
    state = rules.open_canary((20,))
    sent = rng.random((20, 20_000)) < 0.2
    state = rules.compare(replace(honest, share=0.1), state, sent, (rng.random((20, 20_000)) < 0.2 + 0.05 * sent) * 1.0)
    assert (rules.differences(honest, state)[1] > 0).all()


def test_the_service_s_way_is_the_fold_s_and_finds_what_is_better() -> None:
    scenarios = {each.name: each for each in gate.scenarios()}
    assert gate_service.differing(scenarios["better by 30%"], 0, 12) == 0
    assert gate_service.promoted(np.random.default_rng(1), scenarios["better by 30%"], 100) is not None
    assert gate_service.promoted(np.random.default_rng(1), scenarios["other choices, exactly equal"], 24) is None
    assert not gate_service.any_in_a_row(np.random.default_rng(1), scenarios["other choices, exactly equal"], 3, 6)


def test_shadows_that_flatter_a_candidate_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Propensities half as large again as the candidate's own: exactly equal candidates get in, and the study shows it."""
    honest = gate_service.moments

    def flattering(at: int, played: gate.Hour) -> list[tuple[float, int, bool, Shadow]]:
        return [
            (time, arm, click, Shadow("new", "b", [1.5 * said.propensities[0]], said.design, said.overlap))
            for time, arm, click, said in honest(at, played)
        ]

    monkeypatch.setattr(gate_service, "moments", flattering)
    equal = next(each for each in gate.scenarios() if each.name == "other choices, exactly equal")
    assert gate_service.promoted(np.random.default_rng(1), equal, 100) is not None


def test_exact_intervals_are_those_of_the_tables() -> None:
    assert gate_service.exact(0, 75)[1:] == pytest.approx((0.0, 0.0480), abs=1e-4)
    assert gate_service.exact(5, 100)[1:] == pytest.approx((0.0164, 0.1128), abs=1e-4)


def test_coverage_is_of_the_stated_value() -> None:
    for world in (*ope_coverage.worlds(), ope_coverage.blind()):
        for policy in (world.behaviour, world.target):
            assert policy.sum(axis=1) == pytest.approx(np.ones(4))
        log = world.log(np.random.default_rng(1), 20_000)
        assert log.totals.mean() == pytest.approx((world.behaviour * world.pays).sum(axis=1).mean(), abs=0.02)
        assert log.design is not None
        assert log.design.mean() == pytest.approx(world.second, rel=0.1)
        assert world.second == pytest.approx(design(world.behaviour, world.target).mean())


def test_intervals_around_another_value_do_not_cover() -> None:
    world = ope_coverage.worlds()[0]
    honest = ope_coverage.cell(world, 800, 12, 0, resample=True)
    assert set(honest) >= {"ips, delta", "ips, skewed", "snips, bootstrap", "betting", "empirical Bernstein"}
    assert honest["betting"].covered == 12
    moved = ope_coverage.World(world.name, world.pays, world.behaviour, world.behaviour[:, ::-1].copy())
    assert abs(moved.value - world.value) > 0.1
    log = moved.log(np.random.default_rng(0), 4_000)
    assert world.value not in ope_coverage.intervals(log, 0, resample=False)["betting"]


def test_the_sides_of_a_miss_add_up_and_a_moved_interval_is_as_wide() -> None:
    rows = {row[3]: row for row in ope_skewness.sides(ope_coverage.worlds()[2], 500, 60)}
    for _, _, _, _, coverage, low, high, below, above, width, _ in rows.values():
        assert coverage + below + above == pytest.approx(1.0)
        assert low < coverage < high or coverage == 1.0
        assert width > 0.0
    assert rows["ips, skewed"][9] == pytest.approx(rows["ips, delta"][9])
    assert rows["ips, skewed"][8] <= rows["ips, delta"][8]
