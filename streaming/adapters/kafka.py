"""The log on Kafka; `kafka_state` has the record of items and releases, `kafka_letters` what was set aside.

offsets     the topic's; holes are possible where foreign producers use transactions
clock       LogAppendTime, demanded of the topic; a leader whose clock goes back is evened out by the joiner, which
            takes the newest time it has seen
positions   of spools: files of this host, written after the acknowledgement, so that a crash between the two sends
            some records twice, which the joiner takes as once (`semantics.md` 9)
strangers   whoever produces straight to the topic: a record in another key's partition is produced again to the
            right one, once, with a header; one that carries the header already is a dead letter (`semantics.md` 8)
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from policies.errors import Corrupt, Unavailable
from streaming.adapters.kafka_address import KafkaAddress, client, named, parse_kafka
from streaming.adapters.kafka_letters import KafkaDeadLetters
from streaming.adapters.kafka_reader import GLANCE_BYTES, GLANCE_RECORDS, PythonSource, Reader, Source
from streaming.adapters.kafka_state import KafkaState
from streaming.adapters.kafka_strays import sort_out
from streaming.adapters.kafka_topic import KafkaTopic
from streaming.adapters.kafka_writer import Letter, PythonWriter, Writer
from streaming.durable import replace_file
from streaming.partition import partitions_of
from streaming.ports import DeadLetter, Position, Record

__all__ = ["KafkaAddress", "KafkaDeadLetters", "KafkaLog", "KafkaState", "parse_kafka"]

GROUP = "slatewise.learning"


class KafkaLog:
    """The log port, and what only a broker has: offsets for lag tools, headroom to retention, strangers' records.

    Nothing is connected before it is needed. A topic that is not there is made; one that breaks a promise is Rejected
    by the first call, naming what to change. `clock` is monotonic seconds; `timeout_seconds` bounds every call.
    """

    def __init__(
        self,
        address: KafkaAddress,
        *,
        topic: str = "slatewise.events",
        partitions: int = 4,
        retention_seconds: float = 7 * 86_400,
        positions: Path,
        clock: Callable[[], float],
        timeout_seconds: float = 10.0,
        group: str = GROUP,
    ) -> None:
        self._address, self._name, self._partitions = address, topic, partitions
        self._positions, self._seconds, self._group = Path(positions), timeout_seconds, group
        self._topic = KafkaTopic(
            address,
            topic,
            partitions=partitions,
            made_with={
                "cleanup.policy": "delete",
                "retention.ms": str(int(retention_seconds * 1000)),
                "message.timestamp.type": "LogAppendTime",
                "compression.type": "lz4",
            },
            demanded={
                "message.timestamp.type": ("LogAppendTime",),
                "cleanup.policy": ("delete",),
                "compression.type": ("lz4", "gzip", "uncompressed"),
            },
            timeout_seconds=timeout_seconds,
            clock=clock,
        )
        self._readers = [Reader(self._topic, partition, self._source, clock) for partition in range(partitions)]
        self._glances = [
            Reader(self._topic, partition, self._source, clock, GLANCE_BYTES) for partition in range(partitions)
        ]
        self._writer = self._writer_of()
        self._committing = threading.Lock()
        self._committer: Any = None

    @property
    def partitions(self) -> int:
        return self._partitions

    @property
    def topic(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        """Cluster, topic with its id (one that was deleted and made again is another log), number of partitions."""
        facts = self._topic.facts()
        return f"kafka:{facts.cluster}/{self._name}/{facts.topic_id}/{facts.partitions}"

    def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
        """Durable on every in-sync replica on return. Raises Unavailable; then some of it may be there, or all."""
        self._topic.facts()
        if not all(isinstance(key, bytes) and isinstance(value, bytes) for key, value in records):
            raise TypeError("keys and values are bytes")  # found before anything is sent
        where = partitions_of([key for key, _ in records], self._partitions)
        letters = [Letter(key, value, (), p) for (key, value), p in zip(records, where, strict=True)]
        self._send(letters)
        if position is not None:
            try:
                replace_file(self._position_path(position.spool), msgspec.json.encode(position))
            except OSError as error:
                raise Unavailable(f"{self._positions}: {error}") from error

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        """A few records elsewhere than where the last read stopped are read beside it, and do not disturb it."""
        reader = self._readers[partition]
        if limit <= GLANCE_RECORDS and reader.elsewhere(offset):
            reader = self._glances[partition]
        return reader.read(offset, limit)

    def first(self, partition: int) -> int:
        self._topic.facts()
        return self._topic.first(partition)

    def end(self, partition: int) -> tuple[int, float]:
        """(next offset, newest append time); up to a second old in what others have written."""
        self._topic.facts()
        return self._readers[partition].end()

    def position(self, spool: str) -> Position | None:
        path = self._position_path(spool)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Position)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise Corrupt("position", f"{path}: {error}") from error
        except OSError as error:
            raise Unavailable(f"{path}: {error}") from error

    def reroute(
        self, partition: int, records: Sequence[Record], *, again: bool = True
    ) -> tuple[list[Record], list[DeadLetter]]:
        """Of what `read` just gave: the records that belong to this partition, and letters for those that never will.

        The rest is produced to the partition of its key and acknowledged on return; when a step is repeated, it is sent
        twice, which the joiner takes as once. Without `again` it was sent before. Raises Unavailable.
        """
        marked = self._glances[partition].marked | self._readers[partition].marked
        found = sort_out(partition, self._partitions, records, marked)
        if again:
            self._send(found.moved)
        return found.ours, found.letters

    def commit_offsets(self, partition: int, offset: int) -> None:
        """Tell the cluster how far the shard has come, so that lag tools see it; nothing of ours reads it.

        Does not wait for the answer: the next one says the same and more. Raises Unavailable.
        """
        with self._committing, named(self._address):
            if self._committer is None:
                self._committer = client(
                    KafkaConsumer, self._address, self._seconds, group_id=self._group, enable_auto_commit=False
                )
            place = TopicPartition(self._name, partition)
            self._committer.commit_async({place: OffsetAndMetadata(offset, "", -1)})

    def lag(self, partition: int, offset: int) -> int:
        """Records from `offset` to the end."""
        return max(self.end(partition)[0] - offset, 0)

    def headroom(self, partition: int, offset: int, now: float) -> float:
        """1 − age of the record at `offset`, the oldest that is still needed, over the retention: 0 is where it is lost.

        `now` is epoch seconds. 1.0 when nothing is there that could be lost.
        """
        retention = self._topic.facts().retention_seconds
        if offset >= self._topic.end(partition):
            return 1.0
        if offset < self._topic.first(partition):
            return 0.0
        found = self._glances[partition].read(offset, 1)
        return 1.0 - max(now - found[0].appended, 0.0) / retention if found else 1.0

    def trim(self, partition: int, before: int) -> None:
        """Records below an offset are gone, and reading them is Corrupt('offset_out_of_range'); retention does the same."""
        self._topic.facts()
        self._topic.trim(partition, before)
        for reader in (self._readers[partition], self._glances[partition]):
            reader.forget()

    def close(self) -> None:
        for reader in (*self._readers, *self._glances):
            reader.close()
        self._writer.close()
        with self._committing:
            if self._committer is not None:
                self._committer.close(autocommit=False)
            self._committer = None
        self._topic.close()

    def _send(self, letters: Sequence[Letter]) -> None:
        if letters:
            for partition, (end, newest) in self._writer.append(letters).items():
                for reader in (self._readers[partition], self._glances[partition]):
                    reader.saw(end, newest)

    def _source(self, partition: int, fetch_bytes: int) -> Source:
        return PythonSource(self._address, self._name, partition, self._seconds, fetch_bytes)

    def _writer_of(self) -> Writer:
        return PythonWriter(self._address, self._name, self._partitions, self._seconds)

    def _position_path(self, spool: str) -> Path:
        return self._positions / f"{spool}.json"
