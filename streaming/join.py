"""Joins decisions with what people did, in event time: records in, changes of evidence out.

Every record gets one verdict, and the verdict is a function of the log alone: of the record, of what its decision heard
before, and of the append times up to it. Batches, restarts and wall clocks do not show.

    joins     one row a decision id, numbered by first arrival, be it the decision or feedback that came early
    changes   at the end of a batch each touched decision goes from what learners were taught to what the evidence is now
    closing   a row answers for its id until twice `correctable` after the decision: in the first half it changes, in the
              second it makes late feedback `too_late`; after that its decision is unknown, feedback waits, then `no_decision`

Dead letters: undecodable version unknown_surface unknown_config bad_time too_late conflict bad_slot unknown_kind bad_vector
bad_decision wrong_unit no_decision early_full too_many.
A joiner is state of one partition in memory; `streaming.shard` makes it durable, and throws it away when a commit failed.
"""

import heapq
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from policies.errors import Corrupt
from streaming.applied import LONGEST_SECONDS, Applied, Extra, Pieces, Settled, Touched
from streaming.configuration import Configs
from streaming.counted import NOTHING, Said
from streaming.delays import Spread, delays_of, spread_of
from streaming.dues import Dues
from streaming.events import Feedback
from streaming.evidence import Taught, changes_of
from streaming.forgets import without
from streaming.index import U64, id_hash
from streaming.joined import (
    Drawn,
    Early,
    Join,
    Terms,
    evidence,
    read_event,
    said_of,
)
from streaming.plain.batch import Plain
from streaming.ports import DeadLetter, Loaded, Record
from streaming.rows import Rows, Span
from streaming.tenancy import DEFAULT
from streaming.verdicts import LARGEST, Placed, are_sound, mistake, remember, take_back

AHEAD_SECONDS = 60.0  # how far a record's own time may be ahead of the log's
EARLY_DECISIONS = 100_000  # unknown decisions that feedback waits for
EARLY_EACH = 100  # … and feedback that waits for one of them
PAGE = 2_000  # rows read at once when a joiner starts


