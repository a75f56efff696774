"""Shards in the learning process itself: for tests, small installs, machines without Ray, and until Ray is up."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from streaming.shard import Shard, Statistics, StepReport


class InlineShards:
    """One step of every shard at a time, each in a thread: they share nothing that changes, and mostly wait for the disk."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)
        self._threads = ThreadPoolExecutor(max(len(self._shards), 1), thread_name_prefix="shard")

    def step(self) -> list[StepReport]:
        now = time.time()
        return list(self._threads.map(lambda shard: shard.step(now), self._shards))

    def statistics(self) -> list[Statistics]:
        return [shard.statistics() for shard in self._shards]

    def close(self) -> None:
        """Every step was committed; nothing is left to do but to let the threads go."""
        self._threads.shutdown()
