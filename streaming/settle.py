"""Settled decisions: each once, when one horizon of the log's time has passed, numbered for trainers and files.

A settler is a consumer of its own of one partition, beside the shard: read → join → settle → commit. Its joiner teaches
nothing (`Joiner(…, settling=True)`): what it gives out goes into the partition's outbox in the same transaction as the
offset, so the numbers are a function of the log (`semantics.md` 4, 15). A row of the outbox holds what the log does not say,
some 200 bytes; `streaming.experiences` reads it together with the decision's record, while the log keeps that.

    due       max(at, append time) + horizon, at most at + `correctable`: after it nothing changes the row, and feedback that
              comes later is counted `after_training`
    idle      with nothing to read, a time the service passes in settles too, less a minute for clocks that differ
    trimmed   a settler that starts anew on a log whose beginning is gone starts at what is there, and numbers from the
              log's end on: above every number that was given before
    moved     one that starts where another was (`streaming.places`) reads again what was open there, and numbers on
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import msgspec
import numpy as np

from policies.errors import Corrupt, Rejected
from streaming.applied import Settled
from streaming.configuration import Configs
from streaming.experiences import encode_row, row_of
from streaming.join import AHEAD_SECONDS, Joiner
from streaming.losses import goes_on_at
from streaming.places import Kept, Place, decode_kept, encode_kept
from streaming.ports import Checkpoints, Commit, Loaded, Log, Outbox, Record
from streaming.rows import Rows


class Settlements(Checkpoints, Outbox, Protocol):
    """Where a settler commits to, and what it gives out: one store, so that both move in one transaction."""

    def reached(self) -> tuple[int, float]:
        """(offset, clock) committed, without loading it; (0, 0.0) before the first commit."""


@dataclass(frozen=True, slots=True)
class SettleReport:
    """What a step did. `frontier`: all that is due before is in the outbox, and nothing will be added to it."""

    partition: int
    records: int
    settled: dict[str, int]  # surface → decisions
    after_training: dict[str, int]  # surface → settled decisions that changed afterwards
    offset: int
    clock: float
    frontier: float
    lag_records: int


class Settler:
    """Owner of one partition's outbox for one epoch. A repeated `step()` is harmless.

    refresh  follows the configuration record; called when a decision names a version not seen yet
    limit    most decisions settled in one commit
    """

    def __init__(
        self,
        partition: int,
        log: Log,
        checkpoints: Checkpoints,
        configs: Configs,
        *,
        epoch: int,
        read_limit: int = 2000,
        limit: int = 2000,
        refresh: Callable[[], object] | None = None,
        hot_limit: int = 20_000,
    ) -> None:
        self._partition, self._log, self._checkpoints, self._configs = partition, log, checkpoints, configs
        self._epoch, self._read_limit, self._limit = epoch, read_limit, limit
        self._refresh, self._hot_limit = refresh, hot_limit
        self._joiner: Joiner | None = None
        self._kept = Kept()
        self._forgets = 0  # how many the configuration had when rows were last blanked for them
        self._offset = 0
        self._idle = 0.0

    @property
    def partition(self) -> int:
        return self._partition

    @property
    def written(self) -> int:
        """Rows of the outbox below this number are in files."""
        self._state()
        return self._kept.written

    def wrote(self, number: int) -> None:
        """Rows below `number` are in files: durable with the next commit, and written again alike if that never comes."""
        self._state()
        self._kept = msgspec.structs.replace(self._kept, written=number)

    def begin_anew(self) -> None:
        """Give up what was open and go on with what the log still has; numbers go on too. For those who know that nobody
        wants what lies between. Raises Rejected('fenced')."""
        loaded = self._checkpoints.load(self._epoch)
        kept = decode_kept(loaded.extra) if loaded.extra else Kept()
        after = Kept(b"", self._log.identity, kept.next_number, kept.next_number)
        offset = first_offset(self._log, self._partition)
        self._checkpoints.commit(
            Commit(
                partition=self._partition,
                offset=offset,
                clock=loaded.clock,
                epoch=self._epoch,
                extra=encode_kept(after),
                restart=True,
            )
        )
        self._joiner = None

    @property
    def rebuilding(self) -> bool:
        """Whether what was open where another settler was is being read again."""
        self._state()
        return self._kept.rebuild_to > 0

    def place(self) -> Place | None:
        """Where another could go on; None while this one is being rebuilt, or in the middle of what is due."""
        joiner = self._state()
        if self._kept.rebuild_to or joiner.next_due < max(joiner.clock, self._idle):
            return None
        rebuild_from, longest = joiner.reach()
        return Place(
            partition=self._partition,
            offset=self._offset,
            rebuild_from=min(rebuild_from, self._offset) if rebuild_from >= 0 else self._offset,
            next_number=self._kept.next_number,
            settled_to=joiner.next_due,
            clock=joiner.clock,
            longest=longest,
            ghosts=joiner.ghosts().tobytes(),
        )

    def step(self, now: float | None = None) -> SettleReport:
        """One batch. Raises Unavailable, Corrupt('offset_out_of_range' …) and Rejected('fenced')."""
        joiner = self._state()
        try:
            return self._batch(joiner, now)
        except BaseException:
            self._joiner = None  # memory may be ahead of the commit: start again from what is durable
            raise

    def _batch(self, joiner: Joiner, now: float | None) -> SettleReport:
        blanked = self._forgets != self._configs.forgets
        if blanked:
            self._forgets = self._configs.forgets
            joiner.forget(dict(self._configs.forgotten))
        if self._kept.rebuild_to:
            return self._rebuild(joiner)
        records = self._read()
        settled: list[Settled] = []
        after: dict[str, int] = {}
        done = 0
        while done < len(records) and len(settled) < self._limit:
            appended = records[done].appended
            if joiner.next_due < appended:
                settled += joiner.settle(appended, self._limit - len(settled))
                continue
            end = _until(records, done, joiner.next_due)
            applied = joiner.apply(records[done:end])
            settled += applied.settled  # of horizons shorter than the batch is long
            for (surface, outcome), count in applied.outcomes.items():
                if outcome == "after_training":
                    after[surface] = after.get(surface, 0) + count
            done = end
        evicted = False
        if not records and now is not None:
            self._idle = max(self._idle, now - AHEAD_SECONDS)
            settled += joiner.settle(self._idle, self._limit)
            evicted = joiner.next_due >= self._idle and joiner.idle(now)  # never a row that still waits
        if done or settled or evicted or (blanked and self._forgets):
            self._commit(joiner, records[done - 1].offset + 1 if done else self._offset, settled)
        return self._report(joiner, done, settled, after)

    def _read(self) -> list[Record]:
        """The next records; past what a person has accepted as lost."""
        try:
            records = self._log.read(self._partition, self._offset, self._read_limit)
        except Corrupt as error:
            self._offset = goes_on_at(error, self._partition, self._offset, self._configs.lost.get(self._partition, 0))
            records = self._log.read(self._partition, self._offset, self._read_limit)
        self._rows.reading = self._offset
        return records

    def _rebuild(self, joiner: Joiner) -> SettleReport:
        """Read on to where another settler was. What is settled on the way has its number already, and is not given out."""
        kept = self._kept
        read = self._read()
        records = [record for record in read if record.offset < kept.rebuild_to]
        if records:
            joiner.apply(records)
        offset = records[-1].offset + 1 if len(records) == len(read) and records else kept.rebuild_to
        if read and offset >= kept.rebuild_to:
            joiner.settle(kept.settled_to, sys.maxsize)
            joiner.rebuilt(np.frombuffer(kept.ghosts, np.uint64))
            self._kept = msgspec.structs.replace(kept, rebuild_to=0, ghosts=b"", settled_to=0.0)
        if read:
            self._commit(joiner, offset, [])
        return self._report(joiner, len(read), [], {})

    def _report(
        self, joiner: Joiner, records: int, settled: Sequence[Settled], after_training: dict[str, int]
    ) -> SettleReport:
        counts: dict[str, int] = {}
        for one in settled:
            counts[one.terms.surface] = counts.get(one.terms.surface, 0) + 1
        return SettleReport(
            partition=self._partition,
            records=records,
            settled=counts,
            after_training=after_training,
            offset=self._offset,
            clock=joiner.clock,
            frontier=min(max(joiner.clock, self._idle), joiner.next_due),
            lag_records=self._log.end(self._partition)[0] - self._offset,
        )

    def _commit(self, joiner: Joiner, offset: int, settled: Sequence[Settled]) -> None:
        pieces, kept = joiner.pieces(), self._kept
        number = kept.next_number
        after = msgspec.structs.replace(
            kept, joiner=pieces.extra, identity=self._log.identity, next_number=number + len(settled)
        )
        self._checkpoints.commit(
            Commit(
                partition=self._partition,
                offset=offset,
                clock=joiner.clock,
                epoch=self._epoch,
                joins=pieces.joins,
                ids=pieces.ids,
                evicted=pieces.evicted,
                extra=encode_kept(after),
                outbox=(number, [encode_row(row_of(one)) for one in settled]) if settled else None,
            )
        )
        joiner.committed()
        self._offset, self._kept = offset, after

    def _state(self) -> Joiner:
        if self._joiner is None:
            loaded = self._checkpoints.load(self._epoch)
            self._rows = Rows(self._checkpoints.join, partial(self._log.read, self._partition), self._hot_limit)
            joiner = Joiner(self._partition, self._configs, self._rows, self._refresh, settling=True)
            if loaded.extra:
                self._kept = decode_kept(loaded.extra)
                if self._kept.identity != self._log.identity:
                    message = (
                        f"partition {self._partition} was settled of the log {self._kept.identity}, this one is "
                        f"{self._log.identity}: move what settling keeps aside to begin anew"
                    )
                    raise Rejected(message, code="other_log", status=409)
                joiner.rebuilding = self._kept.rebuild_to > 0
                joiner.restore(replace(loaded, extra=self._kept.joiner))
                self._offset = loaded.offset
            else:
                self._begin(loaded)
            self._joiner, self._forgets = joiner, 0
        return self._joiner

    def _begin(self, loaded: Loaded) -> None:
        self._offset = first_offset(self._log, self._partition)
        base = self._log.end(self._partition)[0] if self._offset else 0
        self._kept = Kept(next_number=base, written=base)


def _until(records: Sequence[Record], start: int, due: float) -> int:
    """One past the last record from `start` that was appended by `due`."""
    end = start + 1
    while end < len(records) and records[end].appended <= due:
        end += 1
    return end


def first_offset(log: Log, partition: int) -> int:
    """The oldest record that the log still has: 0 but for retention, found by halving what is left."""
    low, high = 0, log.end(partition)[0]
    while low < high:
        middle = (low + high) // 2 if low else 0
        try:
            log.read(partition, middle, 1)
        except Corrupt as error:
            if error.reason != "offset_out_of_range":
                raise
            low = middle + 1
        else:
            high = middle
    return low
