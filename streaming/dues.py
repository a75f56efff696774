"""Which rows fall due when: 16 bytes a row that waits.

Decisions come in order of time, so those of one horizon fall due in the order they came: each horizon has a queue of two
arrays. What comes out of order (a producer whose clock is ahead, feedback that came before its decision) lies in a heap.
"""

import heapq
import math
from array import array


class _Queue:
    """Due times and rows, both ascending."""

    __slots__ = ("dues", "head", "rows")

    def __init__(self) -> None:
        self.dues, self.rows, self.head = array("d"), array("q"), 0

    def takes(self, due: float, row: int) -> bool:
        """Append when it is in order."""
        if self.head < len(self.dues) and (due < self.dues[-1] or row < self.rows[-1]):
            return False
        self.dues.append(due)
        self.rows.append(row)
        return True

    def pop(self) -> int:
        row = self.rows[self.head]
        self.head += 1
        if 2 * self.head >= len(self.rows) and (self.head >= 4096 or self.head == len(self.rows)):
            del self.dues[: self.head], self.rows[: self.head]
            self.head = 0
        return row


class Dues:
    """Rows by due time, equal times by row."""

    def __init__(self) -> None:
        self._queues: dict[float, _Queue] = {}  # by horizon
        self._others: list[tuple[float, int]] = []  # heap

    def __len__(self) -> int:
        return len(self._others) + sum(len(queue.rows) - queue.head for queue in self._queues.values())

    def add(self, due: float, row: int, horizon: float) -> None:
        queue = self._queues.get(horizon)
        if queue is None:
            queue = self._queues[horizon] = _Queue()
        if not queue.takes(due, row):
            heapq.heappush(self._others, (due, row))

    @property
    def next(self) -> float:
        """The earliest due time; infinity when nothing waits."""
        return self._first()[0]

    def pop(self) -> tuple[float, int]:
        """(due, row) of the earliest. Only when something waits."""
        due, _, queue = self._first()
        if queue is None:
            return heapq.heappop(self._others)
        return due, queue.pop()

    def oldest_row(self, none: int) -> int:
        """The smallest row that waits, or `none`."""
        heads = [queue.rows[queue.head] for queue in self._queues.values() if queue.head < len(queue.rows)]
        return min([none, *heads, *(row for _, row in self._others)])

    def _first(self) -> tuple[float, int, _Queue | None]:
        due, row = self._others[0] if self._others else (math.inf, 0)
        first: _Queue | None = None
        for queue in self._queues.values():
            if queue.head < len(queue.rows):
                place = queue.dues[queue.head], queue.rows[queue.head]
                if place < (due, row):
                    (due, row), first = place, queue
        return due, row, first
