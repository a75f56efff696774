"""Shards in the learning process itself: for tests, small installs, machines without Ray, and while Ray is not there."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from services.learning.group import Group
from streaming.shard import Shard, Statistics, StepReport


class InlineShards:
    """One step of every shard at a time, each in a thread: they share nothing that changes, and mostly wait for the disk."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._threads = ThreadPoolExecutor(max(len(shards), 1), thread_name_prefix="shard")
        self._group = Group(shards, self._threads.map)

    def step(self) -> list[StepReport]:
        return self._group.step()

    def statistics(self) -> list[Statistics]:
        return self._group.statistics()

    def close(self) -> None:
        """Every step was committed: what moved is uploaded, and the threads go."""
        self._group.close()
        self._threads.shutdown()
