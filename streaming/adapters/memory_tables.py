"""Counters and profiles in memory: for tests, and for one process."""

from collections.abc import Mapping, Sequence

from streaming.adapters.tables import TableCounters, TableProfiles, Verdict, verdict
from streaming.ports import Mark


class MemoryTable:
    def __init__(self) -> None:
        self._marks: dict[int, Mark] = {}
        self._rows: dict[int, dict[str, bytes]] = {}

    def write(self, partition: int, mark: Mark, rows: Mapping[str, bytes], since: Mark | None) -> bool:
        found = verdict(self._marks.get(partition), mark, since)
        if found is Verdict.WRITE:
            after = {**({} if since is None else self._rows[partition]), **rows}
            self._rows[partition] = {name: row for name, row in after.items() if row}
            self._marks[partition] = mark
        return found is not Verdict.ALL

    def read(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Sequence[bytes | None]]:
        return {place: [self._rows.get(place, {}).get(name) for name in names] for place, names in wanted.items()}

    def forget(self, wanted: Mapping[int, Sequence[str]]) -> int:
        gone = [self._rows.get(place, {}).pop(name, None) for place, names in wanted.items() for name in names]
        return sum(row is not None for row in gone)

    def flush(self) -> None:
        """Lose everything, as a store does that is flushed."""
        self._marks, self._rows = {}, {}


class MemoryCounters(TableCounters):
    def __init__(self, partitions: int = 1) -> None:
        self._memory = MemoryTable()
        super().__init__(self._memory, partitions)

    def flush(self) -> None:
        self._memory.flush()


class MemoryProfiles(TableProfiles):
    def __init__(self, partitions: int = 1) -> None:
        self._memory = MemoryTable()
        super().__init__(self._memory, partitions)

    def flush(self) -> None:
        self._memory.flush()
