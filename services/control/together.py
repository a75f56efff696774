"""Several that fold the same settled decisions, which are read and decoded once for all of them."""

from collections.abc import Sequence
from dataclasses import replace

from services.control.readouts import Beside, Seat
from streaming.experiences import Experience, Experiences, Row


class Once(Experiences):
    """Settled decisions that remember the last page they gave out: who comes next most likely asks for the same one."""

    def __init__(self, behind: Experiences) -> None:
        self.partition, self._behind = behind.partition, behind
        self._asked: Sequence[tuple[int, Row]] = ()
        self._given: list[Experience] = []

    def numbers(self) -> tuple[int, int]:
        return self._behind.numbers()

    def rows(self, number: int, limit: int) -> list[tuple[int, Row]]:
        return self._behind.rows(number, limit)

    def of(self, rows: Sequence[tuple[int, Row]]) -> list[Experience]:
        numbers = [number for number, _ in rows]
        if numbers != [number for number, _ in self._asked]:
            self._given = self._behind.of(rows)
            self._asked = rows
        return self._given


class Together:
    """As one. A part that nobody waits for still folds: what it would have to catch up with could be gone."""

    def __init__(self, *parts: Beside) -> None:
        self._parts = parts

    def wanted(self) -> bool:
        asked = [part.wanted() for part in self._parts]  # all of them: each follows the record when asked
        return any(asked)

    def fold(self, seat: Seat) -> None:
        shared = replace(seat, experiences=Once(seat.experiences))
        for part in self._parts:
            part.fold(shared)

    def folded(self, partition: int) -> int:
        return min(part.folded(partition) for part in self._parts)

    def tell(self) -> None:
        for part in self._parts:
            part.tell()
