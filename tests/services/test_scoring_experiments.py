"""Experiments at a request: arms drawn from, said and logged; what an arm's decisions teach; nothing without experiments."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import scoring_setup
from scoring_setup import decisions, followed, in_memory, surface

from policies.errors import Rejected
from policies.surface import PolicySpec
from services.audit import Audit
from services.scoring.service import Scoring
from services.trials import Trials
from streaming.adapters.memory import MemoryState
from streaming.configuration import Configs, publish_surface
from streaming.documents import ConfigInvalid
from streaming.events import unit_hash
from streaming.joined import Terms
from streaming.publish import Publisher

NOW = 1_800_000_000.0
POLICIES = {
    "home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.05}),
    "other": PolicySpec("linear_thompson", objective="watch", options={"floor": 0.05}),
}
DOCUMENT: dict[str, Any] = {
    "experiment": "ts",
    "surface": "home",
    "arms": {"control": {"policy": "given_order", "share": 0.4}, "treatment": {"policy": "other", "share": 0.4}},
    "metrics": {"primary": "click"},
}


def body(**changes: Any) -> bytes:
    return msgspec.json.encode({**DOCUMENT, **changes})


@pytest.fixture
def scoring(tmp_path: Path) -> Scoring:
    return in_memory(tmp_path, surface(policies=POLICIES), clock=lambda: NOW)


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    if "scoring" in request.fixturenames:
        state = request.getfixturevalue("scoring").state
    else:
        state = MemoryState()
        publish_surface(state, surface(policies=POLICIES))
    return Trials(state, Configs(), clock=lambda: NOW)


def decided(scoring: Scoring, unit: str, **more: Any) -> dict[str, Any]:
    return scoring_setup.decided(scoring, unit, **{"candidates": ["a", "b", "c"], **more})


def test_units_stay_in_their_arms_and_the_log_says_so(scoring: Scoring, trials: Trials, tmp_path: Path) -> None:
    trials.create(body(), "ann")
    followed(scoring)
    assert "experiment" not in decided(scoring, "before")
    trials.start("ts", "ann")
    followed(scoring)
    arms = {f"unit-{i}": decided(scoring, f"unit-{i}").get("experiment", {}).get("arm") for i in range(60)}
    assert set(arms.values()) == {"control", "treatment", None}
    again = {unit: decided(scoring, unit) for unit in arms}
    assert {unit: answer.get("experiment", {}).get("arm") for unit, answer in again.items()} == arms
    policies = {arms[unit]: answer["policy"] for unit, answer in again.items()}
    assert policies == {"control": "given_order", "treatment": "other", None: "home-ts"}
    scoring.spool.sync()
    logged = [d for d in decisions(tmp_path) if d.experiment is not None]
    assert {(d.experiment or {})["arm"] for d in logged} == {"control", "treatment"}
    assert all(
        d.experiment == {"name": "ts", "arm": d.experiment["arm"], "allocation": "0"} for d in logged if d.experiment
    )


def test_an_arms_decisions_teach_no_other_arm(scoring: Scoring, trials: Trials, tmp_path: Path) -> None:
    arms = {"a": {"policy": "home-ts", "share": 0.5}, "b": {"policy": "other", "share": 0.5}}
    trials.create(body(arms=arms), "ann")
    trials.start("ts", "ann")
    followed(scoring)
    for i in range(40):
        decided(scoring, f"unit-{i}")
    scoring.spool.sync()
    configs = Configs()
    configs.follow(scoring.state)
    taught: dict[str, set[str]] = {}
    for decision in decisions(tmp_path):
        compiled = configs.get(decision.config)
        assert compiled is not None  # stored before it was used
        assert decision.experiment is not None
        taught[decision.experiment["arm"]] = {policy.name for policy in Terms.of(compiled).learners}
    assert taught == {"a": {"home-ts", "popular"}, "b": {"other", "popular"}}
    trials.stop("ts", "ann")
    trials.create(body(experiment="shared", arms=arms, learners="shared"), "ann")
    trials.start("shared", "ann")
    followed(scoring)
    assert {armed.config for armed in scoring.live.surfaces["home"].arms.values()} == {
        scoring.live.surfaces["home"].config
    }


def test_a_new_surface_version_takes_its_arms_along(scoring: Scoring, trials: Trials) -> None:
    arms = {"a": {"policy": "home-ts", "share": 0.5}, "b": {"policy": "other", "share": 0.5}}
    trials.create(body(arms=arms), "ann")
    trials.start("ts", "ann")
    followed(scoring)
    before = scoring.live.surfaces["home"]
    publish_surface(scoring.state, surface(policies=POLICIES, slots=2))
    configs = Configs()
    configs.follow(scoring.state)
    compiled = configs.current("home")
    assert compiled is not None
    publisher = Publisher(scoring._follower._bundles, configs, 1)
    for policy in compiled.policies.values():
        publisher.publish(policy, [], {}, NOW)
    followed(scoring)
    after = scoring.live.surfaces["home"]
    assert (after.surface.slots, len(after.splits)) == (2, 1)
    assert {a.config for a in after.arms.values()}.isdisjoint(a.config for a in before.arms.values())
    assert configs.current("home") is compiled  # an arm's version is never taken for the surface's


def test_a_draw_of_its_own(scoring: Scoring, trials: Trials) -> None:
    arms = {
        "control": {"policy": "home-ts", "share": 0.5},
        "bold": {"policy": "home-ts", "share": 0.5, "draw": {"floor": 0.9}},
    }
    trials.create(body(arms=arms), "ann")
    trials.start("ts", "ann")
    followed(scoring)
    armed = scoring.live.surfaces["home"].arms
    bold, control = armed["ts", "bold"].policy, armed["ts", "control"].policy
    assert bold is not None
    assert control is not None
    assert (bold.settings.floor, control.settings.floor) == (0.9, 0.05)
    assert bold.bundle == control.bundle


def test_a_tester_is_let_in_and_left_out(scoring: Scoring, trials: Trials, tmp_path: Path) -> None:
    key = unit_hash("tester", scoring.keys.salt())
    trials.create(body(overrides={key: "treatment"}, eligible={"device": "ios"}), "ann")
    trials.start("ts", "ann")
    followed(scoring)
    assert decided(scoring, "tester")["experiment"] == {"name": "ts", "arm": "treatment"}
    assert "experiment" not in decided(scoring, "someone")
    seen = [decided(scoring, f"unit-{i}", context={"device": "ios"}).get("experiment") for i in range(20)]
    assert any(seen)
    scoring.spool.sync()
    assert next(d.experiment for d in decisions(tmp_path)) == {
        "name": "ts",
        "arm": "treatment",
        "allocation": "0",
        "override": "yes",
    }


def test_an_arm_without_a_bundle_is_still_an_arm(scoring: Scoring, trials: Trials) -> None:
    publish_surface(
        scoring.state,
        surface(policies={**POLICIES, "late": PolicySpec("linear_thompson", options={"half_life": "9d"})}),
    )
    trials.create(body(arms={"control": {"share": 0}, "treatment": {"policy": "late", "share": 1}}), "ann")
    trials.start("ts", "ann")
    configs = Configs()
    configs.follow(scoring.state)
    compiled = configs.current("home")
    assert compiled is not None
    Publisher(scoring._follower._bundles, configs, 1).publish(compiled.policies["home-ts"], [], {}, NOW)
    followed(scoring)
    answer = decided(scoring, "ann")
    assert (answer["mode"], answer["reason"], answer["experiment"]["arm"]) == ("fallback", "no_bundle", "treatment")


def test_every_step_is_compared_and_audited(trials: Trials) -> None:
    trials.create(body(), "ann")
    with pytest.raises(Rejected, match="exists"):
        trials.create(body(), "bob")
    _, version = trials.get("ts")
    trials.start("ts", "bob", expect=version)
    with pytest.raises(Rejected, match="If-Match") as stale:
        trials.stop("ts", "eve", expect=version)
    assert stale.value.status == 412
    trials.allocate("ts", {"treatment": 0.1}, "bob")
    trials.stop("ts", "ann", "enough")
    changes = Audit(trials.state).changes("experiment/ts")
    assert [(change.who, change.action) for change in changes] == [
        ("ann", "stop"),
        ("bob", "allocate"),
        ("bob", "start"),
        ("ann", "create"),
    ]
    assert (changes[1].before["shares"]["treatment"], changes[1].after["shares"]["treatment"]) == (0.4, 0.1)
    assert changes[-1].before is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"arms": {"a": {"policy": "hom-ts", "share": 0.5}, "b": {"share": 0.5}}},
            "no policy 'hom-ts'; did you mean 'home-ts'?",
        ),
        ({"arms": {"a": {"share": 0.7}, "b": {"share": 0.5}}}, "shares add up to 1.2"),
        ({"metrics": {"primary": "clik"}}, "no metric 'clik'; did you mean 'click'?"),
        (
            {"metrics": {"primary": "click", "guardrails": {"watch": {"min_effect": 0.1}}}},
            "would stop what does no harm",
        ),
        ({"eligible": {"colour": "red"}}, "no context feature 'colour'"),
        ({"eligible": {"device": {"anny": ["x"]}}}, "anny"),
        ({"overrides": {"tester": "control"}}, "'tester' is no key"),
        ({"surface": "hom"}, "no surface 'hom'; did you mean 'home'?"),
        ({"analysis": {"window": "soon"}}, "got 'soon'"),
        ({"start": "tomorrow"}, "Expected RFC 3339"),
        ({"anlysis": {}}, "unknown key; did you mean 'analysis'?"),
    ],
)
def test_mistakes_are_named(trials: Trials, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        trials.create(body(**changes), "ann")
    assert said in str(refused.value)


def test_a_layer_is_sticky_by_one_thing(trials: Trials) -> None:
    trials.create(body(), "ann")
    trials.start("ts", "ann")
    trials.create(body(experiment="by-session", unit="session", layer="own"), "ann")
    with pytest.raises(Rejected, match="sticky by unit"):
        trials.create(body(experiment="more", unit="session"), "ann")
