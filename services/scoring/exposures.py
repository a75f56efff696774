"""What was shown before, as rules ask for it: to one unit, or to everybody. Read from what shards derive, never written.

Of a unit it is one read on the request's path, and mostly none: an answer is kept for `FRESH_SECONDS`. Counts of items are
read by a thread every `REFRESH_SECONDS`, of all items that were candidates lately. A store that is away or slow is left
alone by a breaker, and its rules are skipped and said. What was drawn since a shard last told is not known yet, so caps may be
exceeded by the requests of that moment (`semantics.md` 20).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from policies.errors import Unavailable
from policies.reranking.rules import Named
from policies.surface import Exposure
from policies.types import Mask
from services.scoring.balances import Balance, Balances
from streaming.breaker import Admission, Breaker
from streaming.derived import EXPOSURES, counter_name
from streaming.evidence import ItemHashes
from streaming.ports import Counters, Profiles
from streaming.shown import read_shown, shown_key, sliding, window_names, window_seconds

FRESH_SECONDS = 0.25  # shards tell what is new every 0.1 s
REFRESH_SECONDS, STALE_SECONDS = 1.0, 10.0  # counts of items: read as often, believed as long
MOST_UNITS, MOST_ITEMS = 20_000, 50_000  # remembered
SLOW_SECONDS, COOL_SECONDS = 0.25, 1.0
NAMES = 10_000  # in one read of counters
Counted = Callable[[Sequence[str]], Mapping[str, float] | None]
_item_hashes = ItemHashes()


@dataclass(frozen=True, slots=True)
class Shown:
    """Of one request at `now`, epoch seconds.

    unit   (at, item hash) of what the unit was shown, newest last; None: not known now
    items  rule → what tells the impressions of candidates within its window, or None when they are not known now
    balance  groups → their boosts and targets, or None when they are not known now; None of a surface without
    """

    now: float
    unit: Sequence[tuple[float, int]] | None
    items: Mapping[str, Counted]
    balance: Callable[[Sequence[str]], Balance | None] | None = None

    def gone(self, rule: Named, ids: Sequence[str]) -> Mask | None:
        """(n,) which candidates a rule wants left out; None: that cannot be told now."""
        frequency = rule.rule.frequency
        if frequency is not None and frequency.per == "item":
            counted = self.items.get(rule.name)
            counts = counted(ids) if counted else None
            if counts is None:
                return None
            rest = {item for item in counts.keys() & set(ids) if counts[item] >= frequency.cap}
            return np.array([item in rest for item in ids], bool) if rest else np.zeros(len(ids), bool)
        if self.unit is None:
            return None
        most = 1 if frequency is None else frequency.cap
        since = self.now - rule.window_seconds
        times: dict[int, int] = {}
        for at, item in self.unit:
            if at > since:
                times[item] = times.get(item, 0) + 1
        often = {item for item, count in times.items() if count >= most}
        if not often:
            return np.zeros(len(ids), bool)
        return np.array([_item_hashes[item] in often for item in ids], bool)


class _Items:
    """Items that one rule of one surface counts, and their impressions as of the last reading."""

    def __init__(self, prefix: str, window: int) -> None:
        self.prefix, self.window = prefix, window
        self.wanted: dict[str, None] = {}
        self.counts: Mapping[str, float] = {}
        self.read_at = float("-inf")

    def names(self, items: Sequence[str], at: float) -> list[str]:
        """Two counters an item: the fixed window of `at`, and the one before."""
        return [
            f"{self.prefix}/{name}/{EXPOSURES}"
            for item in items
            for name in window_names(counter_name(item), self.window, at)
        ]


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
        self._units: OrderedDict[str, tuple[float, list[tuple[float, int]]]] = OrderedDict()
        self._items: dict[tuple[str, int], _Items] = {}
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
        asked = any(rule.rule.frequency is None or rule.rule.frequency.per == "unit" for rule in rules)
        counts: dict[str, Counted] = {}
        for rule in rules:
            frequency = rule.rule.frequency
            if frequency is not None and frequency.per == "item":
                counts[rule.name] = self._counted(surface, window_seconds(frequency.window))
        balance = None if exposure is None else self.balances.asked(surface, exposure, self._clock)
        return Shown(now, self._unit(unit) if asked else (), counts, balance)

    def expect(self, surface: str, rules: Sequence[Named], ids: Sequence[str]) -> None:
        """Candidates that are likely: counted from the next reading on, before anybody asks."""
        for rule in rules:
            frequency = rule.rule.frequency
            if frequency is not None and frequency.per == "item":
                self._counted(surface, window_seconds(frequency.window))(ids)

    def refresh(self, now: float, *, at_once: bool = False) -> None:
        """Read the counts of items when it is time, or `at_once`; `now` in epoch seconds. In a thread, one at a time."""
        stores, clock = self._stores, self._clock()
        if stores is None or (clock < self._next and not at_once):
            return
        self._next = clock + REFRESH_SECONDS
        try:
            self.balances.refresh(stores[0], clock)
        except Unavailable:
            return
        for items in list(self._items.values()):
            wanted = list(items.wanted)
            names = items.names(wanted, now)
            try:
                values = [v for at in range(0, len(names), NAMES) for v in stores[0].read(names[at : at + NAMES])]
            except Unavailable:
                return
            pairs = zip(wanted, values[0::2], values[1::2], strict=True)
            seen = {item: sliding(one, other, items.window, now) for item, one, other in pairs if one or other}
            items.counts = seen
            items.read_at = clock

    def _counted(self, surface: str, window: int) -> Counted:
        items = self._items.setdefault((surface, window), _Items(counter_name(self._tenant, surface), window))

        def counted(ids: Sequence[str]) -> Mapping[str, float] | None:
            wanted = items.wanted
            wanted.update(dict.fromkeys(ids))
            while len(wanted) > MOST_ITEMS:
                del wanted[next(iter(wanted))]
            return items.counts if self._clock() - items.read_at < STALE_SECONDS else None

        return counted

    def _unit(self, unit: str) -> Sequence[tuple[float, int]] | None:
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
        shown = read_shown(data)
        self._units[unit] = now + FRESH_SECONDS, shown
        self._units.move_to_end(unit)
        while len(self._units) > MOST_UNITS:
            self._units.popitem(last=False)
        return shown
