"""Candidates with features, read straight into columns by a type made from one surface: most of the time of such a request
went into a dictionary an item, which was taken apart again.

Only what is usual is read so: rows that bring every feature (null is one) but what is counted, or columns, in a request without an id of the
caller's own, whose claim is of the request as it was sent. Everything else, and whatever is wrong, is left to `wire` and the
encoder, which accept it or name its path; where both read a request, they read the same (`tests/services/test_scoring_inline.py`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from policies.columns import Columns, CountedColumn
from policies.features import Encoder
from policies.types import F32, Value
from services.scoring.wire import MAX_CANDIDATES, DecisionRequest, Id

FEATURES, OWN = b'"features"', b'"decision_id"'
SURFACE = b'"surface"'
_NAMED = re.compile(rb'\s*:\s*"([^"\\]{1,1024})"')  # an id of 256 characters; one that is escaped is read the other way


class Inline(Struct, frozen=True, eq=False):
    """Candidates that came with features; it stands where the request had them.

    listed whether as rows
    given  feature → what came for each candidate, without those that no candidate has
    items  (n, d) encoded; columns of features that did not come are 0
    """

    ids: list[str]
    listed: bool
    given: Mapping[str, Sequence[Value]]
    items: F32


class InlineReader:
    """Reads requests for one surface."""

    def __init__(self, surface: str, encoder: Encoder) -> None:
        self._surface, self._encoder = surface, encoder
        self._names = encoder.item_order
        row = encoder.item_struct(_of_row)
        columns = encoder.item_struct(lambda part: (list[part.kind | None] | UnsetType, UNSET))  # type: ignore[name-defined]  # made at run time
        strict: dict[str, Any] = {"forbid_unknown_fields": True, "gc": False}
        one = msgspec.defstruct("Candidate", [("id", Id), ("features", row)], **strict)
        few = Meta(min_length=1, max_length=MAX_CANDIDATES)
        many = msgspec.defstruct("Columns", [("ids", Annotated[list[Id], few]), ("features", columns)], **strict)
        asked: Any = Annotated[list[one], few] | many  # type: ignore[valid-type]  # made at run time
        request: Any = msgspec.defstruct(
            "Request",
            [("decision_id", None, None), ("candidates", asked)],
            bases=(DecisionRequest,),
            kw_only=True,
            forbid_unknown_fields=True,
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(request).decode

    def read(self, body: bytes) -> DecisionRequest | None:
        """The request with `Inline` candidates; None: it has to be read the other way."""
        try:
            request = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        found = self._inline(request.candidates) if request.surface == self._surface else None
        if found is None:
            return None
        request.candidates = found
        asked: DecisionRequest = request
        return asked

    def _inline(self, candidates: Any) -> Inline | None:
        columns: Sequence[Any]
        if isinstance(candidates, list):
            ids = [one.id for one in candidates]
            rows = [msgspec.structs.astuple(one.features) for one in candidates]
            columns = [None if some[0] is UNSET else some for some in zip(*rows, strict=True)]
        else:
            ids = candidates.ids
            columns = [None if some is UNSET else some for some in msgspec.structs.astuple(candidates.features)]
        given = {name: some for name, some in zip(self._names, columns, strict=True) if some is not None}
        if not given or any(len(some) != len(ids) for some in given.values()):
            return None
        items = self._encoder.filled(len(ids), columns)
        return None if items is None else Inline(ids, isinstance(candidates, list), given, items)


def _of_row(part: Columns) -> tuple[Any, Any]:
    """A row brings all features but those that the service counts."""
    return (UnsetType, UNSET) if isinstance(part, CountedColumn) else (part.kind | None, msgspec.NODEFAULT)


def surface_named(body: bytes) -> str:
    """The surface that a request with features seems to ask, empty where it seems to have none or an id of the caller's own, which
    would be read in vain: to be trusted once it is read."""
    if FEATURES not in body or OWN in body:
        return ""
    found = _NAMED.match(body, body.find(SURFACE) + len(SURFACE))
    return found[1].decode("utf-8", "replace") if found else ""
