"""What is wrong with a record, and what a decision remembers of what it heard: the joiner's verdicts that need nothing of its state."""

from itertools import pairwise

import msgspec
import numpy as np

from streaming.events import Feedback, content_id
from streaming.joined import SHOWN, Drawn, Early, Join, Terms, Version, positions_of
from streaming.ports import Record

HEARD_EACH = 1_000  # feedback ids a decision remembers, and versions of each
LARGEST = 1e6  # encoded features are scaled or clipped far below; what is above would drown every other example

Placed = Record | Early  # a record, now or when its decision comes


def mistake(drawn: Drawn, terms: Terms, *, sound: bool) -> tuple[str, str] | None:
    """(reason, detail) of what makes a decision useless. `sound`: its vectors are known to be (`are_sound`)."""
    slots, propensities, context, shown = drawn.slots, drawn.propensities, drawn.context, drawn.shown
    k = len(drawn.slate)
    if len(slots) != k or len(propensities) != k:
        return "bad_decision", "slate, slots and propensities differ in length"
    if slots != terms.natural.get(k) and not _rising(slots, terms.slots):
        return "bad_slot", f"slots {list(slots)[:20]} of {terms.slots}"
    if k and not (min(propensities) > 0.0 and max(propensities) <= 1.0 + 1e-9):
        return "bad_decision", "propensities outside (0, 1]"
    if not 0.0 < drawn.weight <= 1.0:
        return "bad_decision", f"weight {drawn.weight}"
    if len(context) != terms.context_bytes or len(shown) != k * terms.item_bytes:
        found = f"{len(context)}, {len(shown)} bytes"
        return "bad_vector", f"{found}, expected {terms.context_bytes}, {k * terms.item_bytes}"
    if not sound and not (are_sound(context) and are_sound(shown)):
        return "bad_vector", f"a number is not finite or larger than {LARGEST:g}"
    return None


def take_back(join: Join, name: str) -> tuple[str, str, str]:
    """(outcome, reason, detail): a retraction wins over all, and is remembered when it comes first."""
    if join.heard.get(name) == ():
        return "duplicate", "", ""
    if name not in join.heard and len(join.heard) >= HEARD_EACH:
        return "", "too_many", f"more than {HEARD_EACH} feedback ids"
    join.heard[name] = ()
    return "retracted", "", ""


def remember(record: Placed, join: Join, drawn: Drawn, terms: Terms, feedback: Feedback) -> tuple[str, str, str]:
    """(outcome, reason, detail) of adding a version to what a decision heard."""
    kind = feedback.kind
    if kind not in terms.kinds:
        return "", "unknown_kind", kind
    positions = positions_of(drawn, feedback)
    if positions is None:
        return "", "bad_slot", f"slot {feedback.slot}, item {feedback.item}, slots {feedback.slots}"
    version = Version(feedback.at, feedback.revision, kind, feedback.value, positions)
    name = feedback.feedback_id or content_id(msgspec.Raw(record.value))
    versions = join.heard.get(name)
    if versions is None:
        if len(join.heard) >= HEARD_EACH:
            return "", "too_many", f"more than {HEARD_EACH} feedback ids"
        join.heard[name] = (version,)
        if kind == SHOWN:
            return "shown", "", ""
        return ("joined" if feedback.at <= drawn.at + terms.horizon else "after_horizon"), "", ""
    if not versions or version in versions:  # taken back before it came, or told before
        return "duplicate", "", ""
    if len(versions) >= HEARD_EACH:
        return "", "too_many", f"more than {HEARD_EACH} versions of {name}"
    join.heard[name] = (*versions, version)
    return "corrected", "", ""


def _rising(slots: tuple[int, ...], most: int) -> bool:
    return not slots or (slots[0] >= 0 and slots[-1] < most and all(a < b for a, b in pairwise(slots)))


def are_sound(vectors: bytes) -> bool:
    """Whether every float32 in there is finite and of a size that features have."""
    if len(vectors) % 4:
        return False
    numbers = np.frombuffer(vectors, "<f4")
    return not len(numbers) or bool(np.abs(numbers).max() <= LARGEST)  # false for NaN too
