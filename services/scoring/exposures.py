"""What was shown before, as rules ask for it: to one unit, or to everybody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policies.reranking.rules import Named
from policies.types import Mask
from streaming.evidence import ItemHashes

_item_hashes = ItemHashes()


@dataclass(frozen=True, slots=True)
class Shown:
    """Of one request at `now`, epoch seconds.

    unit   (at, item hash) of what the unit was shown, newest last; None: not known now
    items  rule → item → impressions within the rule's window; a rule that is absent is not known now
    """

    now: float
    unit: Sequence[tuple[float, int]] | None
    items: Mapping[str, Mapping[str, float]]

    def gone(self, rule: Named, ids: Sequence[str]) -> Mask | None:
        """(n,) which candidates a rule wants left out; None: that cannot be told now."""
        frequency = rule.rule.frequency
        if frequency is not None and frequency.per == "item":
            counts = self.items.get(rule.name)
            return None if counts is None else np.array([counts.get(item, 0.0) >= frequency.cap for item in ids], bool)
        if self.unit is None:
            return None
        most = 1 if frequency is None else frequency.cap
        since = self.now - rule.window_seconds
        times: dict[int, int] = {}
        for at, item in self.unit:
            if at > since:
                times[item] = times.get(item, 0) + 1
        often = {item for item, count in times.items() if count >= most}
        if not often:
            return np.zeros(len(ids), bool)
        return np.array([_item_hashes[item] in often for item in ids], bool)
