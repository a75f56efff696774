"""Named, typed features to float32 arrays: one encoder serves and learns, and its schema hash says so.

    number    1 column, scaled from [min, max] to [-1, 1]
    category  1 column a value and one for `unseen`, one-hot
    bool      1 column, true +1, false -1
    vector    `size` columns, clipped to [-clip, clip], else as they are
    count     1 column, log(1 + n) as a share of that of `max`; 0 is nothing, or nothing known
    rate      1 column, the distance from the prior's rate, which is 0; see `policies.counted`
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

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from policies.columns import Columns, NumberBlock, NumberColumn, WrongValueError, columns_of
from policies.errors import Rejected
from policies.surface import Feature, FeatureSpec, Vector, content_hash
from policies.types import F32, I64, Features, Value

FORMAT = 1  # raised when the encoding of an unchanged spec changes: part of every schema hash


class _Side:
    """The features of the context, or those of the items.

    Many rows are checked by msgspec against a struct made from the spec, then encoded column by column; whatever that
    refuses is encoded again value by value, which either accepts it or names its path.
    """

    def __init__(self, features: Mapping[str, Feature]) -> None:
        self.parts: dict[str, Columns] = {}
        self.size = 0
        for name in sorted(features):
            self.parts[name] = columns_of(name, features[name], self.size)
            self.size += len(self.parts[name].names)
        self.names = tuple(chain.from_iterable(part.names for part in self.parts.values()))
        self.zeros = [0.0] * self.size
        numbers = {name: part for name, part in self.parts.items() if isinstance(part, NumberColumn)}
        self.numbers = NumberBlock(list(numbers.values()))
        self.order = [*numbers, *(name for name in self.parts if name not in numbers)]
        self.others = [part for part in self.parts.values() if not isinstance(part, NumberColumn)]
        self.rows_type: Any = list[self.struct(lambda part: (part.kind | None, None))]  # type: ignore[misc]  # types made at run time
        self.columns_type = self.struct(lambda part: (list[part.kind | None] | None, None))  # type: ignore[name-defined]

    def struct(self, field_of: Callable[[Columns], tuple[Any, Any]]) -> Any:
        fields = [(f"f{i}", *field_of(self.parts[name])) for i, name in enumerate(self.order)]
        rename = {f"f{i}": name for i, name in enumerate(self.order)}
        return msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True, gc=False, kw_only=True)

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
        except WrongValueError as wrong:
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
                except WrongValueError as wrong:
                    raise Rejected(str(wrong), at=f"{at}.{name}[{i}]") from None
        return np.array(out, np.float32).reshape(n, self.size)


class Encoder:
    """Encodes contexts (c,) and items (n, d) of one feature spec, which configuration has checked.

    schema         16 hex digits: equal exactly when the columns and crosses, and so every encoded value, are
    item_columns   feature → its columns of an item, as a slice;   item_order: features as `item_struct` has them
    cross          (column of the context, column of the item), one pair a cross column: the product is the model's to form
    Cost is linear in the values given. The four calls agree bit for bit.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._context, self._items = _Side(spec.context), _Side(spec.items)
        self.context_names, self.item_names = self._context.names, self._items.names
        self.context_size, self.item_size = self._context.size, self._items.size
        self.item_order = tuple(self._items.order)
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

    def item_struct(self, field_of: Callable[[Columns], tuple[Any, Any]]) -> Any:
        """A struct of `item_order`: its fields are features, `field_of` says of which type, and what stands where there is none."""
        return self._items.struct(field_of)

    def filled(self, n: int, columns: Iterable[Sequence[Any] | None]) -> F32 | None:
        """(n, d) of columns in `item_order`, whose values have the types of `item_struct`; None where one needs a verdict."""
        return self._items.filled(n, columns)

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
