"""Shards in the learning process itself: for tests, small installs, and machines without Ray."""

import time
from collections.abc import Sequence

from streaming.shard import Shard, Statistics, StepReport


class InlineShards:
    """One step of every shard, one after the other."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)

    def step(self) -> list[StepReport]:
        return [shard.step(time.time()) for shard in self._shards]

    def statistics(self) -> list[Statistics]:
        return [shard.statistics() for shard in self._shards]

    def close(self) -> None:
        """Every step was committed; nothing is left to do."""
