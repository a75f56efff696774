"""Joins decisions with what people did, in event time: records in, changes of evidence out.

Every record gets one verdict, and the verdict is a function of the log alone: of the record, of what its decision heard
before, and of the append times up to it. Batches, restarts and wall clocks do not show.

    joins     one row a decision id, numbered by first arrival, be it the decision or feedback that came early; rows in
              memory are bounded, colder ones are read back by row number (`Checkpoints.join`)
    changes   at the end of a batch each touched decision goes from what learners were taught to what the evidence is now
    rows      answer for their id until twice `correctable` after the decision: in the first half they change, in the
              second they make late feedback `too_late`; after that its decision is unknown, it waits, then `no_decision`

Dead letters: undecodable version unknown_surface unknown_config bad_time too_late conflict bad_slot unknown_kind bad_vector
bad_decision wrong_unit no_decision early_full too_many.
A joiner is state of one partition in memory; `streaming.shard` makes it durable, and throws it away when a commit failed.
"""

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt
from policies.types import Changes
from streaming.configuration import Compiled, Configs
from streaming.events import VERSION, Feedback, content_id, floats
from streaming.evidence import Taught, changes_of
from streaming.index import Index, id_hash
from streaming.joined import (
    SHOWN,
    Drawn,
    Early,
    Join,
    Terms,
    Version,
    evidence,
    pack,
    positions_of,
    unpack,
)
from streaming.ports import DeadLetter, Loaded, Record

AHEAD_SECONDS = 60.0  # how far a record's own time may be ahead of the log's
LONGEST_SECONDS = 86_400.0  # early feedback waits at least this long: the default `correctable`
EARLY_DECISIONS = 100_000  # unknown decisions that feedback waits for
EARLY_EACH = 100  # … and feedback that waits for one of them
HEARD_EACH = 1_000  # feedback ids and their versions a decision remembers
LARGEST = 1e6  # encoded features are scaled or clipped far below; what is above would drown every other example
SPANS = 64  # rows are given back in this many steps of `correctable`

_decode = msgspec.json.Decoder(Drawn | Feedback).decode


class Extra(Struct, array_like=True):
    """What a commit holds besides rows: small, written whole."""

    longest: float = LONGEST_SECONDS
    ghosts: bytes = b""  # packed uint64: rows whose decision has not come
    waiting_from: int = 0  # no row below is a `wait` decision before its horizon
    spans: list[tuple[int, float, float]] = []  # (first row, expires, opened): see `Joiner._expect`
    examples: dict[str, int] = {}  # learner key → (decision, slot) pairs present


@dataclass(slots=True)
class Applied:
    """What a batch came to. `changes` are to be learned, `letters` to be set aside, before the commit."""

    changes: list[tuple[Terms, Changes]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    decisions: int = 0
    feedback: int = 0
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)
    heard: list[tuple[Terms, float]] = field(default_factory=list)  # accepted_at of feedback that moved a decision

    def count(self, surface: str, outcome: str, by: int = 1) -> None:
        self.outcomes[surface, outcome] = self.outcomes.get((surface, outcome), 0) + by


@dataclass(frozen=True, slots=True)
class Pieces:
    """What changed since the last commit, as `Commit` wants it."""

    joins: list[tuple[int, bytes]]
    ids: tuple[int, bytes] | None
    evicted: int
    extra: bytes


