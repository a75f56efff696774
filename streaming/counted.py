"""What surfaces have counted as features: of a unit and of items, in windows of the time decisions were made.

    counters  …/item/<id>/window/<seconds>/<number>/kind/<kind>   slots of the item about which feedback of the kind was heard
              …/item/<id>/window/<seconds>/<number>/exposures     … and in which it was seen, as rules count it (`streaming.shown`)
    profiles  <unit>/counts    surface/kind/seconds → (number of the newest fixed window, its count, that of the one before)

A slot counts where learning counts it (`presence`), feedback where it counts towards rewards: in force, dated inside the
horizon, its value above 0, once a slot and kind. What is about a whole slate counts once for the unit, and for no item. A
count belongs to the window of its decision, so a rate is of the same decisions above and below; and it moves by what the
decision's evidence moves, so corrections and retractions are followed, and a decision counts once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from policies.counted import SHOWN, counted, kinds_of
from policies.surface import Feature, Surface
from streaming.shown import sliding, window_seconds

SUFFIX = "/counts"  # after the unit's hash, which alone says where a profile lies
KEPT_WINDOWS = 3  # of an item: the two that a window slides over, and one for clocks that differ
Counts = dict[str, tuple[int, float, float]]
Said = frozenset[tuple[str, int]]  # (kind, filled slot, or −1: the whole slate) that a decision has heard
NOTHING: Said = frozenset()
Wanted = tuple[tuple[str, int], ...]  # (kind, window in whole seconds), ascending
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Counts).decode


class Asked(NamedTuple):
    """What a surface version has counted of units and of items; `kinds` of feedback."""

    units: Wanted
    items: Wanted
    kinds: frozenset[str]


class Moved(NamedTuple):
    """By how much a decision's count of a kind has changed: in a filled slot, or −1: of the whole slate."""

    kind: str
    position: int
    by: int


def asked(surface: Surface) -> Asked | None:
    """None of a surface that has nothing counted."""
    units, items = _wanted(surface.features.context), _wanted(surface.features.items)
    return Asked(units, items, frozenset(kind for kind, _ in units + items)) if units or items else None


def _wanted(features: Mapping[str, Feature]) -> Wanted:
    return tuple(sorted({(kind, window_seconds(f.window)) for f in counted(features).values() for kind in kinds_of(f)}))


def moves(k: int, present: tuple[bytes, bytes], said: tuple[Said, Said]) -> list[Moved]:
    """From (before, after) of what was seen and said of a decision with k filled slots."""
    was, now = (some or bytes(k) for some in present)
    seen = [Moved(SHOWN, p, now[p] - was[p]) for p in range(k) if now[p] != was[p]] if was != now else []
    before, after = said
    if before == after:
        return seen
    return [
        *seen,
        *(Moved(kind, position, 1) for kind, position in sorted(after - before)),
        *(Moved(kind, position, -1) for kind, position in sorted(before - after)),
    ]


def counts_key(unit: str) -> str:
    """The name of a unit's counts, among profiles."""
    return unit + SUFFIX


def count_name(surface: str, kind: str, window: int) -> str:
    return f"{surface}/{kind}/{window}"  # neither holds a slash


def read_counts(data: bytes) -> Counts:
    """Empty for a unit that is not known."""
    return _decode(data) if data else {}


def with_moves(before: bytes | None, surface: str, wanted: Wanted, at: float, moved: Sequence[Moved]) -> bytes:
    """A unit's counts after one of its decisions, made at a time, has moved. The same in any order of decisions: what is two
    windows older than the newest is not kept, whenever it comes."""
    counts = read_counts(before or b"")
    for kind, window in wanted:
        by = float(sum(one.by for one in moved if one.kind == kind))
        if not by:
            continue
        name, number = count_name(surface, kind, window), int(at // window)
        newest, current, previous = counts.get(name, (number, 0.0, 0.0))
        if number > newest:
            newest, current, previous = number, 0.0, current if number == newest + 1 else 0.0
        if number == newest:
            current += by
        elif number == newest - 1:
            previous += by
        counts[name] = newest, current, previous  # also where both are 0: what is older must not come back
    return _encode(counts) if counts else b""


def counted_lately(counts: Counts, name: str, window: int, now: float) -> float:
    """A unit's count in the last `window` seconds."""
    newest, current, previous = counts.get(name, (0, 0.0, 0.0))
    number = int(now // window)
    if newest > number:  # of a clock that is ahead: its window has begun a moment ago
        return current + previous if newest == number + 1 else current
    if newest < number:
        current, previous = 0.0, current if newest == number - 1 else 0.0
    return sliding(current, previous, window, now)
