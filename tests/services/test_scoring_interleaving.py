"""Experiments of kind `interleaving`: slates of two policies, their exact propensities, and whose items people preferred."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scoring_setup
from scoring_setup import decisions, followed, in_memory, surface

from policies import bundle as bundling
from policies.errors import Corrupt
from policies.evaluation.conditionals import conditionals
from policies.experiments.interleaving import preferred
from policies.surface import Exploration, Logging, PolicySpec, Rule
from services.control.readouts import Readouts
from services.scoring.service import Scoring
from services.trials import Trials
from streaming.adapters.memory import MemoryCheckpoints, MemoryLog
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.configuration import Configs
from streaming.documents import ConfigInvalid
from streaming.events import Decision, Feedback, encode
from streaming.experiences import Experiences
from streaming.joined import Terms
from streaming.parquet import table_of
from streaming.replay import recompute, recompute_interleaved
from streaming.settle import Settler

NOW = 1_800_000_000.0
IDS = list("abcde")
POLICIES = {
    "home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.05}),
    "soft": PolicySpec("softmax", objective="watch", options={"floor": 0.1}),
    "fixed": PolicySpec("given_order", options={"floor": 0.1}),
}
DOCUMENT: dict[str, Any] = {
    "experiment": "duel",
    "surface": "home",
    "kind": "interleaving",
    "arms": {"control": {"policy": "soft", "share": 0.5}, "treatment": {"policy": "fixed", "share": 0.5}},
    "metrics": {"primary": "click"},
    "analysis": {"window": 50.0, "planned": 60},
}


def document(**changes: Any) -> bytes:
    return msgspec.json.encode({**DOCUMENT, **changes})


def running(folder: Path, **changes: Any) -> Scoring:
    """A service with the experiment running; everything sampled."""
    more = {"policies": POLICIES, "logging": Logging(1.0), "horizon": 10.0, "correctable": 1000.0, **changes}
    scoring = in_memory(folder, surface(**more), clock=lambda: NOW)
    trials = Trials(scoring.state, Configs(), clock=lambda: NOW)
    trials.create(document(), "ann")
    trials.start("duel", "ann")
    followed(scoring)
    return scoring


def decided(scoring: Scoring, unit: str, **more: Any) -> dict[str, Any]:
    return scoring_setup.decided(scoring, unit, **{"candidates": IDS, **more})


def bundles_of(scoring: Scoring, record: Decision) -> list[bundling.Bundle | None]:
    assert record.interleaved is not None
    get = scoring._follower._bundles.get
    return [bundling.read(name, get) if name else None for name in record.interleaved.bundles]


def test_a_slate_is_of_both_and_its_record_says_whose_is_what(tmp_path: Path) -> None:
    scoring = running(tmp_path)
    for i in range(30):
        answer = decided(scoring, f"unit-{i}", pins={"1": "c"} if i % 5 == 0 else {}, explain=i == 0)
        assert (answer["policy"], answer["mode"], answer.get("bundle", "")) == ("soft+fixed", "live", "")
        assert "explain" not in answer  # there is no one set of scores to explain
        assert answer["experiment"]["name"] == "duel"
    teams = []
    for record in decisions(tmp_path):
        said = record.interleaved
        assert said is not None
        assert (said.policies, record.bundle, record.head) == (("soft", "fixed"), "", "team_draft")
        assert (said.bundles[0] != "", said.settings[0][:2], said.settings[1][1]) == (True, ("softmax", 0.1), 0.1)
        assert [team == -1 for team in said.teams] == [slot in record.pinned for slot in record.slots]
        free = [team for team in said.teams if team >= 0]
        assert {0, 1} == set(free[:2])  # both picked in the first round
        teams += free
        assert record.config == scoring.live.surfaces["home"].config
    assert 0.4 < np.mean(teams) < 0.6
    configs = Configs()
    configs.follow(scoring.state)
    compiled = configs.get(scoring.live.surfaces["home"].config)
    assert compiled is not None
    assert {policy.name for policy in Terms.of(compiled).learners} >= {"home-ts", "soft"}  # everybody learns from them


RULED = {"rules": [Rule(cap=1, by="genre"), Rule(exclude=["e"])], "exploration": Exploration(0.7)}


@pytest.mark.parametrize("changes", [{}, RULED], ids=["plain", "ruled"])
def test_the_record_recomputes_the_slate_from_both_bundles(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Bit for bit; and the propensities are those of both policies' own conditionals, mixed as the coins fall."""
    scoring = running(tmp_path, **changes)
    genres = ["jazz", "rock", "jazz", "rock", "jazz"]
    candidates = [{"id": item, "features": {"price": i, "genre": genres[i]}} for i, item in enumerate(IDS)]
    for i in range(15):
        decided(scoring, f"unit-{i}", candidates=candidates, pins={"2": "b"} if i % 4 == 0 else {})
    records = decisions(tmp_path)
    assert len(records) == 15
    for record in records:
        said, sample = record.interleaved, record.sample
        assert said is not None
        assert sample is not None
        with pytest.raises(Corrupt, match="interleaved"):
            recompute(record, None)
        held = bundles_of(scoring, record)
        again = recompute_interleaved(record, held)
        assert again.slate.items.tolist() == record.rows
        assert again.slate.propensities.tolist() == record.propensities
        assert again.slate.distributions is not None
        assert again.slate.distributions.tobytes() == sample.distributions
        assert again.own.tolist() == said.own
        with pytest.raises(Corrupt, match="wrong_bundle"):
            recompute_interleaved(record, held[::-1])
        slots = len(record.slots)
        free = [t for t in range(slots) if said.teams[t] >= 0]
        for place, t in enumerate(free):
            a, b = (said.own[policy][t] for policy in (0, 1))
            share = 0.5
            if place % 2:
                before = free[place - 1]
                share = said.own[1][before] / (said.own[0][before] + said.own[1][before])
            assert record.propensities[t] == pytest.approx(share * a + (1 - share) * b, rel=1e-12)
    if changes:
        assert {"exclude"} <= {name for record in records for name in record.acted}
        assert all(record.rows.count(4) == 0 for record in records)


