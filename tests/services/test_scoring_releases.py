"""A release at a request: the candidate beside the baseline, its canary, and what is served after a promotion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scoring_setup
from scoring_setup import decisions, followed, in_memory, surface

from policies.errors import Rejected
from policies.releases import Terms
from policies.reranking.acting import NOTHING_ACTS
from policies.shortlist import WHOLE
from policies.slate import draw
from policies.surface import Diversity, PolicySpec, Rule
from services.promoting import Promotions
from services.scoring.decide import drawn_from, inputs_of
from services.scoring.service import Scoring
from services.scoring.shadowing import propensities, shadow_of
from services.scoring.wire import Item, encode, read_decision
from streaming.configuration import Configs, publish_surface
from streaming.ports import Versioned

POLICIES = {
    "home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.05}),
    "other": PolicySpec("linear_thompson", objective="click", options={"floor": 0.2, "draws": 64}),
    "slate-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.1, "head": "one_draw"}),
}
HOME = surface(policies=POLICIES)
CANDIDATES = [
    {"id": name, "features": {"price": 2.0 * i, "genre": "jazz" if i % 2 else "rock"}} for i, name in enumerate("abcd")
]
EVERY = Terms(objective="click", rate=1.0, share=0.5)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scoring, Promotions, Path]:
    folder = tmp_path_factory.mktemp("releases")
    scoring = in_memory(folder, HOME)
    return scoring, Promotions(scoring.state, Configs()), folder


def decided(scoring: Scoring, unit: str, **more: Any) -> dict[str, Any]:
    return scoring_setup.decided(scoring, unit, **{"candidates": CANDIDATES, **more})


def test_the_whole_way(house: tuple[Scoring, Promotions, Path]) -> None:
    scoring, promotions, folder = house
    decided(scoring, "before")
    promotions.start("home", "other", "ann", terms=EVERY)
    followed(scoring)
    assert decided(scoring, "watched")["policy"] == "home-ts"
    promotions.canary("home", "ann")
    followed(scoring)
    found = [decided(scoring, f"unit-{i}") for i in range(20)]
    assert {(one["experiment"]["arm"], one["policy"]) for one in found} == {("live", "home-ts"), ("candidate", "other")}
    assert [decided(scoring, f"unit-{i}")["policy"] for i in range(20)] == [one["policy"] for one in found]
    with pytest.raises(Rejected, match="the verdict is wait"):
        promotions.promote("home", "ann", {"outcome": "wait"})
    promotions.promote("home", "ann", None, forced=True, reason="a test")
    followed(scoring)
    after = decided(scoring, "after")
    assert (after["policy"], after["mode"]) == ("other", "live")
    assert "experiment" not in after
    with pytest.raises(Rejected, match="'other' of this surface is released"):
        publish_surface(scoring.state, surface(policies={"home-ts": POLICIES["home-ts"]}))
    started_anew = Configs()
    started_anew.follow(scoring.state)
    compiled = started_anew.current("home")
    assert compiled is not None
    assert started_anew.live(compiled) == "other"
    promotions.rollback("home", "ann")
    followed(scoring)
    assert decided(scoring, "back")["policy"] == "home-ts"
    scoring.spool.sync()
    logged = decisions(folder)
    assert [bool(one.shadows) for one in logged] == [False, True] + [False] * 42
    [shadow] = logged[1].shadows
    assert (shadow.policy, shadow.bundle) == (
        "other",
        scoring.live.surfaces["home"].policies.get("other", shadow).bundle,
    )
    assert len(shadow.propensities) == len(logged[1].slate) == len(shadow.design)
    assert all(one is not None and one >= 1.0 - 1e-9 for one in shadow.design)  # E_β[(π/β)²] ≥ 1


def test_a_rate_is_chance_of_its_own(house: tuple[Scoring, Promotions, Path]) -> None:
    scoring, promotions, folder = house
    promotions.start("home", "slate-ts", "ann", stage="shadow", terms=Terms(objective="click", rate=0.5))
    followed(scoring)
    before = len(decisions(folder))
    for i in range(60):
        decided(scoring, f"rate-{i}")
    scoring.spool.sync()
    shadowed = sum(bool(one.shadows) for one in decisions(folder)[before:])
    assert 14 < shadowed < 46  # 30, four standard errors: 15.5
    promotions.abort("home", "ann", "a test")
    followed(scoring)
    assert scoring.live.surfaces["home"].shadow is None


@pytest.mark.parametrize("rules", [{}, {"rules": [Rule(cap=1, by="genre")], "diversity": Diversity(mmr=0.5)}])
@pytest.mark.parametrize("name", ["other", "slate-ts"])
def test_a_shadow_is_what_the_candidate_would_draw(tmp_path: Path, name: str, rules: dict[str, Any]) -> None:
    """Its conditionals along its own slate are those of `draw(full=True)`; along the baseline's they are the forced prefix's."""
    scoring = in_memory(tmp_path, surface(policies=POLICIES, **rules))
    Promotions(scoring.state, Configs()).start("home", name, "ann", terms=EVERY)
    followed(scoring)
    home = scoring.live.surfaces["home"]
    assert home.shadow is not None
    assert home.policy is not None
    candidate = home.shadow.served
    body = {"surface": "home", "unit": "ann", "candidates": CANDIDATES}
    query = home.reader.read(read_decision(msgspec.json.encode(body), "$"), scoring.catalogue, (), None)
    for i in range(10):
        scores = candidate.scores(inputs_of(candidate, query))
        own = drawn_from(candidate, query, scores, f"own-{i}", scoring.keys.server, 0.0, full=True)
        assert own.slate.distributions is not None
        np.testing.assert_allclose(propensities(candidate, query, own), own.slate.distributions, atol=1e-12)
        shadow = shadow_of(candidate, query, own)
        np.testing.assert_allclose(shadow.propensities, own.slate.propensities, atol=1e-12)
        assert shadow.overlap == pytest.approx(1.0)
        assert shadow.design == pytest.approx([1.0] * len(own.slate.items))
        served = home.policy
        drawn = drawn_from(
            served, query, served.scores(inputs_of(served, query)), f"d-{i}", scoring.keys.server, 0.0, full=True
        )
        beside = propensities(candidate, query, drawn)
        if not rules:  # the first slot has no prefix: it is the candidate's own
            ready = NOTHING_ACTS.ready(4, 3)
            free = draw(scores, 3, np.zeros(3), candidate.settings, full=True, **ready.arguments)
            assert free.distributions is not None
            np.testing.assert_allclose(beside[0], free.distributions[0], atol=1e-12)
        np.testing.assert_allclose(beside.sum(axis=1), 1.0)
        for t in range(len(drawn.slate.items)):  # given the slots before: a draw of its own would show them again
            assert not beside[t, drawn.slate.items[:t]].any()
        assert 0.0 < shadow_of(candidate, query, drawn).overlap < 1.0


def test_a_candidate_that_fails_costs_no_answer(house: tuple[Scoring, Promotions, Path]) -> None:
    scoring, promotions, _ = house
    promotions.start("home", "other", "ann", terms=EVERY)
    followed(scoring)
    home = scoring.live.surfaces["home"]
    assert home.shadow is not None
    assert home.policy is not None

    def nan(inputs: Any) -> Any:
        return np.full((4, 1), np.nan, np.float32)

    failing = replace(home.shadow, served=replace(home.shadow.served, scores=nan))
    scoring.live = replace(scoring.live, surfaces={"home": replace(home, shadow=failing)})
    assert decided(scoring, "ann")["mode"] == "live"
    scoring.telemetry.flush()
    assert 'outcome="nan_scores"' in scoring.telemetry.text().decode()
    promotions.abort("home", "ann")
    followed(scoring)


def test_a_shortlist_of_other_scores_has_no_shadow(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path, HOME)
    Promotions(scoring.state, Configs()).start("home", "other", "ann", terms=EVERY)
    followed(scoring)
    items = [Item(id=f"i{j}", features={"price": j / 300, "genre": "jazz"}) for j in range(WHOLE + 50)]
    entries = [
        Versioned(i, "item", item.id, encode(item)) for i, item in enumerate(items, scoring.catalogue.version + 1)
    ]
    scoring.catalogue.apply(scoring.catalogue.prepare(entries), 0.0)
    request = {"surface": "home", "unit": "ann"}
    scoring.decide(msgspec.json.encode(request))
    decided(scoring, "ann")  # with candidates of its own
    scoring.spool.sync()
    short, own = decisions(tmp_path)[-2:]
    assert short.shortlist is not None
    assert (short.shadows, len(own.shadows)) == ([], 1)
    scoring.telemetry.flush()
    assert 'outcome="shortlist"' in scoring.telemetry.text().decode()
