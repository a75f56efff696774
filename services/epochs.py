"""Who writes: the epoch of the learning service (`semantics.md` 12), and of others that own partitions.

Whoever starts takes the next epoch; checkpoints and pointers refuse what comes from an older one.
"""

from policies.errors import Rejected
from streaming.ports import State

KIND, KEY = "epoch", "learning"


def take_epoch(state: State, key: str = KEY) -> int:
    """The next epoch, taken by compare-and-set: of two that start at once, each gets its own."""
    while True:
        seen = state.version()
        entry = state.get(KIND, key)
        epoch = int(entry.value) + 1 if entry and entry.value else 1
        try:
            state.put([(KIND, key, str(epoch).encode())], expect=seen)
        except Rejected:  # something else was written in between
            continue
        return epoch


def current_epoch(state: State) -> int:
    """The epoch of the learning service that writes now, or wrote last; 0 before the first."""
    entry = state.get(KIND, KEY)
    return int(entry.value) if entry and entry.value else 0
