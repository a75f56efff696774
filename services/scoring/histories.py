"""What units did lately, for policies that read it, and what was counted of them: of what shards derive, or of the request.

On the request's path it is one read of one unit, of both where both are asked for, and mostly none: an answer is kept for `FRESH_SECONDS`. A store that is
away or slow is left alone by a breaker, and the decision is drawn from an empty history; `history_reads_total` says how often.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from policies import hashed as hashing
from policies.errors import Rejected, Unavailable
from policies.surface import Hashed, Surface
from policies.types import F32, I64
from services.scoring.catalogue import Catalogue
from services.scoring.wire import Interaction, Interactions
from streaming.breaker import Admission, Breaker
from streaming.counted import counts_key
from streaming.ports import Profiles
from streaming.profiles import last_items

FRESH_SECONDS = 0.25  # shards tell what is new every 0.1 s
MOST_ITEMS = 2_000_000  # remembered, of all units: some 20 MB, and what their ids take
SLOW_SECONDS = 0.25  # two reads beyond it and nobody asks for a while: the event loop waits meanwhile
COOL_SECONDS = 1.0


class Histories:
    """Items that units did something with, remembered for a moment. Belongs to the event loop, but for `open`."""

    def __init__(self, opened: Callable[[], Profiles], clock: Callable[[], float] = time.monotonic) -> None:
        self._opened, self._clock = opened, clock
        self._breaker = Breaker(clock, failures=2, slow_seconds=SLOW_SECONDS, cool_seconds=COOL_SECONDS)
        self._store: Profiles | None = None
        # (unit, surface version) → (until, items, counts): ids alone, for a million small tuples would be the garbage collector's
        self._known: OrderedDict[tuple[str, str], tuple[float, list[str], bytes]] = OrderedDict()
        self._held = 0

    def open(self) -> None:
        """Connect to the store, once; run in a thread. Raises Unavailable."""
        if self._store is None:
            self._store = self._opened()

    def of(
        self, unit: str, surface: Surface, config: str, *, counts: bool = False, acts: bool = True
    ) -> tuple[Sequence[str], bytes | None, str]:
        """(items as `last_items` of its profile, its counts, cached | read | away). `config` is the hash of the surface's version;
        `counts`, `acts`: whether it reads them, the same for as long as it lives. Counts are None while they are not known."""
        now, name = self._clock(), (unit, config)
        known = self._known.get(name)
        if known is not None and now < known[0]:
            return known[1], known[2], "cached"
        admission = self._breaker.admit() if self._store is not None else Admission.REFUSE
        if self._store is None or admission is Admission.REFUSE:
            return (), None, "away"
        began = perf_counter()
        try:
            found = self._store.read([*([unit] if acts else []), *([counts_key(unit)] if counts else [])])
        except Unavailable:
            self._breaker.ended(False, perf_counter() - began, admission)
            return (), None, "away"
        self._breaker.ended(True, perf_counter() - began, admission)
        items = last_items(found[0], surface.history_kinds, surface.history) if acts else []
        record = found[-1] if counts else b""
        self._remember(name, now + FRESH_SECONDS, items, record)
        return items, record, "read"

    def _remember(self, name: tuple[str, str], until: float, items: list[str], record: bytes) -> None:
        known = self._known.pop(name, None)
        self._held += len(items) + 1 - (len(known[1]) + 1 if known else 0)
        self._known[name] = until, items, record
        while self._held > MOST_ITEMS and len(self._known) > 1:
            _, (_, gone, _) = self._known.popitem(last=False)
            self._held -= len(gone) + 1


def given(
    history: Sequence[Interaction] | Interactions, surface: Surface, catalogue: Catalogue, ids: Sequence[str]
) -> tuple[list[str], I64]:
    """(items, their rows in the catalogue) of a history that came with the request, of the kinds that the surface reads.

    Raises Rejected with the path: of a kind nobody knows, and of an item that neither the catalogue nor the request knows;
    without a catalogue all items are the callers', and none can be told wrong.
    """
    if isinstance(history, Interactions):
        items, at_item, at_kind = history.items, "$.history.items[{}]", "$.history.kinds[{}]"
        if isinstance(history.kinds, str):
            kinds, at_kind = [history.kinds] * len(items), "$.history.kinds"
        else:
            kinds = history.kinds
            if len(kinds) != len(items):
                raise Rejected(f"Expected {len(items)} kinds, one an item, got {len(kinds)}", at="$.history.kinds")
    else:
        items, kinds = [act.item for act in history], [act.kind for act in history]
        at_item, at_kind = "$.history[{}].item", "$.history[{}].kind"
    if len(items) > surface.history:
        raise Rejected(f"Expected at most {surface.history} interactions, got {len(items)}", at="$.history")
    allowed, wanted = surface.feedback_kinds, surface.history_kinds
    if not allowed.issuperset(kinds):
        place = next(i for i, kind in enumerate(kinds) if kind not in allowed)
        message = f"Unknown kind, expected one of: {', '.join(sorted(allowed - {'shown'}))}"
        raise Rejected(message, at=at_kind.format(place), code="unknown_kind")
    rows = catalogue.rows(items)
    if len(catalogue) and len(rows) and rows.min() < 0:
        known = set(ids)
        for place in np.flatnonzero(rows < 0).tolist():
            if items[place] not in known:
                message = f"Unknown item {items[place][:64]!r}: not in the catalogue, and no candidate"
                raise Rejected(message, at=at_item.format(place), code="unknown_item")
    if wanted:
        kept = [i for i, kind in enumerate(kinds) if kind in wanted]
        items, rows = [items[i] for i in kept], rows[kept]
    return items, rows


def encoded(items: Sequence[str], rows: I64, catalogue: Catalogue, schema: str, ids: Sequence[str], matrix: F32) -> F32:
    """(h, d) of the items: as candidates of this request where they are among them, else of the catalogue, else unknown."""
    found: F32 = catalogue.matrix(schema).take(rows, axis=0)
    if len(rows) and rows.min() < 0:
        places = {item: place for place, item in enumerate(ids)}
        for i in np.flatnonzero(rows < 0).tolist():
            if items[i] in places:
                found[i] = matrix[places[items[i]]]
    return found


def thinned(items: Sequence[str], past: F32, hashed: Hashed) -> tuple[Sequence[str], F32]:
    """A long history in few rows, see `policies.hashed`."""
    kept = hashing.thinned(past, hashed.newest, hashed.rows)
    return (items, past) if kept is None else ([items[i] for i in kept.tolist()], past[kept])
