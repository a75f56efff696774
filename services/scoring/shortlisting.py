"""A catalogue too large to be drawn from whole: whose scores make its shortlist, and what the record says of it.

The rows of all eligible items stay an array until there are few of them; a million ids are never listed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from policies.errors import Rejected
from policies.shortlist import CHECKED, Shortlist, Slope, probes, shortlist
from policies.slate import uniforms
from policies.types import F32, I64, Mask
from services.scoring.catalogue import Catalogue
from streaming.events import Shortlisted

log = logging.getLogger("slatewise.scoring")


class Names(Sequence[str]):
    """Ids of catalogue rows (n,), looked up one by one when they are asked for."""

    def __init__(self, catalogue: Catalogue, rows: I64) -> None:
        self._catalogue, self.rows = catalogue, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return Names(self._catalogue, self.rows[at])
        return self._catalogue.id_of(int(self.rows[at]))

    def __iter__(self) -> Iterator[str]:
        return map(self._catalogue.id_of, self.rows.tolist())

    def without(self, items: Sequence[str]) -> Mask:
        """(n,) which of them are none of these."""
        return ~np.isin(self.rows, self._catalogue.rows(list(items)))

    def places(self, items: Sequence[str]) -> list[int]:
        """Where those of the items are that are among them."""
        rows = self._catalogue.rows(list(items))
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        found: list[int] = at[self.rows[at] == rows].tolist()
        return found


Scores = Callable[[F32], F32]  # items (n, d) → (n, m)


@dataclass(frozen=True, slots=True)
class Cut:
    """How a decision shortens what is eligible.

    score  query → scores of the policy that will draw; None where more than the features of an item decides them
    """

    decision_id: str
    key: bytes
    score: Callable[[Any], F32] | None

    def made(self, rows: I64, matrix: F32, slots: int, scores: Scores | None, forced: Sequence[int]) -> Shortlist:
        """The shortlist of eligible rows (N,) ascending. Scores that fail leave a uniform sample: there is always an answer.

        Raises Rejected.
        """
        slope: Slope | None = None
        try:
            slope = None if scores is None else _slope(rows, matrix, scores)
        except Rejected:
            raise
        except Exception:  # whatever a graph can raise: the draw asks it again, and answers from the fallback
            log.exception("shortlist_failed", extra={"decision_id": self.decision_id})
        return shortlist(
            matrix, rows, slope, slots, lambda count: uniforms(self.key, self.decision_id, "shortlist", count), forced
        )


def shortlisted(made: Shortlist, slate: I64) -> Shortlisted:
    """What the record says of it: of a slate (k',), rows of the shortlist."""
    return Shortlisted(made.eligible, made.kept, made.drawn, made.inclusions(slate).tolist())


def _slope(rows: I64, matrix: F32, scores: Scores) -> Slope | None:
    """None where the scores are not affine in the items."""
    size = matrix.shape[1]
    real = matrix[rows[np.linspace(0, len(rows) - 1, CHECKED).astype(np.int64)]]
    found = scores(np.concatenate([probes(size), real]))
    slope = Slope.of(found[: size + 1])
    return slope if slope.explains(real, found[size + 1 :]) else None
