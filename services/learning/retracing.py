"""Trainers' checkpoints held against their recorded order: the state is a replay of it, to the last bit, or something is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from policies.types import Arrays
from services.wiring import in_memory_settlements
from streaming.configuration import Configs
from streaming.experiences import Experiences
from streaming.ports import Loaded, Log, Outbox
from streaming.retraining import differences, retrained
from streaming.trainer import Head


@dataclass(frozen=True)
class Trained:
    """What trainers had come to when `entries` of the order were applied."""

    entries: int
    statistics: dict[str, Arrays]


def trained(loaded: Loaded) -> Trained:
    """Of a checkpoint."""
    entries = msgspec.msgpack.decode(loaded.extra, type=Head).entry if loaded.extra else 0
    return Trained(entries, loaded.statistics)


def retraced(order: Outbox, outboxes: Sequence[Outbox], log: Log, configs: Configs, found: Trained) -> list[str]:
    """Names of arrays that a replay of the order up to there, from nothing, makes otherwise. `outboxes`: one a partition."""
    into = in_memory_settlements()
    sources = [Experiences(partition, outbox, log) for partition, outbox in enumerate(outboxes)]
    retrained(order, found.entries, into, sources, configs, log.identity)
    return differences(found.statistics, into.load().statistics)
