"""What a batch says plainly, taken out of it at once: verdicts, rows and changes of most ids without an object for any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from policies.delays import heard_once
from policies.types import F64, I64, Changes, Mask
from streaming.joined import Terms
from streaming.plain.hashes import BLOCK, U64, Items, group, id_hashes
from streaming.plain.judge import CONTEXTS, ITEMS, PACKED, REWARDS, ROW, fill, judge
from streaming.plain.scan import (
    ACCEPTED,
    AT,
    CONFIG,
    DECISION,
    FILLED,
    FORM,
    ID,
    ID_END,
    INTS,
    KIND,
    KIND_END,
    NAME,
    NAME_END,
    OTHER,
    REALS,
    U8,
    scan,
)
from streaming.plain.terms import TermsTable
from streaming.ports import Record
from streaming.rows import Rows

FRESH_EACH = 32  # acceptance times passed on for a surface version and batch: as many as a report uses
NONE: U64 = np.zeros(0, np.uint64)
PACK = 160  # bytes of a packed row besides its id, its feedback's names, presence and rewards
ROOMY, PATIENCE = 4, 100  # a room of more than so many times what was needed by so many batches in a row is given back


@dataclass(slots=True)
class Sheet:
    """Columns of the records of a batch, and of the kept decisions their feedback names, see `scan`.

    offsets, appended, values   of the records
    of, first, second, ids  records grouped by id, see `group`
    hashes   of the ids of decisions that may be new, by record
    """

    offsets: I64
    appended: F64
    values: Sequence[bytes]
    whole: bytes
    text: U8
    ints: I64
    reals: F64
    items: I64
    propensities: F64
    vectors: U8
    of: I64
    first: I64
    second: I64
    ids: int
    hashes: U64

    def others(self) -> list[int]:
        """Records that are not plain."""
        found: list[int] = np.flatnonzero(self.ints[: len(self.values), FORM] == OTHER).tolist()
        return found

    def keys(self, records: I64) -> list[str]:
        """The id that each of some records names."""
        whole, places = (
            self.whole,
            zip(self.ints[records, ID].tolist(), self.ints[records, ID_END].tolist(), strict=True),
        )
        return [whole[start:end].decode() for start, end in places]


class Pairs(NamedTuple):
    """Decisions and their feedback, as `judge` has them."""

    decisions: I64
    feedback: I64
    fresh: Mask
    terms: I64
    kind_of: I64


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch came to in its plain part, and the records (by number) that are left to the general path."""

    left: list[int]
    decisions: int
    feedback: int
    outcomes: list[tuple[Terms, int, int]]  # (version, joined, rewards clipped)
    changes: list[tuple[Terms, Changes, int]]  # …, and how many examples it adds
    heard: list[tuple[Terms, float]]


