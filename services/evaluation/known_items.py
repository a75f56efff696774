"""Items as the record of a data folder has them now: for decisions whose log names candidates by id alone."""

from policies.types import I64
from services.scoring.catalogue import KIND, Catalogue
from streaming.ports import State


class KnownItems:
    """The catalogue as the state record has it now, and when each item was last written."""

    def __init__(self, state: State, now: float) -> None:
        self.catalogue = Catalogue()
        self.written: dict[str, int] = {}
        seen = 0
        while entries := state.read(seen):
            self.catalogue.apply(self.catalogue.prepare(entries), now)
            self.written |= {entry.key: entry.version for entry in entries if entry.kind == KIND}
            seen = entries[-1].version

    def __len__(self) -> int:
        return len(self.written)

    def rows(self, candidates: list[str], version: int) -> I64 | None:
        """Rows of a decision's candidates in the catalogue's matrices; None when any was written after `version`."""
        if any(self.written.get(item, 0) > version for item in candidates):
            return None
        return self.catalogue.rows(candidates)
