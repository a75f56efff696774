"""What units did lately, for policies that read it: of the profiles that shards derive, or of the request.

On the request's path it is one read of one unit, and mostly none: an answer is kept for `FRESH_SECONDS`. A store that is
away or slow is left alone by a breaker, and the decision is drawn from an empty history; `history_reads_total` says how often.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from policies.errors import Rejected, Unavailable
from policies.surface import Surface
from policies.types import F32, I64
from services.scoring.catalogue import Catalogue
from services.scoring.wire import Interaction
from streaming.breaker import Admission, Breaker
from streaming.derived import Interaction as Act
from streaming.derived import read_profile
from streaming.ports import Profiles

FRESH_SECONDS = 0.25  # shards tell what is new every 0.1 s
MOST_UNITS = 20_000  # remembered, some 100 MB when each has done 50 things
SLOW_SECONDS = 0.25  # two reads beyond it and nobody asks for a while: the event loop waits meanwhile
COOL_SECONDS = 1.0


class Histories:
    """Profiles by unit, remembered for a moment. Belongs to the event loop, but for `open`."""

    def __init__(self, opened: Callable[[], Profiles], clock: Callable[[], float] = time.monotonic) -> None:
        self._opened, self._clock = opened, clock
        self._breaker = Breaker(clock, failures=2, slow_seconds=SLOW_SECONDS, cool_seconds=COOL_SECONDS)
        self._store: Profiles | None = None
        self._known: OrderedDict[str, tuple[float, list[Act]]] = OrderedDict()

    def open(self) -> None:
        """Connect to the store, once; run in a thread. Raises Unavailable."""
        if self._store is None:
            self._store = self._opened()

    def of(self, unit: str) -> tuple[list[Act], str]:
        """(what the unit did, oldest first; cached | read | away)."""
        now = self._clock()
        known = self._known.get(unit)
        if known is not None and now < known[0]:
            return known[1], "cached"
        admission = self._breaker.admit() if self._store is not None else Admission.REFUSE
        if self._store is None or admission is Admission.REFUSE:
            return [], "away"
        began = perf_counter()
        try:
            [profile] = self._store.read([unit])
        except Unavailable:
            self._breaker.ended(False, perf_counter() - began, admission)
            return [], "away"
        self._breaker.ended(True, perf_counter() - began, admission)
        acts = read_profile(profile)
        self._known[unit] = now + FRESH_SECONDS, acts
        self._known.move_to_end(unit)
        while len(self._known) > MOST_UNITS:
            self._known.popitem(last=False)
        return acts, "read"


def items_of(acts: Sequence[Act], surface: Surface) -> list[str]:
    """The items of a unit's last interactions as policies read them: of the surface's kinds, what was done to one item of one
    decision once, at the time of the first."""
    kinds = surface.history_kinds
    seen = dict.fromkeys((act.decision, act.item) for act in acts if not kinds or act.kind in kinds)
    return [item for _, item in seen][-surface.history :]


def given(history: Sequence[Interaction], surface: Surface) -> list[str]:
    """The items of a history that came with the request. Raises Rejected with the path."""
    if len(history) > surface.history:
        raise Rejected(f"Expected at most {surface.history} interactions, got {len(history)}", at="$.history")
    kinds = surface.feedback_kinds
    for place, act in enumerate(history):
        if act.kind not in kinds:
            expected = ", ".join(sorted(kinds - {"shown"}))
            message = f"Unknown kind, expected one of: {expected}"
            raise Rejected(message, at=f"$.history[{place}].kind", code="unknown_kind")
    wanted = surface.history_kinds
    return [act.item for act in history if not wanted or act.kind in wanted]


def encoded(items: Sequence[str], catalogue: Catalogue, schema: str, ids: Sequence[str], matrix: F32) -> F32:
    """(h, d) of the items: as candidates of this request where they are among them, else of the catalogue, else unknown."""
    rows: I64 = catalogue.rows(items)
    found: F32 = catalogue.matrix(schema).take(rows, axis=0)
    if (rows < 0).any():
        places = {item: place for place, item in enumerate(ids)}
        for i in np.flatnonzero(rows < 0).tolist():
            if items[i] in places:
                found[i] = matrix[places[items[i]]]
    return found


def check_known(history: Sequence[Interaction], catalogue: Catalogue, ids: Sequence[str]) -> None:
    """Raises Rejected for an item of a given history that neither the catalogue knows nor the request; without a catalogue
    all items are the callers', and none can be told wrong."""
    if not len(catalogue):
        return
    known = None
    for place, act in enumerate(history):
        if catalogue.index[act.item] < 0:
            known = set(ids) if known is None else known
            if act.item not in known:
                message = f"Unknown item {act.item[:64]!r}: not in the catalogue, and no candidate"
                raise Rejected(message, at=f"$.history[{place}].item", code="unknown_item")
