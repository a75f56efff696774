"""`slatewise load`: what it says of a run is what happened in it; the driver reaches a real service and says who was refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from scoring_setup import installed, serving, until

from services.bench.driving import BATCH, DECISION, EXPLAINED, FEEDBACK, Answered, Run, Traffic, closed, paced
from services.bench.overload import in_order, recovery, shed
from services.bench.requests import surface
from services.bench.soak import slope
from services.scoring.admission import Patience
from streaming.configuration import parse


def run(seconds: float, *answers: Answered) -> Run:
    return Run(seconds, list(answers))


def decision(at: float, took: float = 0.001, status: int = 200, full: bool = True) -> Answered:
    return Answered(DECISION, at, took, status, full)


def test_what_was_shed_is_counted_by_kind_in_its_order() -> None:
    found = shed(
        run(
            1.0,
            Answered(EXPLAINED, 0, 0.1, 200, False),  # answered, without its explanation
            Answered(EXPLAINED, 0, 0.1, 429, False),
            Answered(BATCH, 0, 0.1, 429, False),
            Answered(BATCH, 0, 0.1, 200, True),
            decision(0, status=200, full=False),  # from the fallback
            decision(0, status=429, full=False),
            decision(0),
            Answered(FEEDBACK, 0, 0.1, 202, True),
        )
    )
    assert found == {
        "explanations": (2, 2),
        "batches": (1, 2),
        "live decisions": (2, 3),
        "decisions": (1, 3),
        "feedback": (0, 1),
    }
    assert in_order(list(found.values()))


def test_feedback_shed_before_decisions_is_out_of_order_and_chance_is_not() -> None:
    assert not in_order([(100, 100), (50, 100), (60, 1000), (50, 1000), (400, 1000)])
    assert in_order([(100, 100), (100, 100), (500, 1000), (505, 1000), (0, 0)])


def test_recovery_is_the_first_whole_second_that_is_normal() -> None:
    calm = [decision(t / 10) for t in range(100)]
    assert recovery(run(10.0, *calm), 1.0) == 0.0
    slow = [decision(t / 10, took=0.5 if t < 23 else 0.001) for t in range(100)]
    assert recovery(run(10.0, *slow), 1.0) == 2.5  # windows of half a second: the one at 2.0 still has slow ones
    refused = [decision(t / 10, status=429, full=False) for t in range(100)]
    assert recovery(run(10.0, *refused), 1.0) == float("inf")
    apart = [decision(t / 10, took=0.5 if t % 10 == 0 else 0.001) for t in range(100)]
    assert recovery(run(10.0, *apart), 1.0) == float("inf")  # never a whole second


def test_a_slope_is_found_and_noise_is_none() -> None:
    rng, hours = np.random.default_rng(3), 0.5
    times = np.arange(0, hours * 3600.0)
    noise = rng.normal(0, 2, len(times))
    mean, low, high = slope(times, 500 + 20 * times / 3600 + noise)  # 20 MB an hour
    assert low < 20 < high
    assert 0 < low < mean < high
    mean, low, high = slope(times, 500 + noise)
    assert low < 0 < high
    assert abs(mean) < 2
    assert all(np.isnan(slope(times[:3], noise[:3])))


@pytest.mark.slow
def test_the_driver_loads_a_real_service(tmp_path: Path) -> None:
    """Every kind of request is answered as its kind; more than a worker admits at once is refused, feedback last."""
    document = parse(yaml.safe_dump(surface()), "bench")[0]
    with serving(installed(tmp_path / "data", [document])) as server:
        traffic = Traffic()
        kinds: dict[str, list[Answered]] = {kind: [] for kind in (DECISION, EXPLAINED, BATCH, FEEDBACK)}

        def asked() -> bool:
            found = closed(server.url, traffic, 4, 0.4)
            for kind, answers in kinds.items():
                answers += found.of(kind)
            return all(kinds.values())

        until(asked, "every kind of request to be answered")
        assert {one.status for kind, answers in kinds.items() for one in answers if kind != FEEDBACK} == {200}
        assert {one.status for one in kinds[FEEDBACK]} == {202}
        slow = paced(server.url, traffic, 40.0, 8, 1.0)
        assert 0 < slow.asked <= 41
        assert slow.broken == 0
        assert all(one.at >= 0 for one in slow.answers)
        crowd: list[Run] = []

        def refused() -> bool:
            crowd.append(closed(server.url, traffic, 4 * Patience().requests, 0.4))
            return any(one.status == 429 for one in crowd[-1].of(DECISION, EXPLAINED))

        until(refused, "more than a worker admits to be refused")
        assert any(np.isfinite(one.p99()) for one in crowd)
