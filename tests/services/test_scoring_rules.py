"""Rules, diversity and exploration segments as callers and the log see them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scoring_setup import decisions, in_memory, surface

from policies import bundle as bundling
from policies.errors import Rejected, Unavailable
from policies.reranking.rules import named
from policies.surface import (
    Diversity,
    Exploration,
    Frequency,
    Logging,
    PolicySpec,
    Quota,
    Rule,
    Seen,
    Segment,
)
from services.scoring.catalogue import Catalogue
from services.scoring.exposures import Exposures
from services.scoring.service import Scoring
from services.scoring.wire import DecisionAnswer, Item, encode
from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles
from streaming.configuration import ConfigInvalid
from streaming.index import id_hash
from streaming.ports import Mark, Versioned
from streaming.replay import recompute
from streaming.shown import ENTRY, shown_key

IDS = [f"i{j}" for j in range(12)]


def scoring_under(folder: Path, *rules: Rule, **more: Any) -> Scoring:
    wired = {name: more.pop(name) for name in ("exposures", "clock") if name in more}
    scoring = in_memory(folder, surface(rules=list(rules), slots=4, logging=Logging(1.0), **more), **wired)
    items = [
        Item(
            id=name,
            features={"price": j, "genre": "jazz" if j % 3 else "rock"},
            attributes={"creator": f"c{j // 4}", "tags": ["new", "live"] if j == 7 else ["old"]},
            available=j != 11,
        )
        for j, name in enumerate(IDS)
    ]
    put(scoring.catalogue, items)
    return scoring


def put(catalogue: Catalogue, items: list[Item]) -> None:
    version = catalogue.version
    entries = [Versioned(version + i, "item", item.id, encode(item)) for i, item in enumerate(items, 1)]
    catalogue.apply(catalogue.prepare(entries), 0.0)


def ask(scoring: Scoring, i: int = 0, **more: Any) -> DecisionAnswer:
    request = {
        "surface": "home",
        "unit": f"u{i}",
        "context": {"device": "ios", "hour": 3},
        "candidates": IDS[:10],
        **more,
    }
    return msgspec.json.decode(scoring.decide(msgspec.json.encode(request)), type=DecisionAnswer)


def shown(answer: DecisionAnswer) -> list[str]:
    return [slot.id for slot in answer.slate]


def creators(answer: DecisionAnswer) -> list[int]:
    return [int(item[1:]) // 4 for item in shown(answer)]


def test_a_surface_without_rules_logs_none(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path)
    answer = ask(scoring, explain=True)
    [record] = decisions(tmp_path)
    assert (record.acted, record.relaxed, record.skipped, answer.rules) == ([], {}, {}, None)
    assert record.sample is not None
    assert record.sample.within is record.sample.masks is record.sample.boosts is None


def test_every_rule_is_kept_in_every_slate_and_logged(tmp_path: Path) -> None:
    scoring = scoring_under(
        tmp_path,
        Rule(exclude=["i0"]),
        Rule(filter="price < 9 and not ('live' in tags)"),
        Rule(pin="i1", slot=2),
        Rule(cap=2, by="creator"),
        Rule(quota=Quota(1, "genre", "rock")),
        Rule(spacing=2, by="creator"),
    )
    for i in range(60):
        answer = ask(scoring, i)
        assert len(answer.slate) == 4
        assert {"i0", "i7", "i9"}.isdisjoint(shown(answer))
        assert answer.slate[2].id == "i1"
        made = creators(answer)
        assert max(map(made.count, made)) <= 2
        assert all(one != other for one, other in pairwise(made))
        assert any(int(item[1:]) % 3 == 0 for item in shown(answer))
    records = decisions(tmp_path)
    assert {name for record in records for name in record.acted} == {
        "exclude",
        "filter",
        "pin:2",
        "cap:creator",
        "quota:genre=rock",
        "spacing:creator",
    }
    assert not any(record.relaxed or record.skipped for record in records)


def test_the_record_recomputes_the_draw(tmp_path: Path) -> None:
    scoring = scoring_under(
        tmp_path,
        Rule(filter="price != 3"),
        Rule(cap=1, by="creator"),
        Rule(quota=Quota(2, "genre", "rock")),
        diversity=Diversity(mmr=0.5, coverage=0.2, by="genre"),
    )
    for i in range(20):
        ask(scoring, i, pins={"1": "i5"} if i % 3 == 0 else {}, diversity={"mmr": 2.0} if i % 2 else {})
    records = decisions(tmp_path)
    for record in records:
        slate = recompute(record, bundling.read(record.bundle, scoring._follower._bundles.get))
        assert record.sample is not None
        assert slate.distributions is not None
        assert slate.distributions.tobytes() == record.sample.distributions
        assert slate.propensities.tolist() == record.propensities
    assert {"mmr", "cap:creator"} <= {name for record in records for name in record.acted}
    assert any(record.relaxed for record in records)  # three creators for four slots


def test_what_cannot_be_kept_yields_from_the_last_and_is_said(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path, Rule(cap=1, by="creator", name="one-each"), Rule(quota=Quota(3, "genre", "rock")))
    answer = ask(scoring, candidates=IDS[:4], explain=True)
    assert answer.rules is not None
    assert answer.rules.relaxed == {"one-each": [1, 2, 3], "quota:genre=rock": [3]}
    assert decisions(tmp_path)[0].relaxed == answer.rules.relaxed
    scoring.tick()
    text = scoring.telemetry.text().decode()
    assert 'slatewise_rule_relaxations_total{rule="one-each",surface="home"} 3.0' in text
    assert 'slatewise_rule_relaxations_total{rule="quota:genre=rock",surface="home"} 1.0' in text


def test_rules_that_never_yield_leave_a_shorter_slate_or_say_why_there_is_none(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path, Rule(available=True), Rule(filter="price >= 8"))
    assert sorted(shown(ask(scoring, candidates=[*IDS, "unknown"]))) == ["i10", "i8", "i9"]
    with pytest.raises(Rejected, match="the surface's rules"):
        ask(scoring, where={"available": False}, candidates=IDS)
    with pytest.raises(Rejected, match="the surface's rules"):
        ask(scoring, candidates=["i1", "i2"])


def test_features_of_the_request_win_over_the_catalogue(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path, Rule(filter="price < 5"), Rule(cap=1, by="genre"))
    candidates = [
        {"id": "i1", "features": {"price": 9}},
        {"id": "new", "features": {"price": 1, "genre": "rock"}},
        {"id": "other", "features": {"price": 9, "genre": "rock"}},
        "i0",
        "i2",
    ]
    for i in range(20):
        answer = ask(scoring, i, candidates=candidates, slots=2, explain=i == 0)
        assert len({"new", "i0"} & set(shown(answer))) == 1
        assert "i2" in shown(answer)
    columns = {"ids": ["i1", "a", "b"], "features": {"price": [9, 1, 2], "genre": ["jazz", "jazz", "jazz"]}}
    answer = ask(scoring, candidates=columns, explain=True)
    assert sorted(shown(answer)) == ["a", "b"]
    assert answer.rules is not None
    assert answer.rules.removed == {"filter": ["i1"]}
    assert answer.rules.relaxed == {"cap:genre": [1]}


def test_a_change_of_the_catalogue_acts_at_once(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path, Rule(filter="'old' in tags"), Rule(cap=1, by="creator"))
    assert len(ask(scoring, candidates=["i0", "i1"], slots=2).slate) == 2
    [*_, record] = decisions(tmp_path)
    assert record.relaxed == {"cap:creator": [1]}
    put(
        scoring.catalogue, [Item(id="i1", attributes={"creator": "new", "tags": ["old"]}), Item(id="i0", attributes={})]
    )
    assert shown(ask(scoring, candidates=["i0", "i1"], slots=2)) == ["i1"]
    put(scoring.catalogue, [Item(id=f"n{j}", attributes={"tags": "old", "creator": "x"}) for j in range(3_000)])
    assert len(ask(scoring, candidates=["n0", "n2999"], slots=2).slate) == 2
    assert decisions(tmp_path)[-1].relaxed == {"cap:creator": [1]}


def test_pins_of_rules_give_way_to_those_of_the_request(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path, Rule(pin="i1", slot=0), Rule(pin="i2", slot=1), Rule(pin="gone", slot=2))
    answer = ask(scoring, pins={"0": "i5", "3": "i2"}, explain=True)
    assert [answer.slate[slot].id for slot in (0, 3)] == ["i5", "i2"]
    assert answer.rules is not None
    assert set(answer.rules.skipped) == {"pin:0", "pin:1", "pin:2"}
    assert [slot.id for slot in ask(scoring).slate][:2] == ["i1", "i2"]


def test_segments_have_an_exploration_cap_of_their_own(tmp_path: Path) -> None:
    exploration = Exploration(0.5, [Segment("device == 'web' and hour > 12", 0.05), Segment("device == 'web'", 0.2)])
    policies = {"spread": PolicySpec("given_order", options={"floor": 0.05, "head": "softmax", "temperature": 9.0})}
    scoring = scoring_under(tmp_path, exploration=exploration, policies=policies, live="spread")
    for context in ({"device": "ios"}, {"device": "web", "hour": 3}, {"device": "web", "hour": 20}):
        ask(scoring, context=context)
    assert [record.max_share for record in decisions(tmp_path)] == [0.5, 0.2, 0.05]
    for record in decisions(tmp_path):
        assert record.sample is not None
        p = np.frombuffer(record.sample.distributions).reshape(4, -1)
        assert (1 - p[np.arange(4), record.greedy] <= record.max_share + 1e-9).all()
        assert record.alphas is not None
    scoring.tick()
    text = scoring.telemetry.text().decode()
    for segment, cap in (("", 0.5), ("device == 'web'", 0.2), ("device == 'web' and hour > 12", 0.05)):
        labels = f'{{segment="{segment}",surface="home"}}'
        assert f"slatewise_exploration_expected_share{labels} {cap}" in text
        assert f"slatewise_exploration_cap_used_ratio{labels} 1.0" in text


def test_what_is_used_of_the_cap_is_what_was_expected_to_stray(tmp_path: Path) -> None:
    """A policy that explores less than it may: the metric and explanations say how much, pins count for nothing."""
    policies = {"still": PolicySpec("given_order", options={"floor": 0.05})}
    scoring = scoring_under(tmp_path, exploration=Exploration(0.5), policies=policies, live="still")
    answer = ask(scoring, explain=True, pins={"1": "i5"})
    said = answer.exploration
    assert said is not None
    assert (said.max_share, said.segment, said.alphas) == (0.5, "", [1.0] * 4)
    [record] = decisions(tmp_path)
    assert record.sample is not None
    p = np.frombuffer(record.sample.distributions).reshape(4, -1)
    expected = 1 - p[np.arange(4), record.greedy]
    assert said.explored == pytest.approx(expected.tolist())
    assert said.explored[1] == 0.0
    assert ask(scoring).exploration is None  # nobody asked
    scoring.tick()
    text = scoring.telemetry.text().decode()
    told = float(text.split('slatewise_exploration_cap_used_ratio{segment="",surface="home"} ')[1].split()[0])
    assert 0.0 < told < 0.15  # some nine tenths of a floor of .05, of .5


def test_explanations_say_what_every_step_did(tmp_path: Path) -> None:
    scoring = scoring_under(
        tmp_path,
        Rule(cap=1, by="creator"),
        exploration=Exploration(0.3),
        diversity=Diversity(coverage=1.0, by="genre"),
    )
    answer = ask(scoring, explain=True)
    assert answer.explain is not None
    [record] = decisions(tmp_path)
    assert record.sample is not None
    drawn = np.frombuffer(record.sample.distributions).reshape(4, -1)
    np.testing.assert_array_equal(np.array([one.probabilities for one in answer.explain]).T, drawn)
    for step in ("model", "rules", "boosts", "diversity", "floor", "cap"):
        assert sum(one.steps[step] for one in answer.explain) == pytest.approx(1.0)
    assert [one.steps["cap"] for one in answer.explain] == pytest.approx(drawn[0].tolist())
    first = creators(answer)[0]
    for place, one in enumerate(answer.explain):
        blocked = one.masked.get("cap:creator", [])
        assert (1 in blocked) == (place // 4 == first and shown(answer)[0] != one.id)
        assert len(one.penalties) == 4
        assert one.penalties[0] == 0.0
    assert any(one.penalties[1] > 0 for one in answer.explain)


def test_weights_of_a_request_are_checked(tmp_path: Path) -> None:
    scoring = scoring_under(tmp_path)
    with pytest.raises(Rejected) as caught:
        ask(scoring, diversity={"coverage": 1.0})
    assert caught.value.at == "$.diversity.coverage"
    with pytest.raises(Rejected) as caught:
        ask(scoring, diversity={"mmr": -1.0})
    assert caught.value.at == "$.diversity[...]"
    assert ask(scoring, diversity={"mmr": 1.0}).mode == "live"


class Told:
    """Stores of what was shown, which can go away."""

    def __init__(self) -> None:
        self.counters, self.profiles = MemoryCounters(), MemoryProfiles()
        self.away, self.mark, self.now = False, 0, 0.0

    def read(self, names: list[str]) -> Any:
        if self.away:
            raise Unavailable("away")
        return self.profiles.read(names) if names[0].endswith("/shown") else self.counters.read(names)

    def write(self, profiles: dict[str, bytes], counters: dict[str, float]) -> None:
        self.mark += 1
        self.profiles.write(0, Mark(1, self.mark), profiles, None)
        self.counters.write(0, Mark(1, self.mark), counters, None)

    def exposures(self) -> Exposures:
        return Exposures(lambda: (self, self), clock=lambda: self.now)  # type: ignore[arg-type,return-value]  # both of them


def test_what_the_unit_was_shown_is_not_shown_again_within_the_window(tmp_path: Path) -> None:
    told = Told()
    rules = (Rule(seen=Seen("1h")), Rule(frequency=Frequency(2, "1d")))
    scoring = scoring_under(tmp_path, *rules, exposures=told.exposures(), clock=lambda: 10_000.0)
    unit = ask(scoring, 1).key
    lately = [(9_999.0, "i0"), (7_000.0, "i1"), (6_000.0, "i2"), (5_000.0, "i2"), (5_000.0, "i3")]
    entries = np.array([(at, id_hash(item), n) for n, (at, item) in enumerate(reversed(lately))], ENTRY)
    told.write({shown_key(unit): entries.tobytes()}, {})
    told.now += 1.0
    for _ in range(20):
        assert {"i0", "i1", "i2"}.isdisjoint(shown(ask(scoring, 1)))
    assert set(shown(ask(scoring, 1, candidates=IDS[:4]))) == set(IDS[:4])  # i3, then i2, then the others
    assert decisions(tmp_path)[-1].relaxed == {"seen": [2, 3], "frequency:unit": [1]}
    assert not decisions(tmp_path)[-1].skipped
    told.away, told.now = True, told.now + 1.0
    assert len(ask(scoring, 1).slate) == 4
    assert set(decisions(tmp_path)[-1].skipped) == {"seen", "frequency:unit"}
    scoring.tick()
    assert 'slatewise_rule_skips_total{rule="seen",surface="home"} 1.0' in scoring.telemetry.text().decode()


def test_items_that_were_shown_often_enough_rest(tmp_path: Path) -> None:
    told = Told()
    rule = Rule(frequency=Frequency(10, 60, "item"))
    scoring = scoring_under(tmp_path, rule, exposures=told.exposures(), clock=lambda: 630.0)
    ask(scoring, 1)
    assert list(decisions(tmp_path)[-1].skipped) == ["frequency:item"]  # nothing was read yet
    often = {"default/home/item/i1/window/60/10/exposures": 5.0, "default/home/item/i1/window/60/9/exposures": 10.0}
    told.write({}, {**often, "default/home/item/i2/window/60/10/exposures": 9.0})
    told.now += 1.0
    scoring.refresh()
    for i in range(20):
        assert "i1" not in shown(ask(scoring, i))
    assert "i2" in shown(ask(scoring, 1, candidates=["i1", "i2"]))
    assert not decisions(tmp_path)[-1].skipped
    told.away, told.now = True, told.now + 20.0
    scoring.refresh()
    ask(scoring, 1)
    assert list(decisions(tmp_path)[-1].skipped) == ["frequency:item"]  # too old to be believed


BY = st.sampled_from(["creator", "genre", "tags", "nothing"])
SOME_RULES = st.lists(
    st.one_of(
        st.builds(lambda item, slot: Rule(pin=item, slot=slot), st.sampled_from(IDS), st.integers(0, 3)),
        st.builds(lambda items: Rule(exclude=items), st.lists(st.sampled_from(IDS), min_size=1, max_size=4)),
        st.just(Rule(available=True)),
        st.builds(
            lambda text: Rule(filter=text),
            st.sampled_from(["price < 6", "genre == 'jazz'", "'old' in tags", "not creator == 'c0'", "nothing == 1"]),
        ),
        st.builds(lambda cap, by: Rule(cap=cap, by=by), st.integers(1, 3), BY),
        st.builds(lambda n, by: Rule(spacing=n, by=by), st.integers(2, 6), BY),
        st.builds(
            lambda n, pair: Rule(quota=Quota(n, *pair)),
            st.integers(1, 4),
            st.sampled_from(
                [("genre", "rock"), ("genre", "jazz"), ("creator", "c1"), ("tags", "new"), ("nothing", 1.0)]
            ),
        ),
        st.just(Rule(seen=Seen("1h"))),
    ),
    max_size=7,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SOME_RULES, st.integers(0, 9))
def test_any_rules_leave_a_valid_slate_or_say_why(tmp_path: Path, rules: list[Rule], seed: int) -> None:
    """Never an item that a rule forbids which never yields, never an error, and what cannot be kept is said to be relaxed."""
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    try:
        scoring = scoring_under(folder, *rules)
    except ConfigInvalid as error:
        if "pinned twice" not in str(error):
            raise
        return
    try:
        answer = ask(scoring, seed, candidates=IDS, explain=True)
    except Rejected as error:
        if error.code != "no_candidates":
            raise
        return
    [record] = decisions(folder)
    assert record.sample is not None
    drawn = np.frombuffer(record.sample.distributions).reshape(len(record.slots), -1)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(len(drawn)))
    assert answer.rules is not None or not rules
    removed = {item for ids in answer.rules.removed.values() for item in ids} if answer.rules else set()
    assert removed.isdisjoint(shown(answer))
    assert removed.isdisjoint(record.candidates)
    assert len(answer.slate) == min(4, len(record.candidates))  # what yields never leaves a slot empty
    for rule in named(rules):
        if rule.name in record.relaxed or rule.name in record.skipped:
            continue
        kinds = {"creator": creators(answer), "genre": [int(item[1:]) % 3 > 0 for item in shown(answer)]}
        if rule.key == "cap" and rule.by in kinds:
            free = [kind for slot, kind in enumerate(kinds[rule.by]) if slot not in record.pinned]
            assert max(map(free.count, free), default=0) <= (rule.rule.cap or 0)
        if rule.rule.quota and rule.by == "genre":
            assert kinds["genre"].count(rule.rule.quota.value == "jazz") >= rule.rule.quota.min
    scoring.close()
