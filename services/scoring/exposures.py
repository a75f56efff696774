"""What was shown before, as rules ask for it: to one unit, or to everybody. Read from what shards derive, never written.

Of a unit it is one read on the request's path, and mostly none: an answer is kept for `FRESH_SECONDS`. Counts of items are
read by a thread every `REFRESH_SECONDS`, of all items that were candidates lately. A store that is away or slow is left
alone by a breaker, and its rules are skipped and said. What was drawn since a shard last told is not known yet, so caps may be
exceeded by the requests of that moment (`semantics.md` 20).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np
from msgspec import Struct

from policies.errors import Unavailable
from policies.reranking.rules import Named
from policies.reranking.rules_fast import U64
from policies.surface import Exposure
from policies.types import F64
from services.scoring.balances import Balance, Balances
from services.scoring.lately import Lately, Windowed
from streaming.breaker import Admission, Breaker
from streaming.derived import EXPOSURES, counter_name
from streaming.ports import Counters, Profiles
from streaming.shown import ENTRY, shown_key, window_seconds

FRESH_SECONDS = 0.25  # shards tell what is new every 0.1 s
REFRESH_SECONDS, STALE_SECONDS = 1.0, 10.0  # counts of items: read as often, believed as long
MOST_UNITS = 20_000  # remembered
SLOW_SECONDS, COOL_SECONDS = 0.25, 1.0
NEVER = np.empty(0), np.empty(0, np.uint64)  # shown to nobody
Resting = Callable[[Sequence[str], int], frozenset[str] | None]
Looks = tuple[F64, U64]  # (at, item hash) of what a unit was shown, (s,) each


class Shown(Struct, frozen=True, eq=False):
    """Of one request at `now`, epoch seconds.

    unit     what the unit was shown; None: not known now
    items    rule → what tells of candidates which items were shown so often within its window; None: not known now
    balance  groups → their boosts and targets, or None when they are not known now; None of a surface without
    """

    now: float
    unit: Looks | None
    items: Mapping[str, Resting]
    balance: Callable[[Sequence[str]], Balance | None] | None = None

    def resting(self, rule: Named, ids: Sequence[str]) -> frozenset[str] | None:
        """Items that reached the cap of a rule that counts everybody's impressions; None: that cannot be told now."""
        resting, frequency = self.items.get(rule.name), rule.rule.frequency
        return resting(ids, frequency.cap) if resting and frequency else None


class _Items:
    """Items that one rule of one surface counts, and their impressions as of the last reading.

    resting  cap → items that reached it
    """

    def __init__(self, prefix: str, window: int, clock: Callable[[], float]) -> None:
        self._clock, self._lately = clock, Lately()
        self._windowed = Windowed(prefix, EXPOSURES, window)
        self._counts: Mapping[str, float] = {}
        self._resting: dict[int, frozenset[str]] = {}
        self._read_at = float("-inf")

    def want(self, ids: Sequence[str]) -> None:
        """Candidates to count from the next reading on; those of long ago make room."""
        self._lately.want(ids)

    def resting(self, ids: Sequence[str], cap: int) -> frozenset[str] | None:
        """Items that reached the cap; None while that is not known. The next reading counts the candidates `ids` too."""
        self.want(ids)
        if self._clock() - self._read_at >= STALE_SECONDS:
            return None
        found = self._resting.get(cap)
        return self._over(cap) if found is None else found

    def read(self, counters: Counters, now: float, clock: float) -> None:
        """Read what is wanted, at epoch seconds `now`; in a thread. Raises Unavailable, and nothing has changed."""
        items = self._lately.items
        found = zip(items, self._windowed.read(counters, items, now), strict=True)
        self._counts = {item: count for item, count in found if count}
        self._resting = {cap: self._over(cap) for cap in list(self._resting)}
        self._read_at = clock

    def _over(self, cap: int) -> frozenset[str]:
        found = self._resting[cap] = frozenset(item for item, count in self._counts.items() if count >= cap)
        return found


