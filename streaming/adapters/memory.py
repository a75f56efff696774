"""Every port in memory: for tests, and for trying things out in one process. Same promises but durability."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from policies.errors import Corrupt, Unavailable
from streaming.adapters.rules import (
    NOTHING,
    checked_name,
    copied,
    next_row,
    refuse_gap,
    refuse_outrun,
    refuse_stale,
    without,
)
from streaming.partition import partitions_of
from streaming.ports import Commit, DeadLetter, Loaded, Position, Record, Versioned


def _epoch() -> float:
    return 0.0


class MemoryLog:
    """`now` gives append times; one below the partition's newest counts as the newest."""

    def __init__(self, partitions: int = 1, now: Callable[[], float] = _epoch, identity: str = "memory") -> None:
        self._now, self.identity = now, identity
        self._records: list[list[Record]] = [[] for _ in range(partitions)]
        self._first = [0] * partitions
        self._clocks = [0.0] * partitions
        self._positions: dict[str, Position] = {}

    @property
    def partitions(self) -> int:
        return len(self._records)

    def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
        now = self._now()
        copies = [(bytes(key), bytes(value)) for key, value in records]  # all are read before anything changes
        for (key, value), p in zip(copies, partitions_of([key for key, _ in copies], self.partitions), strict=True):
            self._clocks[p] = max(self._clocks[p], now)
            self._records[p].append(Record(self.end(p)[0], self._clocks[p], key, value))
        if position is not None:
            self._positions[position.spool] = position

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        first, end = self._first[partition], self.end(partition)[0]
        if limit > 0 and not first <= offset <= end:
            raise Corrupt("offset_out_of_range", f"partition {partition} has {first}..{end}, not {offset}")
        return self._records[partition][offset - first : offset - first + limit] if limit > 0 else []

    def first(self, partition: int) -> int:
        return self._first[partition]

    def end(self, partition: int) -> tuple[int, float]:
        return self._first[partition] + len(self._records[partition]), self._clocks[partition]

    def position(self, spool: str) -> Position | None:
        return self._positions.get(spool)

    def trim(self, partition: int, before: int) -> None:
        """Retention: records below an offset are gone, and reading them is Corrupt('offset_out_of_range')."""
        first, end = self._first[partition], self.end(partition)[0]
        before = min(max(before, first), end)
        del self._records[partition][: before - first]
        self._first[partition] = before


class MemoryState:
    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Versioned] = {}  # in version order: a rewritten entry moves to the end
        self._version = 0

    def put(self, entries: Sequence[tuple[str, str, bytes | None]], expect: int | None = None) -> int:
        if expect is not None:
            refuse_stale(expect, (self._entries.get((kind, key)) for kind, key, _ in entries))
        for kind, key, value in entries:
            self._version += 1
            self._entries.pop((kind, key), None)
            self._entries[kind, key] = Versioned(self._version, kind, key, value)
        return self._version

    def read(self, after: int = 0, limit: int = 10_000) -> list[Versioned]:
        return [entry for entry in self._entries.values() if entry.version > after][:limit]

    def get(self, kind: str, key: str) -> Versioned | None:
        return self._entries.get((kind, key))

    def version(self) -> int:
        return self._version


class MemoryClaims:
    def __init__(self, *, life_seconds: float = 3600.0) -> None:
        self._life_seconds = life_seconds
        self._claims: dict[tuple[str, str], tuple[float, bytes]] = {}  # oldest first

    def claim(self, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
        expires, winner = self._claims.get((tenant, decision_id), (now, b""))
        if expires > now:
            return winner
        self._claims.pop((tenant, decision_id), None)
        self._claims[tenant, decision_id] = (now + self._life_seconds, value)
        for name, (expires, _) in list(itertools.islice(self._claims.items(), 2)):
            if expires <= now:
                del self._claims[name]
        return None

    def claim_all(self, tenant: str, claims: Sequence[tuple[str, bytes]], now: float) -> list[bytes | None]:
        return [self.claim(tenant, decision_id, value, now) for decision_id, value in claims]

    def forget(self, tenant: str, unit: str) -> int:
        found = [
            (of, decision_id)
            for (of, decision_id), (_, value) in self._claims.items()
            if of == tenant and (unit in decision_id or unit.encode() in value)
        ]
        for name in found:
            del self._claims[name]
        return len(found)


class MemoryLeases:
    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [self._values.get(name, b"") for name in names]

    def exchange(self, name: str, held: bytes, value: bytes) -> bool:
        if self._values.get(name, b"") != held:
            return False
        self._values[name] = value
        return True


class MemoryDeadLetters:
    def __init__(self) -> None:
        self._letters: dict[tuple[int, int], tuple[int, DeadLetter]] = {}
        self._numbers = itertools.count(1)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            if (letter.partition, letter.offset) not in self._letters:
                self._letters[letter.partition, letter.offset] = next(self._numbers), letter

    def read(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, DeadLetter]]:
        return [numbered for numbered in self._letters.values() if numbered[0] > after][:limit]

    def trim(self, partition: int, before: int) -> int:
        """Retention: letters of records below an offset are gone; their number."""
        gone = [name for name in self._letters if name[0] == partition and name[1] < before]
        for name in gone:
            del self._letters[name]
        return len(gone)

    def count(self) -> dict[str, int]:
        return dict(Counter(letter.reason for _, letter in self._letters.values()))


