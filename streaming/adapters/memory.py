"""Every port in memory: for tests, and for trying things out in one process. Same promises but durability."""

from collections.abc import Callable, Sequence

from policies.errors import Corrupt
from streaming.partition import partitions_of
from streaming.ports import Position, Record


def _epoch() -> float:
    return 0.0


class MemoryLog:
    """`now` gives append times; one below the partition's newest counts as the newest."""

    def __init__(self, partitions: int = 1, now: Callable[[], float] = _epoch) -> None:
        self._now = now
        self._records: list[list[Record]] = [[] for _ in range(partitions)]
        self._first = [0] * partitions
        self._clocks = [0.0] * partitions
        self._positions: dict[str, Position] = {}

    @property
    def partitions(self) -> int:
        return len(self._records)

    def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
        now = self._now()
        for (key, value), p in zip(records, partitions_of([key for key, _ in records], self.partitions), strict=True):
            self._clocks[p] = max(self._clocks[p], now)
            self._records[p].append(Record(self.end(p)[0], self._clocks[p], bytes(key), bytes(value)))
        if position is not None:
            self._positions[position.spool] = position

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        first, end = self._first[partition], self.end(partition)[0]
        if limit > 0 and not first <= offset <= end:
            raise Corrupt("offset_out_of_range", f"partition {partition} has {first}..{end}, not {offset}")
        return self._records[partition][offset - first : offset - first + limit] if limit > 0 else []

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
