"""The items of a tenant as a replica sees them: rows of encoded features, availability, and filters by attribute.

Belongs to the event loop: a decision is synchronous, so it never sees half a change. Work that takes long (decoding,
encoding) happens in `prepare`, which any thread may call; `apply` only moves rows in.

The last row of every array stands for an item the catalogue does not know: all features missing, allowed. So row −1,
which is what an unknown id gets, needs no case of its own.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from policies.counted import counted
from policies.errors import Rejected
from policies.features import Encoder
from policies.surface import Count, Rate
from policies.types import F32, F64, I64, Features, Mask, item_hashes
from services.scoring.kinds import Kinds
from services.scoring.wire import Item, Scalar, epoch_seconds
from streaming.evidence import ItemHashes
from streaming.ports import Versioned

log = logging.getLogger("slatewise.scoring")
KIND = "item"
FIRST_ROWS = 1_024
MAX_FILTERS = 4_096  # remembered (attribute, value) masks; beyond it all are forgotten
_item_hashes = ItemHashes()
_decode = msgspec.json.Decoder(Item).decode


def _read(value: bytes) -> Item:
    """An item of the record; of what a newer build says of it, what this one knows. Raises msgspec.MsgspecError, TypeError."""
    try:
        return _decode(value)
    except msgspec.ValidationError:
        said = msgspec.json.decode(value, type=dict[str, Any])
        return msgspec.convert({name: said[name] for name in Item.__struct_fields__ if name in said}, Item)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Changes read from the state record, decoded and encoded: `items` None where deleted."""

    version: int
    ids: list[str]
    items: list[Item | None]
    hashes: NDArray[np.uint64]
    encoded: dict[str, F32] = field(default_factory=dict)  # schema → (len(ids), d)


@dataclass(frozen=True, slots=True)
class Encoded:
    """All items of a version of the catalogue under one encoder."""

    version: int
    matrix: F32


class _Rows(dict[str, int]):
    """id → row; −1 for an unknown id without storing it, so that looking up a list stays in C."""

    def __missing__(self, item: str) -> int:
        return -1


