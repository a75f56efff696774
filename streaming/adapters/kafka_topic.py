"""A topic as its cluster knows it: made with what we need, or checked for it; where it begins and ends.

A topic that is there already keeps its settings. One that would break a promise is refused, by name, with the command
that mends it; nothing is altered behind an operator's back. Batches are stored as lz4 whatever a producer sends, so that
one foreign batch in a codec that is not installed here cannot block a partition for ever.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kafka import IsolationLevel, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec

from policies.errors import Rejected, Unavailable
from streaming.adapters.kafka_address import KafkaAddress, client, named

_AGAIN_SECONDS = (
    30.0  # between two looks at a topic in use: an operator may add partitions, which nobody here would read
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a topic. `retention_seconds` is infinite where nothing is deleted by age."""

    cluster: str
    topic_id: str
    partitions: int
    retention_seconds: float


class KafkaTopic:
    """One topic of one cluster; the connection is made by the first call that needs it, and shared by threads.

    partitions  asked for when it is made, and demanded of one that exists
    made_with   settings of a topic that is made here
    demanded    setting → the values that will do
    """

    def __init__(
        self,
        address: KafkaAddress,
        name: str,
        *,
        partitions: int,
        made_with: Mapping[str, str],
        demanded: Mapping[str, tuple[str, ...]],
        timeout_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.address, self.name, self.partitions, self.timeout_seconds = address, name, partitions, timeout_seconds
        self._made_with, self._demanded = dict(made_with), dict(demanded)
        self._clock, self._looked = clock, 0.0
        self._lock = threading.Lock()
        self._admin: Any = None
        self._facts: Facts | None = None

    def facts(self) -> Facts:
        """Raises Unavailable, and Rejected naming the topic and what to change: also of one that changed meanwhile."""
        with self._lock:
            if self._facts is None or self._clock() - self._looked > _AGAIN_SECONDS:
                if self._admin is None:
                    self._admin = client(KafkaAdminClient, self.address, self.timeout_seconds)
                with named(self.address):
                    found = self._look()
                if self._facts is not None and self._facts.topic_id != found.topic_id:
                    message = f"the topic {self.name} was deleted and made again: it is another log"
                    raise Rejected(message, at=str(self.address), code="another_log")
                self._facts, self._looked = found, self._clock()
            return self._facts

    def first(self, partition: int) -> int:
        """The oldest offset that is still there."""
        return int(self._offset(partition, OffsetSpec.EARLIEST).offset)

    def end(self, partition: int) -> int:
        """The next offset to be written; before it, nothing is undecided (the last stable offset)."""
        return int(self._offset(partition, OffsetSpec.LATEST).offset)

    def newest(self, partition: int) -> float:
        """The newest append time, epoch seconds; 0.0 of a partition that holds nothing."""
        return max(int(self._offset(partition, OffsetSpec.MAX_TIMESTAMP).timestamp), 0) / 1000

    def trim(self, partition: int, before: int) -> None:
        """Retention by hand: records below an offset are gone."""
        before = min(max(before, self.first(partition)), self.end(partition))
        with named(self.address):
            self._admin.delete_records({TopicPartition(self.name, partition): before}, self._milliseconds)

    def close(self) -> None:
        with self._lock:
            if self._admin is not None:
                self._admin.close()
            self._admin = self._facts = None

    @property
    def _milliseconds(self) -> int:
        return int(self.timeout_seconds * 1000)

    def _offset(self, partition: int, spec: Any) -> Any:
        self.facts()
        place = TopicPartition(self.name, partition)
        with named(self.address):
            level = IsolationLevel.READ_COMMITTED
            return self._admin.list_partition_offsets({place: spec}, level, self._milliseconds)[place]

    def _look(self) -> Facts:
        (found,) = self._admin.describe_topics([self.name])
        if found["error_code"] == errors.UnknownTopicOrPartitionError.errno and self._facts is None:
            self._make()
            (found,) = self._admin.describe_topics([self.name])
        if found["error_code"]:
            raise errors.for_code(found["error_code"])(self.name)
        if len(found["partitions"]) != self.partitions:
            message = (
                f"the topic {self.name} has {len(found['partitions'])} partitions, not {self.partitions}: set"
                f" SLATEWISE_PARTITIONS={len(found['partitions'])}, or move to a new topic (a new log generation)"
            )
            raise Rejected(message, at=str(self.address), code="partitions")
        settings = self._settings()
        for setting, allowed in self._demanded.items():
            if settings.get(setting) not in allowed:
                raise Rejected(self._remedy(setting, str(settings.get(setting)), allowed[0]), at=str(self.address))
        retention = float(settings.get("retention.ms") or -1)
        keeps = "delete" not in settings.get("cleanup.policy", "delete") or retention < 0
        return Facts(
            cluster=str(self._admin.describe_cluster()["cluster_id"]),
            topic_id=str(found["topic_id"]),
            partitions=len(found["partitions"]),
            retention_seconds=float("inf") if keeps else retention / 1000,
        )

    def _make(self) -> None:
        asked = {"num_partitions": self.partitions, "configs": self._made_with}
        with suppress(errors.TopicAlreadyExistsError):  # another process of ours came first
            self._admin.create_topics({self.name: asked}, self._milliseconds)
        self._admin.wait_for_topics([self.name], self._milliseconds)

    def _settings(self) -> dict[str, str]:
        resource = ConfigResource(ConfigResourceType.TOPIC, self.name)
        found = self._admin.describe_configs([resource], config_filter="all")
        try:
            return {name: str(entry["value"]) for name, entry in found["topic"][self.name].items()}
        except KeyError:
            raise Unavailable(f"{self.address}: no settings of the topic {self.name}") from None

    def _remedy(self, setting: str, found: str, wanted: str) -> str:
        change = f"--alter --entity-type topics --entity-name {self.name} --add-config {setting}={wanted}"
        return f"the topic {self.name} has {setting}={found}, it must be {wanted}: kafka-configs {change}"
