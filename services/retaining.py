"""Retention in the learning service: a thread of its own, once a minute, so that no publish waits for a listing.

It removes nothing that a restart needs: records are kept from where the newest uploaded checkpoint rebuilds its joins, and
from where the settling process reads; twice the longest `correctable` and an hour are kept whatever the setting says. On
Kafka the broker keeps records and dead letters, and only bundles are swept here. What it did is handed to the loop that
owns the metrics.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.errors import Corrupt, Unavailable
from services.epochs import current_epoch
from services.releases import named_bundles
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_bundles, open_settlements, open_trimmed, open_uploads
from streaming.configuration import Configs
from streaming.ports import Log, State
from streaming.retention import HOUR, SLICE_RECORDS, Guarded, Retention, trim
from streaming.uploads import Uploads

log = logging.getLogger("slatewise.learning")
EVERY_SECONDS = 60.0
FIRST_SECONDS = 5.0  # after a start, which has better things to do
LONGEST_SECONDS = (
    86_400.0  # the default `correctable`: bundles of a surface that is gone, and decisions of versions before
)
AT_ONCE = 50  # slices of a log trimmed in one turn: 250,000 records, some 4,000 a second


@dataclass(slots=True)
class Turn:
    """What a turn did and found, for metrics."""

    removed: Counter[str] = field(default_factory=Counter)
    bundles: int | None = None
    unreadable: int = 0
    headroom: dict[int, float] = field(default_factory=dict)
    errors: int = 0


class Retaining:
    """Retention for one epoch of the learning service. `bundles` is the store for its publisher."""

    def __init__(self, settings: Settings, state: State, configs: Configs, epoch: int) -> None:
        self._settings, self._state, self._configs, self._epoch = settings, state, configs, epoch
        self._retention = Retention(open_bundles(settings))
        self.bundles: Guarded = self._retention.bundles
        self._trimmed = open_trimmed(settings)
        self._uploads = open_uploads(settings)
        self.training: Mapping[int, float] = {}  # partition → time on the log from which trainers need it, as they say
        self._over = threading.Event()
        self._turns: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the slice it is in; a store that does not answer is not waited for."""
        self._over.set()
        self._thread.join(FIRST_SECONDS)

    def report(self, telemetry: Telemetry) -> None:
        """Metrics of the turns since the last call, by whoever owns them."""
        while not self._turns.empty():
            turn = self._turns.get()
            for kind, count in turn.removed.items():
                telemetry.add("retention_removed_total", kind, by=count)
            telemetry.add("retention_errors_total", by=turn.errors)
            if turn.bundles is not None:
                telemetry.set("bundles_kept_count", value=turn.bundles)
                telemetry.set("bundles_unreadable_count", value=turn.unreadable)
            for partition, ratio in turn.headroom.items():
                telemetry.set("log_retention_headroom_ratio", str(partition), value=ratio)

    def turn(self, now: float) -> Turn:
        """Bundles, then records and dead letters; what one store refuses waits for the next turn."""
        turn = Turn()
        for step in (self._sweep, self._records):
            try:
                step(turn, now)
            except (Unavailable, Corrupt) as error:
                turn.errors += 1
                log.warning("retention", extra={"error": str(error)})
        removed = {kind: count for kind, count in turn.removed.items() if count}
        if removed:
            log.info("removed", extra=removed)
        return turn

    def _run(self) -> None:
        wait = FIRST_SECONDS
        while not self._over.wait(wait):
            self._turns.put(self.turn(time.time()))
            wait = EVERY_SECONDS

    def _sweep(self, turn: Turn, now: float) -> None:
        swept = self._retention.sweep(now, self._keep_seconds, self._named, self._over.is_set)
        turn.removed.update(swept.removed)
        turn.bundles, turn.unreadable = swept.bundles, swept.unreadable
        if swept.unreadable:
            log.error("manifests that cannot be read are kept", extra={"count": swept.unreadable})

    def _named(self) -> set[str]:
        """Asked before every slice, so here a service that was replaced while it slept finds out."""
        if current_epoch(self._state) > self._epoch:
            self._over.set()
        return named_bundles(self._state)

    def _keep_seconds(self, surface: str) -> float:
        compiled = self._configs.current(surface)
        return LONGEST_SECONDS if compiled is None else compiled.surface.correctable_seconds

    def _records(self, turn: Turn, now: float) -> None:
        if self._trimmed is None:
            return
        events, letters = self._trimmed
        longest = max([LONGEST_SECONDS, *map(self._keep_seconds, self._configs.surfaces())])
        # a join answers for its decision until twice `correctable` after it, and is rebuilt from there
        kept_seconds = max(self._settings.retention_seconds, 2 * longest + HOUR)
        for partition in range(events.partitions):
            needed = self._rebuilt_from(partition, events.identity)
            turn.headroom[partition] = headroom(events, partition, needed, now, kept_seconds)
            older_than = min(now - kept_seconds, self._settling_from(partition, 2 * longest + HOUR))
            for _ in range(AT_ONCE):
                gone = trim(events, partition, older_than=older_than, needed=needed)
                turn.removed["records"] += gone
                if gone < SLICE_RECORDS or self._over.is_set():
                    break
            turn.removed["letters"] += letters.trim(partition, events.first(partition))

    def _rebuilt_from(self, partition: int, log_identity: str) -> int:
        """The oldest record that a restart from the newest upload reads; 0 before there is one."""
        newest = Uploads(self._uploads, partition, 0).newest()
        return newest.rebuild_from if newest is not None and newest.log == log_identity else 0

    def _settling_from(self, partition: int, open_seconds: float) -> float:
        """Append time from which those who settle still read: what they have settled waits for a file or a trainer, or may be
        told more. Where trainers have not said how far they are since the start, nothing goes."""
        clocks = [time.time() + open_seconds]
        if self._settings.experiences and self._settings.settling_path(partition).exists():
            clocks.append(open_settlements(self._settings, partition).reached()[1])
        if self._settings.training_settled_path(partition).exists():
            clocks.append(self.training.get(partition, 0.0))
        return min(clocks) - open_seconds


def headroom(events: Log, partition: int, offset: int, now: float, kept_seconds: float) -> float:
    """1 − age of the oldest record that is still needed over the retention: at 0 it would be lost, were it not kept."""
    if offset >= events.end(partition)[0]:
        return 1.0
    found = events.read(partition, max(offset, events.first(partition)), 1)
    return 1.0 - max(now - found[0].appended, 0.0) / kept_seconds if found else 1.0
