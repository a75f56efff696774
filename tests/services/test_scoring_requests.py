"""What a caller may send: a table of malformed requests, each refused by name and path, and nothing written."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scoring_setup import Server, decisions, feedback, installed, serving, spooled, surface

GOOD = {"surface": "home", "unit": "u", "candidates": ["a", "b", "c", "d"]}
LONG = "x" * 257


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(installed(tmp_path_factory.mktemp("requests"), [surface()])) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


def with_(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


MALFORMED: list[tuple[str, Any, int, str, str]] = [
    ("not json", b"nope", 400, "undecodable", "$"),
    ("empty", b"", 400, "undecodable", "$"),
    ("not utf-8", b'{"surface": "\xff"}', 400, "undecodable", "$"),
    ("NaN", b'{"surface": "home", "unit": "u", "context": {"hour": NaN}}', 400, "undecodable", "$"),
    ("Infinity", b'{"surface": "home", "unit": "u", "context": {"hour": -Infinity}}', 400, "undecodable", "$"),
    ("beyond float", b'{"surface": "home", "unit": "u", "context": {"hour": 1e999}}', 422, "invalid", "$.context[...]"),
    ("an array", [], 422, "invalid", "$"),
    ("no surface", {"unit": "u"}, 422, "invalid", "$.surface"),
    ("no unit", {"surface": "home"}, 422, "invalid", "$.unit"),
    ("empty unit", with_(unit=""), 422, "invalid", "$.unit"),
    ("long unit", with_(unit=LONG), 422, "invalid", "$.unit"),
    ("long session", with_(session=LONG), 422, "invalid", "$.session"),
    ("long own id", with_(decision_id="x" * 129), 422, "invalid", "$.decision_id"),
    ("own id like ours", with_(decision_id="0123456789abcdef-1"), 422, "wrong_unit", "$.decision_id"),
    ("unknown surface", with_(surface="nowhere"), 404, "unknown_surface", "$.surface"),
    ("unknown field", with_(colour="red"), 422, "invalid", "$.colour"),
    ("unknown feature", with_(context={"mood": 1}), 422, "unknown_feature", "$.context.mood"),
    ("feature of another type", with_(context={"hour": "noon"}), 422, "invalid", "$.context.hour"),
    ("feature that is an object", with_(context={"hour": {}}), 422, "invalid", "$.context[...]"),
    ("slots as text", with_(slots="3"), 422, "invalid", "$.slots"),
    ("slots a fraction", with_(slots=2.5), 422, "invalid", "$.slots"),
    ("no slots", with_(slots=0), 422, "invalid", "$.slots"),
    ("too many slots", with_(slots=101), 422, "invalid", "$.slots"),
    ("no candidates", with_(candidates=[]), 422, "invalid", "$.candidates"),
    ("an empty catalogue", {"surface": "home", "unit": "u"}, 422, "no_candidates", "$.candidates"),
    ("all excluded", with_(exclude=["a", "b", "c", "d"]), 422, "no_candidates", "$.candidates"),
    ("nothing passes", with_(where={"genre": ["polka"]}), 422, "no_candidates", "$.candidates"),
    ("duplicate", with_(candidates=["a", "b", "a"]), 422, "duplicate_candidate", "$.candidates[2]"),
    ("duplicate object", with_(candidates=["a", {"id": "a"}]), 422, "duplicate_candidate", "$.candidates[1]"),
    ("duplicate column", with_(candidates={"ids": ["a", "a"]}), 422, "duplicate_candidate", "$.candidates.ids[1]"),
    ("empty candidate", with_(candidates=["a", ""]), 422, "invalid", "$.candidates[1]"),
    ("long candidate", with_(candidates=["a", LONG]), 422, "invalid", "$.candidates[1]"),
    ("candidate a number", with_(candidates=["a", 7]), 422, "invalid", "$.candidates[1]"),
    ("candidate without id", with_(candidates=[{"features": {}}]), 422, "invalid", "$.candidates[0].id"),
    ("candidate with more", with_(candidates=[{"id": "a", "score": 1}]), 422, "invalid", "$.candidates[0].score"),
    (
        "item feature unknown",
        with_(candidates=["a", {"id": "b", "features": {"weight": 1}}]),
        422,
        "unknown_feature",
        "$.candidates[1].features.weight",
    ),
    (
        "item feature of another type",
        with_(candidates=[{"id": "b", "features": {"price": True}}]),
        422,
        "invalid",
        "$.candidates[0].features.price",
    ),
    (
        "column too short",
        with_(candidates={"ids": ["a", "b"], "features": {"price": [1]}}),
        422,
        "invalid",
        "$.candidates.features.price",
    ),
    (
        "column of another type",
        with_(candidates={"ids": ["a", "b"], "features": {"price": [1, "dear"]}}),
        422,
        "invalid",
        "$.candidates.features.price[1]",
    ),
    ("exclude a number", with_(exclude=[1]), 422, "invalid", "$.exclude[0]"),
    ("pin of no candidate", with_(pins={"0": "z"}), 422, "unknown_candidate", "$.pins.0"),
    ("pin of an excluded one", with_(pins={"0": "a"}, exclude=["a"]), 422, "unknown_candidate", "$.pins.0"),
    ("pin beyond the slots", with_(pins={"3": "a"}), 422, "unknown_slot", "$.pins.3"),
    ("pin to no slot", with_(pins={"top": "a"}), 422, "invalid", "$.pins"),
    ("pin below 0", with_(pins={"-1": "a"}), 422, "invalid", "$.pins"),
    ("one item, two pins", with_(pins={"0": "a", "1": "a"}), 422, "duplicate_pin", "$.pins.1"),
    ("where an object", with_(where={"genre": {}}), 422, "invalid", "$.where[...]"),
    ("unknown objective", with_(objectives={"fame": 1}), 422, "unknown_objective", "$.objectives.fame"),
    ("no objective counts", with_(objectives={"click": 0}), 422, "invalid", "$.objectives"),
    ("objective too heavy", with_(objectives={"click": 1e9}), 422, "invalid", "$.objectives[...]"),
    ("deadline 0", with_(deadline_ms=0), 422, "invalid", "$.deadline_ms"),
    ("deadline as text", with_(deadline_ms="20"), 422, "invalid", "$.deadline_ms"),
    ("explain a number", with_(explain=1), 422, "invalid", "$.explain"),
    ("null for a flag", with_(defer=None), 422, "invalid", "$.defer"),
]

OURS = "0123456789abcdef-01"
BAD_FEEDBACK: list[tuple[str, Any, str, str]] = [
    ("no decision", {"kind": "click"}, "invalid", "$.decision_id"),
    ("no kind", {"decision_id": OURS}, "invalid", "$.kind"),
    ("unknown kind", {"decision_id": OURS, "kind": "sigh"}, "unknown_kind", "$.kind"),
    ("unknown field", {"decision_id": OURS, "kind": "click", "mood": 1}, "invalid", "$.mood"),
    ("value as text", {"decision_id": OURS, "kind": "click", "value": "1"}, "invalid", "$.value"),
    ("value a flag", {"decision_id": OURS, "kind": "click", "value": True}, "invalid", "$.value"),
    ("value too large", {"decision_id": OURS, "kind": "click", "value": 1e30}, "invalid", "$.value"),
    ("slot below 0", {"decision_id": OURS, "kind": "click", "slot": -1}, "invalid", "$.slot"),
    ("slot and item", {"decision_id": OURS, "kind": "click", "slot": 0, "item": "a"}, "invalid", "$.item"),
    ("year 2100", {"decision_id": OURS, "kind": "click", "at": "2100-01-01T00:00:00Z"}, "bad_time", "$.at"),
    ("year 2100 in seconds", {"decision_id": OURS, "kind": "click", "at": 4102444800}, "bad_time", "$.at"),
    ("last year", {"decision_id": OURS, "kind": "click", "at": time.time() - 3.2e7}, "bad_time", "$.at"),
    ("no offset", {"decision_id": OURS, "kind": "click", "at": "2026-01-01T00:00:00"}, "invalid", "$.at"),
    ("no time", {"decision_id": OURS, "kind": "click", "at": "yesterday"}, "invalid", "$.at"),
    ("year 0", {"decision_id": OURS, "kind": "click", "at": "0001-01-01T00:00:00+23:59"}, "bad_time", "$.at"),
    ("own id without unit", {"decision_id": "mine", "kind": "click"}, "unit_required", "$.unit"),
    ("another unit", {"decision_id": OURS, "kind": "click", "unit": "u"}, "wrong_unit", "$.unit"),
    ("another key", {"decision_id": OURS, "kind": "click", "key": "f" * 16}, "wrong_unit", "$.key"),
    ("no key", {"decision_id": OURS, "kind": "click", "key": "F"}, "invalid", "$.key"),
    ("retraction with a kind", {"decision_id": OURS, "kind": "click", "retracts": "f"}, "invalid", "$.kind"),
    ("long feedback id", {"decision_id": OURS, "kind": "click", "feedback_id": LONG}, "invalid", "$.feedback_id"),
    ("a number", 7, "invalid", "$"),
]

BAD_ITEMS: list[tuple[str, Any, int, str, str]] = [
    ("an object", {"id": "a"}, 422, "invalid", "$"),
    ("no id", [{"features": {}}], 422, "invalid", "$[0].id"),
    ("long id", [{"id": LONG}], 422, "invalid", "$[0].id"),
    ("twice", [{"id": "a"}, {"id": "a"}], 422, "duplicate_item", "$[1].id"),
    (
        "feature of another type",
        [{"id": "a"}, {"id": "b", "features": {"price": "x"}}],
        422,
        "invalid",
        "$[1].features.price",
    ),
    ("unknown field", [{"id": "a", "colour": 1}], 422, "invalid", "$[0].colour"),
    ("no time", [{"id": "a", "expires_at": "soon"}], 422, "invalid", "$[0].expires_at"),
    ("attribute an object", [{"id": "a", "attributes": {"x": {}}}], 422, "invalid", "$[0].attributes[...]"),
]


def refused(response: httpx.Response, status: int, code: str, at: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "at"}
    assert (error["code"], error["at"]) == (code, at), error
    assert error["message"]


def sent(client: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.request(method, path, content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize(("name", "body", "status", "code", "at"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_a_malformed_decision_is_refused_by_name_and_path(
    server: Server, client: httpx.Client, name: str, body: Any, status: int, code: str, at: str
) -> None:
    before = len(spooled(server.data))
    refused(sent(client, "POST", "/v1/decisions", body), status, code, at)
    assert len(spooled(server.data)) == before


def test_a_type_is_named_as_the_contract_has_it(client: httpx.Client) -> None:
    assert sent(client, "POST", "/v1/decisions", with_(slots="3")).json()["error"]["message"] == "Expected int, got str"


@pytest.mark.parametrize(("name", "body", "code", "at"), BAD_FEEDBACK, ids=[row[0] for row in BAD_FEEDBACK])
def test_malformed_feedback_is_refused_alone_and_in_an_array(
    server: Server, client: httpx.Client, name: str, body: Any, code: str, at: str
) -> None:
    before = len(feedback(server.data))
    refused(sent(client, "POST", "/v1/feedback", body), 422, code, at)
    assert len(feedback(server.data)) == before
    good = {"decision_id": OURS, "kind": "click"}
    answer = sent(client, "POST", "/v1/feedback", [good, body])
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 1
    (wrong,) = answer.json()["rejected"]
    assert (wrong["index"], wrong["error"]["code"], wrong["error"]["at"]) == (1, code, at.replace("$", "$[1]", 1))
    assert len(feedback(server.data)) == before + 1


@pytest.mark.parametrize(("name", "body", "status", "code", "at"), BAD_ITEMS, ids=[row[0] for row in BAD_ITEMS])
def test_malformed_items_are_refused_and_none_is_put(
    client: httpx.Client, name: str, body: Any, status: int, code: str, at: str
) -> None:
    refused(sent(client, "PUT", "/v1/items", body), status, code, at)
    assert client.get("/v1/items/a").status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/decisions", "/v1/decisions:batch", "/v1/feedback", f"/v1/decisions/{OURS}/shown"]
)
def test_a_body_of_a_million_items_is_too_large(server: Server, client: httpx.Client, path: str) -> None:
    before = len(spooled(server.data))
    body = json.dumps([f"item-{i}" for i in range(1_000_000)]).encode()
    refused(sent(client, "POST", path, body), 413, "too_large", "$")
    refused(sent(client, "PUT", "/v1/items", body), 413, "too_large", "$")

    def chunked() -> Iterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    with httpx.Client(base_url=server.url, timeout=60) as own:
        try:
            response = own.post(path, content=chunked())
        except httpx.WriteError:
            pass  # refused, and closed, while we were still sending
        else:
            refused(response, 413, "too_large", "$")
    assert len(spooled(server.data)) == before


def test_a_batch_answers_each_request_in_its_place(client: httpx.Client) -> None:
    asked = [GOOD, {"surface": "home"}, with_(surface="nowhere"), 7, GOOD, with_(decision_id="in-a-batch")]
    answers = sent(client, "POST", "/v1/decisions:batch", {"requests": asked}).raise_for_status().json()["responses"]
    assert [answer.get("mode") for answer in answers] == ["live", None, None, None, "live", "live"]
    assert [answers[i]["error"]["at"] for i in (1, 2, 3)] == [
        "$.requests[1].unit",
        "$.requests[2].surface",
        "$.requests[3]",
    ]
    refused(sent(client, "POST", "/v1/decisions:batch", {"requests": [GOOD] * 257}), 422, "invalid", "$.requests")
    refused(sent(client, "POST", "/v1/decisions:batch", {"requests": []}), 422, "invalid", "$.requests")


def test_paths_and_methods_that_do_not_exist(client: httpx.Client) -> None:
    refused(client.get("/v1/nothing"), 404, "unknown_path", "$")
    response = client.get("/v1/decisions")
    refused(response, 405, "wrong_method", "$")
    assert response.headers["allow"] == "POST"
    refused(client.get("/v1/items/unheard"), 404, "unknown_item", "$.id")
    refused(client.delete("/v1/items/unheard"), 404, "unknown_item", "$.id")


def test_what_is_left_out_of_the_table_is_answered(server: Server, client: httpx.Client) -> None:
    before = len(decisions(server.data))
    answer = sent(client, "POST", "/v1/decisions", GOOD).raise_for_status().json()
    assert answer["mode"] == "live"
    assert [slot["slot"] for slot in answer["slate"]] == [0, 1, 2]
    assert decisions(server.data)[before:][0].decision_id == answer["decision_id"]
    assert Path(server.data / "server.key").stat().st_mode & 0o777 == 0o600
