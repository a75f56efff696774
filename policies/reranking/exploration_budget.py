"""What a surface may explore and did not, lent to requests that would explore more: the law of it, without stores or clocks.

    unused_w   Σ over the drawn slots of window w of max(0, max_share − e), e the expected share of a slot that is not greedy
    over_w     … of max(0, e − max_share), which only slots with a lease have
    granted_w  what was lent in window w, as the book of the segment has it; the book is changed in one step or not at all
    left       Σ unused_w − max(Σ granted_w, Σ over_w), over the last `WINDOWS` windows from the book's first on
    lease      some of what is left, of one worker, for a second; a slate of k slots may then explore up to
               min(lend_up_to, max_share + lease / k) in a slot, and what it explores beyond max_share goes off the lease

Holds    at every grant Σ granted ≤ Σ unused over the same windows, and every lease is spent within seconds; so each slot that
         explored more is paid for by slots of the ten minutes before that explored less, each once, and in every prefix of
         the log Σ e ≤ Σ max_share. Replicas race for the book's exchange, and the loser reads again. What is lent and not spent,
         by a worker that died or had no use for it, is lost
Lost     a book that the store forgot begins anew, and counts only windows that begin `AHEAD_SECONDS` later: no grant of the
         old one can have been of them, as far as replicas' clocks agree within that. A store that comes back with an older
         book lends once more what it has forgotten, and then less by as much: `over` comes from the log
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from policies.errors import Corrupt

WINDOW_SECONDS, WINDOWS = 60, 10
AHEAD_SECONDS = 60.0  # as far as a decision may be ahead of the log
LEAST = 1e-6  # slots: less is not worth a lease


class Book(Struct, frozen=True, array_like=True):
    """Of one segment of one surface. `since`: the first window that counts; `granted`: window → slots lent in it."""

    since: int
    granted: dict[int, float] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Book).decode


def pack(book: Book) -> bytes:
    return _encode(book)


def unpack(held: bytes) -> Book:
    """Raises Corrupt('book')."""
    try:
        return _decode(held)
    except msgspec.MsgspecError as error:
        raise Corrupt("book", str(error)) from None


def window_of(at: float) -> int:
    return int(at // WINDOW_SECONDS)


def windows(now: float) -> range:
    """Those that count at `now`, epoch seconds."""
    last = window_of(now)
    return range(last - WINDOWS + 1, last + 1)


def opened(now: float) -> Book:
    """A book that owes nothing to what was before it."""
    return Book(window_of(now + AHEAD_SECONDS) + 1)


def left(book: Book, unused: Mapping[int, float], over: Mapping[int, float], now: float) -> float:
    """Slots that may still be lent; `unused` and `over` by window, as far as the log was read."""
    count = [window for window in windows(now) if window >= book.since]
    lent = max(sum(by.get(window, 0.0) for window in count) for by in (book.granted, over))
    return max(0.0, sum(unused.get(window, 0.0) for window in count) - lent)


def granted(book: Book, slots: float, now: float) -> Book:
    """… after so much was lent at `now`; windows that count no more are dropped."""
    current, kept = window_of(now), windows(now)
    lent = {window: by for window, by in book.granted.items() if window in kept or window > current}
    return Book(book.since, {**lent, current: lent.get(current, 0.0) + slots})


def raised(cap: float, up_to: float, lease: float, slots: int) -> float:
    """The cap of each slot of a slate that may spend `lease` beyond its own."""
    return max(cap, min(up_to, cap + lease / slots)) if slots and lease > LEAST else cap


def beyond(explored: Sequence[float], cap: float) -> float:
    """Slots' worth explored beyond the cap."""
    return sum(share - cap for share in explored if share > cap)


def wanted(explored: Sequence[float], alphas: Sequence[float], cap: float, up_to: float) -> float:
    """Slots' worth that the policy would have explored beyond the cap, as far as a lease can allow it."""
    own = (share / alpha for share, alpha in zip(explored, alphas, strict=True))
    return sum(max(0.0, min(share, up_to) - cap) for share in own)
