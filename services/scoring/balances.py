"""What groups of items are owed, as one worker knows it: shards count looks, a thread reads them every sync.

Every worker runs the same law over the same counters (`policies.reranking.exposure`); they differ by the moment they read, and
after a start until the window has passed. So many groups are kept; one that nobody has asked for in `GRACE_SYNCS` gives way to one
that is new. What was delivered before a worker's first reading is not owed to anybody. A
store that is away leaves the last boosts in force for a while; then nothing is boosted, and decisions say so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from policies.reranking.exposure import EACH, Law, Owed, boosts, regrouped, stepped
from policies.surface import Exposure, seconds
from policies.types import F64, I64
from services.scoring.breathing import paged
from streaming.derived import counter_name
from streaming.exposed import READ
from streaming.ports import Counters

MOST_ASKED = 1_024  # sets of groups whose places are remembered
Balance = tuple[F64, F64]  # boosts in interquartile ranges and targets, (G,) each
Placed = tuple[I64, F64 | None]  # places (G,), and targets where worth has no part in them
MOST_GROUPS = 256  # of a surface: labels of a metric, and three counters each; more are not boosted
MOST_ITEMS = 2_048  # of a surface where every item is a group: their counters alone, read in bulk
GRACE_SYNCS = 600


class _Read(NamedTuple):
    """Groups → places in arrays (G + 1,), whose last is of all others; replaced whole by the thread that reads, and with it
    what is remembered of sets of groups."""

    places: Mapping[str, int]
    boosts: F64
    worth: F64
    placed: dict[tuple[str, ...], Placed]


@dataclass(slots=True)
class _Kept:
    """Of one surface: when each group was last asked for, in syncs, and counters as of the last reading."""

    exposure: Exposure
    asked: dict[str, int] = field(default_factory=dict)
    syncs: int = 0
    known: _Read = field(default_factory=lambda: _Read({}, np.zeros(1), np.zeros(1), {}))
    read: F64 = field(default_factory=lambda: np.zeros((0, len(READ))))
    state: Owed = field(default_factory=lambda: Owed(np.zeros(0)))
    read_at: float = float("-inf")

    @property
    def law(self) -> Law:
        return Law(self.exposure.gain, self.exposure.most, seconds(self.exposure.window))

    def groups(self) -> list[str]:
        """Those to read now: known ones first, in their order, then new ones, as far as there is room."""
        most = MOST_ITEMS if self.exposure.by == EACH else MOST_GROUPS
        asked, before = dict(self.asked), self.known.places
        new = [group for group in asked if group not in before]
        stay = list(before)
        if len(stay) + len(new) > most:
            stay = [group for group in stay if asked.get(group, 0) >= self.syncs - GRACE_SYNCS]
        return [*stay, *new][:most]


class Balances:
    """Of one worker's surfaces. `refresh` in a thread, everything else on the event loop; values are replaced whole."""

    def __init__(self, tenant: str, stale_seconds: float) -> None:
        self._tenant, self._stale = tenant, stale_seconds
        self._kept: dict[str, _Kept] = {}

    def asked(
        self, surface: str, exposure: Exposure, clock: Callable[[], float]
    ) -> Callable[[Sequence[str]], Balance | None]:
        """What tells boosts and targets of groups; None while they are not known."""
        kept = self._kept.get(surface)
        if kept is None or (kept.exposure is not exposure and kept.exposure != exposure):
            kept = self._kept[surface] = _Kept(exposure)

        def balance(groups: Sequence[str]) -> Balance | None:
            kept.asked.update(dict.fromkeys(groups, kept.syncs))
            if clock() - kept.read_at >= self._stale:
                return None
            known = kept.known
            places, targets = _placed(exposure, known, groups)
            if targets is None:
                targets = shares_of(exposure, groups, known.worth[places])
            return known.boosts[places], targets

        return balance

    def refresh(self, counters: Counters, now: float) -> None:
        """Read all counters and step. `now`: seconds that never go back. Raises Unavailable, and nothing has changed."""
        for surface, kept in list(self._kept.items()):
            groups, by = kept.groups(), kept.exposure.by
            wanted = [
                counter_name(self._tenant, surface, "exposure", by, g, measure) for g in groups for measure in READ
            ]
            values = [value for page in paged(wanted) for value in counters.read(page)]
            read = np.array(values, np.float64).reshape(-1, len(READ))
            rows = np.array([kept.known.places.get(group, -1) for group in groups], np.int64)
            before = np.vstack([kept.read, np.zeros((1, len(READ)))])[rows]
            looks = read[:, :2]  # those of a store that forgot begin again at 0; a retraction takes back less
            unmoved = (rows < 0) | (looks < before[:, :2] / 2).any(axis=1)  # of new groups nothing is known
            moved = np.where(unmoved[:, None], 0.0, read - before)
            since = min(now - kept.read_at, kept.law.window)
            kept.state = stepped(kept.law, regrouped(kept.state, rows), moved[:, 1], moved[:, 0], since)
            places = {group: place for place, group in enumerate(groups)}
            kept.known = _Read(places, np.append(boosts(kept.law, kept.state), 0.0), np.append(read[:, 2], 0.0), {})
            for group in list(kept.asked):
                if group not in places:
                    kept.asked.pop(group, None)  # asked for again, it is new again
            kept.read, kept.read_at, kept.syncs = read, now, kept.syncs + 1

    def deficits(self) -> Iterator[tuple[str, str, float]]:
        """(surface, group, what it is owed as a share of the window's looks), but for items by themselves: too many to name."""
        for surface, kept in list(self._kept.items()):
            if kept.exposure.by != EACH:
                for group, share in zip(kept.known.places, kept.state.shares.tolist(), strict=True):
                    yield surface, group, share

    def disparities(self) -> Iterator[tuple[str, float]]:
        """(surface, ½ Σ of what groups are owed or owe, as a share of the window's looks)."""
        for surface, kept in list(self._kept.items()):
            yield surface, float(abs(kept.state.shares).sum() / 2)


def _placed(exposure: Exposure, known: _Read, groups: Sequence[str]) -> Placed:
    """Of groups, remembered until the next reading; of items by themselves every request has others."""
    key = () if exposure.by == EACH else tuple(groups)
    found = known.placed.get(key) if key else None
    if found is None:
        places = np.fromiter((known.places.get(group, -1) for group in groups), np.int64, len(groups))
        found = places, None if exposure.target == "merit" else shares_of(exposure, groups, None)
        if key and len(known.placed) < MOST_ASKED:
            known.placed[key] = found
    return found


def shares_of(exposure: Exposure, groups: Sequence[str], worth: F64 | None) -> F64:
    """(G,) targets of groups. Merit that is not known yet, or is nobody's, is equal."""
    if isinstance(exposure.target, dict):
        return np.array([exposure.target.get(group, 0.0) for group in groups])
    if exposure.target == "merit" and worth is not None and (worth > 0).any():
        return np.maximum(worth, 0.0)
    return np.ones(len(groups))