class Joiner:
    """One partition's joins. `refresh` follows the configuration record, once on a version not seen yet.

    settling  teaches nothing: every decision waits for one horizon of the log's time (from `at`, or from its append time if
              that is later: what comes late has its time too) and is given out once, as it stood before the record that moved
              the clock past it. So what is settled is a function of the log, however it is cut into batches. What was given
              out is not kept in memory: feedback that comes after the horizon is rare, and reads the row and the log
    watching  says which decisions a batch has touched (`Applied.touched`), for counters and profiles derived from them
    """

    def __init__(
        self,
        partition: int,
        configs: Configs,
        rows: Rows,
        refresh: Callable[[], object] | None = None,
        *,
        settling: bool = False,
        watching: bool = False,
    ) -> None:
        self._partition, self._configs, self._rows, self._refresh = partition, configs, rows, refresh
        self._settling, self._watching = settling, watching
        self._terms: dict[str, Terms] = {}
        self._dirty: dict[int, Join] = {}
        self._came: set[int] = set()  # rows of decisions that this batch brought
        self._spreads: dict[int, Spread] = {}  # of decisions that heard something in this batch, as it was before
        self._said: dict[int, Said] = {}  # likewise, where features want it counted and somebody watches
        self._given: list[Join] = []  # out, by a settling joiner, since the last commit
        self._sound = True  # vectors of this batch
        self._plain = (
            None
            if settling or watching or configs.tenant != DEFAULT  # whose records are what is plain
            else Plain(rows, lambda config: self._terms.get(config) or self._find_terms(config))
        )
        self._ghosts: dict[str, int] = {}  # id → row of decisions that have not come
        self._ghost_dues: list[tuple[float, int, str]] = []  # heap
        self._waiting = Dues()
        self._longest = LONGEST_SECONDS
        self.rebuilding = False  # reading again what learners know: nothing is taught, all early feedback waits
        self.examples: dict[str, int] = {}
        self.clock = 0.0

    def restore(self, loaded: Loaded) -> None:
        """Continue from a checkpoint: ids at once, rows when they are needed. Only for a joiner nothing was applied to."""
        extra = msgspec.msgpack.decode(loaded.extra, type=Extra) if loaded.extra else Extra()
        self.clock, self._longest, self.examples = loaded.clock, extra.longest, dict(extra.examples)
        self._rows.restore(loaded, [Span(*span) for span in extra.spans])
        for join in self._rows.load(np.frombuffer(extra.ghosts, "<u8").tolist()):
            self._ghosts[join.key] = join.row
            heapq.heappush(self._ghost_dues, (join.early[0].appended + self._longest, join.row, join.key))
        for first in range(max(extra.waiting_from, loaded.evicted), loaded.next_row, PAGE):
            for join in self._rows.load(range(first, min(first + PAGE, loaded.next_row)), self.clock):
                if not join.due and join.drawn is not None:
                    self._waits(join, self._terms_of(join.drawn.config))

    def apply(self, records: Sequence[Record]) -> Applied:
        """Take a batch in log order; everything it changed is in the answer and in the next `pieces`."""
        applied = Applied()
        until = records[-1].appended if records else self.clock
        if self._configs.forgotten:
            kept = without(records, self._configs.forgotten)
            if len(kept) < len(records):
                applied.count("", "forgotten", len(records) - len(kept))
                records = kept
        events: list[tuple[Record, str, Drawn | Feedback]] = []
        if records:
            events = self._left(records, applied) if self._plain is not None else self._decode(records, applied)
        self._rows.recall([key for _, key, _ in events], records[0].appended if records else self.clock)
        for record, key, event in events:
            if record.appended > self.clock:
                self.clock = record.appended
                if self._settling:
                    self._settle(applied)
            if type(event) is Feedback:
                applied.feedback += 1
                self._hear(record, key, event, applied)
            elif type(event) is Drawn:
                applied.decisions += 1
                self._draw(record, key, event, applied)
        self.clock = max(self.clock, until)
        self._settle(applied)
        self._teach(applied)
        self._rows.evict(self.clock)
        return applied

    def _left(self, records: Sequence[Record], applied: Applied) -> list[tuple[Record, str, Drawn | Feedback]]:
        """Take the plain part of a batch at once; what is left of it, to be judged one by one."""
        assert self._plain is not None  # asked before
        sheet = self._plain.read(records)
        others = self._decode([records[i] for i in sheet.others()], applied)
        sound, limits = self._sound, (AHEAD_SECONDS, LARGEST)
        taken = self._plain.take(sheet, {key for _, key, _ in others}, self.clock, self._longest, limits)
        events = others + self._decode([records[i] for i in taken.left], applied)
        if others and taken.left:
            self._sound = self._sound and sound
            events.sort(key=lambda event: event[0].offset)
        elif others:
            self._sound = sound
        applied.decisions += taken.decisions
        applied.feedback += taken.feedback
        applied.heard += taken.heard
        for terms, joined, clipped in taken.outcomes:
            applied.count(terms.surface, "joined", joined)
            if clipped:
                applied.count(terms.surface, "clipped", clipped)
        for terms, changes, examples in taken.changes if not self.rebuilding else ():
            applied.changes.append((terms, terms.taught(changes)))
            for policy in terms.learners:
                self.examples[policy.key] = self.examples.get(policy.key, 0) + examples
        return events

    def forget(self, units: Collection[str]) -> dict[str, int]:
        """Blank the rows of units: nothing can be added to their decisions, nothing waits for them; unit → rows there were.

        What learners were taught of them stays, as sums do.
        """
        gone = dict.fromkeys(units, 0)
        for join, unit in self._rows.of(gone):
            gone[unit] += 1
            if self._ghosts.get(join.key) == join.row:
                del self._ghosts[join.key]
            self._dirty.pop(join.row, None)
            self._rows.blank(join.row, join.key)
        return gone

    def idle(self, now: float) -> bool:
        """Nothing to read until `now`: give back rows that no record can reach any more. Whether there were any."""
        return self._rows.evict(now)

    @property
    def next_due(self) -> float:
        """When the next decision that waits for its horizon falls due; infinity when none waits."""
        return self._waiting.next

    def settle(self, clock: float, limit: int) -> list[Settled]:
        """Of a settling joiner: at most `limit` decisions due before `clock`, in order, before any record that late is heard."""
        applied = Applied()
        self._fall_due(applied, clock, limit)
        return applied.settled

    def ghosts(self) -> U64:
        """Hashes of the ids that early feedback waits for."""
        return np.fromiter(map(id_hash, self._ghosts), np.uint64, len(self._ghosts))

    def rebuilt(self, ghosts: U64) -> None:
        """What was read again is complete. Feedback on decisions from before it waits for nothing: only `ghosts` are real."""
        self.rebuilding, real = False, set(ghosts.tolist())
        for key in [key for key in self._ghosts if id_hash(key) not in real]:
            row = self._ghosts.pop(key)
            join = self._rows.by_row(row, key)
            join.early = ()
            self._rows.changed[row] = join

    def reach(self) -> tuple[int, float]:
        """(offset, longest `correctable` there): what may still be changed follows from the log's records from there on."""
        span = self._rows.open_from(self.clock)
        return (span.offset, span.longest) if span else (-1, self._longest)

    def pieces(self) -> Pieces:
        ghosts = np.fromiter(self._ghosts.values(), "<u8", len(self._ghosts)).tobytes()
        joins, ids = self._rows.pieces()
        first = self._waiting.oldest_row(self._rows.next_row)
        extra = Extra(self._longest, ghosts, first, [*self._rows.spans], self.examples)
        return Pieces(joins, ids, self._rows.evicted, msgspec.msgpack.encode(extra))

    def committed(self) -> None:
        """What `pieces` said is durable."""
        self._rows.committed()
        self._rows.cool(self._given)
        self._given = []

    def _decode(self, records: Sequence[Record], applied: Applied) -> list[tuple[Record, str, Drawn | Feedback]]:
        events: list[tuple[Record, str, Drawn | Feedback]] = []
        vectors: list[bytes] = []
        for record in records:
            try:
                event = read_event(record.value)
            except Corrupt as error:
                self._dead(applied, record, error.reason, error.detail)
                continue
            if event.tenant != self._configs.tenant:
                self._dead(applied, record, "other_tenant", event.tenant)
                continue
            if type(event) is Drawn:
                vectors += (event.context, event.shown)
            key = event.decision_id if event.tenant == DEFAULT else f"{event.tenant}\0{event.decision_id}"
            events.append((record, key, event))
        self._sound = are_sound(b"".join(vectors))  # all at once: a hundredth of the cost of one by one
        return events

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def _draw(self, record: Record, key: str, drawn: Drawn, applied: Applied) -> None:
        terms = self._terms.get(drawn.config) or self._find_terms(drawn.config)
        if terms is None:
            return self._dead(applied, record, "unknown_config", drawn.config, drawn.surface)
        surface, clock = terms.surface, self.clock
        if drawn.surface != surface:
            return self._dead(applied, record, "unknown_surface", f"{drawn.surface}: config is of {surface}")
        if drawn.mode == "cached":  # an answer given again: its decision is in the log already
            return applied.count(surface, "cached")
        at, until = drawn.at, drawn.at + terms.correctable
        if at > clock + AHEAD_SECONDS:
            return self._dead(applied, record, "bad_time", f"{at - clock:.3f} s ahead of the log", surface)
        if until < clock:
            return self._dead(applied, record, "too_late", f"{clock - at:.3f} s old", surface)
        wrong = mistake(drawn, terms, sound=self._sound)
        if wrong is not None:
            return self._dead(applied, record, *wrong, surface)
        join = self._rows.hot.get(key)
        early: tuple[Early, ...] = ()
        if join is None or not join.answers(clock):
            join = self._rows.open(key, drawn, record.offset)
        elif join.offset < 0:
            early, join.early, join.drawn, join.offset = join.early, (), drawn, record.offset
            del self._ghosts[key]
            self._rows.changed[join.row] = join
        elif join.drawn == drawn:
            return applied.count(surface, "duplicate")
        else:
            return self._dead(applied, record, "conflict", key, surface)
        join.at, join.until = max(at, record.appended) if self._settling else at, until
        self._dirty[join.row] = join
        self._came.add(join.row)
        self._longest = max(self._longest, terms.correctable)
        self._rows.expect(join.row, until + terms.correctable, clock, self._longest)
        if terms.wait:
            join.due = False
            self._waits(join, terms)
        applied.count(surface, "joined")
        for feedback in early:
            if feedback.appended < clock - terms.correctable:
                self._dead(applied, feedback, "no_decision", "waited longer than correctable", surface)
            else:
                said = read_event(feedback.value)
                assert isinstance(said, Feedback)  # nothing else waits
                self._listen(feedback, join, drawn, terms, said, applied)
        return None

    def _hear(self, record: Record, key: str, feedback: Feedback, applied: Applied) -> None:
        clock = self.clock
        if feedback.at > clock + AHEAD_SECONDS:
            return self._dead(applied, record, "bad_time", f"{feedback.at - clock:.3f} s ahead of the log")
        join = self._rows.hot.get(key)
        if join is None or not join.answers(clock):
            if len(self._ghosts) >= EARLY_DECISIONS and not self.rebuilding:
                return self._dead(applied, record, "early_full", f"{EARLY_DECISIONS} decisions are waited for")
            if feedback.at < clock - self._longest:
                return self._dead(applied, record, "bad_time", f"{clock - feedback.at:.3f} s old")
            join = self._rows.open(key, None, -1)
            self._ghosts[key] = join.row
            self._rows.expect(join.row, clock + 2.0 * self._longest, clock, self._longest)
            heapq.heappush(self._ghost_dues, (clock + self._longest, join.row, key))
        elif join.offset >= 0:
            if join.until < clock or join.drawn is None:
                return self._dead(applied, record, "too_late", f"decision is {clock - join.at:.3f} s old")
            terms = self._terms.get(join.drawn.config) or self._terms_of(join.drawn.config)
            return self._listen(record, join, join.drawn, terms, feedback, applied)
        elif feedback.at < clock - self._longest:
            return self._dead(applied, record, "bad_time", f"{clock - feedback.at:.3f} s old")
        elif len(join.early) >= EARLY_EACH:
            return self._dead(applied, record, "early_full", f"{EARLY_EACH} wait for {key}")
        join.early = (*join.early, Early(record.offset, record.appended, record.key, record.value))
        self._rows.changed[join.row] = join
        return applied.count("", "early")

    def _listen(
        self, record: Placed, join: Join, drawn: Drawn, terms: Terms, feedback: Feedback, applied: Applied
    ) -> None:
        """Feedback meets its decision."""
        surface = terms.surface
        if feedback.unit != drawn.unit:
            return self._dead(applied, record, "wrong_unit", f"{feedback.unit}, decision has {drawn.unit}", surface)
        if feedback.at + terms.correctable < record.appended:
            return self._dead(applied, record, "bad_time", f"{record.appended - feedback.at:.3f} s old", surface)
        if terms.corrected and join.row not in self._spreads:
            self._spreads[join.row] = spread_of(join, terms, join.present)
        if self._watching and terms.counted is not None and join.row not in self._said:
            self._said[join.row] = said_of(join, terms, join.present)
        if feedback.retracts is not None:
            outcome, reason, detail = take_back(join, feedback.retracts)
        else:
            outcome, reason, detail = remember(record, join, drawn, terms, feedback)
        if reason:
            return self._dead(applied, record, reason, detail, surface)
        applied.count(surface, outcome)
        if outcome == "duplicate":
            return None
        rows, row = self._rows, join.row
        rows.changed[row] = self._dirty[row] = join
        rows.hot[join.key] = rows.hot.pop(join.key)  # touched last
        if feedback.accepted_at is not None:
            applied.heard.append((terms, feedback.accepted_at))
        return None

    def _dead(self, applied: Applied, record: Placed, reason: str, detail: str = "", surface: str = "") -> None:
        letter = DeadLetter(self._partition, record.offset, reason, detail, record.key, record.value)
        applied.letters.append(letter)
        applied.count(surface, reason)

    # -- the end of a batch ------------------------------------------------------------------------------------------

    def _settle(self, applied: Applied) -> None:
        """What the log's clock brings about: `wait` decisions fall due, early feedback stops waiting."""
        rows = self._rows
        self._fall_due(applied, self.clock)
        while self._ghost_dues and self._ghost_dues[0][0] < self.clock:
            _, row, key = heapq.heappop(self._ghost_dues)
            if self._ghosts.get(key) != row:
                continue  # its decision came
            join = rows.by_row(row, key)
            oldest = self.clock - self._longest
            for early in join.early:
                if early.appended < oldest:
                    self._dead(applied, early, "no_decision", "waited longer than correctable")
            join.early = tuple(early for early in join.early if early.appended >= oldest)
            rows.changed[row] = join
            if join.early:
                first = join.early[0].appended
                rows.expect(row, first + 2.0 * self._longest, self.clock, self._longest)
                heapq.heappush(self._ghost_dues, (first + self._longest, row, key))
            else:
                del self._ghosts[key]

    def _fall_due(self, applied: Applied, clock: float, limit: float = math.inf) -> None:
        """`wait` decisions whose horizon has passed by `clock`, at most `limit` of them, in order."""
        rows = self._rows
        fallen: list[tuple[float, int]] = []
        while self._waiting.next < clock and len(fallen) < limit:
            fallen.append(self._waiting.pop())
        keys = {row: rows.changed[row].key for _, row in fallen if row in rows.changed}
        cold = []
        for join in rows.load([row for _, row in fallen if row not in keys], math.inf):  # without their decisions
            keys[join.row] = join.key
            hot = rows.hot.get(join.key)
            if hot is None or hot.row != join.row:
                cold.append(join.row)
        for join in rows.load(cold):  # together: neighbours in the log are read in one go
            rows.hot[join.key] = join
        for due, row in fallen:
            key = keys[row]
            join = rows.by_row(row, key)
            if join.offset < 0:  # blanked since: only decisions wait
                continue
            join.due = True
            rows.changed[row] = join
            if not self._settling:
                self._dirty[row] = join
                continue
            drawn = join.drawn
            assert drawn is not None  # only decisions wait
            terms = self._terms.get(drawn.config) or self._terms_of(drawn.config)
            join.present, join.rewards, _ = evidence(join, terms)
            heard = dict(join.heard)  # the join goes on hearing
            applied.settled.append(Settled(due, join.offset, drawn, terms, heard))
            self._given.append(join)

    def _teach(self, applied: Applied) -> None:
        """The net change of every touched decision, grouped by surface version."""
        groups: dict[str, list[Taught]] = {}
        spreads: dict[str, list[tuple[float, Spread, Spread]]] = {}
        for join in self._dirty.values():
            drawn = join.drawn
            assert drawn is not None  # only decisions get dirty
            terms = self._terms.get(drawn.config) or self._terms_of(drawn.config)
            present, rewards, clipped = evidence(join, terms)
            if clipped:
                applied.count(terms.surface, "clipped", clipped)
            if self._watching:
                said = before = NOTHING
                if terms.counted is not None:
                    said = said_of(join, terms, present)
                    known = self._said.get(join.row)  # None: it has heard nothing in this batch
                    before = said_of(join, terms, join.present) if known is None else known
                came = join.row in self._came
                touched = Touched(terms, join, join.present, join.rewards, present, rewards, before, said, came)
                applied.touched.append(touched)
            later = terms.corrected and self._spread(join, terms, present, spreads)
            if later or rewards != join.rewards or present != join.present:
                if self._settling or self.rebuilding:
                    if self._settling:  # after it was given out
                        applied.count(terms.surface, "after_training")
                    join.present, join.rewards = present, rewards
                    continue
                taught = (drawn, join.present, join.rewards, present, rewards)
                groups.setdefault(drawn.config, []).append(taught)
                join.present, join.rewards = present, rewards
        self._dirty, self._spreads, self._said = {}, {}, {}
        self._came.clear()
        for config, group in groups.items():
            terms = self._terms[config]
            changes = changes_of(terms, group)
            if config in spreads:
                changes = replace(changes, delays=delays_of(spreads[config]))
            applied.changes.append((terms, changes))
            moved = int(changes.present_after.sum() - changes.present_before.sum())
            for policy in terms.learners:
                self.examples[policy.key] = self.examples.get(policy.key, 0) + moved

    def _spread(
        self, join: Join, terms: Terms, present: bytes, into: dict[str, list[tuple[float, Spread, Spread]]]
    ) -> bool:
        """Whether what a decision says of delays has changed in this batch, which is put down."""
        before, after = self._spreads.get(join.row, ()), spread_of(join, terms, present)
        if before != after and not self.rebuilding:
            into.setdefault(terms.compiled.hash, []).append((join.at, before, after))
        return before != after

    def _waits(self, join: Join, terms: Terms) -> None:
        due = min(join.at + terms.horizon, join.until)  # after `until` nothing changes it any more
        self._waiting.add(due, join.row, terms.horizon)

    # -- configuration -----------------------------------------------------------------------------------------------

    def _find_terms(self, config: str) -> Terms | None:
        compiled = self._configs.get(config)
        if compiled is None and self._refresh is not None:
            self._refresh()
            compiled = self._configs.get(config)
        if compiled is None:
            return None
        terms = Terms.of(compiled)
        if self._settling:
            terms = replace(terms, wait=True, corrected=False)
        self._terms[config] = terms
        return terms

    def _terms_of(self, config: str) -> Terms:
        terms = self._terms.get(config) or self._find_terms(config)
        if terms is None:
            raise Corrupt("config_missing", f"{config} of an open join is not in the configuration record")
        return terms
