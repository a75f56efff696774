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
from policies.types import F32, F64, DrawSettings, Mask


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
) -> F64:
    """(k', n): the distribution at each logged slot given the logged items before it; a pin's is certain.

    scores (n, m) of the policy in question;   slots, rows (k',) what was logged, slots ascending
    boosts (n,), masks (k, n), pins slot → row   what acted on the draw
    within, asked   rules inside the slate, and how many slots they were made for

    Raises ValueError for a log that no draw can have made: an item twice, masked, or pinned elsewhere; Corrupt("nan_scores").
    """
    pinned = dict(pins or {})
    _possible(slots, rows, pinned, masks)
    out = np.zeros((len(slots), len(scores)))
    u = np.zeros(max(max([*slots, *pinned], default=-1) + 1, asked or 0))
    drawn, forced = settings.head == "one_draw" or within is not None, dict(pinned)
    for t, (slot, row) in enumerate(zip(slots, rows, strict=True)):
        k = len(u) if within is not None else max(slot, *pinned, 0) + 1  # a later pin's item is nobody else's
        found = draw(
            scores,
            k,
            u[:k],
            settings,
            boosts=boosts,
            masks=None if masks is None else masks[:k],
            pins=pinned if drawn else forced,
            within=within,
            full=True,
        )
        assert found.distributions is not None  # asked for
        out[t] = p = found.distributions[np.searchsorted(found.slots, slot)]
        forced[slot] = row
        if drawn and slot not in pinned:
            if p[row] <= 0.0:
                break
            u[slot] = float(np.add.accumulate(p)[row] - p[row] / 2)
    return out


def mixed(shares: Sequence[float], parts: Sequence[F64], rows: Sequence[int]) -> F64:
    """(k', n) of who first draws, with `shares` (g,), which of several policies to be: `parts` are theirs along the same rows (k',).

    p_t = Σ_g w_g p_gt / Σ_g w_g,   w_g = share_g Π_{s<t} p_gs(a_s): how likely it was that one, given the slots before
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
