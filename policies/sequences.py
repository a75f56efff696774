"""Sequences: what units lived through, decision by decision, as arrays that sequential policies learn from."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from policies.types import F32, F64, I64, Mask

U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Transitions:
    """N settled decisions with the state each was made in and the one that came after, in the recorded order.

    n candidates, k slots and H interactions are padded to the largest of the batch; o objectives in the surface's order.

    context (N, c)           encoded
    candidates (N, n, d)     encoded candidates; `allowed` (N, n) says which rows are real and could be drawn
    items (N, n) uint64      `item_hashes` of the candidates' ids; 0 where a row is padding
    slate (N, k)             candidate rows by slot; −1 where there is no slot
    propensities (N, k)      logged, conditional on the slots before; 1 where there is no slot or a pin
    present (N, k)           slots that count as examples (seen, and not pinned)
    rewards (N, k, o)        raw, by slot
    history (N, H, d)        encoded items of the unit's last interactions before the decision, oldest first, zeros in front
    history_items (N, H) uint64   `item_hashes` of its ids; 0 where a row is padding
    lived (N, H)             which rows of `history` are real
    next_context (N, c), next_history (N, H, d), next_history_items (N, H), next_lived (N, H)
                             the state of the unit's next decision; zeros when terminal
    terminal (N,)            the sequence ended here, by abandonment or timeout
    elapsed (N,)             seconds to the next decision; 0 when terminal
    units (N,) uint64, sessions (N,) uint64   hashes: whom and which session; 0 = none named
    times (N,)               the decision's time, seconds
    goals (N,)               goal it was made under; −1 = none;   goal_propensities (N,)  1 where none
    """

    context: F32
    candidates: F32
    items: U64
    allowed: Mask
    slate: I64
    propensities: F64
    present: Mask
    rewards: F64
    history: F32
    history_items: U64
    lived: Mask
    next_context: F32
    next_history: F32
    next_history_items: U64
    next_lived: Mask
    terminal: Mask
    elapsed: F64
    units: U64
    sessions: U64
    times: F64
    goals: I64
    goal_propensities: F64

    def __len__(self) -> int:
        return len(self.slate)

    def rows(self, keep: I64 | Mask | slice) -> "Transitions":
        """Some of the rows, in the order asked for."""
        return Transitions(*(getattr(self, each.name)[keep] for each in fields(self)))
