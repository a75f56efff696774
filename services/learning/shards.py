"""Where the shards of the log's partitions run, and how one is opened. `Engine` has two adapters: inline and Ray actors."""

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from policies.errors import Corrupt, Unavailable
from services.settings import Settings
from services.wiring import open_checkpoints, open_dead_letters, open_feed, open_log, open_uploads
from streaming.configuration import Configs
from streaming.derived import HISTORY
from streaming.ports import Checkpoints, State
from streaming.shard import Shard, Statistics, StepReport
from streaming.uploads import Uploads

log = logging.getLogger("slatewise.learning")
RAY_NICENESS = "5"  # of Ray's workers: whoever answers goes first, and learning is not starved, as by Ray's own 15 on a full machine


class Lost(Unavailable):
    """The engine has gone, and comes back no more by itself: what it had committed is there for another."""


class Engine(Protocol):
    """Steps the shards of all partitions. Nothing is handed to a shard: it pulls its records from the log."""

    def step(self) -> list[StepReport]:
        """What the shards have done since the last call; each report is of a committed step.

        Raises Unavailable (again later), Lost (not this engine), Rejected('fenced') (somebody else owns the partitions).
        """

    def statistics(self) -> list[Statistics]:
        """Committed statistics of every partition."""

    def close(self) -> None: ...


def open_shards(
    settings: Settings, state: State, configs: Configs, owner: int, partitions: Sequence[int]
) -> list[Shard]:
    """Shards of some partitions for an owner (an epoch, or a number after it). They touch nothing before their first step."""
    events, dead, store = open_log(settings), open_dead_letters(settings), open_uploads(settings)

    following = threading.Lock()  # shards step in threads of their own

    def refresh() -> bool:
        with following:
            return configs.follow(state)

    return [
        Shard(
            partition,
            events,
            _checkpoints(settings, partition),
            configs,
            dead,
            epoch=owner,
            refresh=refresh,
            uploads=Uploads(store, partition, owner),
            feed=open_feed(settings, events.partitions, partition, owner, lambda: kept_interactions(configs)),
        )
        for partition in partitions
    ]


def kept_interactions(configs: Configs) -> int:
    """Of a unit: twice what the surfaces read, for several things done to one item are one to them."""
    return max([HISTORY, *(2 * one.surface.history for one in configs.answering() if one.reads_history)])


def _checkpoints(settings: Settings, partition: int) -> Checkpoints:
    """The local checkpoint. One that is no database any more is set aside: the newest upload takes its place."""
    try:
        return open_checkpoints(settings, partition)
    except Corrupt as error:
        path = settings.shard_path(partition)
        log.error("checkpoint set aside", extra={"partition": partition, "error": str(error)})
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.replace(path.with_name(f"{path.name}.spoilt{suffix}"))
        return open_checkpoints(settings, partition)
