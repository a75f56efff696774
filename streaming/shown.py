"""What people were shown, derived from a partition where a surface's rules or features ask for it: by unit, and by item in windows.

    profiles  <unit>/shown     (at, item, decision) of the last `KEPT` slots the unit saw, oldest first, 24 bytes each
    counters  …/item/<id>/window/<seconds>/<number>/exposures    slots in which an item was seen, by fixed windows of the log's time

A slot counts as learning counts it (`presence`): when it is drawn, or with `defer` when it was said to be shown; one that
turns out unseen is taken back. Readers slide a window over the two fixed ones it touches, taking the older for even.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from policies.counted import SHOWN, counted, kinds_of
from policies.surface import Surface, seconds

KEPT = 200  # slots remembered of a unit
SUFFIX = "/shown"  # after the unit's hash, which alone says where a profile lies
ENTRY = np.dtype([("at", "<f8"), ("item", "<u8"), ("decision", "<u8")])


def shown_key(unit: str) -> str:
    """The name of what a unit was shown, among profiles."""
    return unit + SUFFIX


def remembers_units(surface: Surface) -> bool:
    """Whether a rule asks what a unit was shown."""
    return any(rule.seen or (rule.frequency and rule.frequency.per == "unit") for rule in surface.rules)


def item_windows(surface: Surface) -> tuple[int, ...]:
    """Windows in whole seconds over which rules and features count an item's impressions, ascending."""
    per_item = (rule.frequency for rule in surface.rules if rule.frequency and rule.frequency.per == "item")
    features = (f for f in counted(surface.features.items).values() if SHOWN in kinds_of(f))
    return tuple(sorted({window_seconds(one.window) for one in chain(per_item, features)}))


def window_seconds(window: str | float) -> int:
    """Whole seconds, at least one: what names a fixed window."""
    return max(1, round(seconds(window)))


def remembers(surface: Surface) -> bool:
    """Whether its shards have to derive what was shown."""
    return remembers_units(surface) or bool(item_windows(surface))


def with_decision(before: bytes | None, decision: int, at: float, items: Sequence[int]) -> bytes:
    """What a unit was shown, with what it saw of one decision (item hashes), whatever was known of that before."""
    known = np.frombuffer(before or b"", ENTRY)
    others = known[known["decision"] != decision]
    added = np.zeros(len(items), ENTRY)
    added["at"], added["item"], added["decision"] = at, items, decision
    together = np.concatenate((others, added))
    return together[np.argsort(together["at"], kind="stable")][-KEPT:].tobytes()


def read_shown(data: bytes) -> list[tuple[float, int]]:
    """(at, item hash), oldest first; empty for a unit that is not known."""
    found = np.frombuffer(data, ENTRY)
    return list(zip(found["at"].tolist(), found["item"].tolist(), strict=True))


def window_names(item: str, window: int, at: float) -> tuple[str, str]:
    """Names, within a surface, of an item in the fixed window of a time and in the one before. `item` quoted."""
    number = int(at // window)
    return window_name(item, window, number), window_name(item, window, number - 1)


def window_name(item: str, window: int, number: int) -> str:
    return f"item/{item}/window/{window}/{number}"


def sliding(current: float, previous: float, window: int, at: float) -> float:
    """Impressions in the last `window` seconds, the older fixed window taken for even."""
    return current + previous * (1.0 - (at % window) / window)
