"""Experiments by file, by API and by command: what a file says, what their course keeps, what is refused, and the plan."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi import FastAPI

from policies.errors import Rejected
from services.cli import main
from services.configuring import apply_folder
from services.control.app import Control, create_app
from services.settings import Settings
from services.trials import Trials
from services.wiring import open_state
from streaming.configuration import ConfigInvalid

SURFACE = """
surface: home
slots: 2
horizon: 5m
features: {context: {device: {type: category, values: [ios, web]}}}
objectives: {click: {kind: click, range: [0, 1]}}
policies:
  ts: {algorithm: linear_thompson, objective: click, floor: 0.02}
live: ts
"""
EXPERIMENT = """
experiment: ts-vs-order
surface: home
layer: ranking
arms: {control: {policy: given_order, share: 0.2}, treatment: {policy: ts, share: 0.2}}
metrics: {primary: click}
analysis: {method: sequential, alpha: 0.05}
"""


class House:
    def __init__(self, folder: Path) -> None:
        self.settings = Settings.load({}, data=folder / "data", http="127.0.0.1:9", partitions=1)
        self.config = folder / "config"
        self.config.mkdir()
        self.settings.data.mkdir()
        self.state = open_state(self.settings)
        self.write(SURFACE, EXPERIMENT)

    def write(self, *documents: str) -> None:
        (self.config / "all.yaml").write_text("---".join(documents))

    def apply(self, *documents: str) -> bool:
        if documents:
            self.write(*documents)
        return apply_folder(self.state, self.config)

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments, "--data", str(self.settings.data)])
        assert result.exit_code == 0, result.output
        return result.output

    def refused(self, *arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments, "--data", str(self.settings.data)])
        assert result.exit_code == 1, result.output
        return result.output

    @property
    def trials(self) -> Trials:
        return Trials.of(self.settings)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_file_brings_an_experiment_and_its_course_survives(house: House) -> None:
    assert house.apply()
    assert not house.apply()
    assert "draft" in house.run("experiment", "list")
    house.run("experiment", "start", "ts-vs-order")
    assert "treatment 10.00%" in house.run("experiment", "allocate", "ts-vs-order", "treatment=0.1")
    assert house.apply(SURFACE, EXPERIMENT.replace("alpha: 0.05", "alpha: 0.01"))
    trial, _ = house.trials.get("ts-vs-order")
    assert (trial.status, trial.document.analysis.alpha, trial.managed) == ("running", 0.01, True)
    assert trial.allocations[-1].shares == {"control": 0.2, "treatment": 0.1}  # the file's 0.2 is what it was
    document = trial.document
    with pytest.raises(Rejected, match="managed: file"):
        house.trials.edit("ts-vs-order", document, "ann", None)
    assert house.apply(SURFACE, EXPERIMENT.replace("policy: ts, share: 0.2", "policy: ts, share: 0.3"))
    trial, _ = house.trials.get("ts-vs-order")
    assert trial.allocations[-1].shares == {"control": 0.2, "treatment": 0.3}  # the file says so anew
    assert house.apply(SURFACE)
    trial, _ = house.trials.get("ts-vs-order")
    assert (trial.status, trial.managed) == ("running", False)
    assert "is stopped" in house.run("experiment", "stop", "ts-vs-order", "--reason", "seen enough")
    assert "seen enough" in house.run("experiment", "list")
    assert "is stopped" in house.refused("experiment", "start", "ts-vs-order")


def test_a_mistake_is_named_by_file_and_line(house: House) -> None:
    house.write(SURFACE, EXPERIMENT.replace("primary: click", "primary: clik"))
    with pytest.raises(ConfigInvalid) as refused:
        house.apply()
    [mistake] = refused.value.mistakes
    line = (house.config / "all.yaml").read_text().splitlines().index("metrics: {primary: clik}") + 1
    assert (Path(mistake.file).name, mistake.line, mistake.path) == ("all.yaml", line, "metrics.primary")
    assert "did you mean 'click'" in str(mistake)
    assert "did you mean 'click'" in CliRunner().invoke(main, ["validate", str(house.config)]).output
    house.write(SURFACE, EXPERIMENT, EXPERIMENT)
    with pytest.raises(ConfigInvalid, match="already defined"):
        house.apply()


def test_what_runs_is_not_pulled_away(house: House) -> None:
    house.apply()
    house.trials.start("ts-vs-order", "ann")
    before = house.state.version()
    with pytest.raises(Rejected, match="keeps its arms"):
        house.apply(SURFACE, EXPERIMENT.replace("policy: given_order", "policy: uniform"))
    without = SURFACE.replace("  ts:", "  other:").replace("live: ts", "live: other")
    with pytest.raises(Rejected, match="runs on this surface: no policy 'ts'"):
        house.apply("surface: another\n", without)
    assert house.state.version() == before


def test_the_plan_says_what_is_kept_rebuilt_and_moved_and_writes_nothing(house: House) -> None:
    plan = ("plan", str(house.config))
    said = house.run(*plan)
    assert "home: new" in said
    assert "experiment ts-vs-order: new, waits" in said
    house.apply()
    assert house.run(*plan).splitlines() == ["home: unchanged", "experiment ts-vs-order: unchanged, draft"]
    house.run("experiment", "start", "ts-vs-order")
    floored = SURFACE.replace("floor: 0.02", "floor: 0.05")
    house.write(floored, EXPERIMENT.replace("policy: ts, share: 0.2", "policy: ts, share: 0.25"))
    before = house.state.version()
    said = house.run(*plan)
    assert "ts: keeps all it learned; its options and weights act from the next publish on" in said
    assert "moves 5.00% of the layer's units: 5.00% nobody → treatment" in said
    house.write(floored.replace("horizon: 5m", "horizon: 6m"), EXPERIMENT)
    assert "ts: rebuilds" in house.run(*plan)
    house.write(SURFACE.replace("linear_thompson", "popular"), EXPERIMENT)
    assert "ts: begins with nothing learned: linear_thompson → popular" in house.run(*plan)
    house.write(SURFACE, EXPERIMENT.replace("policy: given_order", "policy: uniform"))
    assert "keeps its arms" in house.refused(*plan)
    house.write(SURFACE.replace("  ts:", "  other:").replace("live: ts", "live: other"))
    said = house.refused(*plan)
    assert "answers move from ts to other" in said
    assert "runs on this surface" in said
    assert house.state.version() == before


class Http:
    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self.app, self.runner = app, runner

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
                return await client.request(method, path, **options)

        return self.runner.run(ask())


@pytest.fixture
def http(house: House) -> Iterator[Http]:
    house.apply(SURFACE)
    app = create_app(Control.of(house.settings))
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        yield Http(app, runner)
        runner.run(lifespan.__aexit__(None, None, None))


DOCUMENT = {
    "experiment": "ts",
    "surface": "home",
    "arms": {"control": {"policy": "given_order", "share": 0.5}, "treatment": {"policy": "ts", "share": 0.5}},
    "metrics": {"primary": "click"},
}


def test_the_api_compares_and_remembers_who(http: Http) -> None:
    created = http("POST", "/v1/experiments", json=DOCUMENT, headers={"x-slatewise-who": "ann"})
    assert created.status_code == 201
    assert created.json()["shares"] == {"control": 0.5, "treatment": 0.5}
    assert http("POST", "/v1/experiments", json=DOCUMENT).status_code == 409
    seen = {"if-match": created.headers["etag"]}
    other = {**DOCUMENT, "analysis": {"planned": 500}}
    assert http("PUT", "/v1/experiments/ts", json=other).status_code == 428
    edited = http("PUT", "/v1/experiments/ts", json=other, headers=seen)
    assert edited.json()["document"]["analysis"]["planned"] == 500
    assert http("PUT", "/v1/experiments/ts", json=other, headers=seen).status_code == 412
    course = "/v1/experiments/ts/course"
    assert http("POST", course, json={"action": "start"}, headers=seen).status_code == 412
    assert http("POST", course, json={"action": "start"}).json()["status"] == "running"
    assert http("POST", course, json={"shares": {"treatment": 0.1}}).json()["shares"]["treatment"] == 0.1
    report = http("GET", "/v1/experiments/ts/report").json()
    assert (report["status"], report["assigned"]) == ("running", {"control": 0, "treatment": 0})
    assert http("POST", course, json={"action": "stop", "reason": "enough"}).json()["reason"] == "enough"
    [line] = http("GET", "/v1/experiments").json()["experiments"]
    assert (line["experiment"], line["status"]) == ("ts", "stopped")
    changes = http("GET", "/v1/audit").json()["changes"]
    assert [(one["who"], one["action"], one["subject"]) for one in changes] == [
        ("anonymous", "stop", "experiment/ts"),
        ("anonymous", "allocate", "experiment/ts"),
        ("anonymous", "start", "experiment/ts"),
        ("anonymous", "edit", "experiment/ts"),
        ("ann", "create", "experiment/ts"),
        ("config folder", "create", "surface/home"),
    ]
    assert "before" not in changes[4]
    assert changes[3]["before"]["document"]["analysis"]["planned"] == 10_000


def test_a_surface_edited_by_api_is_audited(http: Http, house: House) -> None:
    side = {"surface": "side", "slots": 3}
    assert http("PUT", "/v1/surfaces/side", json=side, headers={"x-slatewise-who": "bob"}).status_code == 201
    [change] = http("GET", "/v1/audit", params={"subject": "surface/side"}).json()["changes"]
    assert (change["who"], change["action"], change["after"]["slots"]) == ("bob", "create", 3)


WRONG = [
    ("GET", "/v1/experiments/none", None, 404),
    ("GET", "/v1/experiments/none/report", None, 404),
    ("POST", "/v1/experiments", {"experiment": "x"}, 422),
    ("POST", "/v1/experiments", "{", 400),
    ("POST", "/v1/experiments/none/course", {"action": "start"}, 404),
    ("POST", "/v1/experiments/none/course", {"action": "pause"}, 422),
    ("POST", "/v1/experiments/none/course", {}, 422),
    ("POST", "/v1/experiments/none/course", "{", 400),
    ("GET", "/v1/audit?limit=0", None, 422),
    ("GET", "/v1/power?sd=1", None, 422),
    ("GET", "/v1/power?sd=0&effect=1", None, 422),
    ("GET", "/v1/power?sd=1&units=0", None, 422),
]


def test_what_is_wrong_is_said(http: Http) -> None:
    for method, path, body, status in WRONG:
        content = None if body is None else body if isinstance(body, str) else json.dumps(body)
        answer = http(method, path, content=content)
        assert answer.status_code == status, (method, path, answer.text)
        assert answer.json()["error"]["message"]
    oversize = http("POST", "/v1/experiments", content=b" " * ((1 << 20) + 1))
    assert (oversize.status_code, oversize.json()["error"]["code"]) == (413, "too_large")


def test_power_by_api(http: Http) -> None:
    answer = http("GET", "/v1/power?sd=1&effect=0.1").json()["units"]
    assert answer["fixed"] == 3140
    assert answer["sequential"] > answer["fixed"]
    assert http("GET", "/v1/power?sd=1&units=3140").json()["effect"]["fixed"] == pytest.approx(0.1, rel=1e-3)
