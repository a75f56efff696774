"""What is derived from a partition, told to the stores that readers look at: after each commit, never before.

The stores can be away or lose everything; the shard goes on and tells them later. What is told is absolute and follows a
chain of marks (`streaming.ports.Counters`), so nothing is counted twice, and a store that says it is not where we left it
is told everything.
"""

from collections.abc import Callable, Mapping, Sequence

from policies.errors import Corrupt, Unavailable
from policies.types import Arrays
from streaming.applied import Touched
from streaming.derived import Derived
from streaming.ledger import Ledger, V
from streaming.ports import Counters, Mark, Profiles

EVERY_SECONDS = 0.1  # between two tellings of what changes
LOOK_SECONDS = 1.0  # after as long with nothing to tell: is the store still where it was?


class Feed:
    """Of one partition and one epoch. `clock` gives seconds that never go back."""

    def __init__(
        self,
        partition: int,
        epoch: int,
        counters: Counters,
        profiles: Profiles,
        clock: Callable[[], float],
        derived: Derived | None = None,
    ) -> None:
        self._partition, self._epoch, self._clock = partition, epoch, clock
        self._counters, self._profiles = counters, profiles
        self.derived = derived or Derived()
        self._at: dict[str, Mark] = {}  # store → what it was told last
        self._next_change = self._next_look = 0.0
        self.away = 0  # tellings that found a store away

    def restore(self, statistics: Mapping[str, Arrays], offset: int) -> None:
        """Go on from a commit; the stores are told everything, for another owner may have told them meanwhile."""
        self.derived.restore(statistics, offset)
        self._at = {}
        self._next_change = self._next_look = 0.0

    def take(self, touched: Sequence[Touched], *, counting: bool = True) -> None:
        self.derived.take(touched, counting=counting)

    def pieces(self, offset: int) -> dict[str, Arrays]:
        return self.derived.pieces(offset)

    def committed(self, offset: int | None) -> None:
        """`offset` None: joins are being read again, and there is nothing to tell before that is done."""
        self.derived.committed()
        if offset is not None:
            self.tell(offset)

    def tell(self, offset: int, *, now: bool = False) -> bool:
        """Bring the stores to a committed offset when it is time, or `now`; whether they are there."""
        time = self._clock()
        mark = Mark(self._epoch, offset)
        behind = any(self._at.get(store) != mark for store in ("counters", "profiles"))
        if not now and time < (self._next_change if behind else self._next_look):
            return not behind
        self._next_change, self._next_look = time + EVERY_SECONDS, time + LOOK_SECONDS
        try:
            self._told("counters", self._counters.write, self.derived.counters, mark, 0.0)
            self._told("profiles", self._profiles.write, self.derived.profiles, mark, b"")
        except (Unavailable, Corrupt):
            self.away += 1
            return False
        return True

    def _told(
        self,
        store: str,
        write: Callable[[int, Mark, Mapping[str, V], Mark | None], bool],
        ledger: Ledger[V],
        mark: Mark,
        gone: V,
    ) -> None:
        since = self._at.get(store)
        changed = {name: gone if value is None else value for name, value in ledger.changes().items()}
        if since is None or not write(self._partition, mark, changed, since):
            write(self._partition, mark, ledger.values(), None)
        ledger.told()
        self._at[store] = mark
