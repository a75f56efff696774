"""Sequential agents as candidates: watched, judged and promoted over the release API like any policy, and told what that is worth."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import CALM, decisions, publish, surface, until

from policies.surface import Logging, Objective, PolicySpec
from services.evaluation.resolving import asked_for, read
from services.evaluation.targets import Scored
from services.keys import Keys
from services.scoring.service import Scoring
from services.settings import Settings
from services.wiring import open_bundles, open_claims, open_log, open_state
from streaming.configuration import publish_surface
from streaming.events import Feedback, encode
from streaming.publish import Publisher
from streaming.spool import Spool
from tests.control_setup import Ask, asking

AGENTS = ("constrained_actor_critic", "novelty_hierarchy")
UNITS, ITEMS = 120, [{"id": name, "features": {"price": 2.5 * i, "genre": "jazz"}} for i, name in enumerate("abcde")]
HORIZON = 0.2
LIVED = [{"item": "a", "kind": "click"}, {"item": "c", "kind": "click"}]


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """A surface that a linear policy serves, with the agent's first bundle beside it: what it is before it has learned."""
    made = Settings.load({}, data=tmp_path / "data", http="127.0.0.1:9")
    state, bundles = open_state(made), open_bundles(made)
    one = surface(
        slots=2,
        horizon=HORIZON,
        correctable=1000.0,
        policies={
            "old": PolicySpec("linear_thompson", objective="click", options={"floor": 0.5}),
            "agent": PolicySpec(request.param, objective="click", options={"floor": 0.2}),
        },
        objectives={"click": Objective("click", range=(0, 1)), "watch": Objective("play", range=(0, 60))},
        live="old",
        logging=Logging(1.0),
    )
    publish_surface(state, one)
    configs = publish(state, bundles)
    compiled = configs.current("home")
    assert compiled is not None
    for policy in (compiled.policies["old"], compiled.policies["agent"]):
        ready = None
        if policy.algorithm.trainer is not None:
            ready = policy.algorithm.publish(policy.config, policy.problem, {}, time.time(), 0)
        outcome = Publisher(bundles, configs, 1).publish(policy, [], {}, time.time(), ready=ready)
        assert outcome.result == "published", outcome
    return made


@pytest.fixture
def ask(settings: Settings) -> Iterator[Ask]:
    with asking(settings) as ask:
        yield ask


@pytest.mark.parametrize(("settings", "name"), [(each, each) for each in AGENTS], indirect=["settings"], ids=AGENTS)
def test_an_agent_is_judged_by_what_one_decision_of_it_would_earn(ask: Ask, settings: Settings, name: str) -> None:
    here = "/v1/releases/home"
    begun = ask(
        "POST", here, json={"action": "start", "candidate": "agent", "terms": {"rate": 1.0, "objective": "click"}}
    )
    assert begun.status_code == 200, begun.text
    scoring = Scoring(
        state=open_state(settings),
        claims=open_claims(settings),
        bundles=open_bundles(settings),
        spool=Spool(settings.data / "spool", quota_bytes=1 << 30),
        keys=Keys.load(settings.data),
        patience=CALM,
    )
    scoring.start()
    for i in range(UNITS):
        body = {"surface": "home", "unit": f"u{i}", "session": "s", "candidates": ITEMS, "history": LIVED[: i % 3]}
        scoring.decide(msgspec.json.encode(body))
    scoring.close()
    logged = decisions(settings.data)
    asked = asked_for("home/agent", data=settings.data, config=None)
    clicked = settled(settings, logged)
    expected, designs = [], []
    for one in logged:
        [shadow] = one.shadows
        assert shadow.policy == "agent"
        assert 0.0 < shadow.overlap < 1.0
        weights = np.array(shadow.propensities) / np.array(one.propensities)
        expected.append(float(((weights - 1.0) * clicked[one.decision_id]).sum()))
        designs.append(shadow.design)

    def judged() -> bool:
        time.sleep(0.3)  # the service folds in a thread of this process
        return bool(ask("GET", here).json()["gate"]["decisions"] == UNITS)

    until(judged, "every decision to be judged")
    found = ask("GET", here).json()["gate"]
    assert found["estimate"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert found["design_ess"] == pytest.approx(UNITS / np.mean(designs, axis=0).max())
    assert found["estimates"].startswith("the average over the logged period of what one decision by the candidate")
    manager = asked.target is not None and isinstance(asked.target, Scored) and asked.target.served.manager is not None
    assert manager == (name == "novelty_hierarchy")
    assert ("its goal drawn anew for each decision" in found["estimates"]) == manager
    refused = ask("POST", here, json={"action": "promote", "candidate": "agent"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_better")
    canary = ask("POST", here, json={"action": "canary"})
    assert canary.json()["release"]["stage"] == "canary"
    log = read(str(settings.data), "experiences", asked, data=None, surface=None, since=None, until=None, sampled=True, unsettled=True)  # fmt: skip
    assert asked.target is not None
    beside = {one.decision_id: one.shadows[0].propensities for one in logged}
    again = [one for one in log.decisions if one.decision_id in beside]
    assert len(again) == UNITS
    for one in again[:20]:  # `slatewise evaluate` says of the record what scoring said of the request
        law = asked.target.conditionals(one)
        assert law.sum(axis=1) == pytest.approx([1.0, 1.0])
        assert law[[0, 1], one.rows] == pytest.approx(beside[one.decision_id], abs=1e-6)


def settled(settings: Settings, logged: list[Any]) -> dict[str, np.ndarray]:
    """Decisions and clicks into the log; (2,) clicks of each."""
    rng, events, clicked = np.random.default_rng(3), [], {}
    for one in logged:
        events.append((one.unit.encode(), encode(one)))
        clicked[one.decision_id] = (rng.random(2) < 0.5).astype(float)
        for slot in np.flatnonzero(clicked[one.decision_id]).tolist():
            heard = Feedback(
                decision_id=one.decision_id,
                unit=one.unit,
                at=one.at,
                feedback_id=f"c{slot}",
                kind="click",
                slot=slot,
            )
            events.append((one.unit.encode(), encode(heard)))
    log = open_log(settings)
    log.append(events)
    time.sleep(2 * HORIZON)
    later = {"at": time.time(), "mode": "fallback", "shadows": []}  # the clock of every partition passes the horizon
    names = [f"{i:016x}" for i in range(16)]
    clocks = [msgspec.structs.replace(logged[0], decision_id=f"{name}-1", unit=name, **later) for name in names]
    log.append([(one.unit.encode(), encode(one)) for one in clocks])
    return clicked
