"""Trainers beside the shards: settled decisions in, what bundles are made of out.

    log ─► a settler a partition ─► outboxes ─► trainers in the recorded order ─► Published ─► the learning service's publisher

A `Course` is all of it for one epoch, stepped by whoever owns it: a thread of the learning service, or a Ray actor. It opens
nothing before a surface has a policy with a trainer. The settlers are its own: no folder of Parquet files is needed, and
the settling process may or may not run beside. Every few seconds what it has come to goes to the bundle store, from a thread of
its own (`streaming.training_uploads`).
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from policies.algorithm import Published
from policies.errors import Corrupt, SlatewiseError, Unavailable
from services.learning.regaining import regained
from services.settings import Settings
from services.wiring import open_log, open_uploads
from streaming.configuration import Configs
from streaming.experiences import Experiences
from streaming.ports import State
from streaming.settle import Settler, SettleReport
from streaming.trainer import Training, TrainReport, owed
from streaming.training_uploads import Taken, TrainingUploads, take

log = logging.getLogger("slatewise.training")
FOLLOW_SECONDS = 0.25
SLICE_SECONDS = 0.5  # of entries in one turn, before settlers and whoever waits for a bundle have theirs
CHECKPOINT_SECONDS = 10.0  # after a death as much is trained again at most, besides what took longer to write
CHECKPOINT_SHARE = 10  # a checkpoint that took t is followed by 10 t without one
PUBLISH_SECONDS = 1.0  # nobody waits for a settled decision as for a click, and networks are large
PUBLISH_SHARE = 4  # a publish that took t is followed by at least 3 t without one
UPLOAD_SECONDS = 5.0  # what is recorded anew, in another order, when a disk is lost, besides what took longer to upload
UPLOAD_SHARE = 10  # an upload that took t is followed by 9 t without one
TRIM_SECONDS, TRIM_ROWS = 60.0, 1_000


@dataclass(frozen=True, slots=True)
class Taught:
    """What a trained policy's next bundle is made of. `config` is the surface version it is for."""

    key: str
    config: str
    published: Published
    through: dict[int, int]


@dataclass(slots=True)
class Turn:
    """What a turn did. `stopped`: partition → why its settler goes no further; `needed`: partition → time on the log from
    which settled decisions are still trained from, once a minute."""

    trained: list[TrainReport] = field(default_factory=list)
    settled: list[SettleReport] = field(default_factory=list)
    taught: list[Taught] = field(default_factory=list)
    lag_rows: dict[int, int] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    needed: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    again: int = 0  # entries applied again after a start
    uploads: int = 0  # since the last turn
    upload_errors: int = 0

    @property
    def busy(self) -> bool:
        return bool(self.trained) or any(one.records or one.settled for one in self.settled)


