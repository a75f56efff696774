"""State that follows settled decisions: each of a partition folded in exactly once, and committed with how far it came.

It folds what the readouts' settlers give out (`services.control.readouts`), beside experiments. What a store holds is what a commit
made of it, so a process that dies folds again from there, and whoever asks reads nothing that a crash would take back.
"""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from policies.errors import Corrupt
from services.control.readouts import PAGE, Seat
from streaming.estimates import Estimates
from streaming.experiences import Experience

log = logging.getLogger("slatewise.control")
State = TypeVar("State")


class Folding(Generic[State]):
    """Of all partitions of a log. `fold` belongs to the readouts' thread; the rest to any.

    lacking  what the log says where decisions are missing
    opened   opens the store, once it is asked for
    read, written  the state as the store has it, and back
    """

    def __init__(
        self,
        lacking: str,
        opened: Callable[[], Estimates],
        partitions: int,
        read: Callable[[bytes], State],
        written: Callable[[State], bytes],
    ) -> None:
        self._lacking, self._opened, self._partitions = lacking, opened, partitions
        self._read, self._written = read, written
        self._store: Estimates | None = None
        self._opening = threading.Lock()
        self._held: dict[int, tuple[int, State]] = {}
        self.lost = 0  # settled decisions whose records the log no longer had

    def fold(self, seat: Seat, begun: Callable[[], Callable[[State, list[Experience]], State]]) -> None:
        """Everything of a partition that has settled. Raises Unavailable, and Rejected('fenced').

        begun  called when it is known how far this goes; what it gives makes the next state of a state and a page
        """
        partition = seat.settler.partition
        number, state = self._held.pop(partition) if partition in self._held else self._loaded(partition)
        first, after = seat.outbox.numbers()
        step = begun()
        while number < after:
            rows = seat.experiences.rows(max(number, first), PAGE)
            try:
                state = step(state, seat.experiences.of(rows))
            except Corrupt as error:  # the log is trimmed by its age, and this was behind
                self.lost += len(rows)
                log.warning(self._lacking, extra={"partition": partition, "error": str(error)})
            reached = rows[-1][0] + 1
            self._open().commit(partition, number, reached, self._written(state))
            number = reached
        self._held[partition] = number, state  # only what is durable: a fold that fails begins with what was read

    def folded(self, partition: int) -> int:
        """The next number that is wanted."""
        held = self._held.get(partition)
        return held[0] if held is not None else self._open().load(partition)[0]

    def committed(self) -> list[State]:
        """A state a partition."""
        return [self._loaded(partition)[1] for partition in range(self._partitions)]

    def _loaded(self, partition: int) -> tuple[int, State]:
        number, state = self._open().load(partition)
        return number, self._read(state)

    def _open(self) -> Estimates:
        with self._opening:
            if self._store is None:
                self._store = self._opened()
            return self._store
