"""Named, typed features to float32 arrays: one encoder serves and learns, and its schema hash says so.

    number    1 column, scaled from [min, max] to [-1, 1]
    category  1 column a value and one for `unseen`, one-hot
    bool      1 column, true +1, false -1
    vector    `size` columns, clipped to [-clip, clip], else as they are
    cross     the products of every column of a context feature with every column of an item feature; models form them

What odd values mean, on both sides and in every call:

    missing   absent or null: all columns of the feature are 0, it says nothing, and so do its crosses
    unseen    a category value that is not listed: the feature's own `unseen` column
    extreme   outside the range: clipped to its end, however far outside
    refused   unknown names, other types (a bool is no number, a number no category), NaN, infinity, a vector of another
              size: `Rejected`, with the path of the first one

Columns are in the order of sorted names and sorted category values, so the order of a document changes nothing. A
column's name carries all that gives it its meaning (a number's range, for one): sums saved under one schema are carried
to another by name.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from policies.errors import Rejected
from policies.surface import Bool, Category, Feature, FeatureSpec, Number, Vector, content_hash
from policies.types import F32, I64, Features, Value

FORMAT = 1  # raised when the encoding of an unchanged spec changes: part of every schema hash


class _WrongValueError(Exception):
    """A value that its feature refuses; the caller knows the path."""


def _expected(what: str, value: object) -> _WrongValueError:
    return _WrongValueError(f"Expected {what}, got {'null' if value is None else type(value).__name__}")


class _Number:
    kind: Any = float

    def __init__(self, name: str, feature: Number, place: int) -> None:
        low, high = float(feature.min), float(feature.max)
        self.names: tuple[str, ...] = (f"{name}:{low!r}..{high!r}",)
        self.place = place
        self.middle, self.half = low / 2 + high / 2, high / 2 - low / 2  # halves first: the span may overflow

    def write(self, row: list[float], value: Value) -> None:
        if type(value) is not float and type(value) is not int:
            if value is None:
                return
            if not isinstance(value, float):  # subclasses of float are welcome, bool is one of int and is not
                raise _expected("number", value)
        try:
            scaled = (value - self.middle) / self.half
        except OverflowError:  # an int beyond every float
            scaled = math.inf if value > 0 else -math.inf
        else:
            if -1.0 <= scaled <= 1.0:
                row[self.place] = scaled
                return
            if not math.isfinite(value):
                raise _WrongValueError(f"Expected a finite number, got {value}")
        row[self.place] = 1.0 if scaled > 0 else -1.0


class _Numbers:
    """All number features of a side at once: packing by `struct` is the fastest way from lists into an array."""

    def __init__(self, parts: Sequence[_Number]) -> None:
        self.places = [part.place for part in parts]
        self.fillers = [part.middle for part in parts]  # what stands for a missing value scales to exactly 0
        self.middle = np.array(self.fillers)[:, None]
        self.half = np.array([part.half for part in parts])[:, None]

    def fill(self, out: F32, columns: Sequence[Sequence[Any] | None]) -> bool:
        n = len(out)
        pack = struct.Struct(f"{n}d").pack
        packed = []
        for filler, column in zip(self.fillers, columns, strict=True):
            try:
                packed.append(pack(*(column or [filler] * n)))
            except struct.error:  # a null among the numbers
                packed.append(pack(*[filler if value is None else value for value in column or []]))
        raw = np.frombuffer(b"".join(packed)).reshape(-1, n)
        if not np.isfinite(raw).all():
            return False
        with np.errstate(over="ignore"):  # far outside the range: clipped in the same breath
            out[:, self.places] = ((raw - self.middle) / self.half).clip(-1.0, 1.0).T
        return True


class _Category:
    kind: Any = str

    def __init__(self, name: str, feature: Category, place: int) -> None:
        values = sorted(feature.values)
        self.names: tuple[str, ...] = (*(f"{name}={value}" for value in values), f"{name}!unseen")
        self.place = place
        self.codes: dict[Value, int] = {value: i for i, value in enumerate(values)}
        self.unseen = len(values)
        self.eye: F32 = np.vstack([np.eye(len(self.names)), np.zeros(len(self.names))]).astype(np.float32)

    def write(self, row: list[float], value: Value) -> None:
        if isinstance(value, str):
            row[self.place + self.codes.get(value, self.unseen)] = 1.0
        elif value is not None:
            raise _expected("text", value)

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        code, unseen, missing = self.codes.get, self.unseen, len(self.names)
        codes = [missing if value is None else code(value, unseen) for value in values]
        out[:, self.place : self.place + missing] = self.eye[codes]
        return True


class _Bool:
    kind: Any = bool

    def __init__(self, name: str, place: int) -> None:
        self.names: tuple[str, ...] = (name,)
        self.place = place

    def write(self, row: list[float], value: Value) -> None:
        if isinstance(value, bool):
            row[self.place] = 1.0 if value else -1.0
        elif value is not None:
            raise _expected("true or false", value)

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        out[:, self.place] = [0.0 if value is None else 1.0 if value else -1.0 for value in values]
        return True


class _Vector:
    kind: Any = list[float]

    def __init__(self, name: str, feature: Vector, place: int) -> None:
        self.size, self.clip = feature.size, float(feature.clip)
        self.names = tuple(f"{name}[{i}]" for i in range(feature.size))
        self.place = place

    def write(self, row: list[float], value: Value) -> None:
        if value is None:
            return
        if not isinstance(value, list):
            raise _expected(f"{self.size} numbers", value)
        if len(value) != self.size:
            raise _WrongValueError(f"Expected {self.size} numbers, got {len(value)}")
        clip = self.clip
        for i, number in enumerate(value, self.place):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise _expected("numbers only", number)
            if -clip <= number <= clip:
                row[i] = number
            elif isinstance(number, float) and not math.isfinite(number):
                raise _WrongValueError(f"Expected finite numbers, got {number}")
            else:
                row[i] = clip if number > 0 else -clip

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        silent = [0.0] * self.size
        flat = [silent if value is None else value for value in values]
        if any(len(value) != self.size for value in flat):
            return False
        raw = np.frombuffer(struct.pack(f"{len(flat) * self.size}d", *chain.from_iterable(flat)))
        if not np.isfinite(raw).all():
            return False
        out[:, self.place : self.place + self.size] = raw.clip(-self.clip, self.clip).reshape(-1, self.size)
        return True


_Columns = _Number | _Category | _Bool | _Vector  # one feature's columns; `place` is the first


def _columns(name: str, feature: Feature, place: int) -> _Columns:
    match feature:
        case Number():
            return _Number(name, feature, place)
        case Category():
            return _Category(name, feature, place)
        case Bool():
            return _Bool(name, place)
        case Vector():
            return _Vector(name, feature, place)


class _Side:
    """The features of the context, or those of the items.

    Many rows are checked by msgspec against a struct made from the spec, then encoded column by column; whatever that
    refuses is encoded again value by value, which either accepts it or names its path.
    """

    def __init__(self, features: Mapping[str, Feature]) -> None:
        self.parts: dict[str, _Columns] = {}
        self.size = 0
        for name in sorted(features):
            self.parts[name] = _columns(name, features[name], self.size)
            self.size += len(self.parts[name].names)
        self.names = tuple(chain.from_iterable(part.names for part in self.parts.values()))
        self.zeros = [0.0] * self.size
        numbers = {name: part for name, part in self.parts.items() if isinstance(part, _Number)}
        self.numbers = _Numbers(list(numbers.values()))
        self.order = [*numbers, *(name for name in self.parts if name not in numbers)]
        self.others = [part for part in self.parts.values() if not isinstance(part, _Number)]
        self.rows_type: Any = list[self.struct(lambda kind: kind)]  # type: ignore[misc]  # types made at run time
        self.columns_type = self.struct(lambda kind: list[kind | None])  # type: ignore[valid-type]

    def struct(self, kind_of: Callable[[Any], Any]) -> Any:
        fields = [(f"f{i}", kind_of(self.parts[name].kind) | None, None) for i, name in enumerate(self.order)]
        rename = {f"f{i}": name for i, name in enumerate(self.order)}
        return msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True, gc=False)

    def unknown(self, name: str, at: str) -> Rejected:
        known = ", ".join(self.parts) or "none"
        shown = known if len(known) <= 200 else f"{known[:200]}…"
        return Rejected(f"Unknown feature, expected one of: {shown}", at=f"{at}.{name[:64]}", code="unknown_feature")

    def one(self, values: Features, at: str) -> F32:
        row = self.zeros.copy()
        parts = self.parts
        name = ""
        try:
            for name, value in values.items():
                parts[name].write(row, value)
        except KeyError:
            raise self.unknown(name, at) from None
        except _WrongValueError as wrong:
            raise Rejected(str(wrong), at=f"{at}.{name}") from None
        return np.array(row, np.float32)

    def rows(self, rows: Sequence[Features], at: str) -> F32:
        if not rows:
            return np.zeros((0, self.size), np.float32)
        try:
            columns = zip(*map(msgspec.structs.astuple, msgspec.convert(rows, self.rows_type)), strict=True)
            out = self.filled(len(rows), columns)
        except (msgspec.ValidationError, OverflowError):
            out = None
        if out is None:
            return np.stack([self.one(row, f"{at}[{i}].features") for i, row in enumerate(rows)])
        return out

    def columns(self, columns: Mapping[str, Sequence[Value]], n: int, at: str) -> F32:
        for name, values in columns.items():
            if len(values) != n:
                raise Rejected(f"Expected {n} values, one an item, got {len(values)}", at=f"{at}.{name[:64]}")
        try:
            out = self.filled(n, msgspec.structs.astuple(msgspec.convert(columns, self.columns_type)))
        except (msgspec.ValidationError, OverflowError):
            out = None
        return self.slow_columns(columns, n, at) if out is None else out

    def filled(self, n: int, columns: Iterable[Sequence[Any] | None]) -> F32 | None:
        """Columns in `order`, None for those without any value, into (n, size); None where a value needs a verdict."""
        out = np.zeros((n, self.size), np.float32)
        given = list(columns)
        if n == 0 or not given:
            return out
        split = len(self.order) - len(self.others)
        if split and not self.numbers.fill(out, given[:split]):
            return None
        for part, values in zip(self.others, given[split:], strict=True):
            if values is not None and not part.fill(out, values):
                return None
        return out

    def slow_columns(self, columns: Mapping[str, Sequence[Value]], n: int, at: str) -> F32:
        out = [self.zeros.copy() for _ in range(n)]
        for name, values in columns.items():
            if name not in self.parts:
                raise self.unknown(name, at)
            for i, value in enumerate(values):
                try:
                    self.parts[name].write(out[i], value)
                except _WrongValueError as wrong:
                    raise Rejected(str(wrong), at=f"{at}.{name}[{i}]") from None
        return np.array(out, np.float32).reshape(n, self.size)


class Encoder:
    """Encodes contexts (c,) and items (n, d) of one feature spec, which configuration has checked.

    schema         16 hex digits: equal exactly when the columns and crosses, and so every encoded value, are
    item_columns   feature → its columns of an item, as a slice
    cross          (column of the context, column of the item), one pair a cross column: the product is the model's to form
    Cost is linear in the values given. The four calls agree bit for bit.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._context, self._items = _Side(spec.context), _Side(spec.items)
        self.context_names, self.item_names = self._context.names, self._items.names
        self.context_size, self.item_size = self._context.size, self._items.size
        self.item_columns = {n: slice(p.place, p.place + len(p.names)) for n, p in self._items.parts.items()}
        pairs = [
            (left.place + i, right.place + j)
            for one, other in sorted(spec.cross)
            for left, right in [(self._context.parts[one], self._items.parts[other])]
            for i in range(len(left.names))
            for j in range(len(right.names))
        ]
        table = np.array(pairs, np.int64).reshape(-1, 2)
        self.cross: tuple[I64, I64] = (table[:, 0].copy(), table[:, 1].copy())
        self.cross_names = tuple(f"{self.context_names[i]}×{self.item_names[j]}" for i, j in pairs)
        clips = [
            [[name, f.clip] for name, f in sorted(side.items()) if isinstance(f, Vector)] for side in self._specs()
        ]
        self.schema = content_hash([FORMAT, self.context_names, self.item_names, clips, self.cross_names])

    def _specs(self) -> tuple[dict[str, Feature], dict[str, Feature]]:
        return self.spec.context, self.spec.items

    def __reduce__(self) -> tuple[type["Encoder"], tuple[FeatureSpec]]:
        return Encoder, (self.spec,)  # rebuilt, not copied: another process needs the spec alone

    def context(self, values: Features, at: str = "$.context") -> F32:
        """(c,). Raises Rejected."""
        return self._context.one(values, at)

    def item(self, values: Features, at: str = "$.features") -> F32:
        """(d,). Raises Rejected."""
        return self._items.one(values, at)

    def rows(self, rows: Sequence[Features], at: str) -> F32:
        """(n, d), one row an item. Raises Rejected at `{at}[i].features.name`."""
        return self._items.rows(rows, at)

    def columns(self, columns: Mapping[str, Sequence[Value]], n: int, at: str) -> F32:
        """(n, d) from one list of n values a feature; an absent feature is missing everywhere. Raises Rejected at `{at}.name[i]`."""
        return self._items.columns(columns, n, at)


def crossed(encoder: Encoder, context: F32, items: F32) -> F32:
    """Cross columns (N, x) of contexts (N, c) or one (c,) with items (N, d): the reference every graph must equal."""
    left, right = encoder.cross
    return context[..., left] * items[:, right]
