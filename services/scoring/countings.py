"""What was counted of units and of items, as features ask for it: read from what shards derive, never written.

Of a unit its counts lie beside its history and come with it, in one read (`histories`). Counts of items are read by a thread,
of all items that were candidates lately: every `REFRESH_SECONDS`, or less often where that takes more than a `SHARE` of its
time. A decision looks them up in a table that is replaced whole. What a request brings wins; what is not known, because the
store is away or nobody has counted yet, is missing, as any feature can be, and `counted_reads_total` says how often.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from policies.columns import CountedColumn
from policies.counted import SHOWN, counted, kinds_of, value
from policies.features import Encoder
from policies.surface import Counted, Surface
from policies.types import F32, I64, Features, Mask
from services.scoring.inline import Inline
from services.scoring.lately import Lately, Windowed
from services.scoring.wire import Candidate, Columns
from streaming.counted import asked, count_name, counted_lately, read_counts
from streaming.derived import EXPOSURES, counter_name
from streaming.ports import Counters
from streaming.shown import window_seconds

REFRESH_SECONDS, STALE_SECONDS = 1.0, 10.0  # counts of items: read as often, believed as long after they were due
SHARE = 0.05  # of a thread's time
REMIND = 16  # decisions of which one says what its candidates were, though all are counted


class UnitCounts:
    """What a surface version has counted of units. False where that is nothing."""

    def __init__(self, surface: Surface) -> None:
        self._features: list[tuple[str, Counted, list[tuple[str, int]]]] = []
        for name, feature in counted(surface.features.context).items():
            window = window_seconds(feature.window)
            kinds = [(count_name(surface.surface, kind, window), window) for kind in kinds_of(feature)]
            self._features.append((name, feature, kinds))

    def __bool__(self) -> bool:
        return bool(self._features)

    def lacking(self, context: Features) -> bool:
        """Whether a request leaves any of it to be looked up."""
        return any(context.get(name) is None for name, _, _ in self._features)

    def values(self, data: bytes, now: float) -> dict[str, float]:
        """By feature, of a unit's counts at epoch seconds `now`."""
        counts = read_counts(data)
        return {
            name: value(feature, [counted_lately(counts, one, window, now) for one, window in kinds])
            for name, feature, kinds in self._features
        }


class _Known(NamedTuple):
    """Item → row of values (rows + 1, F), encoded; −1, the last row, is that of all others: nothing known."""

    rows: "_Rows"
    values: F32


class _Rows(dict[str, int]):
    def __missing__(self, item: str) -> int:
        return -1


class ItemCounts:
    """What a surface version has counted of items, in the order of their columns. Belongs to the event loop, but for `read`."""

    def __init__(self, tenant: str, surface: Surface, encoder: Encoder, clock: Callable[[], float]) -> None:
        wanted, prefix, self._clock = asked(surface), counter_name(tenant, surface.surface), clock
        assert wanted is not None  # made of surfaces that have something counted
        self.features = features = counted(surface.features.items)
        self.places: I64 = np.array([encoder.item_columns[name].start for name in features], np.int64)
        self._columns = [CountedColumn(name, feature, 0) for name, feature in features.items()]
        self._windowed = {
            (kind, window): Windowed(prefix, EXPOSURES if kind == SHOWN else f"kind/{kind}", window)
            for kind, window in wanted.items
        }
        self._lately, self._asked = Lately(), 0
        self._known = _Known(_Rows(), np.zeros((1, len(features)), np.float32))
        self.until = float("-inf")  # what is known is believed as long

    def same_as(self, other: "ItemCounts") -> bool:
        return self.features == other.features and self.places.tolist() == other.places.tolist()

    @property
    def known(self) -> bool:
        """Whether there is a reading to be believed."""
        return self._clock() < self.until

    def want(self, ids: Sequence[str]) -> None:
        """Candidates to count from the next reading on."""
        self._lately.want(ids)

    def of(self, ids: Sequence[str]) -> F32 | None:
        """(n, F) of candidates; None while nothing is known. The next reading counts those that are new."""
        if not self.known:
            self._lately.want(ids)
            return None
        rows, values = self._known
        places = np.fromiter(map(rows.__getitem__, ids), np.int64, len(ids))
        self._asked += 1
        if self._asked % REMIND == 0 or places.min(initial=0) < 0:  # what is asked for often stays
            self._lately.want(ids)
        return values.take(places, axis=0, mode="wrap")

    def read(self, counters: Counters, now: float) -> None:
        """Read what is wanted, at epoch seconds `now`; in a thread. Raises Unavailable, and nothing has changed."""
        items = self._lately.items
        counts = {measure: one.read(counters, items, now) for measure, one in self._windowed.items()}
        values = np.zeros((len(items) + 1, len(self._columns)), np.float32)
        for column, part in enumerate(self._columns):
            window = window_seconds(part.feature.window)
            of = [counts[kind, window] for kind in kinds_of(part.feature)]
            every = zip(*of, strict=True)
            values[:-1, column] = [part.scaled(value(part.feature, one)) if any(one) else 0.0 for one in every]
        rows = _Rows(zip(items, range(len(items)), strict=True))
        self._known = _Known(rows, values)


