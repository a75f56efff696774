"""Business rules of a surface: what they are called, and what each makes of the candidates of one request.

    pin        an item in a slot, with propensity 1; a pin of the request for the slot wins
    exclude    items that are never shown
    available  true: only what the catalogue knows, has available and has not seen expire, whatever a request asks for
    filter     only items of which a condition over attributes and features holds (`expressions.py`)
    seen       not what the unit was shown within the window                                          may yield
    frequency  not what was shown `cap` times within the window, to the unit or to everybody           may yield
    cap        at most so many of one kind in a slate                                                 may yield
    quota      at least `min` with a value                                                            may yield
    spacing    any so many neighbouring slots show no two of one kind                                 may yield

The first four never yield. The others hold as far as they can be kept together: for each slot they are applied in the order
of the list, and one that would leave nothing to show is passed over for that slot (`within.py`). So the list is the order of
importance, the last rule yields first. An item without the attribute is of no kind: no cap or spacing concerns it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from policies.reranking.expressions import Condition
from policies.reranking.within import Op
from policies.surface import Rule, seconds
from policies.types import I64

Key = Literal["pin", "exclude", "available", "filter", "seen", "frequency", "cap", "quota", "spacing"]
KEYS: tuple[Key, ...] = ("pin", "exclude", "available", "filter", "seen", "frequency", "cap", "quota", "spacing")
SCREENS: tuple[Key, ...] = ("exclude", "available", "filter")  # take candidates out before anything is scored
REMEMBER: tuple[Key, ...] = ("seen", "frequency")  # ask what was shown before
NEVER_YIELD = frozenset({"pin", *SCREENS})


def keys_of(rule: Rule) -> list[Key]:
    """The keys that say what a rule is: one, of a rule that was checked."""
    return [key for key in KEYS if getattr(rule, key) is not None]


@dataclass(frozen=True)
class Named:
    """A rule that was checked, ready to be asked."""

    name: str
    key: Key
    rule: Rule

    @cached_property
    def condition(self) -> Condition:
        return Condition(self.rule.filter or "")

    @cached_property
    def window_seconds(self) -> float:
        window = self.rule.seen or self.rule.frequency
        return seconds(window.window) if window else 0.0

    @property
    def by(self) -> str:
        """The attribute it is by."""
        return self.rule.quota.by if self.rule.quota else self.rule.by or ""


def named(rules: Sequence[Rule]) -> list[Named]:
    """Rules in their order under names that differ."""
    found: list[Named] = []
    taken: set[str] = set()
    for rule in rules:
        key = keys_of(rule)[0]
        first = name = rule.name or _called(rule, key)
        count = 1
        while name in taken:
            count += 1
            name = f"{first}#{count}"
        taken.add(name)
        found.append(Named(name, key, rule))
    return found


def _called(rule: Rule, key: Key) -> str:
    match key:
        case "quota" if rule.quota:
            return f"quota:{rule.quota.by}={rule.quota.value}"
        case "frequency" if rule.frequency:
            return f"frequency:{rule.frequency.per}"
        case "pin":
            return f"pin:{rule.slot or 0}"
        case "cap" | "spacing":
            return f"{key}:{rule.by}"
    return key


OF_KEY: dict[Key, Op] = {"cap": "most", "spacing": "spacing", "quota": "least", "seen": "mask", "frequency": "mask"}


def limits_of(rule: Named, k: int) -> I64:
    """(k,) limits of the constraint that a rule is, which may yield; its operation is `OF_KEY[rule.key]`."""
    if rule.rule.quota:
        return _at_the_end(rule.rule.quota.min, k)
    return _level(rule.rule.cap or rule.rule.spacing or 0, k)


@lru_cache(4_096)
def _level(limit: int, k: int) -> I64:
    """The same limit in every slot; shared, so read only."""
    limits = np.full(k, limit, np.int64)
    limits.flags.writeable = False
    return limits


@lru_cache(4_096)
def _at_the_end(limit: int, k: int) -> I64:
    limits = np.zeros(k, np.int64)
    limits[-1:] = limit
    limits.flags.writeable = False
    return limits
