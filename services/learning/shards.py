"""Where the shards of the log's partitions run, and how one is opened. `Engine` has two adapters: inline and Ray actors."""

import threading
from collections.abc import Sequence
from typing import Protocol

from services.settings import Settings
from services.wiring import open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Configs
from streaming.ports import State
from streaming.shard import Shard, Statistics, StepReport


class Engine(Protocol):
    """Steps the shards of all partitions. Nothing is handed to a shard: it pulls its records from the log."""

    def step(self) -> list[StepReport]:
        """What the shards have done since the last call; each report is of a committed step."""

    def statistics(self) -> list[Statistics]:
        """Committed statistics of every partition."""

    def close(self) -> None: ...


def open_shards(
    settings: Settings, state: State, configs: Configs, epoch: int, partitions: Sequence[int]
) -> list[Shard]:
    """Shards of some partitions, each as its checkpoint has it."""
    events, dead = open_log(settings), open_dead_letters(settings)

    following = threading.Lock()  # shards step in threads of their own

    def refresh() -> bool:
        with following:
            return configs.follow(state)

    return [
        Shard(partition, events, open_checkpoints(settings, partition), configs, dead, epoch=epoch, refresh=refresh)
        for partition in partitions
    ]