@dataclass(frozen=True, slots=True)
class Told:
    """What was counted for one request: of its unit by feature, nothing of one that is not known; and of items."""

    unit: Mapping[str, float]
    items: ItemCounts | None

    def context(self, said: Features) -> Features:
        """Features of the context: what the request says wins."""
        if not self.unit:
            return said
        return {**self.unit, **{name: one for name, one in said.items() if one is not None}}

    def onto(self, items: F32, ids: Sequence[str], given: Mask | None = None) -> None:
        """Write what was counted into encoded items (n, d), but where the request has `given` it (n, F)."""
        found = None if self.items is None else self.items.of(ids)
        if self.items is not None and found is not None:
            places = self.items.places
            items[:, places] = found if given is None else np.where(given, items[:, places], found)


def given_in(candidates: Sequence[str | Candidate] | Columns | Inline, names: Sequence[str]) -> Mask | None:
    """(n, F) what of counted features came with the candidates; None where nothing did."""
    if isinstance(candidates, Columns | Inline):
        columns = candidates.features if isinstance(candidates, Columns) else candidates.given
        if columns.keys().isdisjoint(names):
            return None
        n = len(candidates.ids)
        told = [[one is not None for one in columns[name]] if name in columns else [False] * n for name in names]
        return np.array(told, bool).T
    features = [one.features if isinstance(one, Candidate) else {} for one in candidates]
    found: Mask = np.array([[one.get(name) is not None for name in names] for one in features], bool)
    return found if found.any() else None


class Countings:
    """Of one worker: counts of items, of all its surfaces. `clock`: seconds that never go back."""

    def __init__(
        self,
        opened: Callable[[], Counters],
        tenant: str = "default",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opened, self._tenant, self._clock = opened, tenant, clock
        self._store: Counters | None = None
        self._items: dict[str, tuple[Surface, ItemCounts]] = {}
        self._next = float("-inf")

    def of(self, surface: Surface, encoder: Encoder) -> ItemCounts:
        """Counts of a surface version's items; those of the version before are forgotten, unless they are the same."""
        held = self._items.get(surface.surface)
        if held is None or held[0] is not surface:
            made = ItemCounts(self._tenant, surface, encoder, self._clock)
            if held is not None and held[1].same_as(made):
                made = held[1]
            else:
                self._next = float("-inf")
            held = self._items[surface.surface] = surface, made
        return held[1]

    def refresh(self, now: float, *, at_once: bool = False) -> None:
        """Read counts when it is time, or `at_once`; `now` in epoch seconds. In a thread, one at a time. Raises Unavailable."""
        began = self._clock()
        if not self._items or (began < self._next and not at_once):
            return
        self._next = began + REFRESH_SECONDS
        if self._store is None:
            self._store = self._opened()
        started, found = time.thread_time(), [items for _, items in list(self._items.values())]
        for items in found:
            items.read(self._store, now)
        self._next = began + max(REFRESH_SECONDS, (time.thread_time() - started) / SHARE)
        for items in found:
            items.until = self._next + STALE_SECONDS
