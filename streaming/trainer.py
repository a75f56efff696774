"""Trainers: learners that do not merge, fed by all partitions in one recorded order (`semantics.md` 15).

    outboxes ─ settled rows ─► order (written first) ─► sequences ─► transitions ─► every trainer of the surface

    order       numbered entries: which rows of which partitions, how far the log's time was there, and whom they taught. An
                entry is durable before it is applied, so state is a function of the entries: of a checkpoint and those after it
    checkpoint  weights, optimiser, replay and open sequences as named arrays, with the cursors, in one transaction; every few
                seconds, not with every entry. After kill -9 the entries since are applied again, with the same result
    fencing     as of shards: who takes over shuts the older epoch out in the step that loads

A policy that is configured later begins with the next entry. One whose `train` raises stops, and is said so; the others go on,
and with the next start it goes on from the checkpoint before, without what came between.
Rows made under another schema or other objectives than a policy's are counted `other_version`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt, Rejected, Unavailable
from policies.sequences import Transitions
from policies.training import Trainer
from policies.types import Arrays
from streaming.configuration import CompiledPolicy, Configs
from streaming.experiences import Experience, Row
from streaming.forgets import forgotten
from streaming.ports import Commit
from streaming.sequences import Lane, Lived, Sequencer, moment_of, teaches, transitions, why_not
from streaming.settle import Settlements

log = logging.getLogger("slatewise.training")
ROWS = 512  # settled decisions of an entry at most, and transitions of a call
PAGE = 1_000  # entries read at once
SEQUENCES, HEAD = "sequences/", "head"  # of the keys in a checkpoint's statistics; learner keys begin with a tenant


class Piece(Struct, frozen=True, array_like=True, gc=False):
    """`count` rows from `number` of a partition, and the time all rows due before which are among these or before them."""

    partition: int
    number: int
    count: int
    clock: float


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """One step of the order. `keys`: learner keys of the policies it taught; `forgotten`: (unit's hash, since when), of those that
    from here on are taken for never there (`semantics.md` 24)."""

    keys: tuple[str, ...]
    pieces: tuple[Piece, ...]
    forgotten: tuple[tuple[str, float], ...] = ()


class Source(Protocol):
    """One partition's settled decisions by number: `streaming.experiences.Experiences`, or files of them."""

    partition: int

    def rows(self, number: int, limit: int) -> list[tuple[int, Row]]: ...

    def of(self, rows: Sequence[tuple[int, Row]]) -> list[Experience]: ...

    def numbers(self) -> tuple[int, int]:
        """(first number that can be pulled, next number to be given)."""


class Head(Struct, array_like=True):
    """What a checkpoint says besides arrays: it holds all entries below `entry`. `cursors`: partition → (next row, log offset).
    `since`: learner key → what was due by then it learned elsewhere (`plant`); `forgotten`: unit's hash → since when."""

    entry: int = 0
    cursors: dict[int, tuple[int, int]] = {}
    identity: str = ""
    since: dict[str, float] = {}
    forgotten: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What an entry did. `metrics`: learner key → the trainer's own, of its last call."""

    rows: int
    transitions: dict[str, int]  # learner key → transitions
    steps: dict[str, int]  # learner key → calls
    metrics: dict[str, dict[str, float]]
    outcomes: dict[tuple[str, str], int]  # (surface, outcome) → decisions
    stopped: dict[str, str] = field(default_factory=dict)  # learner key → why


@dataclass(slots=True)
class _Taught:
    """A policy that is trained. `stopped`: why it is not any more."""

    policy: CompiledPolicy
    lane: Lane
    trainer: Trainer
    stopped: str = ""


_encode = msgspec.msgpack.Encoder().encode
_entry = msgspec.msgpack.Decoder(Entry).decode
_head = msgspec.msgpack.Decoder(Head).decode


class Training:
    """Owner of the trainers of one log for one epoch. Raises Rejected('fenced') when it is over.

    store     where order and checkpoints go, one transaction each
    identity  of the log, in every checkpoint
    """

    def __init__(
        self,
        store: Settlements,
        sources: Sequence[Source],
        configs: Configs,
        *,
        epoch: int,
        identity: str = "",
        limit: int = ROWS,
        refresh: Callable[[], object] | None = None,
    ) -> None:
        self._store, self._configs, self._epoch, self._identity = store, configs, epoch, identity
        self._sources = {source.partition: source for source in sources}
        self._limit, self._refresh = limit, refresh
        self._taught: dict[str, _Taught] = {}
        self._resting: dict[str, Arrays] = {}  # of policies that are not configured now, as they were left
        self._sequences: dict[tuple[Lane, int], Sequencer] = {}
        self._cursors: dict[int, tuple[int, int]] = {}
        self._since: dict[str, float] = {}
        self._forgotten: dict[str, float] = {}  # by the order so far: unit's hash → since when
        self._forgets = -1  # how many the configuration had when the order last took them in
        self._entry = self._checkpointed = 0
        self._head = b""  # of the checkpoint, as every commit repeats it
        self._loaded = False

    @property
    def entry(self) -> int:
        """Entries applied so far."""
        return self._entry

    @property
    def checkpointed(self) -> int:
        """Entries that the durable checkpoint holds."""
        return self._checkpointed

    @property
    def head(self) -> bytes:
        """What the durable checkpoint says besides arrays."""
        return self._head

    @property
    def through(self) -> dict[int, int]:
        """partition → offset of the log up to which everything that settled was learned."""
        return {partition: offset for partition, (_, offset) in sorted(self._cursors.items())}

    @property
    def policies(self) -> dict[str, CompiledPolicy]:
        """Learner key → policy, of all that are trained now."""
        return {key: taught.policy for key, taught in self._taught.items()}

    def arrays(self, key: str) -> Arrays:
        return self._taught[key].trainer.arrays()

    def lag_rows(self) -> dict[int, int]:
        """partition → settled rows not yet applied."""
        return {p: max(one.numbers()[1] - self._cursor(p)[0], 0) for p, one in self._sources.items()}

    def recover(self) -> int:
        """Load what is durable and apply the entries since the checkpoint; how many these were."""
        if self._loaded:
            return 0
        loaded = self._store.load(self._epoch)
        self._restore(_head(loaded.extra) if loaded.extra else Head(identity=self._identity), loaded.statistics)
        self._loaded = True
        again = 0
        for entry in self._entries(self._entry):
            self._apply(entry)
            again += 1
        self._teach(self._wanted())
        return again

    def step(self, frontiers: Mapping[int, float]) -> TrainReport | None:
        """Write down and apply what has settled; None when there is nothing new.

        frontiers  partition → time all rows due before which are in its outbox
        """
        self.recover()
        try:
            entry = self._next(frontiers)
            if entry is None:
                return None
            self._commit(outbox=(self._entry, [_encode(entry)]))
            return self._apply(entry)
        except BaseException:
            self.forget()  # memory may be ahead of what is durable, or behind it: start again from there
            raise

    def checkpoint(self) -> bool:
        """Make durable what was trained; whether there was anything new."""
        if not self._loaded or self._entry == self._checkpointed:
            return False
        self._save()
        return True

    def plant(self, key: str, arrays: Arrays, since: float) -> None:
        """Begin a policy with what a trainer of its own kind learned elsewhere, of all that was due by `since`.

        Raises Rejected('trained') when this log has taught it already.
        """
        self.recover()
        if key in self._store.load(self._epoch).statistics or any(key in entry.keys for entry in self._entries(0)):
            raise Rejected(f"{key} is trained from this log already", at="--policy", code="trained", status=409)
        self._taught[key].trainer.load(arrays)
        self._since[key] = since
        self._save()

    def _save(self) -> None:
        statistics = {**self._resting}
        statistics |= {key: self._sound(taught) for key, taught in self._taught.items()}
        statistics |= {
            SEQUENCES + msgspec.json.encode([*lane, partition]).decode(): sequencer.arrays()
            for (lane, partition), sequencer in self._sequences.items()
        }
        self._commit(statistics=statistics)
        self._checkpointed = self._entry

    def _sound(self, taught: _Taught) -> Arrays:
        """Of one that stopped in the middle of a call, what the checkpoint before it has."""
        if not taught.stopped:
            return taught.trainer.arrays()
        policy = taught.policy
        assert policy.algorithm.trainer is not None  # it was trained
        kept = self._store.load(self._epoch).statistics.get(policy.key)
        return kept or policy.algorithm.trainer(policy.config, policy.problem).arrays()

    def needed(self) -> dict[int, int]:
        """partition → first row that the entries since the checkpoint, or the next ones, need."""
        self.recover()
        needed = {partition: self._cursor(partition)[0] for partition in self._sources}
        for entry in self._entries(self._checkpointed):
            for piece in entry.pieces:
                needed[piece.partition] = min(needed[piece.partition], piece.number)
        return needed

    def trim(self, firsts: Mapping[int, int]) -> None:
        """Forget entries of the order whose rows, all below these, are gone: nobody can apply them again."""
        before = self._store.numbers()[0]
        for entry in self._entries(before):
            rows_are_gone = all(piece.number + piece.count <= firsts[piece.partition] for piece in entry.pieces)
            if before >= self._checkpointed or not rows_are_gone:
                break
            before += 1
        self._store.trim(before)

    # -- the order ---------------------------------------------------------------------------------------------------

    def _entries(self, number: int) -> Iterable[Entry]:
        while rows := self._store.pull(number, PAGE):
            yield from (_entry(data) for _, data in rows)
            number = rows[-1][0] + 1

    def _next(self, frontiers: Mapping[int, float]) -> Entry | None:
        """What comes next: rows of the partitions, fairly, and sessions that have timed out."""
        self._teach(wanted := self._wanted())
        if not wanted:
            return None
        waiting = self.lag_rows()
        share = max(self._limit // max(sum(1 for rows in waiting.values() if rows), 1), 1)
        pieces = []
        for partition, rows in waiting.items():
            number, count = self._cursor(partition)[0], min(rows, share)
            clock = frontiers.get(partition, 0.0) if count == rows else 0.0  # rows that are left come before it
            if count or self._next_end(partition) < clock:
                pieces.append(Piece(partition, number, count, clock))
        asked = sorted(self._configs.forgotten.items()) if self._forgets != self._configs.forgets else []
        new = tuple(one for one in asked if self._forgotten.get(one[0], 0.0) < one[1])
        self._forgets = self._configs.forgets
        return Entry(tuple(sorted(wanted)), tuple(pieces), new) if pieces or new else None

    def _wanted(self) -> dict[str, CompiledPolicy]:
        """Learner key → policy, of all that have a trainer in the current configuration."""
        found = {}
        for name in self._configs.surfaces():
            compiled = self._configs.current(name)
            for policy in compiled.policies.values() if compiled else ():
                if policy.algorithm.trainer is not None:
                    found[policy.key] = policy
        return found

    def _teach(self, wanted: Mapping[str, CompiledPolicy]) -> None:
        """Trainers of exactly these policies, beginning or going on where they were left."""
        for key in [key for key in self._taught if key not in wanted]:
            self._resting[key] = self._left(self._taught.pop(key))
        for key, policy in wanted.items():
            if key in self._taught:
                self._taught[key].policy = policy
                continue
            assert policy.algorithm.trainer is not None  # `wanted` and entries name none without
            trainer = policy.algorithm.trainer(policy.config, policy.problem)
            if key in self._resting:
                trainer.load(self._resting.pop(key))
            encoder, objectives = policy.problem.encoder, tuple(policy.problem.objectives)
            self._taught[key] = _Taught(policy, Lane(key.split("/")[1], encoder.schema, objectives), trainer)

    def _left(self, taught: _Taught) -> Arrays:
        """What a trainer that is not wanted now has come to; its processes, if it has any, end."""
        arrays = {name: np.array(array) for name, array in self._sound(taught).items()}
        _end(taught.trainer)
        return arrays

    # -- what an entry does ------------------------------------------------------------------------------------------

    def _apply(self, entry: Entry) -> TrainReport:
        self._teach({key: self._named(key) for key in entry.keys})
        lanes = {taught.lane for taught in self._taught.values()}
        self._sequences = {place: one for place, one in self._sequences.items() if place[0] in lanes}
        outcomes: Counter[tuple[str, str]] = Counter()
        lived: dict[Lane, list[Lived]] = {taught.lane: [] for taught in self._taught.values()}
        self._forgotten |= dict(entry.forgotten)
        for (lane, _), sequencer in self._sequences.items():
            if gone := sequencer.forget(entry.forgotten):
                outcomes[lane.surface, "forgotten"] += gone
        for piece in entry.pieces:
            self._piece(piece, lived, outcomes)
        self._entry += 1
        report = TrainReport(sum(piece.count for piece in entry.pieces), {}, {}, {}, dict(outcomes))
        for lane, complete in lived.items():
            taught = [one for one in self._taught.values() if one.lane == lane]
            encoder = taught[0].policy.problem.encoder
            for start in range(0, len(complete), self._limit):
                part = complete[start : start + self._limit]
                batch = transitions(part, encoder.context_size, encoder.item_size, len(lane.objectives))
                due = np.array([one.now.until - one.now.timeout for one in part])
                for one in taught:
                    new = due > self._since.get(one.policy.key, -np.inf)
                    if new.any():
                        self._train(one, batch if new.all() else batch.rows(new), report)
        for key, one in self._taught.items():
            if one.stopped:
                report.stopped[key] = one.stopped
        return report

    def _piece(self, piece: Piece, lived: dict[Lane, list[Lived]], outcomes: Counter[tuple[str, str]]) -> None:
        source, partition = self._sources[piece.partition], piece.partition
        rows = source.rows(piece.number, piece.count) if piece.count else []
        if len(rows) != piece.count:
            raise Corrupt(
                "number_out_of_range",
                f"rows from {piece.number} of partition {partition}: {len(rows)} of {piece.count}",
            )
        offset = self._cursor(partition)[1]
        for experience in source.of(rows):
            offset = max(offset, experience.row.offset + 1)
            self._take(experience, lived, outcomes)
        self._cursors[partition] = piece.number + piece.count, offset
        for lane in lived:
            sequencer = self._sequencer(lane, partition)
            lived[lane] += [one for one in sequencer.advance(piece.clock) if teaches(one.now)]
            for outcome, count in sequencer.counts.items():
                outcomes[lane.surface, outcome] += count
            sequencer.counts.clear()

    def _take(self, experience: Experience, lived: dict[Lane, list[Lived]], outcomes: Counter[tuple[str, str]]) -> None:
        decision, row = experience.decision, experience.row
        if forgotten(self._forgotten, decision.unit, decision.at):
            outcomes[decision.surface, "forgotten"] += 1
            return
        lane = Lane(decision.surface, row.schema, row.objectives)
        if lane not in lived:
            if any(lane.surface == other.surface for other in lived):
                outcomes[decision.surface, "other_version"] += 1
            return
        compiled = self._configs.get(decision.config)
        if compiled is None and self._refresh is not None:
            self._refresh()
            compiled = self._configs.get(decision.config)
        if compiled is None:
            outcomes[decision.surface, "unknown_config"] += 1
            return
        try:
            moment = moment_of(experience, compiled.surface.session_timeout_seconds, compiled.encoder.item_size)
        except Corrupt as error:
            outcomes[decision.surface, error.reason] += 1
            return
        if not teaches(moment):
            outcomes[decision.surface, why_not(experience)] += 1
        taken = self._sequencer(lane, experience.partition).take(moment, row.due)
        lived[lane] += [one for one in taken if teaches(one.now)]

    def _train(self, one: _Taught, batch: Transitions, report: TrainReport) -> None:
        if one.stopped:
            return
        key = one.policy.key
        try:
            metrics = one.trainer.train(batch)
        except Unavailable:
            raise
        except Exception as error:  # whatever a trainer's library raises: the others go on, the last bundle serves
            log.exception("trainer stopped", extra={"policy": key})
            one.stopped = f"{type(error).__name__}: {error}"
            return
        report.steps[key] = report.steps.get(key, 0) + 1
        report.transitions[key] = report.transitions.get(key, 0) + len(batch)
        report.metrics[key] = metrics

    # -- state -------------------------------------------------------------------------------------------------------

    def _commit(
        self, outbox: tuple[int, Sequence[bytes]] | None = None, statistics: dict[str, Arrays] | None = None
    ) -> None:
        """An entry of the order, or a checkpoint; who only adds to the order leaves the checkpoint as it is."""
        if statistics is not None:
            self._head = _encode(Head(self._entry, self._cursors, self._identity, self._since, self._forgotten))
        self._store.commit(
            Commit(
                partition=0,
                offset=self._entry,
                clock=0.0,
                epoch=self._epoch,
                statistics=statistics,
                extra=self._head,
                restart=statistics is not None,  # arrays of policies and lanes that are gone go too
                outbox=outbox,
            )
        )

    def _restore(self, head: Head, statistics: Mapping[str, Arrays]) -> None:
        if head.identity != self._identity:
            raise Corrupt("other_log", f"trained from the log {head.identity}, this one is {self._identity}")
        self._head = _encode(head)
        self._entry = self._checkpointed = head.entry
        self._cursors, self._since = dict(head.cursors), dict(head.since)
        self._forgotten, self._forgets = dict(head.forgotten), -1
        for key, arrays in statistics.items():
            if key.startswith(SEQUENCES):
                surface, schema, objectives, partition = msgspec.json.decode(key.removeprefix(SEQUENCES))
                sequencer = self._sequences[Lane(surface, schema, tuple(objectives)), partition] = Sequencer()
                sequencer.load(arrays)
            else:
                self._resting[key] = arrays

    def close(self) -> None:
        """Make durable what was trained, and let go of it."""
        self.checkpoint()
        self.forget()

    def forget(self) -> None:
        """Let go of what is in memory: the next step begins with what is durable."""
        for taught in self._taught.values():
            _end(taught.trainer)
        self._taught, self._resting, self._sequences, self._cursors, self._since = {}, {}, {}, {}, {}
        self._entry = self._checkpointed = 0
        self._forgotten, self._forgets = {}, -1
        self._head, self._loaded = b"", False

    def _named(self, key: str) -> CompiledPolicy:
        found = self._wanted().get(key) or self._configs.learned_as(key)
        if found is None:
            raise Corrupt("unknown_policy", f"the order names {key}, which no known configuration has")
        return found

    def _cursor(self, partition: int) -> tuple[int, int]:
        return self._cursors.get(partition) or (self._sources[partition].numbers()[0], 0)

    def _sequencer(self, lane: Lane, partition: int) -> Sequencer:
        return self._sequences.setdefault((lane, partition), Sequencer())

    def _next_end(self, partition: int) -> float:
        ends = [one.next_end for (_, place), one in self._sequences.items() if place == partition]
        return min(ends, default=np.inf)


def owed(order: Settlements) -> dict[int, int]:
    """partition → number below which rows must be in its outbox before what the order says since the checkpoint can be
    applied. They are, but on a disk that began with an upload."""
    loaded = order.load()
    number = _head(loaded.extra).entry if loaded.extra else 0
    wanted: dict[int, int] = {}
    while rows := order.pull(number, PAGE):
        for _, data in rows:
            for piece in _entry(data).pieces:
                wanted[piece.partition] = max(wanted.get(piece.partition, 0), piece.number + piece.count)
        number = rows[-1][0] + 1
    return wanted


def _end(trainer: Trainer) -> None:
    """Processes of a trainer that has any end with it."""
    close = getattr(trainer, "close", None)
    if close is not None:
        close()
