"""Releases over the control service, and a canary that answers real requests until a guardrail ends it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from scoring_setup import CALM, decisions, publish, surface

from policies.experiments.document import Guardrail
from policies.releases import Terms
from policies.surface import Objective, PolicySpec
from services import releasing
from services.audit import Audit
from services.control.canaries import Canaries
from services.control.readouts import Readouts
from services.keys import Keys
from services.promoting import Promotions
from services.scoring.service import Scoring
from services.settings import Settings
from services.trials import Trials
from services.wiring import open_bundles, open_log, open_state
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints, MemoryClaims, MemoryLog, MemoryState
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.configuration import Configs
from streaming.events import Decision, Feedback, encode
from streaming.spool import Spool
from tests.control_setup import Ask, asking

POLICIES = {
    "old": PolicySpec("linear_thompson", objective="click", options={"floor": 0.2}),
    "new": PolicySpec("linear_thompson", objective="click", options={"floor": 0.1}),
}
HOME = surface(
    slots=1,
    horizon=10.0,
    correctable=1000.0,
    policies=POLICIES,
    live="old",
    objectives={"click": Objective("click", range=(0, 1)), "hate": Objective("hate", better="lower", range=(0, 1))},
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings.load({}, data=tmp_path / "data", http="127.0.0.1:9", partitions=1)
    publish(open_state(made), open_bundles(made), HOME, examples=200)
    return made


@pytest.fixture
def ask(settings: Settings) -> Iterator[Ask]:
    with asking(settings) as ask:
        yield ask


def test_the_steps_over_http(ask: Ask, settings: Settings) -> None:
    here, ann = "/v1/releases/home", {"x-slatewise-who": "ann"}
    first = ask("GET", here)
    assert (first.json()["release"], first.headers["etag"]) == (None, '"0"')
    started = ask("POST", here, json={"action": "start", "candidate": "new"}, headers={**ann, "if-match": '"0"'})
    assert (started.status_code, started.json()["release"]["stage"]) == (200, "apprentice")
    assert started.json()["gate"]["outcome"] == "insufficient"
    stale = ask("POST", here, json={"action": "canary"}, headers={"if-match": '"0"'})
    assert (stale.status_code, stale.json()["error"]["code"]) == (412, "stale")
    refused = ask("POST", here, json={"action": "promote", "candidate": "new"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_better")
    assert "a canary would" in refused.json()["error"]["message"]
    assert ask("POST", here, json={"action": "shadow"}).json()["release"]["stage"] == "shadow"
    tried = ask(
        "POST", here, json={"action": "canary", "share": 0.2}, headers={"if-match": ask("GET", here).headers["etag"]}
    )
    assert tried.json()["canary"]["verdict"]["outcome"] == "wait"
    forced = {"action": "promote", "candidate": "new", "force": True}
    assert ask("POST", here, json=forced).json()["error"]["at"] == "$.reason"
    live = ask("POST", here, json={**forced, "reason": "a fire"}, headers=ann).json()
    assert (live["live"], live["release"]["forced"], live["release"]["reason"]) == ("new", True, "a fire")
    [line] = ask("GET", "/v1/surfaces").json()["surfaces"]
    assert line["live"] == "new"
    back = ask("POST", here, json={"action": "rollback", "reason": "out"}, headers=ann).json()
    assert (back["live"], back["release"]["stage"]) == ("old", "aborted")
    assert ask("GET", "/v1/releases").json()["surfaces"]["home"]["live"] == "old"
    found = ask("GET", "/v1/audit?subject=release/home").json()["changes"]
    assert [one["action"] for one in found] == ["rollback", "promote", "canary", "shadow", "start"]
    assert [one["who"] for one in found] == ["ann", "ann", "anonymous", "anonymous", "ann"]


@pytest.mark.parametrize(
    ("step", "status", "at"),
    [
        ({"action": "leap"}, 422, "$"),
        ({"action": "start"}, 422, "$.candidate"),
        ({"action": "start", "candidate": "nobody"}, 422, "$.candidate"),
        ({"action": "start", "candidate": "new", "terms": {"objective": "joy"}}, 422, "$.terms.objective"),
        ({"action": "start", "candidate": "new", "terms": {"rate": 2}}, 422, "$.terms.rate"),
        ({"action": "abort"}, 409, "$"),
        ({"action": "promote"}, 409, "$"),
        ({"action": "abort", "candidate": "new"}, 409, "$.candidate"),
    ],
)
def test_what_cannot_be_is_named(ask: Ask, step: dict[str, Any], status: int, at: str) -> None:
    answer = ask("POST", "/v1/releases/home", json=step)
    assert (answer.status_code, answer.json()["error"]["at"]) == (status, at)
    assert ask("GET", "/v1/releases/nowhere").status_code == 404


def test_value_and_convergence_are_answered(ask: Ask, settings: Settings) -> None:
    assert ask("GET", "/v1/surfaces/home/value").json()["policies"] == {}
    found = ask("GET", "/v1/policies/home/old/convergence").json()
    assert (found["over"], found["draws"]) == ("probe", 256)
    scoring = started(settings.data, open_state(settings), open_bundles(settings))
    for i in range(8):
        decided(scoring, f"u{i}")
    scoring.spool.sync()
    open_log(settings).append([(one.unit.encode(), encode(one)) for one in decisions(settings.data)])
    found = ask("GET", "/v1/policies/home/old/convergence").json()
    assert (found["over"], found["asked"]) == ("decisions", 8)
    assert 0.25 <= found["least_probability"] <= found["probability"] <= 1.0
    assert 0.0 <= found["expected_loss"] <= found["loss_95"]
    assert ask("GET", "/v1/policies/home/given_order/convergence").json()["error"]["code"] == "no_posterior"
    assert ask("GET", "/v1/policies/home/nobody/convergence").status_code == 404


def test_the_command_line_says_it(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        releasing.httpx,
        "request",
        lambda method, url, json=None, headers=None, timeout=0.0: ask(
            method, url.partition(":9999")[2], json=json, headers=headers
        ),
    )
    run = CliRunner()

    def said(*words: str) -> str:
        return run.invoke(releasing.command, [*words, "--control-http", "127.0.0.1:9999"], catch_exceptions=True).output

    assert "no candidate so far" in said("status", "home")
    begun = said("start", "home", "new", "--terms", '{"rate": 0.5}')
    assert "new against old: apprentice" in begun
    assert "insufficient, a canary is offered" in begun
    assert "candidate 0 units" in said("canary", "home", "new", "--share", "0.1")
    assert "aborted (a test)" in said("abort", "home", "new", "--reason", "a test")
    assert "uncertain" not in said("value", "home")
    assert "the leader is best with probability" in said("convergence", "home/new")
    refused = run.invoke(releasing.command, ["promote", "home", "new", "--control-http", "127.0.0.1:9999"])
    assert "No candidate is on its way" in str(refused.exception)


def started(folder: Path, state: Any, bundles: Any, clock: Callable[[], float] | None = None) -> Scoring:
    more = {} if clock is None else {"clock": clock}
    scoring = Scoring(
        state=state,
        claims=MemoryClaims(),
        bundles=bundles,
        spool=Spool(folder / "spool", quota_bytes=1 << 30),
        keys=Keys.load(folder),
        patience=CALM,
        **more,
    )
    scoring.start()
    return scoring


def decided(scoring: Scoring, unit: str) -> dict[str, Any]:
    items = [{"id": name, "features": {"price": 2.0 * i, "genre": "jazz"}} for i, name in enumerate("abcd")]
    request = {"surface": "home", "unit": unit, "candidates": items}
    answer: dict[str, Any] = msgspec.json.decode(scoring.decide(msgspec.json.encode(request)))
    return answer


def test_a_canary_that_does_harm_is_over_for_every_request(tmp_path: Path) -> None:
    """Requests → log → settled units → guardrail → record → requests, all of it real, in one process."""
    now = [1_000_000.0]
    state, bundles, log = MemoryState(), MemoryBundles(), MemoryLog(2, lambda: now[0])
    publish(state, bundles, HOME)
    scoring = started(tmp_path, state, bundles, lambda: now[0])
    promotions = Promotions(state, Configs(), clock=lambda: now[0])
    totals, outboxes = SqliteTotals(tmp_path / "units.sqlite"), [MemoryCheckpoints() for _ in range(2)]
    readouts = Readouts(
        Trials(state, Configs()),
        log,
        lambda: (totals, outboxes.__getitem__),
        retention_seconds=86_400.0,
        canaries=Canaries(promotions),
    )
    terms = Terms(share=0.5, window=20.0, planned=300, guardrails={"hate": Guardrail(-0.1)})
    promotions.start("home", "new", "ann", terms=terms)
    promotions.canary("home", "ann")

    def follow() -> None:
        scoring.configs.follow(scoring.state)
        scoring.swap(scoring.poll())

    follow()
    arms = {}
    for i in range(300):
        now[0] += 0.01
        arms[f"u{i}"] = decided(scoring, f"u{i}")["experiment"]["arm"]
    scoring.spool.sync()
    logged = decisions(tmp_path)
    rng = np.random.default_rng(1)
    for one in logged:
        harmed = (one.experiment or {})["arm"] == "candidate" and rng.random() < 0.6
        now[0] = max(now[0], one.at)
        tell(log, one)
        if harmed:
            tell(
                log,
                Feedback(
                    decision_id=one.decision_id, unit=one.unit, at=one.at + 1, feedback_id="f", kind="hate", slot=0
                ),
            )
    for to in (40.0, 80.0):  # the clock of both partitions passes windows and horizons
        now[0] += to
        for i in range(16):
            decided(scoring, f"late-{i}")
        scoring.spool.sync()
        for one in decisions(tmp_path)[-16:]:
            tell(log, one)
        while readouts.turn(now[0]):
            pass
    [last, *_] = Audit(state).changes("release/home")
    assert (last.who, last.action) == ("guardrail", "abort")
    follow()
    after = [decided(scoring, unit) for unit, arm in arms.items() if arm == "candidate"]
    assert len(after) > 100
    assert {(one["policy"], one["mode"], "experiment" in one) for one in after} == {("old", "live", False)}


def tell(log: MemoryLog, event: Decision | Feedback) -> None:
    log.append([(event.unit.encode(), encode(event))])