class Exposures:
    """Of one worker. Belongs to the event loop, but for `open` and `refresh`. `clock`: seconds that never go back."""

    def __init__(
        self,
        opened: Callable[[], tuple[Counters, Profiles]],
        tenant: str = "default",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opened, self._tenant, self._clock = opened, tenant, clock
        self._breaker = Breaker(clock, failures=2, slow_seconds=SLOW_SECONDS, cool_seconds=COOL_SECONDS)
        self._stores: tuple[Counters, Profiles] | None = None
        self._units: OrderedDict[str, tuple[float, Looks]] = OrderedDict()
        self._items: dict[tuple[str, int], _Items] = {}
        self._asked: dict[str, tuple[Sequence[Named], bool, dict[str, Resting]]] = {}  # surface → what its rules ask
        self._next = float("-inf")
        self.balances = Balances(tenant, STALE_SECONDS)

    def open(self) -> None:
        """Connect to the stores, once; run in a thread. Raises Unavailable."""
        if self._stores is None:
            self._stores = self._opened()

    def of(
        self, surface: str, unit: str, rules: Sequence[Named], now: float, exposure: Exposure | None = None
    ) -> Shown:
        """What the rules of a surface may ask about a unit and candidates, at epoch seconds `now`."""
        asked = self._asked.get(surface)
        if asked is None or asked[0] is not rules:
            units = any(rule.rule.frequency is None or rule.rule.frequency.per == "unit" for rule in rules)
            asked = self._asked[surface] = (
                rules,
                units,
                {name: of.resting for name, of in self._counted(surface, rules)},
            )
        balance = None if exposure is None else self.balances.asked(surface, exposure, self._clock)
        return Shown(now, self._unit(unit) if asked[1] else NEVER, asked[2], balance)

    def expect(self, surface: str, rules: Sequence[Named], ids: Sequence[str]) -> None:
        """Candidates that are likely: counted from the next reading on, before anybody asks."""
        for _, items in self._counted(surface, rules):
            items.want(ids)

    def refresh(self, now: float, *, at_once: bool = False) -> None:
        """Read the counts of items when it is time, or `at_once`; `now` in epoch seconds. In a thread, one at a time."""
        stores, clock = self._stores, self._clock()
        if stores is None or (clock < self._next and not at_once):
            return
        self._next = clock + REFRESH_SECONDS
        with suppress(Unavailable):  # what is known is believed for a while
            self.balances.refresh(stores[0], clock)
            for items in list(self._items.values()):
                items.read(stores[0], now, clock)

    def _counted(self, surface: str, rules: Sequence[Named]) -> Iterator[tuple[str, _Items]]:
        """(rule, what it counts) of those that count items."""
        for rule in rules:
            frequency = rule.rule.frequency
            if frequency is not None and frequency.per == "item":
                window = window_seconds(frequency.window)
                if (surface, window) not in self._items:
                    self._items[surface, window] = _Items(counter_name(self._tenant, surface), window, self._clock)
                yield rule.name, self._items[surface, window]

    def _unit(self, unit: str) -> Looks | None:
        now = self._clock()
        known = self._units.get(unit)
        if known is not None and now < known[0]:
            return known[1]
        admission = self._breaker.admit() if self._stores is not None else Admission.REFUSE
        if self._stores is None or admission is Admission.REFUSE:
            return None
        began = perf_counter()
        try:
            [data] = self._stores[1].read([shown_key(unit)])
        except Unavailable:
            self._breaker.ended(False, perf_counter() - began, admission)
            return None
        self._breaker.ended(True, perf_counter() - began, admission)
        found = np.frombuffer(data, ENTRY)
        shown = found["at"].astype(np.float64), found["item"].astype(np.uint64)
        self._units[unit] = now + FRESH_SECONDS, shown
        self._units.move_to_end(unit)
        while len(self._units) > MOST_UNITS:
            self._units.popitem(last=False)
        return shown
