"""`slatewise evaluate --rules`: what a policy would earn under other rules, held against what scoring draws under them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from evaluation_setup import FEATURES, ITEMS, made, served_log

from policies.errors import Rejected
from policies.features import Encoder
from policies.reranking.within import OPS, Constraint, joined, stacked
from policies.surface import (
    Diversity,
    Exploration,
    Exposure,
    Fairness,
    Logging,
    Quota,
    Rate,
    Rule,
    Seen,
    Segment,
    Surface,
)
from services.cli import main
from services.evaluation.decisions import Log, LoggedDecision
from services.evaluation.known_items import KnownItems
from services.evaluation.other_rules import OtherRules
from services.evaluation.resolving import Asked, asked_for, read, under_rules
from services.evaluation.targets import Scored, Target
from services.settings import Settings
from services.wiring import open_state

DECISIONS = 120
ON = Logging(1.0)
STRICT: dict[str, Any] = {
    "rules": [
        Rule(filter="price < 9"),
        Rule(cap=2, by="genre"),
        Rule(quota=Quota(by="genre", value="rock", min=1)),
        Rule(spacing=2, by="genre"),
    ],
    "diversity": Diversity(mmr=0.5, coverage=0.4, by="genre"),
    "exploration": Exploration(max_share=0.3),
}


def log_of(settings: Settings, asked: Asked, rules: OtherRules, **more: Any) -> Log:
    fixed: dict[str, Any] = {"data": None, "surface": None, "since": None, "until": None, "sampled": False}
    return read(
        str(settings.data), "experiences", asked, **{**fixed, "unsettled": True, "whole": True, **more}, rules=rules
    )


def under(settings: Settings, policy: str, surface: Surface) -> tuple[Log, Target]:
    asked, rules = asked_for(policy, data=Path(settings.data), config=None), OtherRules(surface)
    log = log_of(settings, asked, rules)
    assert asked.target is not None
    return log, under_rules(asked.target, rules, log, Path(settings.data))


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """No rules, everything sampled."""
    return served_log(tmp_path_factory.mktemp("free") / "data", DECISIONS, made(logging=ON), pins=False)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The same requests and the same model, under rules."""
    return served_log(tmp_path_factory.mktemp("strict") / "data", DECISIONS, made(logging=ON, **STRICT), pins=False)


@pytest.mark.parametrize("policy", ["logged", "home/home-ts"])
def test_a_log_without_rules_says_what_scoring_draws_under_them(free: Settings, strict: Settings, policy: str) -> None:
    """Decision for decision: the distributions that another house logged under rules, from the log of a house that had none."""
    log, target = under(free, policy, made(**STRICT))
    drawn, _ = under(strict, "logged", made(**STRICT))
    assert len(log) == len(drawn) == DECISIONS
    for one, other in zip(log.decisions, drawn.decisions, strict=True):
        assert one.decision_id == other.decision_id
        places = [one.candidates.index(item) for item in other.candidates]
        law = target.law(one, None)
        there = replace(law.decision, slots=other.slots, rows=np.array(places)[other.rows], pinned=other.pinned)
        assert other.distributions is not None
        np.testing.assert_allclose(replace(law, decision=there).along()[:, places], other.distributions, atol=1e-9)


@pytest.mark.parametrize("policy", ["logged", "home/home-ts"])
def test_under_the_rules_that_were_in_force_every_weight_is_one(strict: Settings, policy: str) -> None:
    log, target = under(strict, policy, made(**STRICT))
    for one in log.decisions:
        chances = target.conditionals(one)[np.arange(len(one.rows)), one.rows]
        np.testing.assert_allclose(chances, one.propensities, rtol=1e-9)


def test_what_other_rules_forbid_weighs_nothing_and_is_not_set_aside(free: Settings) -> None:
    log, target = under(free, "home/home-ts", made(rules=[Rule(exclude=[ITEMS[7]])]))
    without = [one for one in log.decisions if 7 in one.rows]
    assert len(without) > DECISIONS / 4
    for one in without:
        law = target.conditionals(one)
        at = one.rows.tolist().index(7)
        assert law[at, 7] == 0.0
        assert law[at].sum() == pytest.approx(1.0)
        assert not law[at + 1 :].any()


def seen_by(one: LoggedDecision, row: int) -> LoggedDecision:
    """As if the rule `seen` had kept a candidate out."""
    codes = np.where(np.arange(len(one.candidates)) == row, 0, -1)
    line = Constraint("seen", "mask", codes, np.zeros(3, np.int64))
    shorter = np.flatnonzero(one.rows != row)
    return replace(
        one,
        within=joined(stacked([line], len(codes), 3), len(codes), 3),
        distributions=None,
        slots=one.slots[shorter],
        rows=one.rows[shorter],
        pinned=one.pinned[shorter],
    )


