"""Items that were candidates lately, and what is counted of items in windows that slide: read in bulk, in a thread."""

from collections.abc import Sequence
from itertools import chain

from services.scoring.breathing import paged
from streaming.derived import counter_name
from streaming.ports import Counters
from streaming.shown import sliding, window_names

MOST_ITEMS = 50_000


class Lately:
    """Bounded; those of long ago make room. `want` on the event loop, `items` from any thread."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._older: set[str] = set()

    def want(self, ids: Sequence[str]) -> None:
        self._recent.update(ids)
        if len(self._recent) > MOST_ITEMS // 2:
            self._older, self._recent = self._recent, set()

    @property
    def items(self) -> list[str]:
        """Sets of texts are joined in one step of the interpreter."""
        return list(self._recent | self._older)


class Windowed:
    """One measure of items, counted in fixed windows of `window` seconds under a prefix, as of the last `window` seconds."""

    def __init__(self, prefix: str, measure: str, window: int) -> None:
        self._prefix, self._measure, self.window = prefix, measure, window
        self._names: tuple[int, dict[str, tuple[str, str]]] = 0, {}  # number of the window → item → its counters

    def read(self, counters: Counters, items: Sequence[str], now: float) -> list[float]:
        """Of each item at epoch seconds `now`: of the fixed window of then, and the one before. Items are named once a window: it
        took a third of a reading. Raises Unavailable."""
        number, found = int(now // self.window), []
        before = self._names[1] if self._names[0] == number else {}
        named: dict[str, tuple[str, str]] = {}
        for page in paged(items):
            named |= {item: before.get(item) or self._two(item, now) for item in page}
            values = counters.read([*chain.from_iterable(named[item] for item in page)])
            pairs = zip(values[0::2], values[1::2], strict=True)
            found += [sliding(one, other, self.window, now) if one or other else 0.0 for one, other in pairs]
        self._names = number, named
        return found

    def _two(self, item: str, now: float) -> tuple[str, str]:
        one, other = window_names(counter_name(item), self.window, now)
        return f"{self._prefix}/{one}/{self._measure}", f"{self._prefix}/{other}/{self._measure}"
