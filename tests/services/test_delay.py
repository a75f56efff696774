"""Late feedback in the service: what a publish tells of delays, and the study that says what each `silence` costs."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from services.studies import delay
from services.studies.delay import Setting, best_for_all, fieller, floors, lived, missed
from streaming.configuration import publish_surface
from tests.services.test_learning import House, turns

SMALL = Setting(horizon=8.0, horizons=3, warm=1, visits=4, items=8, groups=2, users=40)


def test_a_publish_tells_how_late_feedback_is() -> None:
    house = House()
    publish_surface(house.state, msgspec.structs.replace(house.surface, silence="corrected"))
    learning, engine = house.start()
    house.people(25)
    turns(learning, engine)
    text = learning._telemetry.text().decode()
    labels = '{objective="click",policy="home-ts",surface="home"}'
    assert f"slatewise_delay_decisions_count{labels} 25.0" in text
    assert f"slatewise_delay_half_horizon_share{labels} 1.0" in text
    assert house.manifest().diagnostics["examples"] == 50  # long past their horizon


def test_floors_are_in_order() -> None:
    found = floors(1_003, SMALL)
    assert 0 < found["best for all"][0] < found["random"][0]
    world = delay._world(1_003, SMALL)
    chances = [
        float(world.chances(np.tile([i, j], (SMALL.users, 1))).sum(axis=1).mean()) for i in range(8) for j in range(i)
    ]
    best = np.tile(best_for_all(world), (SMALL.users, 1))
    assert float(world.chances(best).sum(axis=1).mean()) >= 0.98 * max(chances)


def test_every_way_meets_the_same_world() -> None:
    """… and at the start, before anything was heard, shows the same slates."""
    runs = [lived(1_003, way, SMALL) for way in delay.WAYS]
    for one in runs:
        assert one.regret[0] == runs[0].regret[0]
        assert len(one.judged(SMALL)) == 16
        assert (one.regret >= -1e-12).all()
    assert len({round(float(one.regret.sum()), 9) for one in runs}) == 4


def test_a_third_of_the_clicks_that_count_is_late() -> None:
    late = replace(SMALL, horizon=100.0).switches
    delays = np.random.default_rng(0).exponential(late.delay, 40_000)
    counted = delays[delays <= 100.0]
    assert float((counted > 50.0).mean()) == pytest.approx(delay.LATE, abs=4 * np.sqrt(0.21 / len(counted)))


def test_what_is_missed_is_said() -> None:
    assert missed(27.4, 0.2, 0.1, 0.3) == []
    [line] = missed(27.4, 0.305, 0.175, 0.469)
    assert "keeps 30.5% of eager's extra, 5.5 points above" in line
    assert "does not exclude" in line
    assert "excludes" in missed(27.4, 0.4, 0.3, 0.5)[0]
    assert "little to correct" in missed(8.1, 0.2, 0.1, 0.3)[0]


def test_the_ratio_of_means_by_hand() -> None:
    top, bottom = np.array([1.0, 2.0, 3.0, 2.0]), np.array([10.0, 12.0, 9.0, 11.0])
    ratio, low, high = fieller(top, bottom)
    assert ratio == pytest.approx(8 / 42)
    for edge in (low, high):  # where the t-test of top − edge · bottom is just significant
        left = top - edge * bottom
        assert abs(left.mean()) / (left.std(ddof=1) / 2) == pytest.approx(3.18244630528, rel=1e-6)
    assert fieller(np.array([1.0, 2.0]), np.array([1.0, -0.9]))[1:] == (float("-inf"), float("inf"))