def test_what_people_saw_stays_as_the_log_has_it_where_its_rule_stands(free: Settings) -> None:
    before = made(rules=[Rule(seen=Seen("1d"))])
    rules = OtherRules(made(rules=[Rule(cap=1, by="genre"), Rule(seen=Seen("1d")), Rule(spacing=2, by="genre")]))
    asked = asked_for("home/home-ts", data=Path(free.data), config=None)
    log = log_of(free, asked, OtherRules(made()))
    assert isinstance(asked.target, Scored)
    rules.begin({one.config: before for one in log.decisions}, KnownItems(open_state(free), 0.0), log.encoder)
    for decision in log.decisions[:10]:
        law = rules.of(asked.target.law(seen_by(decision, 7), None))
        within = law.decision.within
        assert within is not None
        assert within.ops.tolist() == [OPS["most"], OPS["mask"], OPS["spacing"]]
        assert not law.along()[:, 7].any()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"rules": [Rule(filter="price < 9")]}, {}, "'filter' was in force and is gone"),
        ({"rules": [Rule(filter="price < 9")]}, {"rules": [Rule(filter="price < 9.5")]}, "is gone"),
        ({}, {"rules": [Rule(seen=Seen("1d"))]}, "by what was shown before differ"),
        ({}, {"rules": [Rule(pin=ITEMS[0], slot=1)]}, "pins differ"),
        ({}, {"rules": [Rule(available=True)]}, "'available' is new"),
        ({}, {"fairness": Fairness(exposure=Exposure(by="genre"))}, "fairness.exposure differs"),
        ({}, {"exploration": Exploration(segments=[Segment("hour > 3", 0.1)])}, "Segments of exploration differ"),
        ({}, {"diversity": Diversity(mmr=0.5, over="look")}, "no feature of the log's items"),
    ],
)
def test_what_the_log_cannot_answer_for_is_refused(
    free: Settings, before: dict[str, Any], after: dict[str, Any], said: str
) -> None:
    encoder = Encoder(made().features)
    with pytest.raises(Rejected, match=said) as refused:
        OtherRules(made(**after)).begin({"v": made(**before)}, KnownItems(open_state(free), 0.0), encoder)
    assert refused.value.at == "--rules"


def document(folder: Path, surface: Surface) -> Path:
    path = folder / "rules.yaml"
    path.write_bytes(msgspec.yaml.encode(surface))
    return path


def told(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["evaluate", *map(str, words)])


def test_the_command_draws_under_a_document(free: Settings, tmp_path: Path) -> None:
    rules = document(tmp_path, made(**STRICT))
    result = told(free.data, "--policy", "logged", "--rules", rules, "--unsettled", "--partial-support", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["target"] == "logged under other rules"
    assert found["log"]["decisions"] == DECISIONS
    assert found["rejected"]["counts"] == {}
    refused = told("decisions.dsjson", "--format", "dsjson", "--policy", "uniform", "--rules", rules)
    assert refused.exit_code == 1
    assert "does not say what rules act on" in refused.output


def test_uniform_under_rules_is_even_among_what_they_let_through(free: Settings) -> None:
    log, target = under(free, "uniform", made(rules=[Rule(exclude=[ITEMS[7]])], exploration=Exploration(0.1)))
    law = target.conditionals(log.decisions[0])
    np.testing.assert_allclose(law[0], [1 / 7] * 7 + [0.0])


def test_decisions_whose_items_changed_since_are_set_aside(tmp_path: Path) -> None:
    settings = served_log(tmp_path / "data", 20, made(logging=ON), pins=False)
    features = {**FEATURES[0], "price": 3.0}
    open_state(settings).put([("item", ITEMS[0], msgspec.json.encode({"id": ITEMS[0], "features": features}))])
    log, target = under(settings, "home/home-ts", made(**STRICT))
    with pytest.raises(Rejected) as refused:
        target.conditionals(log.decisions[0])
    assert refused.value.code == "attributes_changed"


def test_decisions_with_features_of_their_own_are_set_aside(free: Settings) -> None:
    """A filter may have read them, and only their encoding is in the log."""
    log, target = under(free, "home/home-ts", made(**STRICT))
    one = log.decisions[0]
    assert one.matrix is not None
    with pytest.raises(Rejected) as refused:
        target.conditionals(replace(one, items=one.matrix + np.float32(0.1)))
    assert refused.value.code == "attributes_unknown"


def test_counts_of_the_service_are_no_features_of_a_request(free: Settings) -> None:
    features = made().features
    rate = Rate(kind="click", per="shown", window="1h", prior=(1.0, 9.0), max=0.5)
    encoder = Encoder(msgspec.structs.replace(features, items={**features.items, "ctr": rate}))
    rules, known = OtherRules(made()), KnownItems(open_state(free), 0.0)
    rules.begin({}, known, encoder)
    rows = known.catalogue.rows(ITEMS)
    matrix = known.catalogue.matrix(encoder.schema)[rows].copy()
    matrix[:, encoder.item_columns["ctr"]] = 0.3
    assert rules._as_known(matrix, rows, known)
    matrix[:, encoder.item_columns["price"]] += np.float32(0.1)
    assert not rules._as_known(matrix, rows, known)
