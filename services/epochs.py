"""Who writes: the epoch of the learning service (`semantics.md` 12), and of others that own partitions.

Whoever starts takes the next epoch; checkpoints, uploads and pointers refuse what comes from an older one. Within its epoch
a service counts the owners it puts in a partition's place, one after the other: `epoch`, `epoch + 1`, … So a worker
that was replaced and goes on is shut out like a service that was.
"""

from policies.errors import Rejected
from streaming.ports import State

KIND, KEY = "epoch", "learning"
OWNERS = 1 << 20  # that one service may put in place, one a second for twelve days


def take_epoch(state: State, key: str = KEY) -> int:
    """The next epoch, taken by compare-and-set: of two that start at once, each gets its own."""
    while True:
        seen = state.version()
        entry = state.get(KIND, key)
        taken = int(entry.value) if entry and entry.value else 0
        epoch = (taken // OWNERS + 1) * OWNERS
        try:
            state.put([(KIND, key, str(epoch).encode())], expect=seen)
        except Rejected:  # something else was written in between
            continue
        return epoch


def current_epoch(state: State) -> int:
    """The epoch of the learning service that writes now, or wrote last; 0 before the first."""
    entry = state.get(KIND, KEY)
    return int(entry.value) if entry and entry.value else 0


def stay(state: State, epoch: int) -> None:
    """Raises Rejected('fenced') once another learning service has taken over."""
    newest = current_epoch(state)
    if newest > epoch:
        raise Rejected(f"epoch {epoch} is over, {newest} has begun", code="fenced", status=409)
