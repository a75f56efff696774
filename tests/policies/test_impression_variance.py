"""Who sees an item against who could have: distances by hand, what one person can change, a ledger that stops, nothing that tells."""

import copy
import logging
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from policies.errors import Rejected
from policies.reranking.impression_variance import (
    COUNTS_A_REQUEST,
    Aggregator,
    Controller,
    Privacy,
    Released,
    distances,
    learned,
)

I64 = NDArray[np.int64]
SECRET: I64 = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1])


class Silent(np.random.Generator):
    """Laplace noise of nothing: what is under it."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def laplace(self, *arguments: object, **named: object) -> float:  # type: ignore[override]  # a scalar is added to all
        return 0.0


def aggregator(privacy: Privacy | None = None) -> Aggregator:
    return Aggregator(SECRET, 2, 3, 2, privacy or Privacy())


def rows(*of: int) -> I64:
    return np.array(of, np.int64)


def test_distances_by_hand() -> None:
    found = distances(
        np.array([[30.0, 10.0], [5.0, 5.0], [0.0, 0.0]]), np.array([[50.0, 50.0], [9.0, 9.0], [1.0, 1.0]])
    )
    assert found[:2].tolist() == [0.25, 0.0]
    assert np.isnan(found[2])


def test_counts_are_those_of_the_groups() -> None:
    told = aggregator()
    told.add(rows(0, 1, 2), rows(0, 0, -1), rows(0, 1, 1), rows(0, 1, 1))
    found = told.release(Silent())
    assert found.delivered.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert found.eligible.tolist() == [[1, 0], [0, 2], [0, 0]]
    assert found.summaries.tolist() == [[1, 0], [0, 2]]
    assert not told.release(Silent()).eligible.any()  # a window's, not all that ever was


@pytest.mark.parametrize("batches", [1, 5])
def test_one_person_moves_a_release_by_no_more_than_its_noise_is_for(batches: int) -> None:
    """L1 distance between what is under the noise with and without a unit, however often it comes: at most C."""
    privacy, rng = Privacy(counts=7), np.random.default_rng(3)
    units = rng.integers(0, 10, 60)
    items, could, of = rng.integers(0, 3, (2, 60)).tolist(), rng.integers(0, 3, 60), rng.integers(0, 2, 60)

    def under(keep: NDArray[np.bool_]) -> Released:
        told = aggregator(privacy)
        for part in np.array_split(np.flatnonzero(keep), batches):
            told.add(units[part], np.array(items[0])[part], could[part], of[part])
        return told.release(Silent())

    whole, most = under(np.ones(60, bool)), 0.0
    for unit in range(10):
        less = under(units != unit)
        moved = sum(abs(a - b).sum() for a, b in zip(_arrays(whole), _arrays(less), strict=True))
        assert moved <= privacy.counts
        most = max(most, moved)
    assert most == privacy.counts // COUNTS_A_REQUEST * COUNTS_A_REQUEST  # it was put to the test


def _arrays(told: Released) -> list[NDArray[np.float64]]:
    return [told.delivered, told.eligible, told.summaries]


def test_noise_is_laplace_of_the_scale_said() -> None:
    told, rng = aggregator(Privacy(counts=6, release=0.5, total=1e9)), np.random.default_rng(5)
    noise = np.concatenate([told.release(rng).delivered.ravel() for _ in range(2_000)])
    size = abs(noise)  # exponential of mean 12
    assert abs(size.mean() - 12.0) < 4 * 12.0 / np.sqrt(len(size))
    assert abs((size > 12.0 * np.log(2)).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(size))


def test_a_units_ledger_stops_until_the_next_day() -> None:
    told, one = aggregator(Privacy(counts=3, release=0.4, total=1.0)), rows(4)
    sums = []
    for _ in range(4):
        told.add(one, rows(0), rows(0), rows(0))
        sums.append(told.release(Silent()).delivered.sum())
    assert sums == [1, 1, 0, 0]  # a third release would make 1.2
    assert told.left_out == 2
    told.new_day()
    told.add(one, rows(0), rows(0), rows(0))
    assert told.release(Silent()).delivered.sum() == 1


def test_the_attribute_does_not_leave(caplog: pytest.LogCaptureFixture) -> None:
    """Not printed, not pickled, not copied, in no array that can be asked for, in no log."""
    caplog.set_level(logging.DEBUG)
    told = aggregator()
    told.add(np.arange(10), np.zeros(10, np.int64), np.zeros(10, np.int64), np.zeros(10, np.int64))
    assert repr(told) == "Aggregator(10 units, 2 groups)"
    for write in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not written down"):
            write(told)
    public = [value for name, value in vars(told).items() if not name.startswith("_Aggregator__")]
    assert not any(np.array_equal(value, SECRET) for value in public)
    assert not caplog.records
    released = told.release(np.random.default_rng(1))
    assert all(array.shape[0] != len(SECRET) for array in _arrays(released))  # nothing is a unit's


def test_boosts_follow_noisy_sums_and_summaries_alone() -> None:
    """Item 0 is owed to group 1, of which summary 1 has most; what the noise could explain moves nothing."""
    told = Released(
        np.array([[3000.0, 1000.0], [2000.0, 2000.0]]),
        np.array([[2000.0, 2000.0], [2000.0, 2000.0]]),
        np.array([[3000.0, 1000.0], [1000.0, 3000.0]]),
    )
    privacy = Privacy(counts=3, release=3.0, total=3.0)  # noise of 1 a count
    found = Controller(np.array([0.0, 0.0, -9.0])).boosts(told, privacy)  # gain 1, next to no shrinking
    assert found[0] == pytest.approx([-0.25, 0.25], abs=1e-4)  # ±¼ · (¾/½ − 1) of either group
    assert found[1].tolist() == [0.0, 0.0]
    assert not Controller().boosts(told, Privacy(counts=6, release=0.002, total=1.0)).any()
    before = np.ones((2, 2))
    assert Controller(np.array([0.0, 0.0, -9.0])).boosts(told, privacy, before) == pytest.approx(0.5 + 0.5 * found)
    strong = Controller(np.array([5.0, 0.0, -9.0])).boosts(told, privacy)
    assert abs(strong).max() == 4.0


def test_a_controller_is_learned() -> None:
    """Towards a gain that is rewarded, the same from the same seed."""

    def reward(controller: Controller, world: int) -> float:
        return -float((controller.theta[0] - 3.0) ** 2) + 0.1 * world

    found, told = learned(reward, rounds=12, pairs=3, seed=1)
    again, _ = learned(reward, rounds=12, pairs=3, seed=1)
    assert abs(found.theta[0] - 3.0) < 0.5 < abs(Controller().theta[0] - 3.0)
    assert found.theta.tolist() == again.theta.tolist()
    assert len(told) == 12


@pytest.mark.parametrize(
    ("given", "at"), [({"counts": 2}, "counts"), ({"release": 5.0}, "release"), ({"release": 0.0}, "release")]
)
def test_what_promises_nothing_is_refused(given: dict[str, float], at: str) -> None:
    with pytest.raises(Rejected) as error:
        Privacy(**given)  # type: ignore[arg-type]  # a test's
    assert error.value.at == f"$.{at}"


def test_an_attribute_outside_its_groups_is_refused() -> None:
    with pytest.raises(Rejected, match="from 0 to 1"):
        Aggregator(np.array([0, 2]), 2, 1, 1, Privacy())
