"""Candidates that a decision's record only names, encoded as the item record has them now.

Decisions made before a surface had a policy with a trainer say which candidates there were, and the features of those that were shown
alone. For training from files (`streaming.pretraining`) the others are looked up: what changed since is seen as it is now, what
is gone is left out. A trainer that follows the log does not look up: its state would no longer be a function of its order.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from policies.counted import counted
from policies.errors import Rejected
from policies.features import Encoder
from policies.types import F32
from streaming.events import floats
from streaming.experiences import Experience
from streaming.ports import State, Versioned

KIND = "item"  # in the state record
OTHERS = 64  # candidates besides the slate that a decision gets, as many as scoring logs for trainers
PAGE = 10_000


class _Item(msgspec.Struct):
    id: str
    features: dict[str, Any] = {}


_item = msgspec.json.Decoder(_Item).decode


def encoded_items(state: State, encoder: Encoder) -> dict[str, F32]:
    """id → (d,), of every item that the record has and the encoder takes. Raises Unavailable."""
    spec, found = encoder.spec.items, dict[str, F32]()
    known = spec.keys() - counted(spec).keys()  # nobody recorded what was counted of items that nobody saw
    for entry in _entries(state):
        if entry.kind != KIND:
            continue
        found.pop(entry.key, None)
        if entry.value is not None:
            features = {name: value for name, value in _item(entry.value).features.items() if name in known}
            try:
                found[entry.key] = encoder.item(features)
            except Rejected:  # of another surface, whose features have these names and other types
                continue
    return found


def looked_up(experience: Experience, items: Mapping[str, F32]) -> Experience:
    """With `support`: the slate as it was logged, and at most `OTHERS` of the other candidates, evenly by the hash of the
    decision's id; as it is where the record tells candidates, or `items` knows none of them."""
    decision = experience.decision
    shown, rows = floats(decision.shown), decision.rows
    if decision.matrix is not None or decision.support is not None or not rows or not shown.size:
        return experience
    there = set(rows)
    others = [row for row, name in enumerate(decision.candidates) if row not in there and name in items]
    if not others:
        return experience
    if len(others) > OTHERS:
        seed = int.from_bytes(
            blake2b(decision.decision_id.encode(), digest_size=8, person=b"support").digest(), "little"
        )
        others = np.random.default_rng(seed).permutation(others)[:OTHERS].tolist()
    vectors = dict(zip(rows, shown.reshape(len(rows), -1).astype("<f4"), strict=True))
    vectors |= {row: items[decision.candidates[row]] for row in others}
    support = sorted(vectors)
    told = msgspec.structs.replace(
        decision, support=np.stack([vectors[row] for row in support]).astype("<f4").tobytes(), support_rows=support
    )
    return Experience(experience.partition, experience.number, experience.row, told)


def _entries(state: State) -> Iterable[Versioned]:
    seen = 0
    while page := state.read(seen, PAGE):
        yield from page
        seen = page[-1].version