class Plain:
    """Room and memory of the plain path of one partition; what it decides depends on neither.

    terms_of  a configuration's version by its hash, None when it is not known
    """

    def __init__(self, rows: Rows, terms_of: Callable[[str], Terms | None]) -> None:
        self._rows, self._terms_of = rows, terms_of
        self._table, self._items = TermsTable(), Items()
        self._room = _Room()

    def read(self, records: Sequence[Record]) -> Sheet:
        """Columns of a batch."""
        offsets, appended, _, values = zip(*records, strict=True) if records else ((), (), (), ())
        of, first, second = np.empty((3, len(values)), np.int64)
        ints, reals, items = np.empty((0, INTS), np.int64), np.empty((0, REALS)), np.empty((0, 2), np.int64)
        lists = items, np.empty(0), np.empty(0, np.uint8)
        empty = Sheet(
            np.array(offsets, np.int64),
            np.array(appended, np.float64),
            values,
            b"",
            np.empty(0, np.uint8),
            ints,
            reals,
            *lists,
            of,
            first,
            second,
            0,
            NONE,
        )
        sheet = self._scan(empty, values)
        table = np.full(1 << (2 * len(records)).bit_length(), -1, np.int64)
        sheet.ids = group(sheet.text, sheet.ints, sheet.of, sheet.first, sheet.second, table)
        return sheet

    def take(self, sheet: Sheet, named: set[str], clock: float, longest: float, limits: tuple[float, float]) -> Taken:
        """Judge what is plain, and open or change its rows. `named`: ids that records which are not plain speak of.

        clock    of the partition before the batch;   longest: the longest `correctable` seen before it
        limits   (seconds a record's time may be ahead, largest number in a vector)
        """
        first, second, forms = sheet.first[: sheet.ids], sheet.second[: sheet.ids], sheet.ints[:, FORM]
        opens, alone = forms[first] == DECISION, second == -1
        groups = np.flatnonzero(np.where(opens, alone | ((second >= 0) & (forms[second] != DECISION)), alone))
        fresh, head = opens[groups], first[groups]
        feedback = np.where(fresh, second[groups], head)
        keys = sheet.keys(head)
        sheet, decisions = self._decisions(sheet, keys, named, fresh, head)
        clocks = np.maximum(np.maximum.accumulate(sheet.appended), clock)
        table = self._table
        terms, kind_of = self._versions(sheet.ints, decisions), np.empty(len(groups), np.int64)
        plain = judge(
            sheet.text,
            sheet.ints,
            sheet.reals,
            sheet.vectors.view(np.float32),
            sheet.items,
            sheet.propensities,
            sheet.appended,
            clocks,
            decisions,
            feedback,
            fresh,
            terms,
            table.names,
            table.durations,
            table.sizes,
            table.kinds,
            np.array([limits[0], longest, limits[1]]),
            kind_of,
        )
        taken = np.zeros(sheet.ids + 1, np.bool_)  # the last: records that are in no group
        taken[groups[plain]] = True
        chosen = np.flatnonzero(plain)
        if len(table.every) > 1:
            chosen = chosen[np.argsort(terms[chosen], kind="stable")]
        pairs = Pairs(decisions[chosen], feedback[chosen], fresh[chosen], terms[chosen], kind_of[chosen])
        left: list[int] = np.flatnonzero(~taken[sheet.of] & (sheet.of >= 0)).tolist()
        return self._write(sheet, pairs, [keys[i] for i in chosen.tolist()], float(clocks[-1]), longest, left)

    def _decisions(self, sheet: Sheet, keys: list[str], named: set[str], fresh: Mask, head: I64) -> tuple[Sheet, I64]:
        """Number of each id's decision, −1 where the plain path has none; with a sheet that has the kept ones too."""
        rows, asked, every = self._rows, fresh.copy(), set(keys)
        decisions, values, heard = np.full(len(keys), -1, np.int64), [], []
        held = every & rows.kept.keys()
        if held or not (every.isdisjoint(rows.hot) and every.isdisjoint(named)):
            for i, (key, new) in enumerate(zip(keys, fresh.tolist(), strict=True)):
                if key in named or key in held or key in rows.hot:
                    asked[i] = False
                    if not new and key not in named and key in held and rows.kept[key].silent:
                        heard.append(i)
                        values.append(rows.kept[key].value)
        lengths = sheet.ints[head, ID_END] - sheet.ints[head, ID]
        asking = np.flatnonzero(asked & (lengths <= BLOCK))
        sheet.hashes = np.empty(len(sheet.values), np.uint64)
        hashes = id_hashes(sheet.text, sheet.ints, head[asking], sheet.hashes)
        decisions[asking] = np.where(rows.known(hashes), -1, head[asking])
        if values:
            decisions[heard] = len(sheet.values) + np.arange(len(heard))
            sheet = self._scan(sheet, values)
        return sheet, decisions

    def _versions(self, ints: I64, decisions: I64) -> I64:
        """Number of the surface version of each decision, −1 for one that is not known."""
        versions, found = np.full(len(decisions), -1, np.int64), decisions >= 0
        codes, place = np.unique(ints[decisions[found], CONFIG], return_inverse=True)
        numbers = []
        for code in codes.tolist():
            number = self._table.number(code)
            if number is None:
                terms = self._terms_of(f"{code & 0xFFFFFFFFFFFFFFFF:016x}")
                number = -1 if terms is None else self._table.add(code, terms)
            numbers.append(number)
        self._table.freeze()
        versions[found] = np.array(numbers, np.int64)[place]
        return versions

    def _write(
        self, sheet: Sheet, pairs: Pairs, keys: list[str], clock: float, longest: float, left: list[int]
    ) -> Taken:
        """Rows of plain pairs into memory, their changes out."""
        ints, table, count = sheet.ints, self._table, len(keys)
        decisions, feedback, fresh, terms, kind_of = pairs
        kept = self._rows.kept
        offsets = sheet.offsets[np.where(fresh, decisions, 0)]
        for i in np.flatnonzero(~fresh).tolist():
            offsets[i] = kept[keys[i]].offset
        filled, sizes = ints[decisions, FILLED], table.sizes[terms]
        n, items = int(filled.sum()), int((filled * sizes[:, 0]).sum()) // 4
        contexts, rewards = int((filled * sizes[:, 1]).sum()), int((filled * sizes[:, 3]).sum())
        texts = int(ints[decisions, ID_END].sum() - ints[decisions, ID].sum())
        said = feedback[feedback >= 0]
        texts += int(ints[said][:, [NAME_END, KIND_END]].sum() - ints[said][:, [NAME, KIND]].sum())
        context, item = np.empty(contexts, np.float32), np.empty(items, np.float32)
        slots, slates, numbers = np.empty(n, np.int64), np.empty(n, np.int64), np.empty((5, n))
        before, after, hashes = np.empty(rewards), np.empty(rewards), np.empty(n, np.uint64)
        packed, places = np.empty(PACK * count + texts + n + 8 * rewards, np.uint8), np.empty((count + 1, 5), np.int64)
        clipped = np.empty(count, np.int64)
        fill(
            sheet.text,
            ints,
            sheet.reals,
            sheet.vectors.view(np.float32),
            sheet.items,
            sheet.propensities,
            decisions,
            feedback,
            fresh,
            terms,
            kind_of,
            offsets,
            table.durations,
            table.sizes,
            table.silence,
            table.kinds,
            table.columns,
            table.low,
            table.high,
            self._items.places,
            context,
            item,
            slots,
            slates,
            numbers,
            before,
            after,
            hashes,
            packed,
            places,
            clipped,
        )
        self._keep(sheet, pairs, keys, offsets, packed, places[:, PACKED], clock, longest)
        taken = Taken(left, int(fresh.sum()), len(said), [], [], [])
        edges = [0, *(np.flatnonzero(np.diff(terms)) + 1).tolist(), count] if count else []
        for start, end in pairwise(edges):
            version, (a, b) = table.every[terms[start]], places[[start, end], ROW].tolist()
            heard = feedback[start:end]
            accepted = sheet.reals[heard[heard >= 0], ACCEPTED]
            joined = int(fresh[start:end].sum()) + len(accepted)
            taken.outcomes.append((version, joined, int(clipped[start:end].sum())))
            taken.heard.extend((version, at) for at in accepted[~np.isnan(accepted)][:FRESH_EACH].tolist())
            if a == b:
                continue
            (c, d), (e, f), (g, h) = (places[[start, end], list_].tolist() for list_ in (CONTEXTS, ITEMS, REWARDS))
            changes = Changes(
                context=context[c:d].reshape(b - a, -1),
                items=item[e:f].reshape(b - a, -1),
                slots=slots[a:b],
                slates=slates[a:b],
                times=numbers[0, a:b],
                weights=numbers[1, a:b],
                present_before=numbers[2, a:b],
                present_after=numbers[3, a:b],
                rewards_before=before[g:h].reshape(b - a, -1),
                rewards_after=after[g:h].reshape(b - a, -1),
                item_hashes=hashes[a:b],
                propensities=numbers[4, a:b],
            )
            if version.corrected:
                said = np.where(heard >= 0, sheet.reals[heard, AT], np.nan) - sheet.reals[decisions[start:end], AT]
                taught = np.diff(places[start : end + 1, ROW]) > 0
                silence, horizon = version.compiled.rewards.silence, version.horizon
                changes = replace(changes, delays=heard_once(changes, said[taught], silence, horizon))
            taken.changes.append((version, changes, int(filled[start:end][fresh[start:end]].sum())))
        return taken

    def _keep(
        self,
        sheet: Sheet,
        pairs: Pairs,
        keys: list[str],
        offsets: I64,
        packed: U8,
        ends: I64,
        clock: float,
        longest: float,
    ) -> None:
        """Rows that were opened, numbered as they came, and rows that were changed."""
        rows, values, whole = self._rows, sheet.values, packed[: ends[-1]].tobytes()
        data = [whole[start:end] for start, end in pairwise(ends.tolist())]
        order = np.flatnonzero(pairs.fresh)
        if len(order):
            order = order[np.argsort(pairs.decisions[order], kind="stable")]
            decisions = pairs.decisions[order]
            correctable = self._table.durations[pairs.terms[order], 0]
            until = sheet.reals[decisions, AT] + correctable
            expires, closes = float((until + correctable).max()), float(until.max())
            first = rows.open_block(sheet.hashes[decisions], expires, closes, clock, longest)
            opened, came = order.tolist(), decisions.tolist()
            columns = (
                range(first, first + len(opened)),
                [data[i] for i in opened],
                offsets[order].tolist(),
                [values[d] for d in came],
                (pairs.feedback[order] < 0).tolist(),
            )
            rows.keep([keys[i] for i in opened], zip(*columns, strict=True))
        changed = np.flatnonzero(~pairs.fresh).tolist()
        if changed:
            was = [rows.kept.pop(keys[i]) for i in changed]  # touched last
            now = [(one.row, data[i], one.offset, one.value, False) for one, i in zip(was, changed, strict=True)]
            rows.keep([keys[i] for i in changed], now)

    def _scan(self, sheet: Sheet, values: Sequence[bytes]) -> Sheet:
        """A sheet with more records in its columns; groups stay those it has."""
        n, before = len(sheet.ints), len(sheet.whole)
        whole = sheet.whole + b"\0".join([*values, b"", bytes(8)])
        text = np.frombuffer(whole, np.uint8)
        starts = np.full(len(values) + 1, before)
        starts[1:] += np.cumsum(np.fromiter(map(len, values), np.int64, len(values)) + 1)
        room = self._room.fitting(n + len(values), len(text))
        if room is not self._room and n:
            room.copy(sheet)
        self._room, end = room, n + len(values)
        flat, used = len(sheet.items), len(sheet.vectors)
        flat, used = scan(
            text, starts, room.ints[n:], room.reals[n:], room.items, room.propensities, room.vectors, flat, used
        )
        return replace(
            sheet,
            whole=whole,
            text=text,
            ints=room.ints[:end],
            reals=room.reals[:end],
            items=room.items[:flat],
            propensities=room.propensities[:flat],
            vectors=room.vectors[:used],
        )


