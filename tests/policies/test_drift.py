"""Features and residuals that move: indices against hand-computed ones, and how often an alarm is false."""

from dataclasses import replace

import numpy as np
import pytest

from policies.algorithm import Addend
from policies.carrying import discounted
from policies.corrected import corrected
from policies.evaluation import detector, stability
from policies.evaluation.stability import Bins
from policies.features import Encoder
from policies.registry import ALGORITHMS
from policies.surface import Bool, Category, FeatureSpec, Number, Vector
from policies.types import F64
from tests.contracts.algorithm_contract import PROBLEM, START, evidence, trained

SPEC = FeatureSpec(
    context={
        "age": Number(0, 100),
        "device": Category(["ios", "web"]),
        "member": Bool(),
        "taste": Vector(3),
    }
)
ENCODER, BINS = Encoder(SPEC), Bins(SPEC.context)
WEEK = 7 * stability.DAY


def contexts(rng: np.random.Generator, n: int, **changes: object) -> np.ndarray:
    def one() -> dict[str, object]:
        said = {
            "age": float(rng.uniform(0, 100)),
            "device": str(rng.choice(["ios", "web"])),
            "member": bool(rng.random() < 0.3),
            "taste": rng.standard_normal(3).tolist(),
        }
        return {name: value for name, value in {**said, **changes}.items() if value is not None}

    return np.stack([ENCODER.context(one()) for _ in range(n)])


def test_the_index_is_what_its_definition_says() -> None:
    reference, recent = np.array([0.0, 600, 400, 0]), np.array([0.0, 300, 500, 200])
    q, p = (reference + 0.5) / 1002, (recent + 0.5) / 1002
    chance = 2 / 1000  # three bins in use
    assert stability.psi(reference, recent) == pytest.approx(float(((p - q) * np.log(p / q)).sum()) - chance)
    assert stability.psi(reference, reference * 2) == 0.0


def test_features_that_stay_say_nothing_and_those_that_move_say_so() -> None:
    rng = np.random.default_rng(3)
    counts = BINS.add(BINS.start(), contexts(rng, 3000), np.linspace(0, 2 * WEEK, 3000))
    still = BINS.add(counts, contexts(rng, 1500), np.full(1500, 2 * WEEK))
    assert {name: shift.nats for name, shift in BINS.shifts(still).items()} == pytest.approx(
        dict.fromkeys(SPEC.context, 0.0), abs=0.02
    )
    odd = contexts(rng, 1500, age=95.0, device="fridge", member=None, taste=[2.0, 0.0, 0.0])
    shifts = BINS.shifts(BINS.add(counts, odd, np.full(1500, 2 * WEEK + 1)))
    assert all(shift.nats > 0.25 for shift in shifts.values()), shifts
    assert shifts["device"].unseen is not None
    assert shifts["device"].unseen > 0.7
    assert shifts["member"].missing > 0.7
    assert (shifts["age"].unseen, shifts["age"].missing) == (None, 0.0)


def test_nothing_is_said_of_what_was_hardly_seen() -> None:
    rng = np.random.default_rng(4)
    assert BINS.shifts(BINS.add(BINS.start(), contexts(rng, 400), np.zeros(400))) == {}


def test_shards_add_up_in_any_order() -> None:
    rng = np.random.default_rng(5)
    rows, times = contexts(rng, 1200), rng.uniform(0, WEEK, 1200)
    whole = BINS.add(BINS.start(), rows, times)
    parts = [BINS.add(BINS.start(), rows[i::3], times[i::3]) for i in range(3)]
    for pooled in (stability.pooled(parts), stability.pooled(parts[::-1])):
        np.testing.assert_allclose(pooled.recent, whole.recent, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pooled.reference, whole.reference, rtol=1e-9, atol=1e-12)


def sums(e: F64) -> F64:
    """(J, 5) of blocks (J, n), every other prediction above the mean."""
    signs = np.where(np.arange(e.shape[1]) % 2, 1.0, -1.0)
    return np.stack([np.sum([detector.sums_of(*pair) for pair in zip(row, signs, strict=True)], axis=0) for row in e])


def residuals(rng: np.random.Generator, blocks: int, n: int, chance: float, expected: float) -> F64:
    """Clicks less what was expected."""
    return np.asarray((rng.random((blocks, n)) < chance) - expected, np.float64)


def run_length(rng: np.random.Generator, reference: F64, chance: float, alarm: float, most: int, n: int = 40) -> int:
    """Blocks until an alarm, of residuals of clicks that are expected with 0.3."""
    rows = sums(residuals(rng, most, n, chance, 0.3))
    base = sums(reference.reshape(1, -1))[0].tolist()
    for j in range(1, most + 1):
        if detector.evidence(base, rows[max(0, j - 96) : j], alarm).alarm:
            return j
    return most


def test_alarms_are_false_no_oftener_than_stated() -> None:
    """c = 20 blocks: the mean run is at least as long. Cut at 100, which only shortens it; and the mean is at its worst,
    as far from the reference as is tolerated."""
    rng, runs = np.random.default_rng(7), []
    for _ in range(60):
        reference = residuals(rng, 1, 4000, 0.3, 0.3)
        edge = detector.evidence(sums(reference)[0].tolist(), np.zeros((0, 5)))
        worst = 0.3 + 2 * (edge.reference + edge.tolerated - 0.5)
        runs.append(run_length(rng, reference, worst, 20.0, 100))
    assert np.mean(runs) > 20.0
    assert min(runs) < 100, "the bound is not so far away that nothing could reach it"


def test_a_shift_is_found_either_way_and_none_where_there_is_none() -> None:
    rng = np.random.default_rng(8)
    reference = residuals(rng, 1, 4000, 0.3, 0.3)
    assert run_length(rng, reference, 0.3, detector.ALARM_BLOCKS, 300) == 300
    assert run_length(rng, reference, 0.15, detector.ALARM_BLOCKS, 100) < 40
    assert run_length(rng, reference, 0.45, detector.ALARM_BLOCKS, 100) < 40


def test_evidence_of_parts_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(9)
    x, base = residuals(rng, 12, 60, 0.2, 0.3), [4000.0, 2000.0, 1052.5, 2000.0, 1052.5]
    whole = detector.evidence(base, sums(x))
    parts = sums(x[:, :26]) + sums(x[:, 26:])
    assert detector.evidence(base, parts).share == pytest.approx(whole.share, rel=1e-9)
    assert whole.share > detector.evidence(base, sums(residuals(rng, 12, 60, 0.3, 0.3))).share


def test_corrected_sums_are_discounted_with_their_parts() -> None:
    """What `silence: corrected` keeps by age takes as much less off again."""
    problem = replace(PROBLEM, horizon=3600.0)
    algorithm, batch, now = corrected(ALGORITHMS["linear_thompson"]), evidence(3, spread=7200.0), START + 7200.0
    config = algorithm.config()
    light = trained(algorithm, config, problem, replace(batch, weights=batch.weights / 8)).arrays()
    heavy = trained(algorithm, config, problem, batch).arrays()
    assert heavy["pending_parts"].size > 5
    assert algorithm.carry is not None
    nothing, made = trained(algorithm, config, problem).arrays(), []
    for sums in (light, discounted(heavy, 1 / 8)):
        carried = algorithm.carry(config, problem, nothing, [Addend(problem, sums)], now)
        made.append(algorithm.publish(config, problem, carried, now, 7).arrays)
    for name, array in made[0].items():
        np.testing.assert_allclose(made[1][name], array, rtol=1e-5, atol=1e-6, err_msg=name)