class Catalogue:
    """id → row of the arrays. `version` is the state version reached; `hashed` (rows + 1,) are the ids' hashes."""

    def __init__(self) -> None:
        self.version = 0
        self.index: dict[str, int] = _Rows()
        self._items: list[Item | None] = []
        self._free: list[int] = []
        self._encoders: dict[str, Encoder] = {}
        self._matrices: dict[str, F32] = {}
        self._live: Mask = np.zeros(FIRST_ROWS + 1, bool)  # in the catalogue and not expired
        self._available: Mask = np.zeros(FIRST_ROWS + 1, bool)
        self._expires: F64 = np.full(FIRST_ROWS + 1, np.inf)
        self.hashed: NDArray[np.uint64] = np.zeros(FIRST_ROWS + 1, np.uint64)
        self._live[-1] = self._available[-1] = True
        self._all: I64 | None = None  # rows that are allowed, once somebody asks
        self._allow()
        self._next_expiry = math.inf
        self._filters: dict[tuple[str, bool, Scalar], Mask] = {}
        self.kinds = Kinds(self._items, lambda: len(self._live) - 1)

    def __len__(self) -> int:
        return len(self.index)

    def get(self, item: str) -> Item | None:
        row = self.index[item]
        return self._items[row] if row >= 0 else None

    def rows(self, ids: Sequence[str]) -> I64:
        """(n,) row of each id, −1 where it is unknown."""
        return np.fromiter(map(self.index.__getitem__, ids), np.int64, len(ids))

    def hashes(self, ids: Sequence[str], rows: I64) -> NDArray[np.uint64]:
        """(n,) hashes of candidates (`policies.types.item_hashes`)."""
        found = self.hashed[rows]
        for place in np.flatnonzero(rows < 0).tolist():
            found[place] = _item_hashes[ids[place]]
        return found

    def id_of(self, row: int) -> str:
        item = self._items[row]
        assert item is not None  # rows come from `eligible`, which sees living items only
        return item.id

    def matrix(self, schema: str) -> F32:
        """(rows + 1, d) encoded features; the last row is that of unknown items."""
        return self._matrices[schema]

    def encode_for(self, encoder: Encoder) -> Encoded | None:
        """The items as an encoder sees them, for `attach`; None where that is known. Safe in another thread."""
        if encoder.schema in self._encoders:
            return None
        version, items, size = self.version, self._items[:], len(self._live)
        matrix: F32 = np.zeros((size, encoder.item_size), np.float32)
        rows = [row for row, item in enumerate(items) if item is not None]
        if rows:
            matrix[rows] = _encode(encoder, [items[row] for row in rows])
        return Encoded(version, matrix)

    def attach(self, encoder: Encoder, ready: Encoded | None = None) -> None:
        """Keep a matrix for an encoder; items it refuses count as items without features. `ready` saves the time."""
        if encoder.schema in self._encoders:
            return
        if ready is None or ready.version != self.version:
            ready = self.encode_for(encoder)
            assert ready is not None  # the encoder is new here
        self._matrices[encoder.schema] = ready.matrix
        self._encoders[encoder.schema] = encoder

    def detach(self, schemas: Iterable[str]) -> None:
        """Forget all matrices but those of the given schemas."""
        keep = set(schemas)
        for schema in [s for s in self._encoders if s not in keep]:
            del self._encoders[schema], self._matrices[schema]

    def prepare(self, entries: Sequence[Versioned]) -> Prepared:
        """Decode and encode entries of the state record; safe in another thread while decisions run."""
        last: dict[str, Item | None] = {}
        for entry in entries:
            if entry.kind == KIND:
                try:
                    last[entry.key] = None if entry.value is None else _read(entry.value)
                except (msgspec.MsgspecError, TypeError) as error:  # the item stays what it was, and the others come
                    log.error("item_unreadable", extra={"item": entry.key, "error": str(error)})
        items = list(last.values())
        encoded = {schema: _encode(encoder, items) for schema, encoder in list(self._encoders.items())}
        version = max((entry.version for entry in entries), default=self.version)
        return Prepared(version, list(last), items, item_hashes(list(last)), encoded)

    def apply(self, change: Prepared, now: float) -> None:
        """Move prepared changes in. Cheap; call on the event loop."""
        for place, (key, item) in enumerate(zip(change.ids, change.items, strict=True)):
            row = self.index[key]
            if item is None:
                if row >= 0:
                    self._remove(key, row)
                continue
            if row < 0:
                row = self._new_row(key)
            self._items[row], self.hashed[row] = item, change.hashes[place]
            expires = math.inf if item.expires_at is None else epoch_seconds(item.expires_at, "$.expires_at")
            self._expires[row] = expires
            self._live[row], self._available[row] = expires > now, item.available
            self._next_expiry = min(self._next_expiry, expires if expires > now else math.inf)
            for schema, matrix in self._matrices.items():
                rows = change.encoded.get(schema)
                matrix[row] = _encode(self._encoders[schema], [item])[0] if rows is None else rows[place]
            for (name, _, value), mask in self._filters.items():
                mask[row] = _matches(item, name, value)
            self.kinds.changed(row, item)
        self._allow()
        self.version = max(self.version, change.version)

    def expire(self, now: float) -> None:
        """Take items out whose time has come; called often, cheap when there are none."""
        if now < self._next_expiry:
            return
        gone = self._live & (self._expires <= now)
        self._live[gone] = False
        self._allow()
        left = self._expires[self._live]
        self._next_expiry = float(left.min(initial=math.inf))

    def eligible(self, where: dict[str, Scalar | list[Scalar]]) -> I64:
        """Rows of all items that pass a filter, ascending. Unavailable items pass only a filter that asks for them."""
        if where:
            return np.flatnonzero(
                self._passing(where)[:-1]
            )  # unknown items, the last row, are not part of the catalogue
        if self._all is None:
            rows = np.flatnonzero(self.allowed[:-1])
            rows.flags.writeable = False
            self._all = rows
        return self._all

    def passing(self, rows: I64, where: dict[str, Scalar | list[Scalar]]) -> Mask:
        """(n,) which of the rows pass a filter; row −1 passes only an empty one."""
        return self._passing(where)[rows]

    def passes_all(self, where: dict[str, Scalar | list[Scalar]]) -> bool:
        """Whether any rows would pass: nothing is filtered, and nothing known is hidden. The usual case, told at once."""
        return not where and not self._hidden

    def _allow(self) -> None:
        self.allowed: Mask = self._live & self._available
        self._all = None
        self._hidden = len(self.index) + 1 - int(np.count_nonzero(self.allowed))  # the last row is nobody's

    def _passing(self, where: dict[str, Scalar | list[Scalar]]) -> Mask:
        if not where:
            return self.allowed
        mask = self._live if "available" in where else self.allowed
        for name, wanted in where.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            either: Mask = np.zeros(len(mask), bool)
            for value in values:
                either |= self._filter(name, value)
            mask = mask & either
        return mask

    def _filter(self, name: str, value: Scalar) -> Mask:
        key = (name, isinstance(value, bool), value)  # True == 1 in a dict
        mask = self._filters.get(key)
        if mask is None:
            if len(self._filters) >= MAX_FILTERS:
                self._filters.clear()
            mask = np.zeros(len(self._live), bool)
            for row, item in enumerate(self._items):
                if item is not None and _matches(item, name, value):
                    mask[row] = True
            self._filters[key] = mask
        return mask

    def _new_row(self, key: str) -> int:
        if self._free:
            row = self._free.pop()
        else:
            row = len(self._items)
            self._items.append(None)
            if row == len(self._live) - 1:
                self._grow(2 * row)
        self.index[key] = row
        return row

    def _remove(self, key: str, row: int) -> None:
        del self.index[key]
        self._items[row] = None
        self._live[row] = self._available[row] = False
        self._expires[row] = np.inf
        for mask in self._filters.values():
            mask[row] = False
        self.kinds.changed(row, None)
        self._free.append(row)

    def _grow(self, rows: int) -> None:
        self._live = _grown(self._live, rows)
        self._available = _grown(self._available, rows)
        self._expires, self.hashed = _grown(self._expires, rows), _grown(self.hashed, rows)
        self._matrices = {schema: _grown(matrix, rows) for schema, matrix in self._matrices.items()}
        self._filters.clear()
        self.kinds.clear()


