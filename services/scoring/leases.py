"""What one worker has on lease of what surfaces left of their exploration caps (`policies.reranking.exploration_budget`).

A decision reads a number and takes off it what it explored beyond its cap; a thread asks every second, for as much as requests
would have explored beyond their caps in the second before, twice, and at most half of what is left: others ask too. A lease that
is not renewed is over after `LIFE_SECONDS`, one whose store is away at once, and the plain cap holds.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from policies.errors import Corrupt, Unavailable
from policies.reranking import exploration_budget as budget
from policies.reranking.exploration_budget import Book
from policies.surface import Surface
from policies.types import DrawSettings, Slate
from services.telemetry import Telemetry
from streaming.derived import counter_name
from streaming.ports import Counters, Leases
from streaming.strayed import MEASURES, window_name

RENEW_SECONDS, LIFE_SECONDS = 1.0, 3.0
AHEAD, MOST = 2.0, 0.5  # of what was wanted in the last second; of what is left
TRIES = 5  # of an exchange that others were faster with
Stores = tuple[Counters, Leases]
Used = tuple[Mapping[int, float], Mapping[int, float]]  # `MEASURES` by window


class Lease:
    """Of one segment. The event loop alone writes `spent` and `wanted`, the thread that renews all else."""

    __slots__ = ("_clock", "_lent", "_seen", "_until", "left", "spent", "up_to", "wanted")

    def __init__(self, up_to: float, clock: Callable[[], float]) -> None:
        self.up_to, self._clock = up_to, clock
        self.spent = self.wanted = 0.0  # since the start, in slots' worth
        self._lent = self._seen = 0.0  # since the start; `wanted` as of the last renewal
        self._until = float("-inf")
        self.left = 0.0  # for all workers, as of the last reading

    @property
    def held(self) -> float:
        """What may be spent now."""
        return max(0.0, self._lent - self.spent) if self._clock() < self._until else 0.0

    def on(self, settings: DrawSettings, slots: int) -> DrawSettings:
        """Settings of a slate of so many slots that are drawn, with a cap as far above the plain one as the lease allows."""
        cap = budget.raised(settings.max_share, self.up_to, self.held, slots)
        return settings if cap == settings.max_share else replace(settings, max_share=cap)

    def took(self, slate: Slate, cap: float) -> None:
        """A slate was drawn that might have had more than the cap."""
        explored = slate.explored.tolist()
        self.spent += budget.beyond(explored, cap)
        self.wanted += budget.wanted(explored, slate.alphas.tolist(), cap, self.up_to)

    def asks(self) -> float:
        """How much more there should be than is held; what is held of more than is wanted is let go. By the thread, once a renewal."""
        spent, wanted = self.spent, self.wanted  # once: the event loop goes on
        held = max(0.0, self._lent - spent) if self._clock() < self._until else 0.0
        want, self._seen = AHEAD * (wanted - self._seen), wanted
        self._lent = spent + min(held, want)
        return max(0.0, want - held)

    def renewed(self, more: float) -> None:
        """Held for another while, and so much more."""
        self._lent += more
        self._until = self._clock() + LIFE_SECONDS

    def end(self) -> None:
        self._until = float("-inf")


class Unlent:
    """Of a segment that lends, for draws that do not borrow."""

    def on(self, settings: DrawSettings, slots: int) -> DrawSettings:
        return settings

    def took(self, slate: Slate, cap: float) -> None:
        """Nothing was asked for."""


class Lending:
    """Of one worker. `renew` in a thread, `on` on the event loop. `opened`: the stores; None: nothing is ever lent.

    clock  seconds that never go back
    """

    def __init__(
        self,
        opened: Callable[[], Stores] | None = None,
        tenant: str = "default",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opened, self._tenant, self._clock = opened, tenant, clock
        self._stores: Stores | None = None
        self._leases: dict[tuple[str, str], Lease] = {}
        self._on: dict[str, tuple[Surface, Mapping[str, Lease], Mapping[str, Unlent]]] = {}

    def on(self, surface: Surface) -> Mapping[str, Lease]:
        """Segment → what decisions of a surface version may borrow from, of those that lend."""
        return self._of(surface)[1]

    def off(self, surface: Surface) -> Mapping[str, Unlent]:
        """… of decisions that do not borrow: they leave what they do not explore."""
        return self._of(surface)[2]

    def _of(self, surface: Surface) -> tuple[Surface, Mapping[str, Lease], Mapping[str, Unlent]]:
        known = self._on.get(surface.surface)
        if known is None or known[0] is not surface:
            terms = surface.exploration.lending
            leases = {segment: self._lease(surface.surface, segment, up_to) for segment, (_, up_to) in terms.items()}
            known = self._on[surface.surface] = surface, leases, dict.fromkeys(leases, Unlent())
        return known

    def renew(self, surfaces: Iterable[Surface], now: float, telemetry: Telemetry) -> None:
        """Ask for every lease of surfaces that lend, at epoch seconds `now`. Raises Unavailable, and no lease holds."""
        asked = {
            (surface.surface, segment): self._lease(surface.surface, segment, up_to)
            for surface in surfaces
            for segment, (_, up_to) in surface.exploration.lending.items()
        }
        if not asked or self._opened is None:
            return
        try:
            if self._stores is None:
                self._stores = self._opened()
            counters, leases = self._stores
            used = self._used(counters, asked, now)
            held = dict(zip(asked, leases.read([self._name(*of) for of in asked]), strict=True))
            for of, lease in asked.items():
                more, outcome = self._granted(leases, of, held[of], used[of], now)
                lease.renewed(more)
                telemetry.set("exploration_left_slots", *of, value=lease.left)
                telemetry.add("exploration_leases_total", *of, outcome)
        except Unavailable:
            for of, lease in asked.items():
                lease.end()
                telemetry.add("exploration_leases_total", *of, "away")
            raise

    def _granted(
        self,
        leases: Leases,
        of: tuple[str, str],
        held: bytes,
        used: Used,
        now: float,
    ) -> tuple[float, str]:
        """(slots lent, how it went). Raises Unavailable."""
        name, lease = self._name(*of), self._leases[of]
        asks = lease.asks()
        for _ in range(TRIES):
            book = _read(held)
            new = book is None
            book = book or budget.opened(now)
            lease.left = budget.left(book, *used, now)
            more = min(asks, MOST * lease.left)
            if more <= budget.LEAST:
                more, outcome = 0.0, "nothing_asked" if asks <= budget.LEAST else "nothing_left"
                if not new:
                    return more, outcome
            else:
                book, outcome = budget.granted(book, more, now), "granted"
            if leases.exchange(name, held, budget.pack(book)):
                lease.left -= more
                return more, outcome
            [held] = leases.read([name])
        return 0.0, "contended"

    def _used(self, counters: Counters, asked: Iterable[tuple[str, str]], now: float) -> dict[tuple[str, str], Used]:
        """Raises Unavailable."""
        windows = budget.windows(now)
        names = [
            counter_name(self._tenant, surface, *window_name(segment, window), measure)
            for surface, segment in asked
            for measure in MEASURES
            for window in windows
        ]
        values = iter(counters.read(names))

        def by_window() -> dict[int, float]:
            return {window: next(values) for window in windows}

        return {of: (by_window(), by_window()) for of in asked}

    def _lease(self, surface: str, segment: str, up_to: float) -> Lease:
        lease = self._leases.setdefault((surface, segment), Lease(up_to, self._clock))
        lease.up_to = up_to
        return lease

    def _name(self, surface: str, segment: str) -> str:
        return counter_name(self._tenant, surface, segment)


def _read(held: bytes) -> Book | None:
    try:
        return budget.unpack(held) if held else None
    except Corrupt:  # of a build that keeps other books: begun anew, as one that is lost
        return None
