"""Decisions without HTTP: claims, fallbacks, the catalogue, what is logged."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import decisions, in_memory, surface

from policies.errors import Corrupt, Rejected, Unavailable
from policies.features import Encoder
from policies.surface import Logging
from services.scoring import feedback as feedbacks
from services.scoring.catalogue import Catalogue
from services.scoring.service import Scoring
from services.scoring.upkeep import Upkeep
from services.scoring.wire import Item, encode
from streaming.adapters.memory import MemoryClaims
from streaming.events import MAX_RECORD_BYTES, floats, unit_hash
from streaming.ports import Versioned

IDS = ["a", "b", "c", "d", "e"]


def ask(scoring: Scoring, **more: Any) -> dict[str, Any]:
    request = {"surface": "home", "unit": "u", "candidates": IDS, **more}
    answer: dict[str, Any] = json.loads(scoring.decide(encode({k: v for k, v in request.items() if v is not None})))
    return answer


def put(scoring: Scoring, *items: Item) -> None:
    scoring.check_items(items)
    scoring.state.put([("item", item.id, encode(item)) for item in items])
    entries = scoring.state.read(scoring.catalogue.version)
    scoring.catalogue.apply(scoring.catalogue.prepare(entries), scoring.clock())


def ids_of(answer: dict[str, Any]) -> set[str]:
    return {slot["id"] for slot in answer["slate"]}


# -- identity and claims -----------------------------------------------------------------------------------------------


def test_an_id_of_ours_starts_with_the_units_hash_and_is_never_given_twice(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    answers = [ask(scoring) for _ in range(50)]
    assert len({answer["decision_id"] for answer in answers}) == 50
    own = unit_hash("u", scoring.keys.salt())
    assert {answer["decision_id"][:17] for answer in answers} == {f"{own}-"}
    assert {answer["key"] for answer in answers} == {own}
    assert sorted(answer["decision_id"] for answer in answers)[0] == answers[0]["decision_id"]  # ordered by time


def test_the_same_request_under_the_same_id_gets_the_same_answer(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    first = ask(scoring, decision_id="mine", pins={"1": "b"})
    assert first["mode"] == "live"
    again = ask(scoring, decision_id="mine", pins={"1": "b"}, deadline_ms=20, explain=True)
    assert again == {**first, "mode": "cached"}
    records = decisions(tmp_path)
    assert len(records) == 2
    assert records[0] == records[1]  # spooled again, for the case that the first answer died on its way to the spool
    assert records[0].own_id


def test_another_replica_gives_the_same_answer(tmp_path: Path) -> None:
    claims = MemoryClaims()
    one, other = in_memory(tmp_path / "1", claims=claims), in_memory(tmp_path / "2", claims=claims)
    first = ask(one, decision_id="mine")
    assert ask(other, decision_id="mine") == {**first, "mode": "cached"}


@pytest.mark.parametrize("changed", [{"unit": "v"}, {"slots": 2}, {"candidates": IDS[:4]}, {"defer": True}])
def test_another_request_under_the_same_id_is_a_conflict(tmp_path: Path, changed: dict[str, Any]) -> None:
    scoring = in_memory(tmp_path)
    ask(scoring, decision_id="mine")
    with pytest.raises(Rejected) as refused:
        ask(scoring, decision_id="mine", **changed)
    assert (refused.value.status, refused.value.code, refused.value.at) == (409, "conflict", "$.decision_id")
    assert len(decisions(tmp_path)) == 1


def test_without_the_claims_store_an_answer_says_that_a_retry_is_unchecked(tmp_path: Path) -> None:
    class Away(MemoryClaims):
        def claim(self, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
            raise Unavailable("away")

    scoring = in_memory(tmp_path, claims=Away())
    made = scoring.read(encode({"surface": "home", "unit": "u", "candidates": IDS, "decision_id": "mine"}))
    with pytest.raises(Unavailable):
        scoring.claim(made)
    answer = json.loads(scoring.finish_unclaimed(made))
    assert (answer["retry_unchecked"], answer["mode"]) == (True, "live")
    assert len(decisions(tmp_path)) == 1


# -- fallbacks ---------------------------------------------------------------------------------------------------------


def test_too_little_time_is_answered_by_the_fallback_at_once(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    policy = scoring.live.surfaces["home"].policy
    assert policy is not None
    policy.recent.p99 = 0.010
    assert ask(scoring, deadline_ms=1000)["mode"] == "live"
    answer = ask(scoring, deadline_ms=5)
    assert (answer["mode"], answer["reason"], answer["policy"]) == ("fallback", "deadline", "given_order")
    assert decisions(tmp_path)[-1].reason == "deadline"


def test_a_request_that_waited_too_long_gets_the_fallback(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    body = encode({"surface": "home", "unit": "u", "candidates": IDS})
    waited = time.perf_counter() - 2 * scoring.patience.live
    assert json.loads(scoring.decide(body, waited))["reason"] == "overload"


def test_a_policy_that_fails_is_replaced_by_the_fallback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scoring = in_memory(tmp_path)
    surface_now = scoring.live.surfaces["home"]
    assert surface_now.policy is not None

    def fail(inputs: Any) -> Any:
        raise Corrupt("nan_scores")

    broken = dataclasses.replace(surface_now.policy, scores=fail)
    object.__setattr__(surface_now, "policy", broken)
    answer = ask(scoring)
    assert (answer["mode"], answer["reason"]) == ("fallback", "error")
    assert [record.message for record in caplog.records if record.name == "slatewise.scoring"][-1] == "policy_failed"


def test_a_full_spool_is_answered_and_says_that_it_is_not_logged(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path, quota_bytes=6_000)
    answers = [ask(scoring) for _ in range(40)]
    logged = [answer for answer in answers if answer.get("logged", True)]
    lost = answers[len(logged) :]
    assert logged
    assert lost
    assert {answer["mode"] for answer in logged} == {"live"}
    assert {(answer["mode"], answer["reason"], answer["logged"]) for answer in lost} == {
        ("fallback", "spool_full", False)
    }
    assert len(decisions(tmp_path)) == len(logged)
    with pytest.raises(Unavailable):
        scoring.refuse_when_full()


# -- what is logged ----------------------------------------------------------------------------------------------------


def test_a_record_holds_what_learning_needs(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    put(scoring, *(Item(id=item, features={"price": i, "genre": "jazz"}) for i, item in enumerate(IDS)))
    answer = ask(scoring, session="s", defer=True, context={"device": "ios", "hour": 3}, pins={"0": "e"}, slots=4)
    (record,) = decisions(tmp_path)
    encoder = scoring.live.surfaces["home"].reader.encoder
    assert record.decision_id == answer["decision_id"]
    assert record.slate == [slot["id"] for slot in answer["slate"]]
    assert (record.session, record.defer, record.asked, record.pinned, record.own_id) == ("s", True, 4, [0], False)
    assert np.array_equal(floats(record.context), encoder.context({"device": "ios", "hour": 3}))
    shown = floats(record.shown, encoder.item_size)
    for item, row in zip(record.slate, shown, strict=True):
        assert np.array_equal(row, encoder.item({"price": IDS.index(item), "genre": "jazz"}))
    assert record.config == scoring.configs.current("home").hash  # type: ignore[union-attr]  # it is there
    assert record.candidates == IDS
    assert record.catalogue == scoring.catalogue.version
    assert record.matrix is None  # the catalogue's version says it


def test_features_of_the_request_win_and_are_logged(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    put(scoring, Item(id="a", features={"price": 1, "genre": "jazz"}), Item(id="b", features={"price": 2}))
    encoder = scoring.live.surfaces["home"].reader.encoder
    ask(scoring, candidates=["b", {"id": "a", "features": {"price": 9}}, {"id": "new", "features": {"genre": "rock"}}])
    ask(scoring, candidates={"ids": ["b", "a", "new"], "features": {"price": [None, 9, None]}})
    first, second = (floats(record.matrix or b"", encoder.item_size) for record in decisions(tmp_path))
    jazz = {"price": 9, "genre": "jazz"}
    wanted: Sequence[dict[str, Any]] = [{"price": 2}, jazz, {"genre": "rock"}]
    assert np.array_equal(first, np.stack([encoder.item(features) for features in wanted]))
    assert np.array_equal(second, np.stack([encoder.item(features) for features in ({}, jazz, {})]))


def test_a_record_too_large_for_the_log_loses_what_nobody_saw(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path, surface(logging=Logging(1.0)))
    many = [f"{i:0250d}" for i in range(3_000)]
    answer = ask(scoring, candidates=many)
    (record,) = decisions(tmp_path)
    assert record.slate == [slot["id"] for slot in answer["slate"]]
    assert (record.candidates, record.dropped, record.sample) == ([], 3_000 - 3, None)
    assert len(msgspec.json.encode(record)) < MAX_RECORD_BYTES


def test_the_sampled_share_is_decided_by_the_id(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path, surface(logging=Logging(0.3)))
    for _ in range(200):
        ask(scoring)
    share = np.mean([record.sample is not None for record in decisions(tmp_path)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 200)


def test_weights_of_a_request_change_what_is_drawn(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    put(scoring, *(Item(id=item, features={"price": i}) for i, item in enumerate(IDS)))
    ask(scoring, decision_id="1", objectives={"watch": 2.0, "click": -1.0})
    ask(scoring, decision_id="2")
    weighed, plain = decisions(tmp_path)
    assert weighed.weights == {"click": -1.0, "watch": pytest.approx(0.2)}  # times scale, as the graph reads them
    assert plain.weights is None


def test_explain_says_what_stood_behind_each_candidate(tmp_path: Path) -> None:
    explained = ask(in_memory(tmp_path), explain=True, pins={"1": "c"})["explain"]
    assert [one["id"] for one in explained] == IDS
    assert all(one["spread"] > 0 for one in explained)
    assert [one.get("rules", []) for one in explained] == [[], [], ["pinned"], [], []]


def test_fewer_candidates_than_slots_make_a_shorter_slate(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    answer = ask(scoring, candidates=["a", "b"])
    assert ids_of(answer) == {"a", "b"}
    assert answer["slate"][-1]["propensity"] == 1.0
    gap = ask(scoring, candidates=["a", "b"], slots=5, pins={"4": "a"})
    assert [(slot["slot"], slot["id"]) for slot in gap["slate"]] == [(0, "b"), (4, "a")]


# -- catalogue ---------------------------------------------------------------------------------------------------------


def test_without_candidates_the_catalogue_is_asked(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    put(
        scoring,
        Item(id="jazz", attributes={"genre": "jazz"}),
        Item(id="both", attributes={"genre": ["jazz", "rock"], "new": True}),
        Item(id="rock", features={"genre": "rock"}),
        Item(id="gone", attributes={"genre": "jazz"}, available=False),
        Item(id="old", attributes={"genre": "jazz"}, expires_at=scoring.clock() - 1),
    )
    assert ids_of(ask(scoring, candidates=None)) == {"jazz", "both", "rock"}
    assert ids_of(ask(scoring, candidates=None, where={"genre": ["jazz"]})) == {"jazz", "both"}
    assert ids_of(ask(scoring, candidates=None, where={"genre": "rock"})) == {"both", "rock"}  # a feature will do
    assert ids_of(ask(scoring, candidates=None, where={"genre": ["jazz", "rock"], "new": True})) == {"both"}
    assert ids_of(ask(scoring, candidates=None, where={"genre": "jazz", "available": False})) == {"gone"}
    assert ids_of(ask(scoring, candidates=["jazz", "gone", "unheard"])) == {"jazz", "unheard"}
    assert ids_of(ask(scoring, candidates=["jazz", "unheard", "rock"], where={"genre": "jazz"})) == {"jazz"}
    with pytest.raises(Rejected) as refused:
        ask(scoring, candidates=None, where={"new": 1})  # true is not 1
    assert refused.value.code == "no_candidates"


def test_an_item_leaves_when_its_time_comes_and_when_it_is_deleted(tmp_path: Path) -> None:
    now = [1_000.0]
    scoring = in_memory(tmp_path, clock=lambda: now[0])
    put(scoring, Item(id="soon", expires_at=1_010.0), Item(id="late", expires_at=2_000.0), Item(id="stays"))
    assert ids_of(ask(scoring, candidates=None)) == {"soon", "late", "stays"}
    now[0] = 1_010.0
    scoring.tick()
    assert ids_of(ask(scoring, candidates=None)) == {"late", "stays"}
    scoring.state.put([("item", "stays", None)])
    scoring.catalogue.apply(scoring.catalogue.prepare(scoring.state.read(scoring.catalogue.version)), now[0])
    assert ids_of(ask(scoring, candidates=None)) == {"late"}
    assert scoring.catalogue.get("stays") is None


def test_a_catalogue_grows_and_keeps_every_row(tmp_path: Path) -> None:
    encoder = Encoder(surface().features)
    catalogue = Catalogue()
    catalogue.attach(encoder)
    entries = [
        Versioned(
            i + 1,
            "item",
            f"i{i}",
            encode(Item(id=f"i{i}", features={"price": i / 500}, attributes={"odd": bool(i % 2)})),
        )
        for i in range(5_000)
    ]
    for start in range(0, 5_000, 700):
        catalogue.apply(catalogue.prepare(entries[start : start + 700]), 0.0)
        assert len(catalogue.eligible({"odd": True})) == (min(start + 700, 5_000)) // 2
    rows = catalogue.rows(["i0", "nobody", "i4999"])
    matrix = catalogue.matrix(encoder.schema)[rows]
    assert np.array_equal(
        matrix, np.stack([encoder.item({"price": 0}), encoder.item({}), encoder.item({"price": 4_999 / 500})])
    )
    catalogue.apply(
        catalogue.prepare([Versioned(9_000, "item", "i1", None), Versioned(9_001, "item", "x", encode(Item(id="x")))]),
        0.0,
    )
    assert (len(catalogue), catalogue.version) == (5_000, 9_001)
    assert not catalogue.matrix(encoder.schema)[catalogue.rows(["x"])].any()  # nothing of the row's last item is left


def test_items_are_checked_against_every_surface_that_names_their_features(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    scoring.check_items([Item(id="a", features={"price": 1, "colour": "red"})])  # colour is some other surface's
    with pytest.raises(Rejected) as refused:
        scoring.check_items([Item(id="a"), Item(id="b", features={"price": "dear"})])
    assert refused.value.at == "$[1].features.price"


# -- feedback ----------------------------------------------------------------------------------------------------------


def test_feedback_is_keyed_by_the_unit_whichever_way_it_is_named(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    key = unit_hash("u", scoring.keys.salt())
    terms = scoring.terms()

    def read(**sent: Any) -> Any:
        return feedbacks.read(encode({"kind": "click", **sent}), 1e9, terms)

    assert read(decision_id=f"{key}-01").unit == key
    assert read(decision_id="mine", unit="u").unit == key
    assert read(decision_id="mine", key=key).unit == key
    assert read(decision_id=f"{key}-01", at="2001-09-09T01:46:40Z").at == 1e9
    assert read(decision_id=f"{key}-01").accepted_at == 1e9


def test_the_default_feedback_id_is_the_hash_of_what_was_sent(tmp_path: Path) -> None:
    terms = in_memory(tmp_path).terms()
    sent = [
        b'{"decision_id": "0123456789abcdef-1", "kind": "click"}',
        b'{"kind":"click","decision_id":"0123456789abcdef-1"}',
        b'{"decision_id": "0123456789abcdef-1", "kind": "click", "value": 1.0}',
    ]
    first, same, other = (feedbacks.read(body, 1e9, terms).feedback_id for body in sent)
    assert first == same
    assert first != other  # filled in by us is not sent by the caller


def test_shown_names_slots_and_a_retraction_names_a_feedback(tmp_path: Path) -> None:
    terms = in_memory(tmp_path).terms()
    ours = "0123456789abcdef-1"
    shown = feedbacks.read(encode({"decision_id": ours, "kind": "shown", "slot": 2}), 1e9, terms)
    assert (shown.kind, shown.slots, shown.slot) == ("shown", [2], None)
    taken = feedbacks.read(encode({"decision_id": ours, "retracts": "f-1"}), 1e9, terms)
    assert (taken.kind, taken.retracts) == ("", "f-1")


def test_http_closes_its_threads(tmp_path: Path) -> None:
    async def live_and_die() -> int:
        scoring = in_memory(tmp_path)
        http = Upkeep(scoring)
        await http.start()
        version = scoring.state.put([("item", "a", encode(Item(id="a")))])
        await http.follow_state()
        reached = scoring.catalogue.version
        await http.stop()
        assert reached == version
        return reached

    assert asyncio.run(live_and_die()) > 0
