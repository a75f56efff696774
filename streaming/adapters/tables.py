"""Counters and profiles over a table of rows a partition: what they share, whatever holds the rows.

A row is (name, bytes). A table says which mark its rows are of, and takes new rows only in a chain: since the mark it is
at, or all of them; so a repeat, an owner whose time is over, and a store that was flushed can do no harm.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

from streaming.partition import partitions_of
from streaming.ports import Mark


class Verdict(Enum):
    WRITE = "write"
    DONE = "done"  # it is there, or newer values are
    ALL = "all"  # what changed would be added to something else


def verdict(held: Mark | None, mark: Mark, since: Mark | None) -> Verdict:
    """What becomes of rows at `mark` that changed since `since` (None: they are all) in a table that is at `held`."""
    if held is not None and held >= mark:
        return Verdict.DONE
    return Verdict.WRITE if since is None or since == held else Verdict.ALL


class Table(Protocol):
    """Rows of every partition, for one kind of value."""

    def write(self, partition: int, mark: Mark, rows: Mapping[str, bytes], since: Mark | None) -> bool:
        """In one step for readers; empty rows are taken away. False: `Verdict.ALL`."""

    def read(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Sequence[bytes | None]]:
        """Rows by name, of several partitions, in one trip."""

    def forget(self, wanted: Mapping[int, Sequence[str]]) -> int:
        """Take rows away, whatever mark the table is at, and leave the mark; how many there were."""


class TableCounters:
    """A number is its shortest exact decimal, so that people can read the store too."""

    def __init__(self, table: Table, partitions: int) -> None:
        self._table, self._partitions = table, partitions

    def write(self, partition: int, mark: Mark, values: Mapping[str, float], since: Mark | None) -> bool:
        rows = {name: repr(float(value)).encode() if value else b"" for name, value in values.items()}
        return self._table.write(partition, mark, rows, since)

    def read(self, names: Sequence[str]) -> list[float]:
        if not names:
            return []
        found = self._table.read(dict.fromkeys(range(self._partitions), names))
        sums = [0.0] * len(names)
        for rows in found.values():
            for place, row in enumerate(rows):
                if row:
                    sums[place] += float(row)
        return sums


class TableProfiles:
    def __init__(self, table: Table, partitions: int) -> None:
        self._table, self._partitions = table, partitions

    def write(self, partition: int, mark: Mark, values: Mapping[str, bytes], since: Mark | None) -> bool:
        return self._table.write(partition, mark, values, since)

    def forget(self, units: Sequence[str]) -> int:
        wanted: dict[int, list[str]] = {}
        for unit, place in zip(units, self._places(units), strict=True):
            wanted.setdefault(place, []).append(unit)
        return self._table.forget(wanted)

    def _places(self, units: Sequence[str]) -> list[int]:
        hashes = [unit.partition("/")[0].encode() for unit in units]  # what else is kept of a unit lies beside it
        return partitions_of(hashes, self._partitions)

    def read(self, units: Sequence[str]) -> list[bytes]:
        places = self._places(units)
        wanted: dict[int, list[str]] = {}
        for unit, place in zip(units, places, strict=True):
            wanted.setdefault(place, []).append(unit)
        rows = {place: iter(found) for place, found in self._table.read(wanted).items()} if wanted else {}
        return [next(rows[place]) or b"" for place in places]
