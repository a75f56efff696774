"""`slatewise up`, the whole loop over real processes: decide, feed back, learn, publish, swap, and end without a trace."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from e2e.browsing import DESKTOP, PHONE, browser
from e2e.prometheus import scraping
from e2e.running import SECONDS, Up, up, wait_for
from playwright.sync_api import Page

from policies.bundle import Manifest, read_manifest
from services.cli import main
from services.client import Slatewise
from services.exposition import Exposition
from services.wiring import open_bundles, open_log
from streaming.events import Feedback, decode
from tests.dashboards import carried, lacking, panels, queries, read_by, rules

CANDIDATES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    with up(folder, workers="2", state=f"sqlite:///{folder}/data/state.sqlite") as started:  # named, it may be away
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
def test_the_page_of_operations(running: Up, tmp_path: Path) -> None:
    """Every view in a real browser, on a desk and on a phone, by day and by night: nothing on the console, nothing serious
    found by axe-core; a rollback, an experiment's start, a replay of dead letters and a decision looked up by hand."""
    wait_for(running.is_operated, "the control service answers")
    log, state = open_log(running.settings), {"n": 0}
    log.append([(b"0" * 16, b"{not a record")])
    with (
        httpx.Client(base_url=running.control_url, timeout=60.0) as control,
        Slatewise(running.url, timeout=60.0) as slatewise,
        browser(tmp_path / "pictures") as seen,
    ):
        page = seen.page
        page.set_default_timeout(1000 * SECONDS)
        assert control.put("/v1/surfaces/shown", json={**TRIAL_SURFACE, "surface": "shown"}).status_code == 201
        draft = {**TRIAL, "experiment": "drafted", "surface": "shown"}
        assert control.post("/v1/experiments", json=draft).status_code == 201

        def traffic() -> str:
            decision = None
            for _ in range(10):
                state["n"] += 1
                decision = slatewise.decide("home", f"seen-{state['n']}", candidates=CANDIDATES)
                slatewise.feedback(decision, "click", slot=0)
            assert decision is not None
            return decision.decision_id

        decided = traffic()
        wait_for(lambda: control.get("/v1/stream").json()["dead_letters"] != {}, "the record is set aside")
        views = {
            "overview": "Is it learning?",
            "policies": "home-ts",
            "policies/home/home-ts": "Posterior sd",
            "experiments": "drafted",
            "experiments/drafted": "Arms",
            "goals": "No surface",
            "stream": "undecodable",
            "decisions": "The newest decisions",
            f"decisions/{decided}": "What was heard",
        }
        for name, size, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # a str of two
            for view, holds in views.items():
                traffic()
                page.goto(f"{running.control_url}/ops#/{view}")
                page.locator("#view", has_text=holds).wait_for()
                seen.picture(f"{name}-{view.partition('/')[0]}{'-one' if '/' in view else ''}")
                assert seen.violations() == [], view
                assert seen.overflows() == 0, view
                assert page.locator("nav a[aria-current=page]").count() == 1
        page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})

        page.goto(f"{running.control_url}/ops#/policies")
        page.get_by_role("button", name="Roll back home/home-ts").focus()
        page.keyboard.press("Enter")  # all of it can be done without a mouse
        page.locator("dialog select").select_option(label=held_now(page))
        assert seen.violations() == []
        page.keyboard.press("Escape")
        assert control.get("/v1/releases").json()["holds"] == {}  # it was only asked
        page.get_by_role("button", name="Roll back home/home-ts").click()
        page.locator("dialog select").select_option(label=held_now(page))
        page.locator("dialog").get_by_role("button", name="Roll back").click()
        page.locator("article", has_text="home-ts").get_by_text("held").wait_for()
        assert "home/home-ts" in control.get("/v1/releases").json()["holds"]
        page.get_by_role("button", name="home/home-ts: follow learning again").click()
        wait_for(lambda: control.get("/v1/releases").json()["holds"] == {}, "it follows again")

        release = {"action": "start", "candidate": "home-popular", "stage": "shadow"}
        assert control.post("/v1/releases/home", json=release).status_code == 200
        on_its_way = page.locator("article", has_text="Release of home-popular")
        on_its_way.get_by_role("button", name="Promote…").wait_for()
        assert seen.violations() == []
        seen.picture("desktop-release")
        on_its_way.get_by_role("button", name="Abort…").click()
        page.locator("dialog").get_by_role("button", name="Abort").click()
        on_its_way.wait_for(state="detached")
        assert control.get("/v1/releases/home").json()["release"]["stage"] == "aborted"

        page.goto(f"{running.control_url}/ops#/experiments/drafted")
        page.get_by_role("button", name="Start…").click()
        page.locator("dialog").get_by_role("button", name="Start").click()
        page.get_by_role("button", name="Stop…").wait_for()
        assert control.get("/v1/experiments/drafted").json()["status"] == "running"
        page.get_by_role("button", name="Stop…").click()
        page.get_by_label("Why (kept in the audit)").fill("seen enough")
        page.locator("dialog").get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped: seen enough").wait_for()

        page.goto(f"{running.control_url}/ops#/stream")
        page.get_by_role("button", name="Replay dead letters: undecodable").click()
        page.locator("dialog").get_by_role("button", name="Replay").click()
        page.get_by_text("1 records are in the log again").wait_for()
        assert seen.wrong == []

        page.goto(f"{running.control_url}/ops#/decisions/none")  # an error is said where it belongs
        page.get_by_role("alert").get_by_text("No decision 'none'").wait_for()
        assert len(seen.wrong) == 1  # the browser's own word of the 404
        assert "404" in seen.wrong[0]


