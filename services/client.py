"""The Python client: decide, tell what people did, keep the catalogue; retried safely because ids are always its own.

    with Slatewise("http://127.0.0.1:8080") as slatewise:
        decision = slatewise.decide("home", "user-42", candidates=["a", "b", "c"], context={"device": "ios"})
        slatewise.feedback(decision, "click", item=decision.items[0])

A decision id is claimed for an hour, so a retried request gets the first answer; a feedback id makes a repeat harmless.
Raises Rejected when the service refuses the request (the request must change) and Unavailable when the time given was
not enough for an answer (try later, or show what you would show without us).
"""

import os
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct, field

from policies.errors import Rejected, Unavailable
from policies.types import Value

RETRIED = frozenset({429, 502, 503, 504})  # nothing was decided, or the same id gets the same answer
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0
MOST_FEEDBACK = 1_000  # of one request
Candidate = str | Mapping[str, Any]
T = TypeVar("T")


class Shown(Struct, frozen=True):
    """One slot of an answer."""

    slot: int
    id: str
    propensity: float


class Decision(Struct, frozen=True):
    """An answer: what to show, and with which probability it was drawn. `mode` is live, holdout, fallback or cached."""

    decision_id: str
    key: str
    surface: str
    mode: str
    slate: list[Shown]
    propensity: float
    policy: str
    bundle: str | None = None
    reason: str | None = None
    retry_unchecked: bool = False
    logged: bool = True
    experiment: dict[str, str] | None = None
    explain: Any = None

    @property
    def items(self) -> list[str]:
        """Item ids in the order of the slots."""
        return [shown.id for shown in self.slate]


class RefusedFeedback(Struct, frozen=True):
    """A feedback that was refused, by its index in what was sent."""

    index: int
    error: dict[str, Any]


class Accepted(Struct, frozen=True):
    """How many feedback objects were accepted, and which were not."""

    accepted: int
    rejected: list[RefusedFeedback] = field(default_factory=list)


class Batch(Struct, frozen=True):
    """Answers of a batch in order; an error stands where a request was refused."""

    responses: list[dict[str, Any]]


