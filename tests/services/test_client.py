"""The Python client against a service that fails as networks and services do."""

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from policies.errors import Rejected, Unavailable
from services.client import Decision, Shown, Slatewise, reward

ANSWER = {
    "decision_id": "d-1",
    "key": "9f2c41d07b3e88aa",
    "surface": "home",
    "mode": "live",
    "slate": [{"slot": 0, "id": "b", "propensity": 0.4}, {"slot": 2, "id": "a", "propensity": 0.1}],
    "propensity": 0.04,
    "policy": "home-ts",
    "bundle": "5b1e",
}
DECISION = Decision("d-1", "9f2c41d07b3e88aa", "home", "live", [Shown(0, "b", 0.4)], 0.4, "home-ts", "5b1e")


class Service:
    """Answers from a list, the last one for ever, and remembers what it was asked."""

    def __init__(self, *answers: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers, self.asked = list(answers), list[Any]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(msgspec.json.decode(request.content) if request.content else None)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request)


def ok(body: Any, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, json=body)


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


def client(service: Service, **options: Any) -> Slatewise:
    return Slatewise("http://test", transport=httpx.MockTransport(service), **options)


def test_decision_is_decoded() -> None:
    service = Service(ok({**ANSWER, "later_field": 1}))
    decision = client(service).decide("home", "u", context={"device": "ios"}, candidates=["a", "b"], slots=2)
    assert decision.items == ["b", "a"]
    assert [shown.slot for shown in decision.slate] == [0, 2]
    sent = service.asked[0]
    assert sent["slots"] == 2
    assert sent["candidates"] == ["a", "b"]


def test_a_retry_repeats_the_very_same_request() -> None:
    service = Service(broken, ok({}, 503), ok({}, 429), ok(ANSWER))
    client(service, timeout=30.0).decide("home", "u")
    assert len(service.asked) == 4
    assert service.asked.count(service.asked[0]) == 4
    assert service.asked[0]["decision_id"]


def test_two_decisions_have_two_ids() -> None:
    service = Service(ok(ANSWER))
    slatewise = client(service)
    slatewise.decide("home", "u")
    slatewise.decide("home", "u")
    assert service.asked[0]["decision_id"] != service.asked[1]["decision_id"]


def test_a_refused_request_is_not_repeated_and_says_where() -> None:
    service = Service(ok({"error": {"code": "invalid", "message": "Expected int", "at": "$.slots"}}, 422))
    with pytest.raises(Rejected) as refused:
        client(service).decide("home", "u", slots="x")
    assert (refused.value.status, refused.value.at, refused.value.code) == (422, "$.slots", "invalid")
    assert len(service.asked) == 1


def test_an_error_page_that_is_not_ours_is_still_named() -> None:
    service = Service(lambda request: httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(Rejected, match="nginx"):
        client(service).decide("home", "u")


def test_retries_end() -> None:
    service = Service(broken)
    with pytest.raises(Unavailable, match="connection reset"):
        client(service, retries=2, timeout=30.0).decide("home", "u")
    assert len(service.asked) == 3


def test_the_time_given_bounds_the_retries() -> None:
    service = Service(lambda request: httpx.Response(503, headers={"retry-after": "3600"}))
    with pytest.raises(Unavailable, match="503"):
        client(service, timeout=0.2, retries=50).decide("home", "u")
    assert len(service.asked) == 1  # the service asked for more time than there is


def test_feedback_carries_key_and_an_id_of_its_own() -> None:
    service = Service(broken, ok({"accepted": 1, "rejected": []}, 202))
    slatewise = client(service, timeout=30.0)
    assert slatewise.feedback(DECISION, "click", slot=0).accepted == 1
    first, second = service.asked
    assert first == second
    assert first[0]["key"] == DECISION.key
    slatewise.feedback(DECISION, "click", slot=0)
    assert service.asked[2][0]["feedback_id"] != first[0]["feedback_id"]  # two clicks are two clicks


def test_feedback_of_many_is_sent_in_groups_and_indexes_stay() -> None:
    refused = {"index": 1, "error": {"code": "invalid", "message": "no", "at": "$[1].kind"}}
    service = Service(ok({"accepted": 1_000, "rejected": []}), ok({"accepted": 1, "rejected": [refused]}))
    accepted = client(service).feedback_batch(reward(DECISION, "click", slot=0) for _ in range(1_002))
    assert accepted.accepted == 1_001
    assert [one.index for one in accepted.rejected] == [1_001]
    assert [len(asked) for asked in service.asked] == [1_000, 2]


def test_retract_and_shown() -> None:
    service = Service(ok({"accepted": 1}), ok({"accepted": 1}))
    slatewise = client(service)
    slatewise.retract(DECISION, "f-1")
    slatewise.shown(DECISION, [0, 1])
    assert service.asked[0] == [{"decision_id": "d-1", "retracts": "f-1", "key": DECISION.key}]
    assert service.asked[1] == {"key": DECISION.key, "slots": [0, 1]}


def test_a_batch_answers_in_order_with_errors_in_place() -> None:
    error = {"error": {"code": "unknown_surface", "message": "no", "at": "$.surface"}}
    service = Service(ok({"responses": [ANSWER, error]}))
    first, second = client(service).decide_batch([{"surface": "home", "unit": "u"}, {"surface": "x", "unit": "u"}])
    assert isinstance(first, Decision)
    assert isinstance(second, Rejected)
    assert second.code == "unknown_surface"
    assert all(request["decision_id"] for request in service.asked[0]["requests"])


def test_items() -> None:
    service = Service(ok({"version": 7}))
    slatewise = client(service)
    assert slatewise.put_items([{"id": "a"}]) == 7
    assert slatewise.delete_item("a") == 7