def held_now(page: Page) -> str:
    """The choice that keeps what is drawn from."""
    return page.locator("dialog option").last.inner_text()


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


class Ended(NamedTuple):
    """An experiment as its report and the audit tell it."""

    report: dict[str, Any]
    changes: list[dict[str, Any]]


@pytest.fixture(scope="module")
def shuffled(running: Up) -> Ended:
    """Created by API, visited, and stopped by a guardrail (only the first item is ever played). All times are the events',
    not this machine's."""
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
        for document in (TRIAL_SURFACE, WATCHED, LOOKED_AT):  # the others are for the dashboards: what they read begins
            assert control.put(f"/v1/surfaces/{document['surface']}", json=document).status_code == 201
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
    return Ended(report, changes)


@pytest.mark.slow
def test_an_experiment_ends_by_its_guardrail_and_says_what_is_true(running: Up, shuffled: Ended) -> None:
    """The interval covers the difference that the visitors were given, and nobody's hand stopped it."""
    report, changes = shuffled
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


WATCHED = {
    "surface": "watched",
    "slots": 2,
    "horizon": "1s",
    "correctable": "1m",
    "features": {
        "context": {"device": {"type": "category", "values": ["ios", "web"]}},
        "items": {"genre": {"type": "category", "values": ["jazz", "rock"]}},
    },
    "objectives": {"click": {"kind": "click", "range": [0, 1]}},
    "policies": {"watched-ts": {"algorithm": "linear_thompson", "objective": "click", "draws": 16}},
    "live": "watched-ts",
    "rules": [
        {"cap": 1, "by": "genre"},
        {"seen": {"window": "1h"}},
    ],  # of one genre: the cap yields; seen: shards derive
    "exploration": {"max_share": 0.5, "lend_up_to": 0.8},
    "logging": {"sample": 1.0},
}
LOOKED_AT = {**WATCHED, "surface": "looked-at", "rules": [], "examination": "estimated"}  # which no cap goes with
ELSEWHERE = {  # what a service of this size never tells, and the test that has the part that does
    "settle_lag_seconds": "a settling process: test_settling.py",
    "settle_stopped": "a settling process: test_settling.py",
    "train_stopped": "a trainer: test_training.py",
    "train_metric_value": "a trainer: test_training.py",
    "constraint_multiplier": "a trainer with constraints: test_training.py",
    "residual_drift_ratio": "2,000 settled decisions of a policy: test_drifting.py",
    "residual_mean_value": "2,000 settled decisions of a policy: test_drifting.py",
    "release_steps_total": "a release in trouble: test_releases.py",
}


