"""Records that retention took before they were read, and that a person has accepted as lost: an entry of the record, which shards
follow. Until then a partition waits, for going on by itself would drop records silently; afterwards it goes on where the log begins,
with all it had learned.
"""

import logging

import msgspec
from msgspec import Struct

from policies.errors import Corrupt
from streaming.ports import Log, State

log = logging.getLogger("slatewise.learning")
KIND = "loss"  # in the state record, under the partition's number


class Loss(Struct, frozen=True):
    """Records of a partition before `offset` are done with, read or not. `at`: when that was accepted, epoch seconds."""

    offset: int
    at: float


def decode(data: bytes) -> Loss:
    return msgspec.json.decode(data, type=Loss)


def accept(events: Log, state: State, partition: int, now: float) -> Loss:
    """Have a partition go on where its log begins now. Raises IndexError for a partition the log has not, Unavailable."""
    if not 0 <= partition < events.partitions:
        raise IndexError(f"partition {partition} of {events.partitions}")
    loss = Loss(events.first(partition), now)
    state.put([(KIND, str(partition), msgspec.json.encode(loss))])
    return loss


def goes_on_at(error: Corrupt, partition: int, offset: int, accepted: int) -> int:
    """Where reading goes on after `error` at an offset, when what lies between is accepted as lost, which is logged; else `error`
    again."""
    if error.reason != "offset_out_of_range" or accepted <= offset:
        raise error
    log.error("records lost", extra={"partition": partition, "from": offset, "to": accepted})
    return accepted
