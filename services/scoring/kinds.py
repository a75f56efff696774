"""What kind of thing each item is, by attribute, and which conditions hold of it: one table for rules, kept up to date.

The table's last row is for what the catalogue does not know: no kind, no condition holds.
Features that came with a request win over the catalogue's, as they do for policies.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from policies.reranking.expressions import Values
from policies.types import I64, Value
from services.scoring.wire import Item, Scalar

UNKNOWN = -1
FIRST_COLUMNS, MAX_COLUMNS = 8, 256  # beyond it, which takes many versions of surfaces, all are made anew
MAX_CALLED = 1_024  # sets of values whose names are remembered
Key = tuple[bool, Scalar]
Given = Mapping[
    str, Sequence[Value]
]  # feature → what came with the request for each candidate, `ABSENT` where nothing did
ABSENT: Any = object()


class Test(Protocol):
    """What can be asked of an item: a condition, or `Is`. Equal ones share a mask."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, values: Values) -> bool: ...

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
        found = values(self.name)
        among = found if isinstance(found, list) else [found]
        return any(one == self.value and isinstance(one, bool) == (self.sort is bool) for one in among)


class Called(NamedTuple):
    """Whether an attribute, as the kind that it is, is called so."""

    name: str
    label: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, values: Values) -> bool:
        key = _key(values(self.name))
        return key is not None and _called(key) == self.label


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
        self.table, self.revision = np.empty((rows() + 1, 0), np.int64), 0

    def column(self, asked: str | Test) -> int:
        """Where an attribute or a condition stands in the table."""
        place = self._columns.get(asked)
        if place is None:
            if len(self._columns) >= MAX_COLUMNS:
                self.clear()
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
        for place, value in enumerate(given.get(name, ())):
            if value is not ABSENT:
                key = _key(value)
                if key is None:
                    codes[place] = UNKNOWN
                else:
                    found = known.get(key)
                    codes[place] = fresh.setdefault(key, len(known) + len(fresh)) if found is None else found
        return codes

    def called(self, name: str, numbers: I64, codes: I64, given: Given) -> tuple[str, ...]:
        """What values are called, by their numbers (G,); codes (n,) are those of all candidates."""
        asked = name, numbers.tobytes()
        found = None if name in given else self._called.get(asked)
        if found is not None:
            return found
        values, labels = self._names.get(name, {}), self._labels.setdefault(name, [])
        labels += [_called(key) for key in islice(values, len(labels), None)]
        fresh = {
            code: _called(key)
            for code, value in zip(codes.tolist(), given.get(name, ()), strict=False)
            if code >= len(labels) and (key := _key(value)) is not None
        }
        found = tuple(labels[number] if number < len(labels) else fresh[number] for number in numbers.tolist())
        if name not in given:
            if len(self._called) >= MAX_CALLED:
                self._called.clear()
            self._called[asked] = found
        return found

    def holding(self, condition: Test, rows: I64, given: Given) -> I64:
        """(n,) 0 where a condition holds of a candidate, else −1."""
        holds: I64 = self.table[rows, self.column(condition)]
        columns = [(name, given[name]) for name in condition.names if name in given]
        for place, row in enumerate(rows.tolist()) if columns else ():
            own = {name: column[place] for name, column in columns if column[place] is not ABSENT}
            if own:
                item = self._items[row] if row >= 0 else None
                holds[place] = 0 if condition(_with(own, item)) else UNKNOWN
        return holds

    def changed(self, row: int, item: Item | None) -> None:
        """An item was put, or went."""
        for asked, place in self._columns.items():
            self.table[row, place] = UNKNOWN if item is None else self._number(asked, item)

    def clear(self) -> None:
        """Rows have moved: all is made anew when it is asked for."""
        self._columns.clear()
        self.table, self.revision = np.empty((self._rows() + 1, 0), np.int64), self.revision + 1

    def _number(self, asked: str | Test, item: Item) -> int:
        if isinstance(asked, str):
            return self.code(asked, attribute(item, asked))
        return 0 if asked(lambda name: attribute(item, name)) else UNKNOWN


def _with(own: Mapping[str, Value], item: Item | None) -> Values:
    """Values of an item under those that came with the request."""
    if item is None:
        return own.get
    return lambda name: own[name] if name in own else attribute(item, name)


def _key(value: Value | list[Scalar]) -> Key | None:
    """A value as a kind: the first of a list, and True is not 1."""
    first = (value[0] if value else None) if isinstance(value, list) else value
    return None if first is None else (isinstance(first, bool), first)


def _called(key: Key) -> str:
    """A value as configuration and counters name it: true, 1.5, jazz."""
    boolean, value = key
    return str(value).lower() if boolean else f"{value:g}" if isinstance(value, float) else str(value)
