"""Shards that one process steps: what they have in common, wherever they run.

stopping   a shard that meets `Corrupt` (its records are gone from the log, a join is missing) waits for a person (`streaming.losses`); it is
           never reset, what it had learned is still published, and the others go on
uploading  every few seconds the checkpoints that have moved go to the bundle store from a thread of its own, so that no
           step waits for it; and once more at the end
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from policies.errors import Corrupt, SlatewiseError, Unavailable
from streaming.shard import Shard, Statistics, StepReport
from streaming.uploads import Checkpoint, Uploads

log = logging.getLogger("slatewise.learning")
AWAY_SECONDS = 0.5  # between two tries of a shard whose log or disk is away
UPLOAD_SECONDS = 5.0  # what a shard elsewhere learns again at most, besides reading its joins

Done = StepReport | Unavailable
Each = Callable[[Callable[[Shard], Done], Sequence[Shard]], Iterable[Done]]


class Group:
    """`each` applies a function to every shard: `map`, or that of a thread pool."""

    def __init__(self, shards: Sequence[Shard], each: Each = map, upload_seconds: float = UPLOAD_SECONDS) -> None:
        self._shards, self._each, self._upload_seconds = list(shards), each, upload_seconds
        self._stopped: dict[int, Statistics] = {}
        self._accepted: dict[int, int] = {}  # partition → what was accepted as lost when it stopped
        self._last: dict[int, StepReport] = {}
        self._away: dict[int, tuple[float, Unavailable]] = {}  # partition → (when to try again, why not before)
        self._headroom: dict[int, float] = {}
        self._uploaded: dict[int, int] = {}  # partition → offset
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._upload: Future[None] | None = None
        self._next_upload = 0.0

    def step(self) -> list[StepReport]:
        """One step of every shard. Raises Unavailable when none could do one, Rejected('fenced', 'another_log')."""
        done = list(self._each(self._step, self._shards))
        reports = [report for report in done if isinstance(report, StepReport)]
        if done and not reports:
            raise next(error for error in done if isinstance(error, Unavailable))
        self._uploading()
        return reports

    def statistics(self) -> list[Statistics]:
        return [self._stopped.get(shard.partition) or shard.statistics() for shard in self._shards]

    def close(self) -> None:
        """Upload what was committed since the last time. What a store that is away does not take is on the local disk."""
        try:
            if self._upload is not None:
                self._upload.result()
            self._put(self._checkpoints())
        except SlatewiseError as error:  # replaced, or the store is away: this owner has nothing more to say
            log.warning("not uploaded", extra={"error": str(error)})
        self._uploader.shutdown()

    def _step(self, shard: Shard) -> Done:
        partition, now = shard.partition, time.monotonic()
        if partition in self._stopped:
            if shard.accepted <= self._accepted[partition]:
                return self._last[partition]
            del self._stopped[partition]  # what it stopped at may be done with: `streaming.losses`
        away = self._away.get(partition)
        if away is not None and now < away[0]:
            return away[1]
        try:
            report = shard.step(time.time())
        except Unavailable as error:  # what it had not committed is read again
            log.warning("shard waits", extra={"partition": partition, "error": str(error)})
            self._away[partition] = now + AWAY_SECONDS, error
            return error
        except Corrupt as error:
            log.error("shard stopped", extra={"partition": partition, "reason": error.reason, "detail": error.detail})
            self._stopped[partition] = found = shard.committed()
            self._accepted[partition] = shard.accepted
            report = _halted(found, self._last.get(partition), error.reason)
        else:
            self._away.pop(partition, None)
            if partition in self._headroom:
                report = replace(report, headroom=self._headroom.pop(partition))
        self._last[partition] = report
        return report

    def _uploading(self) -> None:
        if self._upload is not None and self._upload.done():
            done, self._upload = self._upload, None
            try:
                done.result()
            except (Unavailable, Corrupt) as error:  # the next upload holds all of this one
                log.warning("not uploaded", extra={"error": str(error)})
        now = time.monotonic()
        if self._upload is None and now >= self._next_upload:
            self._next_upload = now + self._upload_seconds
            made = self._checkpoints()
            if made:
                self._upload = self._uploader.submit(self._put, made)

    def _checkpoints(self) -> list[tuple[int, Uploads, Checkpoint]]:
        """Those that have moved since they were uploaded; taken between steps, written by whoever has time."""
        found = []
        for shard in self._shards:
            uploads, partition = shard.uploads, shard.partition
            if uploads is None or partition in self._stopped or partition in self._away:
                continue
            if shard.offset == self._uploaded.get(partition):
                continue
            made = shard.checkpoint(uploads.known())
            if made is not None:
                found.append((partition, uploads, made))
                self._tell(shard, made)
        return found

    def _tell(self, shard: Shard, made: Checkpoint) -> None:
        try:
            headroom = shard.tell(made, time.time())
        except Unavailable as error:  # told again in a few seconds
            log.warning("not told", extra={"partition": shard.partition, "error": str(error)})
            return
        if headroom is not None:
            self._headroom[shard.partition] = headroom

    def _put(self, checkpoints: Sequence[tuple[int, Uploads, Checkpoint]]) -> None:
        for partition, uploads, made in checkpoints:
            uploads.put(made)
            self._uploaded[partition] = made.offset


def _halted(found: Statistics, last: StepReport | None, reason: str) -> StepReport:
    """What a shard that has stopped reports from now on: it learns nothing, and lags."""
    if last is not None:
        last = replace(last, records=0, decisions=0, feedback=0, outcomes={}, dead={}, fresh=[], learned={})
        return replace(last, lag_records=max(last.lag_records, 1), stopped=reason)
    return StepReport(found.partition, 0, 0, 0, {}, {}, found.offset, found.clock, 1, stopped=reason)
