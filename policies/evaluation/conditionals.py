"""What a policy would have drawn at each slot, given the slots before it as they were logged.

    p_t(· | a_1 … a_{t−1})   (k', n), by the law of `policies.slate` itself: the prefix is forced, slot t is read off

Most heads look at R_t alone, so the prefix is pinned to where it was logged. `one_draw` remembers how likely each posterior
draw made the prefix, and rules inside a slate remember what they did, so there the prefix is drawn: with the uniform that
lands on the logged item. A prefix that could not have been drawn then leaves no conditionals: zeros, which is what every
weight through it is anyway.

Source   methods.md §0, 5
"""

from collections.abc import Mapping, Sequence

import numpy as np

from policies.reranking.within import Within
from policies.slate import draw
from policies.types import F32, F64, DrawSettings, Mask, Slate


def conditionals(
    scores: F32,
    slots: Sequence[int],
    rows: Sequence[int],
    settings: DrawSettings,
    *,
    boosts: F64 | None = None,
    masks: Mask | None = None,
    pins: Mapping[int, int] | None = None,
    within: Within | None = None,
    asked: int | None = None,
    others: bool = False,
) -> F64:
    """(k', n): the distribution at each logged slot given the logged items before it; a pin's is certain.

    scores (n, m) of the policy in question;   slots, rows (k',) what was logged, slots ascending
    boosts (n,), masks (k, n), pins slot → row   what acted on the draw
    within, asked   rules inside the slate, and how many slots they were made for
    others          masks are not those of the log: what they forbid of the slate this policy cannot have drawn

    Raises ValueError for a log that no draw can have made: an item twice, masked, or pinned elsewhere; Corrupt("nan_scores").
    """
    pinned = dict(pins or {})
    _possible(slots, rows, pinned, None if others else masks)
    out = np.zeros((len(slots), len(scores)))
    k = max(max([*slots, *pinned], default=-1) + 1, asked or 0)
    along = Along(scores, k, settings, boosts=boosts, masks=masks, pins=pinned, within=within)
    for t, (slot, row) in enumerate(zip(slots, rows, strict=True)):
        found = along.at(slot)
        forbidden = masks is not None and slot not in pinned and not masks[slot, row]
        if found is None or forbidden or not along.took(slot, row):
            out[t] = 0.0 if found is None else found
            break
        out[t] = found
    return out


class Along:
    """One policy along a slate of k slots that somebody else fills, slot by slot, ascending. Arguments as of `slate.draw`.

    last  what the draw said when it was asked last; of a filled slot, everything up to it
    """

    def __init__(
        self,
        scores: F32,
        k: int,
        settings: DrawSettings,
        *,
        boosts: F64 | None = None,
        masks: Mask | None = None,
        pins: Mapping[int, int] | None = None,
        within: Within | None = None,
    ) -> None:
        self._scores, self._settings, self._boosts, self._masks = scores, settings, boosts, masks
        self._pins, self._within = dict(pins or {}), within
        self._u, self._forced = np.zeros(k), dict(self._pins)
        self._drawn = settings.head == "one_draw" or within is not None
        self._here: F64 | None = None
        self.last: Slate | None = None
        self.remaining = 0

    def at(self, slot: int) -> F64 | None:
        """(n,) its distribution at a slot, given those before; None where nobody is allowed. `remaining`: how many are."""
        # a later pin's item is nobody else's
        k = len(self._u) if self._within is not None else max(slot, *self._pins, 0) + 1
        found = self.last = draw(
            self._scores,
            k,
            self._u[:k],
            self._settings,
            boosts=self._boosts,
            masks=None if self._masks is None else self._masks[:k],
            pins=self._pins if self._drawn else self._forced,
            within=self._within,
            full=True,
        )
        assert found.distributions is not None  # asked for
        place = int(np.searchsorted(found.slots, slot))
        if place == len(found.slots) or found.slots[place] != slot:
            self._here, self.remaining = None, 0
            return None
        self._here, self.remaining = found.distributions[place], int(found.remaining[place])
        return self._here

    def took(self, slot: int, row: int) -> bool:
        """The slot that was asked for last got this item; False: this policy cannot have drawn it, and what comes after has no
        distribution."""
        self._forced[slot] = row
        if not self._drawn or slot in self._pins:
            return True
        if self._here is None or self._here[row] <= 0.0:
            return False
        p = self._here
        self._u[slot] = float(np.add.accumulate(p)[row] - p[row] / 2)
        return True


def mixed(shares: Sequence[float], parts: Sequence[F64], rows: Sequence[int]) -> F64:
    """(k', n) of who first draws, with `shares` (g,), which of several policies to be: `parts` are theirs along the same rows (k',).

    p_t = Σ_g w_g p_gt / Σ_g w_g,   w_g = share_g Π_{s<t} p_gs(a_s): how likely it was that one, given the slots before; zeros
    after a slot that none of them can have drawn
    """
    w, out = np.asarray(shares, np.float64), np.zeros_like(parts[0])
    for t, row in enumerate(rows):
        here = np.stack([part[t] for part in parts])
        if w.sum() <= 0.0:
            break
        out[t] = w @ here / w.sum()
        w = w * here[:, row]
    return out


def _possible(slots: Sequence[int], rows: Sequence[int], pins: Mapping[int, int], masks: Mask | None) -> None:
    elsewhere = {row: slot for slot, row in pins.items()}
    if len(set(rows)) < len(rows) or list(slots) != sorted(set(slots)):
        raise ValueError("a logged slate has each slot and each item once")
    for slot, row in zip(slots, rows, strict=True):
        if pins.get(slot, row) != row or elsewhere.get(row, slot) != slot:
            raise ValueError(f"row {row} at slot {slot} contradicts the pins")
        if masks is not None and slot not in pins and not masks[slot, row]:
            raise ValueError(f"row {row} was not allowed at slot {slot}")