class Joiner:
    """One partition's joins. `fetch` reads a committed row; `refresh` follows the configuration record once on a miss."""

    def __init__(
        self,
        partition: int,
        configs: Configs,
        fetch: Callable[[int], bytes | None],
        *,
        refresh: Callable[[], object] | None = None,
        hot_limit: int = 32_768,
    ) -> None:
        self._partition, self._configs, self._fetch, self._refresh = partition, configs, fetch, refresh
        self._hot_limit = hot_limit
        self._hot: dict[str, Join] = {}  # least recently touched first
        self._index = Index()
        self._terms: dict[str, Terms] = {}
        self._next_row = self._committed_row = self._evicted = 0
        self._changed: dict[int, Join] = {}
        self._dirty: dict[int, Join] = {}
        self._hashes: dict[str, int] = {}  # of ids looked up in this batch
        self._new: list[int] = []  # hashes of rows added since the last commit
        self._ghosts: dict[str, int] = {}  # id → row of decisions that have not come
        self._ghost_dues: list[tuple[float, int, str]] = []  # heap
        self._waiting: dict[int, None] = {}  # rows, ascending
        self._waiting_dues: list[tuple[float, int, str]] = []  # heap
        self._spans: list[tuple[int, float, float]] = []
        self._longest = LONGEST_SECONDS
        self.examples: dict[str, int] = {}
        self.clock = 0.0

    def restore(self, loaded: Loaded) -> None:
        """Continue from a checkpoint: ids at once, rows when they are needed. Only for a joiner nothing was applied to."""
        extra = msgspec.msgpack.decode(loaded.extra, type=Extra) if loaded.extra else Extra()
        self.clock, self._longest, self._spans = loaded.clock, extra.longest, list(extra.spans)
        self._next_row = self._committed_row = loaded.next_row
        self._evicted = self._index.evicted = loaded.evicted
        self.examples = dict(extra.examples)
        self._index.load(loaded.ids)
        for row in np.frombuffer(extra.ghosts, "<u8").tolist():
            join = self._read(row)
            self._ghosts[join.key] = row
            heapq.heappush(self._ghost_dues, (join.early[0].appended + self._longest, row, join.key))
        for row in range(max(extra.waiting_from, loaded.evicted), loaded.next_row):
            join = self._read(row)
            if not join.due and join.drawn is not None:
                self._waits(join, self._terms_of(join.drawn.config))

    def apply(self, records: Sequence[Record]) -> Applied:
        """Take a batch in log order; everything it changed is in the answer and in the next `pieces`."""
        applied = Applied()
        events = self._decode(records, applied)
        self._recall([key for _, key, _ in events])
        for record, key, event in events:
            self.clock = max(self.clock, record.appended)
            if type(event) is Feedback:
                applied.feedback += 1
                self._hear(Early(record.offset, record.appended, record.key, record.value), key, event, applied)
            else:
                applied.decisions += 1
                self._draw(record, key, event, applied)
        if records:
            self.clock = max(self.clock, records[-1].appended)
        self._settle(applied)
        self._teach(applied)
        self._evict(self.clock)
        return applied

    def idle(self, now: float) -> bool:
        """Nothing to read until `now`: give back rows that no record can reach any more. Whether there were any."""
        before = self._evicted
        self._evict(now)
        return self._evicted > before

    def pieces(self) -> Pieces:
        ghosts = np.fromiter(self._ghosts.values(), "<u8", len(self._ghosts)).tobytes()
        first = next(iter(self._waiting), self._next_row)
        return Pieces(
            joins=[(row, pack(join)) for row, join in sorted(self._changed.items())],
            ids=(self._committed_row, np.array(self._new, "<u8").tobytes()) if self._new else None,
            evicted=self._evicted,
            extra=msgspec.msgpack.encode(Extra(self._longest, ghosts, first, self._spans, self.examples)),
        )

    def committed(self) -> None:
        """What `pieces` said is durable: forget that it changed, and let cold rows go."""
        self._changed, self._new, self._committed_row = {}, [], self._next_row
        self._hashes = {}
        hot = self._hot
        while len(hot) > self._hot_limit:
            del hot[next(iter(hot))]

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _decode(self, records: Sequence[Record], applied: Applied) -> list[tuple[Record, str, Any]]:
        events: list[tuple[Record, str, Any]] = []
        vectors: list[bytes] = []
        for record in records:
            try:
                event = _decode(record.value)
                if event.v != VERSION:
                    raise Corrupt("version", f"v {event.v}, this build reads {VERSION}")
                if type(event) is Drawn:
                    if not (isinstance(event.context, bytes) and isinstance(event.shown, bytes)):
                        event = _as_bytes(event)
                    vectors += (event.context, event.shown)  # type: ignore[arg-type]  # bytes since the line above
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._dead(applied, record, "undecodable", str(error))
                continue
            except Corrupt as error:
                self._dead(applied, record, error.reason, error.detail)
                continue
            key = event.decision_id if event.tenant == "default" else f"{event.tenant}\0{event.decision_id}"
            events.append((record, key, event))
        self._sound = _sound(b"".join(vectors))  # all at once: a thousandth of the cost of one by one
        return events

    def _recall(self, keys: Sequence[str]) -> None:
        """Bring the batch's rows into memory, so that applying it is pure."""
        hot = self._hot
        missing = [key for key in dict.fromkeys(keys) if key not in hot]
        hashes = [id_hash(key) for key in missing]
        self._hashes = dict(zip(missing, hashes, strict=True))
        for key, rows in zip(missing, self._index.find(hashes), strict=True):
            for row in rows:  # ascending: the newest row of an id wins
                join = self._read(row)
                if join.key == key:
                    hot[key] = join

    def _read(self, row: int) -> Join:
        data = self._fetch(row)
        if data is None:
            raise Corrupt("join_missing", f"row {row} of partition {self._partition}")
        return unpack(data)

    def _held(self, key: str) -> Join | None:
        """The join that answers for an id at this moment of the log."""
        join = self._hot.get(key)
        if join is None or (join.drawn is None and not join.early):
            return None
        if join.drawn is not None and not join.alive(self.clock, self._terms_of(join.drawn.config).correctable):
            return None
        return join

    def _open(self, key: str, drawn: Drawn | None) -> Join:
        join = Join(self._next_row, key, drawn)
        hashed = self._hashes.get(key)
        if hashed is None:
            hashed = id_hash(key)
        self._index.add(hashed, join.row)
        self._new.append(hashed)
        self._next_row += 1
        self._hot.pop(key, None)  # an expired row of the same id loses its place
        self._hot[key] = join
        return join

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
        if drawn.at > clock + AHEAD_SECONDS:
            return self._dead(applied, record, "bad_time", f"{drawn.at - clock:.3f} s ahead of the log", surface)
        if drawn.at < clock - terms.correctable:
            return self._dead(applied, record, "too_late", f"{clock - drawn.at:.3f} s old", surface)
        wrong = self._mistake(drawn, terms)
        if wrong:
            return self._dead(applied, record, *wrong, surface)
        join = self._held(key)
        early: list[Early] = []
        if join is None:
            join = self._open(key, drawn)
        elif join.drawn is None:
            early, join.early, join.drawn = join.early, [], drawn
            del self._ghosts[key]
        elif join.drawn == drawn:
            return applied.count(surface, "duplicate")
        else:
            return self._dead(applied, record, "conflict", key, surface)
        applied.count(surface, "joined")
        self._longest = max(self._longest, terms.correctable)
        self._expect(join.row, drawn.at + 2.0 * terms.correctable)
        if terms.wait:
            join.due = False
            self._waits(join, terms)
        self._changed[join.row] = self._dirty[join.row] = join
        for feedback in early:
            if feedback.appended < clock - terms.correctable:
                self._dead(applied, feedback, "no_decision", "waited longer than correctable", surface)
            else:
                self._listen(feedback, join, drawn, terms, _decode(feedback.value), applied)
        return None

    def _mistake(self, drawn: Drawn, terms: Terms) -> tuple[str, str] | None:
        """(reason, detail) of what makes a decision useless."""
        k, slots, propensities = len(drawn.slate), drawn.slots, drawn.propensities
        if len(slots) != k or len(propensities) != k:
            return "bad_decision", "slate, slots and propensities differ in length"
        if k and not (slots[0] >= 0 and slots[-1] < terms.slots and _ascending(slots)):
            return "bad_slot", f"slots {list(slots)[:20]} of {terms.slots}"
        if k and not (min(propensities) > 0.0 and max(propensities) <= 1.0 + 1e-9):
            return "bad_decision", "propensities outside (0, 1]"
        if not 0.0 < drawn.weight <= 1.0:
            return "bad_decision", f"weight {drawn.weight}"
        if len(drawn.context) != terms.context_bytes or len(drawn.shown) != k * terms.item_bytes:
            found = f"{len(drawn.context)}, {len(drawn.shown)} bytes"
            return "bad_vector", f"{found}, expected {terms.context_bytes}, {k * terms.item_bytes}"
        if not self._sound and not (_sound(drawn.context) and _sound(drawn.shown)):  # type: ignore[arg-type]  # bytes
            return "bad_vector", f"a number is not finite or larger than {LARGEST:g}"
        return None

    def _hear(self, record: Early, key: str, feedback: Feedback, applied: Applied) -> None:
        clock = self.clock
        if feedback.at > clock + AHEAD_SECONDS:
            return self._dead(applied, record, "bad_time", f"{feedback.at - clock:.3f} s ahead of the log")
        join = self._held(key)
        if join is not None and join.drawn is not None:
            terms = self._terms[join.drawn.config]
            return self._listen(record, join, join.drawn, terms, feedback, applied)
        if feedback.at < clock - self._longest:
            return self._dead(applied, record, "bad_time", f"{clock - feedback.at:.3f} s old")
        if join is None:
            if len(self._ghosts) >= EARLY_DECISIONS:
                return self._dead(applied, record, "early_full", f"{EARLY_DECISIONS} decisions are waited for")
            join = self._open(key, None)
            self._ghosts[key] = join.row
            self._expect(join.row, clock + 2.0 * self._longest)
            heapq.heappush(self._ghost_dues, (clock + self._longest, join.row, key))
        elif len(join.early) >= EARLY_EACH:
            return self._dead(applied, record, "early_full", f"{EARLY_EACH} wait for {key}")
        join.early = [*join.early, record]
        self._changed[join.row] = join
        return applied.count("", "early")

    def _listen(
        self, record: Early, join: Join, drawn: Drawn, terms: Terms, feedback: Feedback, applied: Applied
    ) -> None:
        """Feedback meets its decision."""
        surface, appended = terms.surface, record.appended
        if feedback.unit != drawn.unit:
            return self._dead(applied, record, "wrong_unit", f"{feedback.unit}, decision has {drawn.unit}", surface)
        if feedback.at < appended - terms.correctable:
            return self._dead(applied, record, "bad_time", f"{appended - feedback.at:.3f} s old", surface)
        if drawn.at < appended - terms.correctable:
            return self._dead(applied, record, "too_late", f"decision is {appended - drawn.at:.3f} s old", surface)
        outcome = self._remember(record, join, drawn, terms, feedback, applied)
        if outcome is None:
            return None
        applied.count(surface, outcome)
        if outcome != "duplicate":
            self._changed[join.row] = self._dirty[join.row] = join
            hot = self._hot
            hot[join.key] = hot.pop(join.key)
            if feedback.accepted_at is not None:
                applied.heard.append((terms, feedback.accepted_at))
        return None

    def _remember(
        self, record: Early, join: Join, drawn: Drawn, terms: Terms, feedback: Feedback, applied: Applied
    ) -> str | None:
        """Add a version to what a decision heard; the outcome, or None when the record was set aside."""
        if feedback.retracts is not None:
            if join.heard.get(feedback.retracts) == []:
                return "duplicate"
            if feedback.retracts not in join.heard and self._full(record, join, terms, applied):
                return None
            join.heard[feedback.retracts] = []
            return "retracted"
        if feedback.kind not in terms.kinds:
            self._dead(applied, record, "unknown_kind", feedback.kind, terms.surface)
            return None
        positions = positions_of(drawn, feedback)
        if positions is None:
            detail = f"slot {feedback.slot}, item {feedback.item}, slots {feedback.slots}"
            self._dead(applied, record, "bad_slot", detail, terms.surface)
            return None
        version = Version(feedback.at, feedback.revision, feedback.kind, feedback.value, positions)
        name = feedback.feedback_id or content_id(msgspec.Raw(record.value))
        versions = join.heard.get(name)
        if versions is None:
            if self._full(record, join, terms, applied):
                return None
            join.heard[name] = [version]
            if feedback.kind == SHOWN:
                return "shown"
            return "joined" if feedback.at <= drawn.at + terms.horizon else "after_horizon"
        if version in versions:
            return "duplicate"
        if not versions:
            return "duplicate"  # taken back before it came
        if len(versions) >= HEARD_EACH:
            self._dead(applied, record, "too_many", f"more than {HEARD_EACH} versions of {name}", terms.surface)
            return None
        join.heard[name] = [*versions, version]
        return "corrected"

    def _full(self, record: Early, join: Join, terms: Terms, applied: Applied) -> bool:
        """Whether a decision remembers no further feedback id; then the record is set aside."""
        if len(join.heard) < HEARD_EACH:
            return False
        self._dead(applied, record, "too_many", f"more than {HEARD_EACH} feedback ids", terms.surface)
        return True

    def _dead(self, applied: Applied, record: Record | Early, reason: str, detail: str = "", surface: str = "") -> None:
        letter = DeadLetter(self._partition, record.offset, reason, detail, record.key, record.value)
        applied.letters.append(letter)
        applied.count(surface, reason)

    # -- the end of a batch ------------------------------------------------------------------------------------------

    def _settle(self, applied: Applied) -> None:
        """What the log's clock brings about: `wait` decisions fall due, early feedback stops waiting."""
        while self._waiting_dues and self._waiting_dues[0][0] < self.clock:
            _, row, key = heapq.heappop(self._waiting_dues)
            join = self._by_row(row, key)
            join.due = True
            del self._waiting[row]
            self._changed[row] = self._dirty[row] = join
        while self._ghost_dues and self._ghost_dues[0][0] < self.clock:
            _, row, key = heapq.heappop(self._ghost_dues)
            if self._ghosts.get(key) != row:
                continue  # its decision came
            join = self._by_row(row, key)
            oldest = self.clock - self._longest
            for early in join.early:
                if early.appended < oldest:
                    self._dead(applied, early, "no_decision", "waited longer than correctable")
            join.early = [early for early in join.early if early.appended >= oldest]
            self._changed[row] = join
            if join.early:
                self._expect(row, join.early[0].appended + 2.0 * self._longest)
                heapq.heappush(self._ghost_dues, (join.early[0].appended + self._longest, row, key))
            else:
                del self._ghosts[key]

    def _by_row(self, row: int, key: str) -> Join:
        join = self._hot.get(key)
        if join is None or join.row != row:
            join = self._changed.get(row) or self._read(row)
            self._hot.setdefault(key, join)
        return join

    def _teach(self, applied: Applied) -> None:
        """The net change of every touched decision, grouped by surface version."""
        groups: dict[str, list[Taught]] = {}
        for join in self._dirty.values():
            assert join.drawn is not None  # only decisions get dirty
            terms = self._terms[join.drawn.config]
            present, rewards, clipped = evidence(join, terms)
            if clipped:
                applied.count(terms.surface, "clipped", clipped)
            if (present, rewards) != (join.present, join.rewards):
                groups.setdefault(join.drawn.config, []).append(
                    (join.drawn, join.present, join.rewards, present, rewards)
                )
                join.present, join.rewards = present, rewards
        self._dirty = {}
        for config, taught in groups.items():
            terms = self._terms[config]
            changes = changes_of(terms, taught)
            applied.changes.append((terms, changes))
            moved = int(changes.present_after.sum() - changes.present_before.sum())
            for policy in terms.learners:
                self.examples[policy.key] = self.examples.get(policy.key, 0) + moved

    def _waits(self, join: Join, terms: Terms) -> None:
        assert join.drawn is not None  # only decisions wait for their horizon
        self._waiting[join.row] = None
        heapq.heappush(self._waiting_dues, (join.drawn.at + terms.horizon, join.row, join.key))

    def _expect(self, row: int, expires: float) -> None:
        """Rows are given back a span at a time, when the last of the span has expired."""
        spans = self._spans
        if not spans or (row > spans[-1][0] and self.clock > spans[-1][2] + self._longest / SPANS):
            spans.append((row, expires, self.clock))
            return
        i = len(spans) - 1 if row >= spans[-1][0] else bisect_right(spans, row, key=lambda span: span[0]) - 1
        first, latest, opened = spans[i]
        if expires > latest:
            spans[i] = (first, expires, opened)

    def _evict(self, clock: float) -> None:
        while self._spans and self._spans[0][1] < clock:
            self._spans.pop(0)
            self._evicted = self._spans[0][0] if self._spans else self._next_row
            self._index.evicted = self._evicted

    # -- configuration -----------------------------------------------------------------------------------------------

    def _find_terms(self, config: str) -> Terms | None:
        compiled: Compiled | None = self._configs.get(config)
        if compiled is None and self._refresh is not None:
            self._refresh()
            compiled = self._configs.get(config)
        if compiled is None:
            return None
        terms = self._terms[config] = Terms.of(compiled)
        return terms

    def _terms_of(self, config: str) -> Terms:
        terms = self._terms.get(config) or self._find_terms(config)
        if terms is None:
            raise Corrupt("config_missing", f"{config} of an open join is not in the configuration record")
        return terms


def _ascending(slots: tuple[int, ...]) -> bool:
    return all(a < b for a, b in zip(slots, slots[1:], strict=False))


def _as_bytes(drawn: Drawn) -> Drawn:
    """Vectors as float32 bytes, whoever produced them. Raises Corrupt('bad_vector')."""
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is refused as such
        context, shown = floats(drawn.context).tobytes(), floats(drawn.shown).tobytes()
    return msgspec.structs.replace(drawn, context=context, shown=shown)


def _sound(vectors: bytes) -> bool:
    """Whether every float32 in there is finite and of a size that features have."""
    if len(vectors) % 4:
        return False
    numbers = np.frombuffer(vectors, "<f4")
    return not len(numbers) or bool(np.abs(numbers).max() <= LARGEST)  # false for NaN too
