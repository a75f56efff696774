"""What kind of thing each item is, by attribute, and which conditions hold of it: one table for rules, kept up to date.

The table's last row is for what the catalogue does not know: no kind, no condition holds.
Features that came with a request win over the catalogue's, as they do for policies.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from policies.reranking.expressions import Columns, Values
from policies.types import I64, Value
from services.scoring.wire import Item, Scalar

UNKNOWN, NOWHERE = -1, np.empty(0, np.int64)
FIRST_COLUMNS, MAX_COLUMNS = 8, 1_024  # beyond it, which takes many versions of surfaces, all are made anew
MAX_CALLED = 1_024  # sets of values whose names are remembered
Key = tuple[bool, Scalar]
# feature → what came with the request for each candidate, `ABSENT` where nothing did
Given = Mapping[str, Sequence[Value]]
ABSENT: Any = object()
Told = TypeVar("Told", bool, int)


class Test(Protocol):
    """What can be asked of an item: a condition, or `Is`. Equal ones share a mask."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, values: Values) -> bool: ...

    def each(self, columns: Columns, n: int) -> list[bool]:
        """Of n at once, a column of values a name."""

    def __hash__(self) -> int: ...


class Is(NamedTuple):
    """Whether an attribute is a value, or holds it when it is a list."""

    name: str
    value: Scalar
    sort: type  # True is not 1

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, values: Values) -> bool:
        return self.of(values(self.name))

    def of(self, found: Any) -> bool:
        """… of what the attribute is."""
        among = found if isinstance(found, list) else [found]
        return any(one == self.value and isinstance(one, bool) == (self.sort is bool) for one in among)

    def each(self, columns: Columns, n: int) -> list[bool]:
        return _told(columns(self.name), self.of)


class Called(NamedTuple):
    """Whether an attribute, as the kind that it is, is called so."""

    name: str
    label: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, values: Values) -> bool:
        return self.of(values(self.name))

    def of(self, found: Any) -> bool:
        """… of what the attribute is."""
        key = _key(found)
        return key is not None and _called(key) == self.label

    def each(self, columns: Columns, n: int) -> list[bool]:
        return _told(columns(self.name), self.of)


def attribute(item: Item, name: str) -> Value | list[Scalar]:
    """The attribute, or the feature of that name; None where the item has neither."""
    if name == "available":
        return item.available
    return item.attributes.get(name, item.features.get(name))