class Course:
    """Settlers and trainers of one epoch. Raises Unavailable (again later), Corrupt and Rejected('fenced')."""

    def __init__(
        self, settings: Settings, state: State, owner: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._state, self._owner, self._clock = settings, state, owner, clock
        self._configs = Configs(settings.tenant)
        self._training: Training | None = None
        self._settlers: list[Settler] = []
        self._outboxes: list[Experiences] = []
        self._owed: dict[int, int] = {}  # partition → number its outbox has to reach again
        self._uploads: TrainingUploads | None = None
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._upload: Future[float | None] | None = None
        self._uploaded = -1  # entries of the order
        self._frontiers: dict[int, float] = {}
        # learner key → (configuration, entries) of what was handed out last
        self._told: dict[str, tuple[str, int]] = {}
        self._stopped: dict[int, str] = {}
        self._next_follow = self._next_checkpoint = self._next_publish = self._next_trim = self._next_upload = 0.0

    def turn(self, now: float) -> Turn:
        """Settle, train for a while, hand out what changed. `now` is wall time: idle partitions settle by it."""
        started = self._clock()
        if started >= self._next_follow:
            self._configs.follow(self._state)
            self._next_follow = started + FOLLOW_SECONDS
        turn = Turn()
        if not self._wanted():
            if (
                started >= self._next_trim
            ):  # what trainers that are configured no more had not come to is not kept for them
                self._next_trim = started + TRIM_SECONDS
                turn.needed = dict.fromkeys(range(open_log(self._settings).partitions), math.inf)
            return turn
        training = self._training or self._begin()
        for settler in self._settlers:
            self._settle(settler, turn, now)
        if any(outbox.numbers()[1] < self._owed.get(outbox.partition, 0) for outbox in self._outboxes):
            turn.stopped = dict(self._stopped)
            return turn  # rows that the order names are being settled again
        self._owed = {}
        turn.again = training.recover()
        until = self._clock() + SLICE_SECONDS
        while (report := training.step(self._frontiers)) is not None:
            turn.trained.append(report)
            if self._clock() >= until:
                break
        turn.lag_rows, turn.stopped = training.lag_rows(), dict(self._stopped)
        turn.seconds = self._clock() - started
        self._hand_out(training, turn, now)
        self._keep(training)
        self._carry(training, turn)
        if self._clock() >= self._next_trim:
            self._next_trim = self._clock() + TRIM_SECONDS
            self._trim(training, now - self._settings.retention_seconds)
            turn.needed = self._needed(training)
        return turn

    def close(self) -> None:
        """Make durable what was trained, and upload it. What a store that is away does not take is on this disk."""
        training = self._training
        if training is not None and not self._owed:
            training.checkpoint()
            try:
                for upload in (self._upload, self._put(training)):
                    if upload is not None:
                        upload.result()
            except SlatewiseError as error:
                log.warning("not uploaded", extra={"error": str(error)})
            training.close()
        self._uploader.shutdown()

    def _wanted(self) -> bool:
        return any(one.trains for one in self._configs.answering())

    def _begin(self) -> Training:
        events = open_log(self._settings)
        self._identity = events.identity
        order, settled = regained(self._settings, self._identity, self._owner)
        self._owed = owed(order)
        self._settlers = [
            Settler(partition, events, outbox, self._configs, epoch=self._owner, refresh=self._follow)
            for partition, outbox in enumerate(settled)
        ]
        self._outboxes = [Experiences(partition, outbox, events) for partition, outbox in enumerate(settled)]
        made = self._training = Training(
            order,
            self._outboxes,
            self._configs,
            epoch=self._owner,
            identity=self._identity,
            refresh=self._follow,
        )
        self._order, self._settled = order, settled
        self._uploads = TrainingUploads(open_uploads(self._settings), self._owner)
        return made

    def _follow(self) -> bool:
        return self._configs.follow(self._state)

    def _settle(self, settler: Settler, turn: Turn, now: float) -> None:
        partition = settler.partition
        if partition in self._stopped:
            return
        try:
            report = settler.step(now)
        except Unavailable as error:  # the others go on; what it had not committed is read again
            log.warning("away", extra={"partition": partition, "error": str(error)})
            return
        except Corrupt as error:
            log.error("partition stopped", extra={"partition": partition, "error": str(error)})
            self._stopped[partition] = str(error)
            return
        self._frontiers[partition] = report.frontier
        turn.settled.append(report)

    def _hand_out(self, training: Training, turn: Turn, now: float) -> None:
        started = self._clock()
        if started < self._next_publish:
            return
        for key, policy in training.policies.items():
            compiled = self._configs.current(key.split("/")[1])
            if compiled is None or self._told.get(key) == (compiled.hash, training.entry):
                continue
            made = policy.algorithm.publish(policy.config, policy.problem, training.arrays(key), now, training.entry)
            copied = {name: np.array(array) for name, array in made.arrays.items()}  # training goes on meanwhile
            ready = Published(copied, made.slot_weight, made.diagnostics)
            turn.taught.append(Taught(key, compiled.hash, ready, training.through))
            self._told[key] = compiled.hash, training.entry
        took = self._clock() - started
        self._next_publish = started + max(PUBLISH_SECONDS, self._settings.publish_ms / 1000, PUBLISH_SHARE * took)

    def _keep(self, training: Training) -> None:
        started = self._clock()
        if started >= self._next_checkpoint:
            training.checkpoint()
            took = self._clock() - started
            self._next_checkpoint = started + max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * took)

    def _carry(self, training: Training, turn: Turn) -> None:
        """Upload what has moved, now and then. Raises Rejected('fenced') when another owner has uploaded."""
        if self._upload is not None and self._upload.done():
            done, self._upload = self._upload, None
            try:
                took = done.result()
            except (Unavailable, Corrupt) as error:  # the next upload holds all of this one
                log.warning("not uploaded", extra={"error": str(error)})
                turn.upload_errors += 1
                took = None
            else:
                turn.uploads += took is not None
            if took is None:
                self._uploaded = -1
            else:
                self._next_upload = max(self._next_upload, self._clock() + (UPLOAD_SHARE - 1) * took)
        if self._upload is None and self._clock() >= self._next_upload and training.entry != self._uploaded:
            self._next_upload = self._clock() + UPLOAD_SECONDS
            self._upload = self._put(training)

    def _put(self, training: Training) -> Future[float | None] | None:
        """Upload in the thread. None while there is nothing that another could go on from."""
        taken = take(training, self._order, self._settlers, self._settled)
        if taken is None:
            return None
        self._uploaded = training.entry
        return self._uploader.submit(self._write, training.checkpointed, taken)

    def _write(self, checkpoint: int, taken: Taken) -> float | None:
        """Seconds it took; None: a newer checkpoint has come meanwhile, and nothing was uploaded."""
        assert self._uploads is not None  # made where training begins
        started = self._clock()
        done = self._uploads.put(self._identity, checkpoint, taken, self._order)
        return self._clock() - started if done else None

    def _needed(self, training: Training) -> dict[int, float]:
        """A row's record came at most one horizon before it was due."""
        needed = training.needed()
        since = {}
        for outbox, settled in zip(self._outboxes, self._settled, strict=True):
            rows = outbox.rows(needed[outbox.partition], 1)
            since[outbox.partition] = rows[0][1].due if rows else settled.reached()[1]
        return since

    def _trim(self, training: Training, before: float) -> None:
        """Rows that no checkpoint needs, and older than the log's retention: their records are gone by then."""
        needed = training.needed()
        for outbox, settled in zip(self._outboxes, self._settled, strict=True):
            while True:
                first, _ = outbox.numbers()
                rows = outbox.rows(first, TRIM_ROWS)
                keep = next((number for number, row in rows if row.due >= before), first + len(rows))
                keep = min(keep, needed[outbox.partition])
                if keep <= first:
                    break
                settled.trim(keep)
                if keep < first + TRIM_ROWS:
                    break
        training.trim({outbox.partition: outbox.numbers()[0] for outbox in self._outboxes})