def check_items(items: Sequence[Item], encoders: Sequence[Encoder]) -> None:
    """Raise Rejected, with the path, where an item is wrong for a surface that names its features, or given twice."""
    seen: set[str] = set()
    for place, item in enumerate(items):
        at = f"$[{place}]"
        if item.id in seen:
            raise Rejected("Item is given twice", at=f"{at}.id", code="duplicate_item")
        seen.add(item.id)
        if item.expires_at is not None:
            epoch_seconds(item.expires_at, f"{at}.expires_at")
        for encoder in encoders:
            for name in counted(encoder.spec.items).keys() & item.features.keys():
                raise Rejected(
                    "Counted by the service: a request may bring it, the catalogue cannot", at=f"{at}.features.{name}"
                )
            encoder.item(_named(item, encoder), f"{at}.features")


def _encode(encoder: Encoder, items: Sequence[Item | None]) -> F32:
    features = [{} if item is None else _named(item, encoder) for item in items]
    try:
        return encoder.rows(features, "$")
    except Rejected:
        pass  # a feature changed its type since the item was written: find which items
    out: F32 = np.zeros((len(items), encoder.item_size), np.float32)
    for row, values in enumerate(features):
        try:
            out[row] = encoder.item(values)
        except Rejected as error:
            item = items[row]
            log.warning("item_without_features", extra={"item": item.id if item else "", "why": str(error)})
    return out


def _named(item: Item, encoder: Encoder) -> Features:
    """The features of an item that an encoder's surface names, and does not count; other surfaces have their own."""
    known = encoder.spec.items
    return {n: value for n, value in item.features.items() if n in known and not isinstance(known[n], Count | Rate)}


def _matches(item: Item, name: str, value: Scalar) -> bool:
    """Whether an attribute (or the feature of that name) is the value, or holds it when it is a list."""
    if name == "available":
        return item.available is value
    found = item.attributes.get(name, item.features.get(name))
    among = found if isinstance(found, list) else [found]
    return any(one == value and isinstance(one, bool) == isinstance(value, bool) for one in among)


def _grown(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", rows: int):  # type: ignore[no-untyped-def]
    """The array with `rows` rows and its last one, that of unknown items, still last."""
    grown = np.zeros((rows + 1, *array.shape[1:]), array.dtype)
    grown[: len(array) - 1], grown[-1] = array[:-1], array[-1]
    return grown