class Slatewise:
    """A connection to the scoring service. Not to be shared between threads that close it; safe to call from several.

    key      an API key with the scopes of what is called; None: `SLATEWISE_API_KEY`, if that is set
    timeout  seconds a call may take in all, its retries included
    retries  further attempts after the first
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        key: str | None = None,
        timeout: float = 2.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout, self._retries = timeout, retries
        key = os.environ.get("SLATEWISE_API_KEY", "") if key is None else key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=timeout, transport=transport, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def decide(
        self,
        surface: str,
        unit: str,
        *,
        context: Mapping[str, Value] | None = None,
        candidates: Sequence[Candidate] | Mapping[str, Any] | None = None,
        decision_id: str | None = None,
        **more: Any,
    ) -> Decision:
        """A slate. `more`: every other field of `POST /v1/decisions` (slots, where, exclude, pins, objectives, …)."""
        request = _request(surface, unit, context, candidates, decision_id, more)
        return self._call("POST", "/v1/decisions", request, Decision)

    def decide_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[Decision | Rejected]:
        """Up to 256 slates in one call, in order; ids are filled in where they are missing."""
        filled = [{"decision_id": uuid.uuid4().hex, **request} for request in requests]
        answers = self._call("POST", "/v1/decisions:batch", {"requests": filled}, Batch).responses
        return [_refusal(answer["error"], 422) if "error" in answer else _decision(answer) for answer in answers]

    def feedback(
        self,
        decision: Decision,
        kind: str,
        value: float = 1.0,
        *,
        slot: int | None = None,
        item: str | None = None,
        at: float | str | None = None,
        feedback_id: str | None = None,
    ) -> Accepted:
        """What a person did with a slot or an item of the slate, or, with neither, with the whole slate."""
        return self.feedback_batch(
            [reward(decision, kind, value, slot=slot, item=item, at=at, feedback_id=feedback_id)]
        )

    def feedback_batch(self, objects: Iterable[Mapping[str, Any]]) -> Accepted:
        """Many at once (see `reward`), in calls of at most 1,000. Ids are filled in where they are missing."""
        filled = [{**sent} if "feedback_id" in sent or "retracts" in sent else _identified(sent) for sent in objects]
        accepted, rejected = 0, []
        for start in range(0, len(filled), MOST_FEEDBACK):
            answer = self._call("POST", "/v1/feedback", filled[start : start + MOST_FEEDBACK], Accepted)
            accepted += answer.accepted
            rejected += [RefusedFeedback(start + refused.index, refused.error) for refused in answer.rejected]
        return Accepted(accepted, rejected)

    def retract(self, decision: Decision, feedback_id: str) -> Accepted:
        """Take a feedback back, also before it arrives."""
        sent = {"decision_id": decision.decision_id, "retracts": feedback_id}
        return self.feedback_batch([_keyed(sent, decision)])

    def shown(self, decision: Decision, slots: Sequence[int] | None = None) -> None:
        """The slate, or only these slots of it, reached a person's eyes: what a deferred decision waits for."""
        body: dict[str, Any] = {"key": decision.key}
        if slots is not None:
            body["slots"] = list(slots)
        self._call("POST", f"/v1/decisions/{decision.decision_id}/shown", body, dict)

    def put_items(self, items: Sequence[Mapping[str, Any]]) -> int:
        """Write catalogue items; the version from which decisions see them."""
        return int(self._call("PUT", "/v1/items", list(items), dict)["version"])

    def delete_item(self, item: str) -> int:
        """Remove a catalogue item; the version from which decisions no longer see it."""
        return int(self._call("DELETE", f"/v1/items/{quote(item, safe='')}", None, dict)["version"])

    def metrics(self) -> str:
        """The Prometheus text of the service."""
        return self._http.get("/metrics").raise_for_status().text

    def _call(self, method: str, path: str, body: Any, answer: type[T]) -> T:
        deadline = time.monotonic() + self._timeout
        content = None if body is None else msgspec.json.encode(body)
        why = ""
        for attempt in range(self._retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            pause = min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)
            try:
                response = self._http.request(
                    method, path, content=content, headers={"content-type": "application/json"}, timeout=left
                )
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if response.status_code < 300:
                    return msgspec.json.decode(response.content, type=answer)
                if response.status_code not in RETRIED:
                    raise _refused(response)
                why = f"HTTP {response.status_code}"
                pause = max(pause, _retry_after(response))
            if attempt == self._retries or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        raise Unavailable(f"{method} {path}: no answer in {self._timeout} s ({why or 'out of time'})")


def reward(
    decision: Decision,
    kind: str,
    value: float = 1.0,
    *,
    slot: int | None = None,
    item: str | None = None,
    at: float | str | None = None,
    feedback_id: str | None = None,
) -> dict[str, Any]:
    """One object for `feedback_batch`."""
    optional = {"slot": slot, "item": item, "at": at, "feedback_id": feedback_id or uuid.uuid4().hex}
    sent = {"decision_id": decision.decision_id, "kind": kind, "value": value}
    return _keyed({**sent, **{name: given for name, given in optional.items() if given is not None}}, decision)


def _keyed(sent: dict[str, Any], decision: Decision) -> dict[str, Any]:
    return {**sent, "key": decision.key}


def _identified(sent: Mapping[str, Any]) -> dict[str, Any]:
    return {**sent, "feedback_id": uuid.uuid4().hex}


def _request(
    surface: str,
    unit: str,
    context: Mapping[str, Value] | None,
    candidates: Sequence[Candidate] | Mapping[str, Any] | None,
    decision_id: str | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    request: dict[str, Any] = {"surface": surface, "unit": unit, "decision_id": decision_id or uuid.uuid4().hex, **more}
    if context is not None:
        request["context"] = context
    if candidates is not None:
        request["candidates"] = candidates
    return request


def _decision(answer: dict[str, Any]) -> Decision:
    return msgspec.convert(answer, Decision)


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("retry-after", 0.0)), LONGEST_PAUSE_SECONDS)
    except ValueError:  # a date, from something between us and the service
        return FIRST_PAUSE_SECONDS


def _refused(response: httpx.Response) -> Rejected:
    try:
        error = msgspec.json.decode(response.content)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):  # not ours: a proxy's page
        error = {"code": "http", "message": response.text[:200], "at": "$"}
    return _refusal(error, response.status_code)


def _refusal(error: Mapping[str, Any], status: int) -> Rejected:
    return Rejected(
        str(error.get("message", "")),
        at=str(error.get("at", "$")),
        code=str(error.get("code", "http")),
        status=int(error.get("status", status)),
    )
