"""`slatewise up`, the whole loop over real processes: decide, feed back, learn, publish, swap, and end without a trace."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from e2e.running import Up, up, wait_for

from policies.bundle import Manifest, read_manifest
from services.cli import main
from services.client import Slatewise
from services.wiring import open_bundles, open_log
from streaming.events import Feedback, decode

CANDIDATES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("up"), workers="2") as started:
        yield started


def manifest(running: Up, policy: str = "home/home-ts") -> Manifest:
    bundles = open_bundles(running.settings)
    return read_manifest(bundles.pointers()[policy], bundles.get)


@pytest.mark.slow
def test_what_people_did_is_drawn_from(running: Up) -> None:
    with Slatewise(running.url, timeout=60.0) as slatewise:
        before = manifest(running).diagnostics["examples"]
        decision = slatewise.decide("home", "ann", context={"device": "ios"}, candidates=CANDIDATES)
        assert sorted(decision.items) == CANDIDATES
        assert slatewise.feedback(decision, "click", slot=0).accepted == 1
        wait_for(lambda: manifest(running).diagnostics["examples"] >= before + 3, "learned")
        log = open_log(running.settings)
        where = {
            str(partition): record.offset
            for partition in range(log.partitions)
            for record in log.read(partition, 0, 10_000)
            if isinstance(event := decode(record.value), Feedback) and event.decision_id == decision.decision_id
        }
        wait_for(lambda: all(manifest(running).trained_through[p] > offset for p, offset in where.items()), "applied")
        assert len(where) == 1
        wanted = manifest(running)

        def drawn_from() -> int:
            answer = slatewise.decide("home", "ann", candidates=CANDIDATES)
            assert answer.mode == "live"
            bundles = open_bundles(running.settings)
            return read_manifest(answer.bundle or "", bundles.get).number

        wait_for(lambda: drawn_from() >= wanted.number, "swapped in")


@pytest.mark.slow
def test_the_same_request_has_the_same_answer(running: Up) -> None:
    with Slatewise(running.url, timeout=60.0) as slatewise:
        first = slatewise.decide("home", "bob", candidates=CANDIDATES, decision_id="mine-1")
        for _ in range(8):  # on whichever of the two workers
            again = slatewise.decide("home", "bob", candidates=CANDIDATES, decision_id="mine-1")
            assert (again.mode, again.items, again.propensity) == ("cached", first.items, first.propensity)


@pytest.mark.slow
def test_operations_see_the_traffic(running: Up) -> None:
    with Slatewise(running.url, timeout=60.0) as slatewise:
        for number in range(20):
            slatewise.decide("home", f"unit-{number}", candidates=CANDIDATES)

    def report() -> dict[str, object]:
        return dict(httpx.get(f"{running.control_url}/v1/overview", timeout=30.0).json())

    wait_for(lambda: report()["missing"] == [], "scoring is seen")
    wait_for(lambda: report()["surfaces"]["home"]["decisions"] >= 20, "the log is followed")  # type: ignore[index]
    wait_for(lambda: report()["scoring"]["decisions_total"] >= 20, "metrics are scraped")  # type: ignore[index]
    assert httpx.get(f"{running.control_url}/ops", timeout=30.0).status_code == 200


@pytest.mark.slow
def test_a_rollback_is_drawn_from_and_stays(running: Up) -> None:
    """The whole way: record, learning service, pointer, scoring."""
    with Slatewise(running.url, timeout=60.0) as slatewise:
        answered = slatewise.decide("home", "eve", candidates=CANDIDATES).bundle
        for number in range(5):
            decision = slatewise.decide("home", f"eve-{number}", candidates=CANDIDATES)
            slatewise.feedback(decision, "click", slot=0)
        wait_for(lambda: manifest(running).bundle != answered, "learning moved on")
        asked = {"policy": "home/home-ts", "action": "rollback", "to": answered}
        release = httpx.post(f"{running.control_url}/v1/releases", json=asked, timeout=60.0)
        assert release.status_code == 200, release.text
        wait_for(lambda: slatewise.decide("home", "eve", candidates=CANDIDATES).bundle == answered, "rolled back")
        for number in range(5):
            decision = slatewise.decide("home", f"eve-{number}", candidates=CANDIDATES)
            slatewise.feedback(decision, "click", slot=0)
        popular = manifest(running, "home/home-popular").bundle
        wait_for(lambda: manifest(running, "home/home-popular").bundle != popular, "learning goes on beside")
        assert slatewise.decide("home", "eve", candidates=CANDIDATES).bundle == answered
        asked = {"policy": "home/home-ts", "action": "resume"}
        assert httpx.post(f"{running.control_url}/v1/releases", json=asked, timeout=60.0).status_code == 200
        wait_for(lambda: slatewise.decide("home", "eve", candidates=CANDIDATES).bundle != answered, "follows again")


@pytest.mark.slow
def test_it_ends_in_order_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with up(tmp_path) as first, Slatewise(first.url, timeout=60.0) as slatewise:
        for number in range(10):
            decision = slatewise.decide("home", f"unit-{number}", candidates=CANDIDATES)
            slatewise.feedback(decision, "click", slot=0)
        assert first.stop() == []
        assert first.process.returncode == 0
        log = open_log(first.settings)
        assert sum(log.end(partition)[0] for partition in range(log.partitions)) == 20  # the spools are empty
        learned = manifest(first)
        assert learned.diagnostics["examples"] == 30
    with up(tmp_path) as second, Slatewise(second.url, timeout=60.0) as slatewise:
        assert slatewise.decide("home", "unit-0", candidates=CANDIDATES).mode == "live"
        time.sleep(0.5)
        assert manifest(second).diagnostics["examples"] >= learned.diagnostics["examples"]
        assert second.stop() == []


TRIAL_SURFACE = {
    "surface": "trial",
    "slots": 1,
    "horizon": "4s",
    "correctable": "1m",
    "objectives": {"click": {"kind": "click", "range": [0, 1]}, "play": {"kind": "play", "range": [0, 1]}},
    "live": "given_order",
}
TRIAL = {
    "experiment": "shuffled",
    "surface": "trial",
    "arms": {"control": {"policy": "given_order", "share": 0.5}, "treatment": {"policy": "uniform", "share": 0.5}},
    "metrics": {"primary": "click", "guardrails": {"play": {"min_effect": -0.2}}},
    "analysis": {"window": "1s", "alpha": 0.01, "planned": 400},
}
CLICKS = {"a": 0.2, "b": 0.5, "c": 0.5}  # so a visit earns .2 in order, .4 shuffled
VISITS, VISITORS = 2, 400


@pytest.mark.slow
def test_an_experiment_ends_by_its_guardrail_and_says_what_is_true(running: Up) -> None:
    """Created by API, visited, read: the interval covers the difference that the visitors were given, and a guardrail (only
    the first item is ever played) stops it without anybody's hand. All times are the events', not this machine's."""
    rng = np.random.default_rng(11)

    def visit(scoring: httpx.Client, units: list[str]) -> None:
        at = time.time()
        requests = [
            {"surface": "trial", "unit": unit, "candidates": CANDIDATES} for unit in units for _ in range(VISITS)
        ]
        answers = scoring.post("/v1/decisions:batch", json={"requests": requests}).json()["responses"]
        heard = []
        for answer in answers:
            shown = {"decision_id": answer["decision_id"], "slot": 0, "at": at}
            item = answer["slate"][0]["id"]
            if rng.random() < CLICKS[item]:
                heard.append({**shown, "kind": "click"})
            if item == "a":
                heard.append({**shown, "kind": "play"})
        if heard:
            assert scoring.post("/v1/feedback", json=heard).json()["accepted"] == len(heard)

    with (
        httpx.Client(base_url=running.url, timeout=60.0) as scoring,
        httpx.Client(base_url=running.control_url, timeout=60.0, headers={"x-slatewise-who": "ann"}) as control,
    ):
        assert control.put("/v1/surfaces/trial", json=TRIAL_SURFACE).status_code == 201
        created = control.post("/v1/experiments", json=TRIAL)
        assert created.status_code == 201, created.text
        step = {"action": "start"}
        started = control.post(
            "/v1/experiments/shuffled/course", json=step, headers={"if-match": created.headers["etag"]}
        )
        assert started.json()["status"] == "running"
        stale = control.post(
            "/v1/experiments/shuffled/course", json=step, headers={"if-match": created.headers["etag"]}
        )
        assert stale.status_code == 412

        def assigned() -> bool:
            probe = {"surface": "trial", "unit": "probe", "candidates": CANDIDATES}
            return "experiment" in scoring.post("/v1/decisions", json=probe).json()

        wait_for(assigned, "scoring knows the experiment")
        for start in range(0, VISITORS, 100):
            visit(scoring, [f"visitor-{i}" for i in range(start, start + 100)])

        def stopped() -> bool:
            for i in range(8):  # the log's clock moves with its records
                body = {"surface": "trial", "unit": f"clock-{i}", "candidates": CANDIDATES}
                scoring.post("/v1/decisions", json=body)
            return bool(control.get("/v1/experiments/shuffled").json()["status"] == "stopped")

        wait_for(stopped, "the guardrail stops it")
        report = control.get("/v1/experiments/shuffled/report").json()
        changes = control.get("/v1/audit", params={"subject": "experiment/shuffled"}).json()["changes"]
    assert [(change["who"], change["action"]) for change in changes] == [
        ("guardrail", "stop"),
        ("ann", "start"),
        ("ann", "create"),
    ]
    assert "guardrail play" in report["reason"]
    assert [one["verdict"] for one in report["guardrails"]] == ["breached"]
    assert min(report["complete"].values()) >= 50
    assert not report["sample_ratio"]["mismatch"]
    [click] = report["comparisons"]
    true = VISITS * (sum(CLICKS.values()) / 3 - CLICKS["a"])
    assert click["low"] < true < click["high"]
    assert click["high"] - click["low"] < 1.0  # an interval of everything would cover too
    assert any("average over the run" in note for note in report["notes"])
    arguments = ["experiment", "report", "shuffled", "--control-http", running.settings.control_http]
    said = CliRunner().invoke(main, arguments).output
    assert "stopped: guardrail play" in said
    assert "breached" in said