def test_its_own_conditionals_are_the_policies(tmp_path: Path) -> None:
    """`own` is what each policy would say of the logged slate for itself, so evaluation can use it."""
    scoring = running(tmp_path)
    decided(scoring, "unit-1")
    [record] = decisions(tmp_path)
    said = record.interleaved
    assert said is not None
    served = scoring.live.surfaces["home"].arms["duel", "control"].policy
    assert served is not None
    assert served.pair is not None
    n = len(IDS)
    inputs = {"items": np.zeros((n, scoring.live.surfaces["home"].reader.encoder.item_size), np.float32)}
    fixed = served.pair[1]
    p = conditionals(fixed.scores(inputs), record.slots, record.rows, fixed.settings)
    np.testing.assert_allclose(p[range(3), record.rows], said.own[1])


def test_without_one_of_the_bundles_the_fallback_answers(tmp_path: Path) -> None:
    scoring = running(tmp_path)
    arms = {"control": {"policy": "soft", "share": 0.5}, "treatment": {"policy": "home-ts", "share": 0.5}}
    trials = Trials(scoring.state, Configs(), clock=lambda: NOW)
    trials.stop("duel", "ann")
    trials.create(document(experiment="again", arms=arms), "ann")
    trials.start("again", "ann")
    followed(scoring)
    pair = scoring.live.surfaces["home"].arms["again", "control"]
    followed(scoring)
    assert (
        scoring.live.surfaces["home"].arms["again", "treatment"] is pair
    )  # nothing changed, and nothing was made anew
    assert decided(scoring, "u-1")["policy"] == "soft+home-ts"
    pointers = dict(scoring._follower._bundles.pointers())
    del pointers["home/home-ts"]
    scoring._follower._served.clear()
    scoring._follower._tried.clear()
    scoring.swap(scoring._follower.poll(scoring.live, pointers))
    answer = decided(scoring, "u-1")
    assert (answer["mode"], answer["reason"], answer["policy"]) == ("fallback", "no_bundle", "given_order")
    assert decisions(tmp_path)[-1].interleaved is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {**DOCUMENT["arms"], "third": {"policy": "home-ts"}}}, "3 arms"),
        ({"arms": {"a": {"policy": "soft"}, "b": {"policy": "soft"}}}, "both arms draw from soft"),
        ({"arms": {"a": {"policy": "soft"}, "b": {"policy": "fixed", "holdout": True}}}, "of both arms"),
        ({"arms": {"a": {"policy": "soft"}, "b": {"policy": "fixed", "draw": {"floor": 0.0}}}}, "no floor"),
        ({"metrics": {"primary": "decisions"}}, "cannot be credited"),
        ({"metrics": {"primary": "click", "guardrails": {"watch": {"min_effect": 0.0}}}}, "guardrails compare arms"),
        ({"metrics": {"primary": "click", "ratios": {"r": ["click", "decisions"]}}}, "ratios compare arms"),
        ({"analysis": {"method": "bayesian"}}, "no difference of means"),
    ],
)
def test_what_cannot_be_interleaved_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    scoring = in_memory(tmp_path, surface(policies=POLICIES), clock=lambda: NOW)
    with pytest.raises(ConfigInvalid, match=said):
        Trials(scoring.state, Configs(), clock=lambda: NOW).create(document(**changes), "ann")


