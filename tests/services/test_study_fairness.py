"""What the study of fairness is made of: a linear program by hand, and each correction against none in a small world."""

import numpy as np
import pytest

from policies.reranking.exposure import SAMPLED
from policies.reranking.impression_variance import Controller
from policies.worlds.ads_world import AdsWorld
from services.studies.fairness_items import EACH, LAW, ads, creators, optimum, play, unevenness
from services.studies.fairness_people import Size
from services.studies.fairness_people import play as impressions


def test_correction_brings_delivery_nearer_than_none() -> None:
    size = Size(16, 10_000, 60_000)
    before, after = (
        impressions(AdsWorld(1, skew=0.3, units=size.units), 1, size, way)
        for way in (None, Controller(np.array([3.0, 0.0, 0.0])))
    )
    assert after.scored.mean() < 0.7 * before.scored.mean()
    assert after.utility < before.utility  # it is not free


def test_the_linear_program_by_hand() -> None:
    values = np.array([[4.0, 3.0, 1.0, 0.0]])
    codes, one = np.array([0, 0, 1, 1]), np.ones(1)
    assert optimum(values, one, codes, 1, None) == pytest.approx(4.0)
    assert optimum(values, one, codes, 1, np.full(2, 0.5)) == pytest.approx(
        2.5
    )  # half of the looks to the best of either
    assert optimum(values, one, codes, 1, np.full(2, 0.5), 0.1) == pytest.approx(0.6 * 4 + 0.4)
    assert optimum(values, one, np.arange(4), 1, np.full(4, 0.25)) == pytest.approx(2.0)  # each item as often
    assert optimum(values, one, codes, 2, None) == pytest.approx(4 + 3 / np.log2(3))


def test_exposure_is_evened_out_by_the_services_own_parts() -> None:
    pools, codes, _ = ads(2, 3, 1_000)
    before, after = (play(pools, codes, ["big", "small"], 3, 1_000, 2, law=law) for law in (None, LAW))
    late = slice(500, None)
    assert abs(before.share(1, late) - 0.5) > 0.1
    assert abs(after.share(1, late) - 0.5) < 0.05
    assert after.utility[late].mean() < before.utility[late].mean()


def test_each_item_nears_its_share_also_from_what_records_tell() -> None:
    pools, _, world = ads(2, 3, 1_500)
    n, late = world.number, slice(750, None)
    assert n > SAMPLED  # so records tell of a sample
    names = [str(i) for i in range(n)]
    before, after = (play(pools, np.arange(n), names, 3, 1_500, 2, law=law, told=True) for law in (None, EACH))
    assert unevenness(after, late) < 0.5 * unevenness(before, late)


def test_evening_out_keeps_creators() -> None:
    (_, without, best), (_, even, _) = (creators(3, 8, 100, way) for way in ("none", "equal"))
    assert even[-1] > without[-1]
    assert (best > 0).all()