class Kinds:
    """A table with a row an item and a column an attribute or condition, each column made when it is first asked for. Belongs
    to the event loop. What a request asks of an item lies side by side.

    table     (rows + 1, A) numbers of values, −1 = none; of a condition 0 where it holds, else −1
    revision  moves when columns have got other places
    """

    def __init__(self, items: Sequence[Item | None], rows: Callable[[], int]) -> None:
        self._items, self._rows = items, rows
        self._columns: dict[str | Test, int] = {}
        self._names: dict[str, dict[Key, int]] = {}  # attribute → value → number
        self._labels: dict[str, list[str]] = {}  # attribute → what its values are called, by number
        self._called: dict[tuple[str, bytes], tuple[str, ...]] = {}  # … of several, as they were asked for
        # the column of texts that was asked for last: itself, what differs in it, and which of those each is
        self._texts: tuple[Sequence[Any], list[Any] | None, I64] = (), None, NOWHERE
        self.table, self.revision = np.empty((rows() + 1, 0), np.int64), 0

    def column(self, asked: str | Test) -> int:
        """Where an attribute or a condition stands in the table."""
        place = self._columns.get(asked)
        if place is None:
            place = self._columns[asked] = len(self._columns)
            rows, columns = self.table.shape
            if place == columns:
                more = np.empty((rows, max(FIRST_COLUMNS, columns)), np.int64)
                self.table = np.concatenate((self.table, more), axis=1)
            column = self.table[:, place]
            column[:] = UNKNOWN
            for row, item in enumerate(self._items):
                if item is not None:
                    column[row] = self._number(asked, item)
        return place

    def code(self, name: str, value: Value | list[Scalar]) -> int:
        """The number of a value, −1 of none."""
        key = _key(value)
        if key is None:
            return UNKNOWN
        values = self._names.setdefault(name, {})
        return values.setdefault(key, len(values))

    def of(self, name: str, rows: I64, given: Given) -> I64:
        """(n,) codes of candidates. Values that no item of the catalogue has are told apart within the request only."""
        codes: I64 = self.table[rows, self.column(name)]
        known = self._names.get(name, {})
        fresh: dict[Key, int] = {}

        def number(value: Value) -> int:
            key = _key(value)
            if key is None:
                return UNKNOWN
            found = known.get(key)
            return fresh.setdefault(key, len(known) + len(fresh)) if found is None else found

        column = given.get(name)
        if column is not None:
            told = self._said(column, number)
            codes = told if ABSENT not in column else np.where([value is ABSENT for value in column], codes, told)
        return codes

    def called(self, name: str, numbers: I64, codes: I64, given: Given) -> tuple[str, ...]:
        """What values are called, by their numbers (G,); codes (n,) are those of all candidates."""
        values, labels = self._names.get(name, {}), self._labels.setdefault(name, [])
        if len(labels) < len(values):
            labels += [_called(key) for key in islice(values, len(labels), None)]
        new = len(numbers) > 0 and numbers[-1] >= len(labels)
        asked = name, numbers.tobytes()
        found = None if new else self._called.get(asked)
        if found is not None:
            return found
        fresh = {
            code: _called(key)
            for code, value in zip(codes.tolist(), given.get(name, ()), strict=False)
            if code >= len(labels) and (key := _key(value)) is not None
        }
        found = tuple(labels[number] if number < len(labels) else fresh[number] for number in numbers.tolist())
        if not new:
            if len(self._called) >= MAX_CALLED:
                self._called.clear()
            self._called[asked] = found
        return found

    def holding(self, condition: Test, rows: I64, given: Given) -> I64:
        """(n,) 0 where a condition holds of a candidate, else −1."""
        if not any(name in given for name in condition.names):
            holds: I64 = self.table[rows, self.column(condition)]
            return holds
        if isinstance(condition, Is | Called):
            return self._said(self._values(condition.name, rows, given), condition.of) - 1
        return np.array(condition.each(lambda name: self._values(name, rows, given), len(rows)), np.int64) - 1

    def _said(self, column: Sequence[Any], verdict: Callable[[Any], int]) -> I64:
        """(n,) what is said of each value. Several rules ask about one column of texts: what differs in it is found once."""
        if self._texts[0] is not column:
            values = {value: place for place, value in enumerate(dict.fromkeys(column))} if _all_text(column) else None
            places = NOWHERE if values is None else np.fromiter(map(values.__getitem__, column), np.int64, len(column))
            self._texts = column, None if values is None else list(values), places
        _, differing, places = self._texts
        if differing is None:
            return np.array(_told(column, verdict), np.int64)
        return np.array([verdict(value) for value in differing], np.int64)[places]

    def _values(self, name: str, rows: I64, given: Given) -> Sequence[Value | list[Scalar]]:
        """Of each candidate: what came with the request, else what the catalogue has."""
        own = given.get(name)
        if own is not None and ABSENT not in own:
            return own
        items = [self._items[row] if row >= 0 else None for row in rows.tolist()]
        stored = [None if item is None else attribute(item, name) for item in items]
        return stored if own is None else [a if b is ABSENT else b for a, b in zip(stored, own, strict=True)]

    def changed(self, row: int, item: Item | None) -> None:
        """An item was put, or went."""
        for asked, place in self._columns.items():
            self.table[row, place] = UNKNOWN if item is None else self._number(asked, item)

    def tidy(self) -> None:
        """Before several columns are asked for: forget all when they have become too many."""
        if len(self._columns) >= MAX_COLUMNS:
            self.clear()

    def clear(self) -> None:
        """Rows have moved: all is made anew when it is asked for."""
        self._columns.clear()
        self.table, self.revision = np.empty((self._rows() + 1, 0), np.int64), self.revision + 1

    def _number(self, asked: str | Test, item: Item) -> int:
        if isinstance(asked, str):
            return self.code(asked, attribute(item, asked))
        return 0 if asked(lambda name: attribute(item, name)) else UNKNOWN


def _all_text(column: Sequence[Any]) -> bool:
    return set(map(type, column)) == {str}


def _told(column: Sequence[Any], verdict: Callable[[Any], Told]) -> list[Told]:
    """What is said of each value, worked out once for each that differs."""
    known: dict[tuple[type, Any], Told] = {}
    found = []
    for value in column:
        if isinstance(value, list):
            found.append(verdict(value))
            continue
        kind = type(value), value  # True is not 1
        told = known.get(kind)
        if told is None:
            told = known[kind] = verdict(value)
        found.append(told)
    return found


def _key(value: Value | list[Scalar]) -> Key | None:
    """A value as a kind: the first of a list, and True is not 1."""
    first = (value[0] if value else None) if isinstance(value, list) else value
    return None if first is None else (isinstance(first, bool), first)


def _called(key: Key) -> str:
    """A value as configuration and counters name it: true, 1.5, jazz."""
    boolean, value = key
    return str(value).lower() if boolean else f"{value:g}" if isinstance(value, float) else str(value)
