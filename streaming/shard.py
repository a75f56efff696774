"""One partition, read → join → learn → commit: all of a batch or nothing of it, exactly once in effect.

The commit holds joins, statistics and offset in one transaction, so state is always that of a prefix of the log. Dead
letters go first; they are named by (partition, offset), so writing them again changes nothing. When anything fails after
the first change in memory, memory is thrown away and the next step starts from the last commit.

State is per partition, so moving a partition to another worker moves its checkpoint. A learner of a version that is not
known here any more keeps its committed sums without being able to add to them.

    recovery  from the local checkpoint or the newest upload, see `streaming.recovery`
    fencing   whoever takes the partition over shuts older epochs out of the checkpoint in the step that loads it
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from policies.algorithm import Learner
from policies.errors import Corrupt
from policies.types import Arrays
from streaming.applied import Applied
from streaming.configuration import Configs
from streaming.derived import derived_of
from streaming.feed import Feed
from streaming.join import Joiner
from streaming.losses import goes_on_at
from streaming.ports import Checkpoints, Commit, DeadLetter, DeadLetters, Log, Moves, Record, Watched
from streaming.recovery import Held, beginning, better_upload, encode_held, read_held
from streaming.rows import Rows
from streaming.uploads import Checkpoint, Uploads

LEARNERS = 40  # changed by a batch, from which on a longer one costs less (longer than it has to be costs cache: twice with 20)
MOST_RECORDS = 32_000  # of a batch, some 100 MB
FRESH_EACH = 32  # acceptance times reported for a policy and step: enough for a percentile


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did, for metrics. `learned` counts changed (decision, slot) rows by learner key.

    offset, clock  where the partition stands after it;   lag_records  how many the log holds beyond
    fresh          (surface, policy, accepted_at) of feedback now in committed statistics, at most 32 for each policy
    rebuilding     records still to be read again before anything is learned
    headroom       how much of the log's retention is left to the oldest record still needed; None: not looked at, or unknown
    forgot         unit's hash → (since when, rows blanked) of those forgotten in this step, which is committed
    stopped        why this partition waits for a person; empty: it does not
    lost           records that were gone before they were read, and that a person has accepted as lost
    """

    partition: int
    records: int
    decisions: int
    feedback: int
    outcomes: dict[tuple[str, str], int]
    dead: dict[str, int]
    offset: int
    clock: float
    lag_records: int
    fresh: list[tuple[str, str, float]] = field(default_factory=list)
    learned: dict[str, int] = field(default_factory=dict)
    rebuilding: int = 0
    headroom: float | None = None
    stopped: str = ""
    forgot: dict[str, tuple[float, int]] = field(default_factory=dict)
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Committed sums of one partition: those of every record before `offset`. `examples`: pairs present, by learner key."""

    partition: int
    offset: int
    epoch: int
    clock: float
    arrays: dict[str, Arrays]
    examples: dict[str, int]


class Shard:
    """Owner of one partition for one epoch. A repeated `step()` is harmless; nothing is passed in but time.

    read_limit  records of a batch for every `LEARNERS` that the last one changed: a learner's update and its part of the commit
               cost the same for few records as for many, so the cost of an event would grow with the number of surfaces
    refresh    follows the configuration record; called when a decision names a version not seen yet
    hot_limit  joins kept in memory between steps, some 3 kB each; for feedback on others the row and the log are read
    uploads    where checkpoints of this partition are when the local one is not; None: nowhere
    feed       derives counters and profiles and tells them to their stores; None: nobody wants them, and they cost nothing
    """

    def __init__(
        self,
        partition: int,
        log: Log,
        checkpoints: Checkpoints,
        configs: Configs,
        dead_letters: DeadLetters,
        *,
        epoch: int,
        read_limit: int = 2000,
        refresh: Callable[[], object] | None = None,
        hot_limit: int = 20_000,
        uploads: Uploads | None = None,
        feed: Feed | None = None,
    ) -> None:
        self._partition, self._log, self._checkpoints = partition, log, checkpoints
        self._configs, self._dead_letters = configs, dead_letters
        self._epoch, self._read_limit, self._refresh, self._hot_limit = epoch, read_limit, refresh, hot_limit
        self.uploads, self._feed = uploads, feed
        self._joiner: Joiner | None = None
        self._learners: dict[str, Learner] = {}
        self._resting: dict[str, Arrays] = {}  # committed sums whose learner was not needed yet
        self._versions: dict[str, int] = {}  # learner key → how often its sums have changed
        self._offset = self._learned_to = 0
        self._ghosts = b""
        self._lost = 0  # records that were accepted as lost, not reported yet
        self._moved = 0  # learners that the last batch changed
        self._forgets = -1  # how many the configuration had when rows were last blanked for them
        self._forgot: dict[str, tuple[float, int]] = {}  # … in this step: unit → (since when, rows)

    @property
    def partition(self) -> int:
        return self._partition

    @property
    def accepted(self) -> int:
        """Records before this one are accepted as lost."""
        return self._configs.lost.get(self._partition, 0)

    @property
    def offset(self) -> int:
        """Records before this one are in the committed statistics."""
        self._state()
        return max(self._offset, self._learned_to)

    def step(self, now: float | None = None) -> StepReport:
        """One batch. `now` lets an idle partition give back rows; it never changes statistics or a verdict.

        Raises Unavailable (a port is away: call again), Corrupt('offset_out_of_range' …) and Rejected('fenced', 'another_log').
        """
        joiner = self._state()
        collecting = gc.isenabled()
        gc.disable()  # what a batch allocates lives until its commit: looking for garbage meanwhile costs a fifth of the step
        try:
            applied, records, learned = self._batch(joiner, now)
        except BaseException:
            self._joiner = None  # memory may be ahead of the commit: start again from what is durable
            raise
        finally:
            if collecting:
                gc.enable()
        return self._report(applied, records, joiner, learned)

    def _batch(self, joiner: Joiner, now: float | None) -> tuple[Applied, int, dict[str, int]]:
        """(what it came to, records, learned rows) of reading, joining, learning and committing once."""
        limit = max(self._read_limit, min(self._moved // LEARNERS * self._read_limit, MOST_RECORDS))
        if joiner.rebuilding:
            limit = min(limit, self._learned_to - self._offset)
        blanked = self._forget(joiner)
        records = self._read(joiner, limit)
        if not records:
            if blanked or (now is not None and joiner.idle(now)):
                self._commit(joiner, self._offset, {})
            elif self._feed is not None and not joiner.rebuilding:
                self._feed.tell(self._offset)
            return Applied(), 0, {}
        records, until, letters = self._ours(joiner, records)
        self._rows.reading = self._offset
        applied = joiner.apply(records) if records else Applied()  # strangers' only: nothing to apply
        applied.letters += letters
        if self._feed is not None:
            self._feed.take(applied.touched, counting=not joiner.rebuilding)
        if joiner.rebuilding:
            return self._rebuilt(joiner, until), len(records), {}
        learned = self._learn(applied)
        if applied.letters:
            self._dead_letters.put(applied.letters)
        self._commit(joiner, until, learned)
        self._moved = len(learned)
        applied.changes, applied.touched = [], []  # arrays of the batch go before garbage is looked for
        return applied, len(records), learned

    def _read(self, joiner: Joiner, limit: int) -> list[Record]:
        """The next records. Those that are gone are gone beyond only where that was accepted (`streaming.losses`)."""
        try:
            return self._log.read(self._partition, self._offset, limit)
        except Corrupt as error:
            begins = goes_on_at(error, self._partition, self._offset, self.accepted)
            self._lost += begins - self._offset
            self._offset = begins
            if joiner.rebuilding and begins >= self._learned_to:
                joiner.rebuilt(np.frombuffer(self._ghosts, np.uint64))
                self._ghosts = b""
            left = self._learned_to - begins if joiner.rebuilding else limit
            return self._log.read(self._partition, begins, min(limit, left))

    def _forget(self, joiner: Joiner) -> bool:
        """Blank what is to be forgotten, if that is new; whether there is something to commit (`semantics.md` 24)."""
        self._forgot = {}
        if self._forgets == self._configs.forgets:
            return False
        self._forgets, asked = self._configs.forgets, dict(self._configs.forgotten)
        rows = joiner.forget(asked) if asked else {}
        if self._feed is not None:
            self._feed.derived.forget(asked)
        self._forgot = {unit: (asked[unit], count) for unit, count in rows.items()}
        return bool(asked)

    def _ours(self, joiner: Joiner, records: list[Record]) -> tuple[list[Record], int, list[DeadLetter]]:
        """(records to apply, where reading goes on, letters for what belongs nowhere). Offsets may have holes; strangers
        may have put a record of another partition here, which the log then moves, unless this is read again."""
        until = records[-1].offset + 1
        if joiner.rebuilding and until > self._learned_to:
            until = self._learned_to
            records = [record for record in records if record.offset < until]
        if not isinstance(self._log, Moves):
            return records, until, []
        records, letters = self._log.reroute(self._partition, records, again=not joiner.rebuilding)
        return records, until, letters

    def statistics(self) -> Statistics:
        """Committed sums, copied."""
        joiner = self._state()
        held = self._resting | {key: learner.arrays() for key, learner in self._learners.items()}
        arrays = {key: {name: np.array(array) for name, array in sums.items()} for key, sums in held.items()}
        return Statistics(self._partition, self.offset, self._epoch, joiner.clock, arrays, dict(joiner.examples))

    def committed(self) -> Statistics:
        """As `statistics`, of a shard that cannot go on: the checkpoint is read, and the log is not."""
        loaded = self._checkpoints.load()
        held = read_held(loaded)
        offset, examples = max(loaded.offset, held.learned_to), held.extra().examples
        derived_of(loaded.statistics)  # not for those who ask for what was learned
        return Statistics(self._partition, offset, self._epoch, loaded.clock, loaded.statistics, examples)

    def checkpoint(self, known: Mapping[str, int]) -> Checkpoint | None:
        """What to upload, without sums of which the version is `known`; None while joins are being rebuilt."""
        joiner = self._state()
        if joiner.rebuilding:
            return None
        statistics = self._resting | {key: learner.arrays() for key, learner in self._learners.items()}
        sums = self._feed.derived.sums() if self._feed is not None else []
        versions = {key: self._versions.get(key, 0) for key in [*statistics, *sums]}
        changed = [key for key, version in versions.items() if known.get(key) != version]
        if self._feed is not None:
            found = set(changed)
            statistics |= {key: self._feed.derived.sum(key, self._offset) for key in sums if key in found}
        rebuild_from, longest = joiner.reach()
        return Checkpoint(
            log=self._log.identity,
            offset=self._offset,
            rebuild_from=rebuild_from if rebuild_from >= 0 else self._offset,
            clock=joiner.clock,
            longest=longest,
            ghosts=joiner.ghosts().tobytes(),
            examples=dict(joiner.examples),
            statistics={key: {name: np.array(a) for name, a in statistics[key].items()} for key in changed},
            versions=versions,
        )

    def tell(self, checkpoint: Checkpoint, now: float) -> float | None:
        """Tell the log how far this is, and ask for its headroom. Raises Unavailable."""
        if not isinstance(self._log, Watched):
            return None
        self._log.commit_offsets(self._partition, checkpoint.offset)
        return self._log.headroom(self._partition, min(checkpoint.rebuild_from, checkpoint.offset), now)

    def _state(self) -> Joiner:
        if self._joiner is None:
            loaded = self._checkpoints.load(self._epoch)
            upload = better_upload(loaded, self.uploads, self._log.identity)
            if upload is not None:
                self._checkpoints.commit(beginning(upload, self._partition, self._epoch))
                loaded = self._checkpoints.load(self._epoch)
            held = read_held(loaded)
            self._rows = Rows(self._checkpoints.join, partial(self._log.read, self._partition), self._hot_limit)
            joiner = Joiner(self._partition, self._configs, self._rows, self._refresh, watching=self._feed is not None)
            joiner.rebuilding = loaded.offset < held.learned_to
            joiner.restore(replace(loaded, extra=held.joiner))
            self._learners, self._resting = {}, dict(loaded.statistics)
            self._offset, self._learned_to, self._ghosts = loaded.offset, held.learned_to, held.ghosts
            derived = derived_of(self._resting)
            if self._feed is not None:
                self._feed.restore(derived, max(self._offset, self._learned_to))
            self._joiner, self._forgets = joiner, -1
        return self._joiner

    def _rebuilt(self, joiner: Joiner, offset: int) -> Applied:
        """Commit joins that were read again. What their records came to was said and learned before."""
        if offset == self._learned_to:
            joiner.rebuilt(np.frombuffer(self._ghosts, np.uint64))
            self._ghosts = b""
        self._commit(joiner, offset, {})
        return Applied()

    def _learn(self, applied: Applied) -> dict[str, int]:
        learned: dict[str, int] = {}
        for terms, changes in applied.changes:
            for policy in terms.learners:
                learner = self._learners.get(policy.key)
                if learner is None:
                    assert policy.algorithm.learner is not None  # `Terms.learners` are those that have one
                    learner = self._learners[policy.key] = policy.algorithm.learner(policy.config, policy.problem)
                    if policy.key in self._resting:
                        learner.load(self._resting.pop(policy.key))
                learner.learn(changes)
                learned[policy.key] = learned.get(policy.key, 0) + len(changes)
                self._versions[policy.key] = self._versions.get(policy.key, 0) + 1
        return learned

    def _commit(self, joiner: Joiner, offset: int, learned: dict[str, int]) -> None:
        pieces = joiner.pieces()
        statistics = {key: self._learners[key].arrays() for key in learned}
        if self._feed is not None:
            derived = self._feed.pieces(max(offset, self._learned_to))
            statistics |= derived
            self._versions |= {key: self._versions.get(key, 0) + 1 for key in derived}
        held = Held(self._log.identity, self._learned_to, self._ghosts, pieces.extra)
        self._checkpoints.commit(
            Commit(
                partition=self._partition,
                offset=offset,
                clock=joiner.clock,
                epoch=self._epoch,
                joins=pieces.joins,
                ids=pieces.ids,
                evicted=pieces.evicted,
                statistics=statistics,
                extra=encode_held(held),
            )
        )
        joiner.committed()
        self._offset = offset
        if self._feed is not None:
            self._feed.committed(offset if not joiner.rebuilding else None)

    def _report(self, applied: Applied, records: int, joiner: Joiner, learned: dict[str, int]) -> StepReport:
        fresh: dict[tuple[str, str], list[float]] = {}
        for terms, accepted_at in applied.heard:
            for policy in terms.learners:
                times = fresh.setdefault((terms.surface, policy.name), [])
                if len(times) < FRESH_EACH:
                    times.append(accepted_at)
        dead: dict[str, int] = {}
        lost, self._lost = self._lost, 0
        for letter in applied.letters:
            dead[letter.reason] = dead.get(letter.reason, 0) + 1
        return StepReport(
            partition=self._partition,
            records=records,
            decisions=applied.decisions,
            feedback=applied.feedback,
            outcomes=applied.outcomes,
            dead=dead,
            offset=self._offset,
            clock=joiner.clock,
            lag_records=self._log.end(self._partition)[0] - self._offset,
            fresh=[(surface, policy, at) for (surface, policy), times in fresh.items() for at in times],
            learned=learned,
            rebuilding=max(self._learned_to - self._offset, 0),
            forgot=self._forgot,
            lost=lost,
        )
