"""What is known of a unit and of items before a decision: what was done, shown and counted. Each part may be missing or away, and
then nobody knows; decisions go on, and metrics say so."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from policies.errors import Unavailable
from services.scoring.countings import Countings, Told
from services.scoring.exposures import Exposures, Shown
from services.scoring.histories import Histories
from services.scoring.live import LiveSurface
from services.scoring.wire import DecisionRequest
from services.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Before:
    """Of one worker; None: nobody knows.

    histories    what units did, and what was counted of them
    exposures    what was shown, for rules
    countings    what was counted of items, for features
    """

    telemetry: Telemetry
    histories: Histories | None = None
    exposures: Exposures | None = None
    countings: Countings | None = None

    def known(
        self, unit: str, surface: LiveSurface, request: DecisionRequest, now: float
    ) -> tuple[Sequence[str], Told | None]:
        """(items the unit did something with before, what was counted); none while nobody can be asked."""
        reader, name = surface.reader, surface.surface.surface
        acts = reader.reads_history and request.history is None
        if not (acts or reader.counts):
            return (), None
        counts = reader.counts_units.lacking(request.context)
        items: Sequence[str] = ()
        record, outcome = None, "away"
        if self.histories is not None and (acts or counts):
            items, record, outcome = self.histories.of(
                unit, surface.surface, surface.config, acts=reader.reads_history, counts=bool(reader.counts_units)
            )
        if acts:
            self.telemetry.add("history_reads_total", outcome)
        if not reader.counts:
            return items, None
        if counts:
            self.telemetry.add("counted_reads_total", name, "unit", outcome)
        table = None
        if reader.counts_items:
            table = None if self.countings is None else self.countings.of(surface.surface, reader.encoder)
            known = table is not None and table.known
            self.telemetry.add("counted_reads_total", name, "item", "cached" if known else "away")
        return items, Told(reader.counts_units.values(record, now) if record and counts else {}, table)

    def shown(self, unit: str, surface: LiveSurface, now: float) -> Shown | None:
        """What rules may ask about; None where none asks, or nobody can be asked."""
        ruler = surface.reader.ruler
        if self.exposures is None or not ruler.asks:
            return None
        return self.exposures.of(surface.surface.surface, unit, ruler.remembers, now, ruler.exposure)

    def open(self, surfaces: Iterable[LiveSurface]) -> None:
        """Connect to what surfaces read of units; in a thread. Empty until it is there, and `history_reads_total` or
        `counted_reads_total` says so."""
        readers = [surface.reader for surface in surfaces]
        if self.histories is not None and any(one.reads_history or one.counts_units for one in readers):
            with suppress(Unavailable):
                self.histories.open()

    def refresh(self, surfaces: Sequence[LiveSurface], now: float, expected: Sequence[str] = ()) -> None:
        """What was shown and counted of items, as far as rules and features ask; in a thread, one at a time. Raises Unavailable.

        expected  items to count before anybody asks, at a start
        """
        at_once = bool(expected)
        counting = [found for found in surfaces if found.reader.counts_items]
        if self.countings is not None and counting:
            for found in counting:
                self.countings.of(found.surface, found.reader.encoder).want(expected)
            self.countings.refresh(now, at_once=at_once)
        if self.exposures is None or not any(found.reader.ruler.asks for found in surfaces):
            return
        self.exposures.open()
        if expected:
            for found in surfaces:
                self.exposures.expect(found.surface.surface, found.reader.ruler.remembers, expected)
        self.exposures.refresh(now, at_once=at_once)
        for surface, group, share in self.exposures.balances.deficits():
            self.telemetry.set("exposure_deficit_share", surface, group, value=share)
        for surface, share in self.exposures.balances.disparities():
            self.telemetry.set("exposure_disparity_share", surface, value=share)
