"""What kind of thing each item is, by attribute: codes for rules, and masks for conditions, kept up to date with the catalogue.

Codes and masks have a row an item and one more, last, for what the catalogue does not know: no kind, no condition holds.
Features that came with a request win over the catalogue's, as they do for policies.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from policies.reranking.expressions import Values
from policies.types import I64, Mask, Value
from services.scoring.wire import Item, Scalar

UNKNOWN = -1
MAX_MASKS = 256  # of conditions; beyond it, which takes many versions of surfaces, all are made anew
Key = tuple[bool, Scalar]
Given = Mapping[int, Mapping[str, Value]]  # row of the query → features that came with the request


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


def attribute(item: Item, name: str) -> Value | list[Scalar]:
    """The attribute, or the feature of that name; None where the item has neither."""
    if name == "available":
        return item.available
    return item.attributes.get(name, item.features.get(name))


class Kinds:
    """Codes by attribute and masks by condition, made when they are first asked for. Belongs to the event loop."""

    def __init__(self, items: Sequence[Item | None], rows: Callable[[], int]) -> None:
        self._items, self._rows = items, rows
        self._codes: dict[str, I64] = {}
        self._names: dict[str, dict[Key, int]] = {}  # attribute → value → code
        self._labels: dict[str, list[str]] = {}  # attribute → what its values are called, by code
        self._masks: dict[Test, Mask] = {}

    def codes(self, name: str) -> I64:
        """(rows + 1,) a number a value, the first of a list; −1 where there is none."""
        found = self._codes.get(name)
        if found is None:
            found = self._codes[name] = np.full(self._rows() + 1, UNKNOWN, np.int64)
            for row, item in enumerate(self._items):
                if item is not None:
                    found[row] = self.code(name, attribute(item, name))
        return found

    def code(self, name: str, value: Value | list[Scalar]) -> int:
        """The number of a value, −1 of none."""
        key = _key(value)
        if key is None:
            return UNKNOWN
        values = self._names.setdefault(name, {})
        return values.setdefault(key, len(values))

    def mask(self, condition: Test) -> Mask:
        """(rows + 1,) where a condition holds of an item's attributes and features."""
        found = self._masks.get(condition)
        if found is None:
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            found = self._masks[condition] = np.zeros(self._rows() + 1, bool)
            for row, item in enumerate(self._items):
                if item is not None:
                    found[row] = _holds(condition, item)
        return found

    def of(self, name: str, rows: I64, given: Given) -> I64:
        """(n,) codes of candidates. Values that no item of the catalogue has are told apart within the request only."""
        codes = self.codes(name)[rows]
        known = self._names.get(name, {})
        fresh: dict[Key, int] = {}
        for place, features in given.items():
            if name in features:
                key = _key(features[name])
                if key is None:
                    codes[place] = UNKNOWN
                else:
                    found = known.get(key)
                    codes[place] = fresh.setdefault(key, len(known) + len(fresh)) if found is None else found
        return codes

    def groups(self, name: str, rows: I64, given: Given) -> tuple[I64, list[str]]:
        """(codes (n,) from 0, −1 of none; what the values are called), in the order of the values' numbers."""
        codes = self.of(name, rows, given)
        numbers, places = np.unique(codes, return_inverse=True)
        values, labels = self._names.get(name, {}), self._labels.setdefault(name, [])
        labels += [_called(key) for key in islice(values, len(labels), None)]
        fresh = {
            int(codes[place]): _called(key)
            for place, features in given.items()
            if name in features and (key := _key(features[name])) is not None and codes[place] >= len(labels)
        }
        none = int(len(numbers) > 0 and numbers[0] == UNKNOWN)
        called = [labels[number] if number < len(labels) else fresh[number] for number in numbers[none:].tolist()]
        return places - none, called

    def holding(self, condition: Test, rows: I64, given: Given) -> Mask:
        """(n,) of which candidates a condition holds."""
        mask = self.mask(condition)[rows]
        for place, features in given.items():
            if any(name in features for name in condition.names):
                row = int(rows[place])
                item = self._items[row] if row >= 0 else None
                mask[place] = condition(
                    lambda name, features=features, item=item: (
                        features[name]  # type: ignore[misc]  # bound early
                        if name in features
                        else None
                        if item is None
                        else attribute(item, name)
                    )
                )
        return mask

    def changed(self, row: int, item: Item | None) -> None:
        """An item was put, or went."""
        for name, codes in self._codes.items():
            codes[row] = UNKNOWN if item is None else self.code(name, attribute(item, name))
        for condition, mask in self._masks.items():
            mask[row] = item is not None and _holds(condition, item)

    def clear(self) -> None:
        """Rows have moved: all is made anew when it is asked for."""
        self._codes.clear()
        self._masks.clear()


def _key(value: Value | list[Scalar]) -> Key | None:
    """A value as a kind: the first of a list, and True is not 1."""
    first = (value[0] if value else None) if isinstance(value, list) else value
    return None if first is None else (isinstance(first, bool), first)


def _called(key: Key) -> str:
    """A value as configuration and counters name it: true, 1.5, jazz."""
    boolean, value = key
    return str(value).lower() if boolean else f"{value:g}" if isinstance(value, float) else str(value)


def _holds(condition: Test, item: Item) -> bool:
    return condition(lambda name: attribute(item, name))
