"""Which join answers for an id, wherever it is: in memory while it is hot, else in the checkpoint and the log.

A row of the checkpoint holds what the log does not: what was heard and what was taught, some 150 bytes. The decision
itself is read again from the log, at its offset, when feedback comes for a row that has gone cold; so the log's retention
has to cover `correctable`, as recovery needs anyway (`semantics.md` 13).
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, takewhile
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from policies.errors import Corrupt
from policies.types import Mask
from streaming.index import U64, Index, id_hash
from streaming.joined import Drawn, Join, pack, read_drawn, unpack
from streaming.ports import Loaded, Record

OURS = re.compile(r"[0-9a-f]{16}-")  # an id that the service gave: its unit's hash, and what tells decisions apart
PAGE = 2_000  # rows looked at between two questions of who wants them
SPANS = 64  # rows are given back in this many steps of their `correctable`
# from which on steps are of the longest: feedback that waits a day for its decision holds up all that follow
MOST_SPANS = 3 * SPANS
GAP = 16  # records read in vain rather than asking the log once more


class Kept(NamedTuple):
    """A row of a decision about which nothing special was heard (`streaming.plain`), as bytes: a `Join` when it is needed.

    packed  the row as the checkpoint has it;   value: its decision's record;   silent: nothing was heard at all
    """

    row: int
    packed: bytes
    offset: int
    value: bytes
    silent: bool


_row = attrgetter("row")
_kept = partial(tuple.__new__, Kept)  # half the time of `Kept(*fields)`


class Span(NamedTuple):
    """Rows from `first` to the next span's: given back together once the clock passes `expires`.

    closes   after it nothing changes a decision of these rows, and no feedback of theirs waits any more
    offset   no record of these rows is before it in the log;   longest   `correctable` there

    What has defaults is told by spans of checkpoints that did not say it yet: all of the log may be needed.
    """

    first: int
    expires: float
    opened: float
    closes: float = math.inf
    offset: int = 0
    longest: float = 86_400.0


class Rows:
    """One partition's joins. `fetch` reads a committed row, `read` records of the partition from an offset."""

    def __init__(
        self,
        fetch: Callable[[int], bytes | None],
        read: Callable[[int, int], Sequence[Record]],
        hot_limit: int,
    ) -> None:
        self._fetch, self._read, self._hot_limit = fetch, read, hot_limit
        self.hot: dict[str, Join] = {}  # least recently touched first
        self.kept: dict[str, Kept] = {}  # … of those that nobody had to look into; an id is in one of both
        self.changed: dict[int, Join] = {}  # since the last commit
        self._packed: dict[int, bytes] = {}  # … and rows of `kept`
        self.spans: list[Span] = []
        self.next_row = self._committed_row = self.evicted = self._closed = 0
        self.reading = 0  # offset of the batch that is applied
        self._index = Index()
        self._hashes: dict[str, int] = {}  # of ids asked for in this batch
        self._new: list[int] = []  # hashes of rows opened since the last commit

    def restore(self, loaded: Loaded, spans: Sequence[Span]) -> None:
        self.next_row = self._committed_row = loaded.next_row
        self.evicted = self._index.evicted = loaded.evicted
        self.spans = list(spans)
        self._index.load(loaded.ids)

    def recall(self, keys: Sequence[str], clock: float) -> None:
        """Bring the rows of ids into memory; with their decisions, unless they had closed by `clock`."""
        hot, kept = self.hot, self.kept
        missing = [key for key in dict.fromkeys(keys) if key not in hot]
        for key in [key for key in missing if key in kept]:
            row, packed, _, value, _ = kept.pop(key)
            join = hot[key] = unpack(row, packed)
            join.drawn = read_drawn(value)
        missing = [key for key in missing if key not in hot]
        hashes = [id_hash(key) for key in missing]
        self._hashes = dict(zip(missing, hashes, strict=True))
        found = [(key, row) for key, rows in zip(missing, self._index.find(hashes), strict=True) for row in rows]
        if found:
            for (key, _), join in zip(found, self.load([row for _, row in found], clock), strict=True):
                if join.key == key:  # else another id of the same hash
                    hot[key] = join  # rows ascend: the newest of an id stays

    def load(self, rows: Sequence[int], clock: float = 0.0) -> list[Join]:
        """Committed rows as they stand. Raises Corrupt('join_missing')."""
        joins = []
        for row in rows:
            data = self._fetch(row)
            if data is None:
                raise Corrupt("join_missing", f"row {row}")
            joins.append(unpack(row, data))
        self._redraw([join for join in joins if join.offset >= 0 and join.until >= clock])
        return joins

    def by_row(self, row: int, key: str) -> Join:
        """A row that is due, wherever it is."""
        join = self.hot.get(key)
        if join is None or join.row != row:
            join = self.changed.get(row) or self.load([row])[0]
            self.hot.setdefault(key, join)
        elif join.drawn is None:
            self._redraw([join] if join.offset >= 0 else [])  # it had closed when it was recalled
        return join

    def open(self, key: str, drawn: Drawn | None, offset: int) -> Join:
        """A new row."""
        row = self.next_row
        join = Join(row, key, drawn, offset)
        hashed = self._hashes.get(key) or id_hash(key)
        self._index.add(hashed, row)
        self._new.append(hashed)
        self.next_row = row + 1
        if key in self.hot:
            del self.hot[key]  # an expired row of the same id loses its place
        self.hot[key] = self.changed[row] = join
        return join

    def known(self, hashes: U64) -> Mask:
        """Whether any row may be of an id with each of these hashes."""
        return self._index.any(hashes)

    def open_block(self, hashes: U64, expires: float, closes: float, clock: float, longest: float) -> int:
        """New rows for ids that are not known, needed until `expires` and changing until `closes`; the first's number."""
        first = self.next_row
        self._index.add_block(hashes, first)
        self._new += hashes.tolist()
        self.next_row = first + len(hashes)
        self._span(first, expires, closes, clock, longest)
        return first

    def keep(self, keys: Sequence[str], kept: Iterable[tuple[int, bytes, int, bytes, bool]]) -> None:
        """Rows that were opened or changed, as bytes: the fields of `Kept`."""
        made = list(map(_kept, kept))
        self.kept.update(zip(keys, made, strict=True))
        self._packed.update([one[:2] for one in made])

    def expect(self, row: int, expires: float, clock: float, longest: float) -> None:
        """A changed row is needed until `expires`; `longest` sets how much time a span covers."""
        join = self.changed[row]
        self._span(row, expires, join.until if join.offset >= 0 else expires - longest, clock, longest)

    def _span(self, row: int, expires: float, closes: float, clock: float, longest: float) -> None:
        spans = self.spans
        covers = min(expires - clock, longest) / 2 if len(spans) < MOST_SPANS else longest
        if not spans or (row > spans[-1].first and clock > spans[-1].opened + covers / SPANS):
            begun = self.reading if row >= self._committed_row or not spans else spans[-1].offset
            spans.append(Span(row, expires, clock, closes, begun, longest))
            return
        i = len(spans) - 1 if row >= spans[-1].first else bisect_right(spans, row, key=lambda span: span.first) - 1
        span = spans[i]
        if expires > span.expires or closes > span.closes:
            spans[i] = span._replace(expires=max(expires, span.expires), closes=max(closes, span.closes))

    def open_from(self, clock: float) -> Span | None:
        """The oldest span with rows that a record may still change; None when there are none."""
        return next((span for span in self.spans if span.closes >= clock), None)

    def evict(self, clock: float) -> bool:
        """Give back the spans that have expired; whether there were any. Rows that have closed are not kept in memory."""
        before, still_open = self.evicted, self.open_from(clock)
        self._closed = still_open.first if still_open else self.next_row
        while self.spans and self.spans[0].expires < clock:
            self.spans.pop(0)
            self.evicted = self._index.evicted = self.spans[0].first if self.spans else self.next_row
        return self.evicted > before

    def of(self, units: Collection[str]) -> Iterator[tuple[Join, str]]:
        """(row, unit) of every row that is of one of these units, be it that their feedback waits there for a decision.

        An id of ours begins with its unit; of a caller's own id the log knows, and where it no longer does, nobody.
        """
        here = {join.row: join for join in self.hot.values()} | self.changed
        kept = {one.row: (key, one) for key, one in self.kept.items()}
        for first in range(self.evicted, self.next_row, PAGE):
            page = []
            for row in range(first, min(first + PAGE, self.next_row)):
                join = here.get(row)
                if join is None and row in kept:
                    key, one = kept[row]
                    join = Join(row, key, None, one.offset)
                if join is None:
                    data = self._fetch(row)
                    if data is None:
                        continue
                    join = unpack(row, data)
                page.append(join)
            for join, unit in self._units(page):
                if unit in units:
                    yield join, unit

    def _units(self, joins: Sequence[Join]) -> Iterator[tuple[Join, str]]:
        for join in joins:
            own = join.key.rpartition("\0")[2]
            if join.drawn is not None:
                yield join, join.drawn.unit
            elif OURS.match(own):
                yield join, own[:16]
            elif join.early:
                yield join, join.early[0].key.decode(errors="replace")
            elif join.offset >= 0:
                try:
                    found = self._read(join.offset, 1)
                except Corrupt:  # its record is past the retention
                    continue
                if found and found[0].offset == join.offset:
                    yield join, found[0].key.decode(errors="replace")

    def blank(self, row: int, key: str) -> None:
        """A row that nobody finds any more; its number stays, as those of all rows."""
        for held in (self.hot, self.kept):
            found = held.get(key)
            if found is not None and found.row == row:
                del held[key]
        self._packed.pop(row, None)
        self.changed[row] = Join(row, "", None, -1)

    def pieces(self) -> tuple[list[tuple[int, bytes]], tuple[int, bytes] | None]:
        """(changed rows, ids of new rows) since the last commit."""
        packed = self._packed | {row: pack(join) for row, join in self.changed.items()}
        joins = sorted(packed.items())
        return joins, (self._committed_row, np.array(self._new, "<u8").tobytes()) if self._new else None

    def committed(self) -> None:
        """What `pieces` said is durable, so cold rows may go, and those that nothing changes any more do."""
        self.changed, self._packed, self._new, self._hashes, self._committed_row = {}, {}, [], {}, self.next_row
        for held in (self.kept, self.hot):  # what was looked into is likely to be needed again
            closed = sum(1 for _ in takewhile(self._closed.__gt__, map(_row, held.values())))
            excess = len(self.hot) + len(self.kept) - self._hot_limit
            for key in list(islice(held, max(excess, closed))):
                del held[key]

    def cool(self, joins: Iterable[Join]) -> None:
        """Let go of rows that hardly anybody will ask for again; after a commit."""
        for join in joins:
            if self.hot.get(join.key) is join:
                del self.hot[join.key]

    def _redraw(self, joins: list[Join]) -> None:
        """Read decisions again, neighbours in the log in one go."""
        joins = sorted(joins, key=lambda join: join.offset)
        start = 0
        for end in range(1, len(joins) + 1):
            if end == len(joins) or joins[end].offset - joins[end - 1].offset > GAP:
                first, last = joins[start].offset, joins[end - 1].offset
                records = {record.offset: record for record in self._read(first, last - first + 1)}
                for join in joins[start:end]:
                    if join.offset not in records:
                        raise Corrupt("join_missing", f"decision {join.key} at offset {join.offset}")
                    join.drawn = read_drawn(records[join.offset].value)
                start = end
