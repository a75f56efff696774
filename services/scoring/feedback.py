"""Feedback as it is accepted over HTTP: form and kind are checked here, slot and surface by the joiner."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from policies.errors import Rejected
from services.scoring.wire import FeedbackRequest, ShownRequest, epoch_seconds, read_one_feedback
from streaming.events import Feedback, content_id, unit_hash

OURS = re.compile(r"^[0-9a-f]{16}-")
SHOWN = "shown"
FUTURE_SECONDS = 60.0  # clocks of callers may be ahead by this much (`semantics.md` 2)
_as_sent = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Terms:
    """What this replica accepts: kinds of any surface, and how far back a time may lie."""

    kinds: frozenset[str]
    correctable_seconds: float
    salt: bytes
    tenant: str = "default"


def read(body: bytes, now: float, terms: Terms, at: str = "$") -> Feedback:
    """One feedback object. Raises Rejected, with the path."""
    request = read_one_feedback(body, at)
    unit = unit_of(request, terms.salt, at)
    _check_kind(request, terms, at)
    if request.slot is not None and request.item is not None:
        raise Rejected("Expected `slot` or `item`, not both", at=f"{at}.item")
    shown = request.kind == SHOWN
    if shown and request.item is not None:
        raise Rejected("Expected a slot: what was shown is told by slot", at=f"{at}.item")
    return Feedback(
        decision_id=request.decision_id,
        unit=unit,
        at=_time(request.at, now, terms, at),
        feedback_id=request.feedback_id or content_id(_as_sent(body)),
        kind=request.kind or "",
        value=request.value,
        slot=None if shown else request.slot,
        slots=[request.slot] if shown and request.slot is not None else None,
        item=request.item,
        retracts=request.retracts,
        revision=request.revision,
        accepted_at=now,
        tenant=terms.tenant,
    )


def shown(decision_id: str, request: ShownRequest, now: float, terms: Terms) -> Feedback:
    """The feedback of reserved kind that `POST …/shown` stands for. Raises Rejected."""
    asked = FeedbackRequest(decision_id=decision_id, unit=request.unit, key=request.key)
    sent: Mapping[str, Any] = {"decision_id": decision_id, "kind": SHOWN, "slots": request.slots}
    return Feedback(
        decision_id=decision_id,
        unit=unit_of(asked, terms.salt, "$"),
        at=_time(request.at, now, terms, "$"),
        feedback_id=content_id(sent),
        kind=SHOWN,
        slots=request.slots,
        accepted_at=now,
        tenant=terms.tenant,
    )


def unit_of(request: FeedbackRequest, salt: bytes, at: str) -> str:
    """The unit's hash: of the decision id when it is ours, else of `key` or `unit`. Raises Rejected."""
    given = unit_hash(request.unit, salt) if request.unit is not None else request.key
    if request.key is not None and request.key != given:
        raise Rejected("Key of another unit", at=f"{at}.key", code="wrong_unit")
    if OURS.match(request.decision_id):
        own = request.decision_id[:16]
        if given is not None and given != own:
            raise Rejected(
                "The decision was made for another unit",
                at=f"{at}.{'unit' if request.unit is not None else 'key'}",
                code="wrong_unit",
            )
        return own
    if given is None:
        raise Rejected(
            "Required with a decision id of the caller's own (or the answer's `key`)",
            at=f"{at}.unit",
            code="unit_required",
        )
    return given


def _check_kind(request: FeedbackRequest, terms: Terms, at: str) -> None:
    if request.retracts is not None:
        if request.kind is not None:
            raise Rejected("A retraction has no kind", at=f"{at}.kind")
        return
    if request.kind is None:
        raise Rejected("Object missing required field kind", at=f"{at}.kind")
    if request.kind not in terms.kinds:
        raise Rejected(
            f"Unknown kind, expected one of: {', '.join(sorted(terms.kinds))}", at=f"{at}.kind", code="unknown_kind"
        )


def _time(given: float | str | None, now: float, terms: Terms, at: str) -> float:
    """Inside what the joiner accepts, seen from here; outside, the log would only carry it to the dead letters."""
    if given is None:
        return now
    when = epoch_seconds(given, f"{at}.at")
    if when > now + FUTURE_SECONDS:
        raise Rejected(f"More than {FUTURE_SECONDS:.0f} s in the future", at=f"{at}.at", code="bad_time")
    if when < now - terms.correctable_seconds:
        raise Rejected(
            f"More than {terms.correctable_seconds:.0f} s ago: no surface corrects that far back",
            at=f"{at}.at",
            code="bad_time",
        )
    return when
