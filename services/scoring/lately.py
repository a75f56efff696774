"""Items that were candidates lately: whatever is read of items in bulk is read of these."""

from collections.abc import Sequence

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
