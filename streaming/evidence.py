"""Net changes of many decisions as the arrays a learner takes (`policies.types.Changes`)."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from policies.types import F64, Changes
from streaming.index import id_hash
from streaming.joined import Drawn, Terms

Taught = tuple[Drawn, bytes, bytes, bytes, bytes]  # decision, present and rewards before, present and rewards after
REMEMBERED = 1_000_000  # item hashes kept, some 150 MB at most


class ItemHashes(dict[str, int]):
    """Item id → uint64, computed once for an item, not once for every time it is shown."""

    def __missing__(self, item: str) -> int:
        if len(self) >= REMEMBERED:
            self.clear()
        hashed = self[item] = id_hash(item)
        return hashed


_item_hashes = ItemHashes()


def changes_of(terms: Terms, taught: Sequence[Taught]) -> Changes:
    """Arrays of a batch of decisions of one surface version, all slots of each, in the order given, as its learners take them."""
    decisions, present_before, rewards_before, present_after, rewards_after = zip(*taught, strict=True)
    slates = [drawn.slate for drawn in decisions]
    filled = list(map(len, slates))
    o, n, k = terms.objectives, sum(filled), np.array(filled, np.int64)
    contexts = np.frombuffer(b"".join([drawn.context for drawn in decisions]), "<f4")
    items = np.frombuffer(b"".join([drawn.shown for drawn in decisions]), "<f4")
    changes = Changes(
        context=np.repeat(contexts.reshape(len(decisions), terms.context_bytes // 4), k, axis=0),
        items=items.reshape(n, terms.item_bytes // 4),
        slots=np.fromiter(chain.from_iterable([drawn.slots for drawn in decisions]), np.int64, n),
        slates=np.repeat(np.arange(len(decisions)), k),
        times=np.repeat(np.array([drawn.at for drawn in decisions]), k),
        weights=np.repeat(np.array([drawn.weight for drawn in decisions]), k),
        present_before=_present(present_before, filled),
        present_after=_present(present_after, filled),
        rewards_before=_rewards(rewards_before, filled, o),
        rewards_after=_rewards(rewards_after, filled, o),
        item_hashes=np.fromiter(map(_item_hashes.__getitem__, chain.from_iterable(slates)), np.uint64, n),
        propensities=np.fromiter(chain.from_iterable([drawn.propensities for drawn in decisions]), np.float64, n),
    )
    return terms.taught(changes)


def _present(packed: Sequence[bytes], filled: Sequence[int]) -> F64:
    if not any(packed):
        return np.zeros(sum(filled))
    whole = b"".join([some or bytes(k) for some, k in zip(packed, filled, strict=True)])
    return np.frombuffer(whole, np.uint8).astype(np.float64)


def _rewards(packed: Sequence[bytes], filled: Sequence[int], o: int) -> F64:
    if not any(packed):
        return np.zeros((sum(filled), o))
    whole = b"".join([some or bytes(8 * k * o) for some, k in zip(packed, filled, strict=True)])
    return np.frombuffer(whole, np.float64).reshape(-1, o)