@pytest.mark.slow
def test_dashboards_and_rules_are_answered_by_the_running_services(
    running: Up, shuffled: Ended, tmp_path: Path
) -> None:
    """Every panel's query and every rule, by the services' own scrape and by a Prometheus that scrapes them."""
    wait_for(running.is_operated, "the control service answers")
    everything, shown = queries(), panels()
    assert ELSEWHERE.keys() <= {
        name for one in everything.values() for name, _ in read_by(one)
    }  # the list is not longer
    expected = {
        where: [(one, legend) for one, legend in both if not ELSEWHERE.keys() & {name for name, _ in read_by(one)}]
        for where, both in shown.items()
    }
    candidates = [{"id": name, "features": {"genre": "jazz"}} for name in CANDIDATES]
    state = {"n": 0}
    with (
        httpx.Client(base_url=running.url, timeout=60.0) as scoring,
        httpx.Client(base_url=running.control_url, timeout=60.0) as control,
        scraping(tmp_path, running.settings.http) as prometheus,
    ):
        open_log(running.settings).append([(b"0" * 16, b"{not a record")])

        def visit(visits: int) -> int:
            state["n"] += 1
            asked = [
                {
                    "surface": surface,
                    "unit": f"u-{state['n']}-{i}",
                    "context": {"device": "ios"},
                    "candidates": candidates,
                }
                for i in range(visits)
                for surface in ("watched", "looked-at")
            ]
            answers = scoring.post("/v1/decisions:batch", json={"requests": asked}).json()["responses"]
            live = [one for one in answers if one.get("mode") == "live"]
            heard = [{"decision_id": one["decision_id"], "kind": "click", "slot": 0} for one in live[::4]]
            if heard:
                assert scoring.post("/v1/feedback", json=heard).json()["accepted"] == len(heard)
            return len(live)

        wait_for(lambda: visit(1) == 2, "scoring knows the surfaces and their first bundles")
        for _ in range(5):
            visit(110)

        def unanswered() -> list[str]:
            visit(2)  # records move the log's clock
            return [where for where, both in expected.items() if not all(prometheus.query(one) for one, _ in both)]

        try:
            wait_for(lambda: not unanswered(), "every panel shows something")
        except AssertionError:
            raise AssertionError(f"empty: {unanswered()}") from None
        told = Exposition.parse(scoring.get("/metrics").text)
        operated = Exposition.parse(control.get("/metrics").text)
        for where, both in expected.items():
            for one, legend in both:
                assert set(re.findall(r"{{(\w+)}}", legend)) <= carried(one, told), (where, legend)
        for both in shown.values():
            for one, _ in both:
                prometheus.query(one)  # also where it is empty here it is no error
        assert [rule for rule in prometheus.rules() if rule["health"] != "ok" or rule.get("lastError")] == []
        assert len(prometheus.rules()) == sum(len(rules(file)) for file in ("recording.rules.yml", "alerts.rules.yml"))
    missing = lacking(everything, told)
    assert {name for names in missing.values() for name in names} <= ELSEWHERE.keys(), missing
    assert operated.samples.keys() == told.samples.keys()  # they share a folder
    planted = {
        "panel": 'rate(slatewise_decide_requests_total{surfaces="a"}[5m])',
        "rule": "sum by (kind) (slatewise_spool_bytes)",
    }
    assert lacking(planted, told) == {"panel": ["decide_requests_total{surfaces}"], "rule": ["kind"]}
