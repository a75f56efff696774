"""The settling process: every partition's decisions into its outbox and Parquet files, once their horizon has passed.

It is a consumer of the log of its own: stopped, killed or far behind, it takes nothing from learning, and goes on where it was.
Of two that run at once the older one is fenced and ends. A partition whose next record the log no longer has stops here,
with an error in the log and in `slatewise_settle_stopped`, and is never set forward by itself; the others go on.
"""

import logging
import threading
import time
from dataclasses import dataclass

from policies.errors import Corrupt, Rejected, Unavailable
from services.epochs import take_epoch
from services.lifetime import stopping
from services.scraped import scraped
from services.settings import Settings
from services.telemetry import Telemetry, share
from services.wiring import open_experiences, open_log, open_settlements, own_state
from streaming.configuration import Configs
from streaming.experiences import Experiences
from streaming.ports import Bundles, Log, State
from streaming.settle import Settlements, Settler, SettleReport
from streaming.windows import Windows

log = logging.getLogger("slatewise.settling")
EPOCH = "settling"
IDLE_SECONDS = 0.5  # nobody waits for a settled decision as for a fresh bundle
AWAY_SECONDS = 1.0
TRIM_SECONDS, TRIM_ROWS = 60.0, 1_000


@dataclass
class Seat:
    """One partition: its settler, and the files made of what it settles. `stopped`: why it goes no further."""

    settler: Settler
    windows: Windows
    outbox: Settlements
    experiences: Experiences
    stopped: str = ""


def run(settings: Settings) -> None:
    """Settle until SIGTERM. Raises Rejected when there is nowhere to write to."""
    if not settings.experiences:
        raise Rejected(
            "Expected a folder for settled decisions such as file:///path", at="SLATEWISE_EXPERIENCES", code="missing"
        )
    stop = stopping()
    share(settings.metrics_path)
    with scraped(settings):
        state = own_state(settings)
        Settling(state, open_log(settings), open_experiences(settings), settings).run(stop)
    log.info("stopped")


class Settling:
    """All partitions of a log, in turns."""

    def __init__(
        self, state: State, events: Log, store: Bundles, settings: Settings, telemetry: Telemetry | None = None
    ) -> None:
        self._state, self._configs, self._telemetry = state, Configs(settings.tenant), telemetry or Telemetry()
        self._retention_seconds = settings.retention_seconds
        self._configs.follow(state)
        epoch = take_epoch(state, EPOCH)
        self._seats = [
            self._seat(partition, events, open_settlements(settings, partition), store, epoch)
            for partition in range(events.partitions)
        ]
        self._next_trim = 0.0
        self._away = False

    def _seat(self, partition: int, events: Log, outbox: Settlements, store: Bundles, epoch: int) -> Seat:
        def refresh() -> bool:
            return self._configs.follow(self._state)

        settler = Settler(partition, events, outbox, self._configs, epoch=epoch, refresh=refresh)
        experiences = Experiences(partition, outbox, events)
        return Seat(settler, Windows(experiences, store, self._configs), outbox, experiences)

    def run(self, stop: threading.Event) -> None:
        """Turns until `stop`; ends by itself when another settling process has taken over, or when no partition is left."""
        while not stop.is_set():
            try:
                busy = self.turn(time.time())
            except Rejected as error:
                if error.code != "fenced":
                    raise
                log.warning("another settling process has taken over", extra={"error": str(error)})
                return
            self._telemetry.flush()
            if self._away or not busy:
                stop.wait(AWAY_SECONDS if self._away else IDLE_SECONDS)

    def turn(self, now: float) -> bool:
        """One step of every partition; whether there is more to do at once."""
        busy = self._away = False
        for seat in self._seats:
            if not seat.stopped:
                busy |= self._step(seat, now)
        if now >= self._next_trim:
            self._next_trim = now + TRIM_SECONDS
            for seat in self._seats:
                self._trim(seat, now - self._retention_seconds)
        return busy

    def _step(self, seat: Seat, now: float) -> bool:
        """What is away holds up neither the other partitions nor, where it is the files' store, settling itself."""
        partition = seat.settler.partition
        files: list[str] = []
        try:
            report = seat.settler.step(now)
            self._note(report, now)
            written, files = seat.windows.write(seat.settler.written, report.frontier)
        except Unavailable as error:  # everything uncommitted is read again, every file is written again
            log.warning("away", extra={"partition": partition, "error": str(error)})
            self._away = True
            return False
        except Corrupt as error:
            seat.stopped = str(error)
            log.error("partition stopped", extra={"partition": partition, "error": str(error)})
            self._telemetry.set("settle_stopped", str(partition), value=1.0)
            return False
        if files:
            seat.settler.wrote(written)
            self._telemetry.add("experience_files_total", by=len(files))
            log.info("written", extra={"partition": partition, "files": files})
        return bool(report.lag_records or files or report.settled)

    def _note(self, report: SettleReport, now: float) -> None:
        partition = str(report.partition)
        for surface, count in report.settled.items():
            self._telemetry.add("join_outcomes_total", surface, "settled", by=count)
        for surface, count in report.after_training.items():
            self._telemetry.add("join_outcomes_total", surface, "after_training", by=count)
        self._telemetry.set("settle_stopped", partition, value=0.0)
        behind = max(now - report.clock, 0.0) if report.lag_records else 0.0
        self._telemetry.set("settle_lag_seconds", partition, value=behind)

    def _trim(self, seat: Seat, before: float) -> None:
        """Rows that are in files and older than the log's retention: their records are gone from the log by then."""
        while True:
            first, _ = seat.outbox.numbers()
            rows = seat.experiences.rows(first, TRIM_ROWS)
            keep = next((number for number, row in rows if row.due >= before), first + len(rows))
            keep = min(keep, seat.settler.written)
            if keep <= first:
                return
            seat.outbox.trim(keep)
            if keep < first + TRIM_ROWS:
                return