def test_people_who_prefer_one_are_found_out_by_their_clicks(tmp_path: Path) -> None:
    """Through the log: people click what stands first in the given order, so `fixed` wins; and only settled, credited slots count."""
    scoring = running(tmp_path, logging=Logging(0.0))
    for i in range(240):
        decided(scoring, f"unit-{i % 120}")
    log = MemoryLog(1, lambda: clock[0], identity="x")
    clock = [NOW]
    rng = np.random.default_rng(7)
    clicked = {0: 0, 1: 0}
    for record in decisions(tmp_path):
        log.append([(record.unit.encode(), encode(record))])
        said = record.interleaved
        assert said is not None
        liked = [place for place, item in enumerate(record.slate) if item == "a"] or [int(rng.integers(3))]
        clicked[said.teams[liked[0]]] += 1
        heard = Feedback(
            decision_id=record.decision_id, unit=record.unit, at=NOW + 1, kind="click", slot=record.slots[liked[0]]
        )
        log.append([(record.unit.encode(), encode(heard))])
    clock[0] = NOW + 500.0
    last = msgspec.structs.replace(decisions(tmp_path)[0], decision_id="late", at=NOW + 500, experiment=None)
    log.append([(last.unit.encode(), encode(last))])
    outbox, totals = MemoryCheckpoints(), SqliteTotals(tmp_path / "units.sqlite")
    trials = Trials(scoring.state, Configs(), clock=lambda: NOW)
    readouts = Readouts(trials, log, lambda: (totals, lambda _: outbox), retention_seconds=1e6)
    while readouts.turn(NOW + 500.0):
        pass
    report = readouts.report("duel")
    [found] = report["comparisons"]
    credited = {
        arm: sum(one.unit.totals.get(f"click of {arm}", 0.0) for one in totals.units("duel"))
        for arm in DOCUMENT["arms"]
    }
    assert credited == {"control": clicked[0], "treatment": clicked[1]}
    assert sum(report["complete"].values()) == 120
    assert (found["metric"], found["arm"], found["verdict"]) == ("click", "treatment", "better")
    assert found["treatment"] == pytest.approx(1 - found["control"])
    assert found["effect"] == pytest.approx(found["treatment"] - 0.5)
    assert found["low"] < found["effect"] < found["high"]
    assert found["low"] > 0
    assert any("Interleaved" in note for note in report["notes"])
    assert not report["guardrails"]
    assert not report["sample_ratio"]["mismatch"]

    configs = Configs()
    configs.follow(scoring.state)
    settling = MemoryCheckpoints()
    settler = Settler(0, log, settling, configs, epoch=1)
    while settler.step(NOW + 500.0).settled:
        pass
    rows = table_of(Experiences(0, settling, log).pull(0, 5)).to_pylist()
    assert [row["interleaved"]["policies"] for row in rows] == [["soft", "fixed"]] * 5
    assert all(len(row["interleaved"]["own"]) == 2 for row in rows)


def test_a_preference_of_units_by_hand() -> None:
    first = np.array([1.0, 0.0, 2.0, 0.0, 1.0])
    second = np.array([0.0, 1.0, 3.0, 0.0, 1.0])
    found = preferred(first, second)  # lost, won, won, silent, tied
    assert found is not None
    assert (found.units, found.treatment, found.value) == (4, 2.5 / 4, 2.5 / 4 - 0.5)
    assert found.variance == pytest.approx(np.var([0, 1, 1, 0.5, 0, 1], ddof=1) / 4)
    assert preferred(first[:1], second[:1]) is None
    agreed = preferred(np.zeros(50), np.ones(50))
    assert agreed is not None
    assert agreed.variance > 0  # fifty who agree are not certain