class _Room:
    """What `scan` fills, used again by the next batch: memory asked for anew costs more than the reading.

    10 bytes a letter of the largest of the last batches: a backlog, 2,000 records of 3 kB each time, takes 60 MB while it is read.
    """

    def __init__(self, records: int = 0, letters: int = 0) -> None:
        self.records, self.letters = records, letters
        self._roomy = 0  # batches in a row that needed a fraction of it
        self.ints, self.reals = np.empty((records, INTS), np.int64), np.empty((records, REALS))
        self.items, self.propensities = np.empty((letters // 3, 2), np.int64), np.empty(letters // 2)
        self.vectors: U8 = np.empty((letters + 3 & ~3) + 8, np.uint8)

    def fitting(self, records: int, letters: int) -> "_Room":
        """This room, or a larger one; a smaller one once most of this was not needed for a while."""
        if records > self.records or letters > self.letters:
            return _Room(max(records, self.records), max(letters + letters // 4, self.letters))
        needed = records > self.records // ROOMY or letters > self.letters // ROOMY
        self._roomy = 0 if needed else self._roomy + 1
        return self if self._roomy < PATIENCE else _Room(2 * records, 2 * letters)

    def copy(self, sheet: Sheet) -> None:
        """Take over what a smaller room holds."""
        self.ints[: len(sheet.ints)], self.reals[: len(sheet.reals)] = sheet.ints, sheet.reals
        self.items[: len(sheet.items)], self.vectors[: len(sheet.vectors)] = sheet.items, sheet.vectors
        self.propensities[: len(sheet.propensities)] = sheet.propensities
