"""What of a segment's exploration cap one decision left unused or used beyond it, for those who lend what is left.

    …/exploration/<segment>/<window>/unused   Σ over drawn slots of max(0, max_share − share), by fixed windows of the decision's time
    …/exploration/<segment>/<window>/over     … of max(0, share − max_share): what leases were spent on

A decision counts when it comes, and with `defer` while any of it was seen; pinned slots never do. The cap is that of the
surface version it was made under, whatever the record says. Windows that nobody lends from any more are taken away.
"""

from collections.abc import Mapping, Sequence

from policies.reranking.exploration_budget import WINDOWS, beyond, window_of
from streaming.applied import Touched

MEASURES = ("unused", "over")
Window = tuple[str, str, str]  # exploration, the segment, the window's number: parts of a counter's name


def window_name(segment: str, window: int) -> Window:
    return "exploration", segment, str(window)


def gone(window: Window) -> Window:
    """The one that is out of everyone's reach once something is counted in a window."""
    return window_name(window[1], int(window[2]) - 2 * WINDOWS)


def moved(one: Touched) -> Mapping[Window, Sequence[float]]:
    """Window → what its `MEASURES` moved by."""
    drawn, surface = one.join.drawn, one.terms.compiled.surface
    if drawn is None or drawn.strayed is None:
        return {}
    times = any(one.present) - any(one.present_before) if drawn.defer else int(one.came)
    terms = surface.exploration.lending.get(drawn.strayed.segment)
    if not times or terms is None or len(drawn.strayed.shares) != len(drawn.slots):
        return {}
    cap, pinned = terms[0], set(drawn.pinned)
    shares = [share for share, slot in zip(drawn.strayed.shares, drawn.slots, strict=True) if slot not in pinned]
    unused = sum(cap - min(max(share, 0.0), cap) for share in shares)
    return {window_name(drawn.strayed.segment, window_of(drawn.at)): [times * unused, times * beyond(shares, cap)]}
