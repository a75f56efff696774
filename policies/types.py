"""Values that every room speaks in.

Arrays are float32 where they cross a wire or enter a graph, float64 where probabilities or sums live.
Letters: n candidates, k slots, c context features, d item features, o objectives, m posterior draws, D = width of φ.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

ItemId = NewType("ItemId", str)
DecisionId = NewType("DecisionId", str)
UnitHash = NewType("UnitHash", str)  # 16 lower-case hex digits
Value = bool | int | float | str | list[float] | None  # what a raw feature may be
Features = Mapping[str, Value]
Arrays = dict[str, NDArray[np.generic]]  # named arrays: all that passes between a learner, a bundle and a store

Head = Literal["draws", "one_draw", "softmax", "inverse_gap"]


def item_hashes(items: Sequence[str]) -> NDArray[np.uint64]:
    """BLAKE2b-64 of item ids, little-endian: how per-item sums name an item (`Changes.item_hashes`)."""
    digests = [hashlib.blake2b(item.encode(), digest_size=8).digest() for item in items]
    return np.frombuffer(b"".join(digests), "<u8")


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How scores become probabilities: one place, logged with every decision.

    floor      ε, the share of every slot's probability spread evenly over the remaining candidates, in [0, 1]
    max_share  largest expected non-greedy share of a slot, in (0, 1]; 1 = no cap
    """

    head: Head = "draws"
    floor: float = 0.02
    max_share: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Slate:
    """What was drawn, slot by slot (k' ≤ k filled slots), with everything needed to check the draw.

    slots (k',)        slot numbers, ascending; gaps where candidates ran out before a later pin
    items (k',)        row of the candidate drawn
    propensities (k',) conditional on the slots before; 1 for a pin
    remaining (k',)    ∣R_t∣, candidates that could have been drawn
    greedy (k',)       first row of the greedy set G_t (the pin itself where pinned)
    alphas (k',)       α_t of the exploration cap; 1 where it did not act
    explored (k',)     share of the slot that was expected not to be greedy, after the cap; 0 where pinned
    pinned (k',)       whether the slot was pinned
    distributions      (k', n) full conditional distributions, only when asked for
    """

    slots: I64
    items: I64
    propensities: F64
    remaining: I64
    greedy: I64
    alphas: F64
    explored: F64
    pinned: Mask
    distributions: F64 | None = None
    acts: NDArray[np.uint8] | None = None

    @property
    def joint(self) -> float:
        """Product of the conditional propensities."""
        return float(np.prod(self.propensities))


class Delays(NamedTuple):
    """When rewards became what they are, for `policies.delays`: M changes of a decision's reward, added or taken back.

    times (M,)       of the decisions, seconds
    objectives (M,)  whose reward it was
    buckets (M,)     of the delay, see `policies.delays`
    masses (M,)      by how much it moved, negative when taken back
    counts (M,)      1 for one of them for each decision and objective, −1 when taken back, else 0
    """

    times: F64
    objectives: I64
    buckets: I64
    masses: F64
    counts: F64


@dataclass(frozen=True, slots=True)
class Changes:
    """How the evidence about N (decision, slot) pairs moved since it was last learned: each row goes from `before` to `after`.

    A new example goes from presence 0 to 1, a correction stays at 1 and changes its rewards, a slot that turns out
    unshown goes from 1 to 0. Learners that merge add  weight·(after − before)  to their sums, so state is a function
    of the set of events and not of their order.

    context (N, c), items (N, d), slots (N,)  what the slot showed, encoded
    slates (N,)     rows of one decision share a number, 0.. in this batch, ascending; a decision comes with all its slots
    times (N,)      the decision's time, seconds; forgetting uses it
    weights (N,)    intra-slate weight logged with the decision
    present_before, present_after (N,)  0 or 1
    rewards_before, rewards_after (N, o)  raw reward per objective (not scaled, not weighted), 0 where absent
    item_hashes (N,) uint64 of the item id, for per-item sums
    propensities (N,) logged conditional propensities
    delays          of all rows together, where the surface's `silence` is `corrected`; None elsewhere, and in parts
    """

    context: F32
    items: F32
    slots: I64
    slates: I64
    times: F64
    weights: F64
    present_before: F64
    present_after: F64
    rewards_before: F64
    rewards_after: F64
    item_hashes: NDArray[np.uint64]
    propensities: F64
    delays: Delays | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, start: int, end: int) -> "Changes":
        """Rows start … end − 1, as views."""
        return Changes(*(getattr(self, name)[start:end] for name in _ROWS))

    def of(self, rows: Mask | I64) -> "Changes":
        """The chosen rows, in their order or in another that keeps slates whole; slates are numbered 0.. again."""
        taken = {name: getattr(self, name)[rows] for name in _ROWS}
        taken["slates"] = np.cumsum(np.diff(taken["slates"], prepend=taken["slates"][:1]) != 0)
        return Changes(**taken)


_ROWS = tuple(each.name for each in fields(Changes) if each.name != "delays")
