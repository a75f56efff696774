"""How new an item is to somebody: one minus its largest cosine to what they have lived through, never above one.

    novelty = 1 − max(0, max_j cos(item, history_j))

A history row of zeros says nothing: it counts as none. An empty history makes every item as new as can be.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.types import F64

LEAST = 1e-6  # norm under which a row says nothing


def novelty(items: NDArray[Any], history: NDArray[Any]) -> F64:
    """(…, n) of items (…, n, d) against histories (…, h, d)."""
    cosines = directions(items) @ np.swapaxes(directions(history), -1, -2)
    return np.asarray(1.0 - cosines.max(axis=-1, initial=0.0))


def lived_novelty(history: NDArray[Any]) -> F64:
    """(…, h): how new each row was to the rows before it; rows of zeros are as new as can be, and not to be counted."""
    rows = directions(history)
    earlier = np.tril(rows @ np.swapaxes(rows, -1, -2), -1)
    return np.asarray(1.0 - earlier.max(axis=-1, initial=0.0))


def directions(rows: NDArray[Any]) -> F64:
    """Rows of length one; those of zeros stay."""
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.sqrt(np.square(wide).sum(axis=-1, keepdims=True)), LEAST))
