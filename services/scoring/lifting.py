"""What was released of who sees a surface's items, as scoring reads it: a boost for every item and summary of people.

It comes with the state record that every replica follows and keeps a copy of, so no store is asked. An aggregator that falls
silent is believed for `FAITH` windows more; then nothing is boosted, and decisions say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policies.surface import Surface
from policies.types import F64, Features
from streaming.impressions import Told, asked_of, scheme_of, summaries_of, window_seconds

FAITH = 4.0  # windows after the end of the last one released, above the horizon: its successor is due after one


@dataclass(frozen=True, slots=True, eq=False)
class Lifting:
    """Of one release.

    feature  of the context whose value is the summary;   columns  value → column, the last for all others
    rows     item → row of `boosts` (n + 1, S), in interquartile ranges of scores; the last row of items that are not in it
    until    epoch seconds
    """

    feature: str
    columns: Mapping[str, int]
    rows: Mapping[str, int]
    boosts: F64
    until: float

    def of(self, ids: Sequence[str], context: Features) -> F64:
        """(n,) boosts of candidates, for everybody with this value in the context."""
        value = context.get(self.feature)
        column = self.columns.get(value, -1) if isinstance(value, str) else -1
        rows = np.array([self.rows.get(item, -1) for item in ids], np.int64)
        found: F64 = self.boosts[rows, column]
        return found


def lifting_of(surface: Surface, told: Told | None) -> Lifting | None:
    """None where nothing was released under what the surface asks for."""
    asked = asked_of(surface)
    if asked is None or told is None or not told.releases or told.scheme != scheme_of(surface):
        return None
    kinds, lifts = summaries_of(surface), told.lifts()
    if lifts.shape[1] != len(kinds):  # of another build
        return None
    return Lifting(
        asked.summary,
        {kind: place for place, kind in enumerate(kinds[:-1])},
        {item: row for row, item in enumerate(told.items)},
        np.vstack([lifts, np.zeros((1, len(kinds)))]),
        told.ends + surface.horizon_seconds + FAITH * window_seconds(asked),
    )
