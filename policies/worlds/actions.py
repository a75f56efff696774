"""What an agent may answer a world with."""

from typing import Any

import numpy as np

from policies.types import I64


def slate_of(action: Any, slots: int, candidates: int) -> I64:
    """The action as candidate numbers (slots,). Raises ValueError where it is none: wrong length, twice the same, out of range."""
    slate = np.asarray(action, np.int64)
    if slate.shape != (slots,) or len(set(slate.tolist())) < len(slate):
        raise ValueError(f"an action is {slots} different candidate numbers, got {action!r}")
    if not ((slate >= 0) & (slate < candidates)).all():
        raise ValueError(f"candidates are numbered 0 to {candidates - 1}, got {action!r}")
    return slate
