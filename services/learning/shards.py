"""Where the shards of the log's partitions run, and how one is opened. `Engine` has two adapters: inline and Ray actors.

A partition has one owner by an epoch (`semantics.md` 12): whoever starts takes the next one, and stores and pointers
refuse what comes from an older one.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from policies.errors import Rejected
from services.settings import Settings
from services.wiring import open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Configs
from streaming.ports import State
from streaming.shard import Shard, Statistics, StepReport

log = logging.getLogger("slatewise.learning")
KIND, KEY = "epoch", "learning"


class Engine(Protocol):
    """Steps the shards of all partitions. Nothing is handed to a shard: it pulls its records from the log."""

    def step(self) -> list[StepReport]:
        """What the shards have done since the last call; each report is of a committed step."""

    def statistics(self) -> list[Statistics]:
        """Committed statistics of every partition."""

    def close(self) -> None: ...


def take_epoch(state: State) -> int:
    """The next epoch, taken by compare-and-set: of two that start at once, each gets its own."""
    while True:
        seen = state.version()
        entry = state.get(KIND, KEY)
        epoch = int(entry.value) + 1 if entry and entry.value else 1
        try:
            state.put([(KIND, KEY, str(epoch).encode())], expect=seen)
        except Rejected:  # something else was written in between
            continue
        return epoch


def current_epoch(state: State) -> int:
    """The epoch of the learning service that writes now, or wrote last; 0 before the first."""
    entry = state.get(KIND, KEY)
    return int(entry.value) if entry and entry.value else 0


def open_shards(settings: Settings, configs: Configs, epoch: int, partitions: Sequence[int]) -> list[Shard]:
    """Shards of some partitions, each as its checkpoint has it."""
    events, dead = open_log(settings), open_dead_letters(settings)
    return [
        Shard(partition, events, open_checkpoints(settings, partition), configs, dead, epoch=epoch)
        for partition in partitions
    ]
