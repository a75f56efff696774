"""What groups of items are owed, as one worker knows it: shards count looks, a thread reads them every sync.

Every worker runs the same law over the same counters (`policies.reranking.exposure`); they differ by the moment they read, and
after a start until the window has passed. What was delivered before a worker's first reading is not owed to anybody. A
store that is away leaves the last boosts in force for a while; then nothing is boosted, and decisions say so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from policies.reranking.exposure import Law, Owed, boosts, stepped, widened
from policies.surface import Exposure, seconds
from policies.types import F64, I64
from streaming.derived import counter_name
from streaming.exposed import READ
from streaming.ports import Counters

MOST_ASKED = 1_024  # sets of groups whose places are remembered
Balance = tuple[F64, F64]  # boosts in interquartile ranges and targets, (G,) each
MOST_GROUPS = 256  # of a surface: labels of a metric, and three counters each; more are never boosted


@dataclass(slots=True)
class _Kept:
    """Of one surface: groups in the order they were met, and their counters as of the last reading.

    worth, boosts  by a group's place; zeros for those that are new, and for those that there is no place for, which is −1
    asked          groups of a request → their places, and their targets where these do not change
    """

    exposure: Exposure
    groups: dict[str, int] = field(default_factory=dict)
    read: F64 = field(default_factory=lambda: np.zeros((0, len(READ))))
    worth: F64 = field(default_factory=lambda: np.zeros(MOST_GROUPS + 1))
    state: Owed = field(default_factory=lambda: Owed(np.zeros(0)))
    read_at: float = float("-inf")
    boosts: F64 = field(default_factory=lambda: np.zeros(MOST_GROUPS + 1))
    asked: dict[tuple[str, ...], tuple[I64, F64 | None]] = field(default_factory=dict)

    @property
    def law(self) -> Law:
        return Law(self.exposure.gain, self.exposure.most, seconds(self.exposure.window))


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
            places, targets = _places(kept, tuple(groups))
            if clock() - kept.read_at >= self._stale:
                return None
            return kept.boosts[places], shares_of(exposure, groups, kept.worth[places]) if targets is None else targets

        return balance

    def refresh(self, counters: Counters, now: float) -> None:
        """Read all counters and step. `now`: seconds that never go back. Raises Unavailable, and nothing has changed."""
        for surface, kept in list(self._kept.items()):
            groups = list(kept.groups)
            by = kept.exposure.by
            wanted = [
                counter_name(self._tenant, surface, "exposure", by, g, measure) for g in groups for measure in READ
            ]
            read = np.array(counters.read(wanted) if wanted else [], np.float64).reshape(-1, len(READ))
            known = len(kept.read)
            moved = np.zeros_like(read)  # of groups that are new here, nothing is known to have moved
            moved[:known] = read[:known] - kept.read
            looks = read[:known, :2]  # those of a store that forgot begin again at 0; a retraction takes back less
            began_again = (looks < kept.read[:, :2] / 2).any(axis=1)
            moved[:known][began_again] = 0.0
            since = min(now - kept.read_at, kept.law.window)
            kept.state = stepped(kept.law, widened(kept.state, len(groups)), moved[:, 1], moved[:, 0], since)
            kept.worth = _padded(read[:, 2])
            kept.boosts = _padded(boosts(kept.law, kept.state))
            kept.read, kept.read_at = read, now

    def deficits(self) -> Iterator[tuple[str, str, float]]:
        """(surface, group, what it is owed as a share of the window's looks)."""
        for surface, kept in list(self._kept.items()):
            for group, share in zip(list(kept.groups), kept.state.shares.tolist(), strict=False):
                yield surface, group, share


def _places(kept: _Kept, groups: tuple[str, ...]) -> tuple[I64, F64 | None]:
    """(places (G,), their targets where worth has no part in them) of groups; those that are new get one, while there are any."""
    found = kept.asked.get(groups)
    if found is None:
        for group in groups:
            if group not in kept.groups and len(kept.groups) < MOST_GROUPS:
                kept.groups[group] = len(kept.groups)
        if len(kept.asked) >= MOST_ASKED:
            kept.asked.clear()
        places = np.array([kept.groups.get(group, -1) for group in groups], np.int64)
        found = places, None if kept.exposure.target == "merit" else shares_of(kept.exposure, groups, None)
        kept.asked[groups] = found
    return found


def _padded(values: F64) -> F64:
    return np.append(values, np.zeros(MOST_GROUPS + 1 - len(values)))


def shares_of(exposure: Exposure, groups: Sequence[str], worth: F64 | None) -> F64:
    """(G,) targets of groups. Merit that is not known yet, or is nobody's, is equal."""
    if isinstance(exposure.target, dict):
        return np.array([exposure.target.get(group, 0.0) for group in groups])
    if exposure.target == "merit" and worth is not None and (worth > 0).any():
        return np.maximum(worth, 0.0)
    return np.ones(len(groups))