class MemoryCheckpoints:
    def __init__(self) -> None:
        self._loaded = NOTHING
        self._joins: dict[int, bytes] = {}
        self._outbox: dict[int, bytes] = {}  # numbers ascend

    def commit(self, commit: Commit) -> None:
        before = NOTHING if commit.restart else self._loaded
        refuse_outrun(commit.epoch, self._loaded.epoch)
        joins = dict(commit.joins)  # all of it is read before anything changes
        ids = [*before.ids, *([commit.ids] if commit.ids else [])]
        evicted = max(before.evicted, commit.evicted)
        statistics = {key: dict(arrays) for key, arrays in before.statistics.items()}
        for key, arrays in (commit.statistics or {}).items():
            statistics.setdefault(key, {}).update({name: array.copy() for name, array in arrays.items()})
        self._loaded = Loaded(
            offset=commit.offset,
            clock=commit.clock,
            epoch=commit.epoch,
            next_row=next_row(before.next_row, commit),
            evicted=evicted,
            ids=without(ids, evicted),
            statistics=statistics,
            extra=commit.extra,
        )
        self._joins = ({} if commit.restart else self._joins) | joins
        for row in [row for row in self._joins if row < evicted]:
            del self._joins[row]
        if commit.outbox is not None:
            self._outbox.update(enumerate(commit.outbox[1], commit.outbox[0]))

    def load(self, epoch: int = 0) -> Loaded:
        if epoch:
            refuse_outrun(epoch, self._loaded.epoch)
            self._loaded = replace(self._loaded, epoch=epoch)
        copies = {key: copied(arrays) for key, arrays in self._loaded.statistics.items()}
        return replace(self._loaded, statistics=copies)

    def reached(self) -> tuple[int, float]:
        """(offset, clock) committed."""
        return self._loaded.offset, self._loaded.clock

    def join(self, row: int) -> bytes | None:
        return self._joins.get(row)

    def pull(self, number: int, limit: int) -> list[tuple[int, bytes]]:
        refuse_gap(number, (), self.numbers())
        stop = min(number + limit, self.numbers()[1])
        return [(found, self._outbox[found]) for found in range(number, stop)]

    def numbers(self) -> tuple[int, int]:
        return (min(self._outbox), max(self._outbox) + 1) if self._outbox else (0, 0)

    def trim(self, before: int) -> None:
        for number in range(self.numbers()[0], min(before, self.numbers()[1] - 1)):
            del self._outbox[number]


class MemoryBundles:
    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._pointers: dict[str, tuple[str, int]] = {}

    def put(self, name: str, data: bytes) -> None:
        self._files[checked_name(name)] = bytes(data)

    def get(self, name: str) -> bytes:
        try:
            return self._files[checked_name(name)]
        except KeyError:
            raise Unavailable(f"no bundle file {name}") from None

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        refuse_outrun(epoch, self._pointers.get(policy, ("", epoch))[1])
        self._pointers[policy] = (bundle, epoch)

    def pointers(self) -> dict[str, str]:
        return {policy: bundle for policy, (bundle, _) in self._pointers.items()}

    def epochs(self) -> dict[str, int]:
        return {policy: epoch for policy, (_, epoch) in self._pointers.items()}

    def names(self, folder: str) -> list[str]:
        return sorted(name for name in self._files if name.rpartition("/")[0] == folder)

    def remove(self, name: str) -> None:
        self._files.pop(checked_name(name), None)
