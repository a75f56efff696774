"""Appending to a topic and waiting until every in-sync replica has it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kafka import KafkaProducer

from policies.errors import Unavailable
from streaming.adapters.kafka_address import KafkaAddress, client, named
from streaming.partition import partition_of

_BATCH_BYTES = 512 << 10
_LINGER_MS = 5  # an append flushes, so nothing waits this long: it lets a batch fill while the append still adds to it
REQUEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Letter:
    """One record to be appended; `partition` −1: that of its key. A null value deletes its key where a topic is compacted."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int = -1


class Writer(Protocol):
    def append(self, letters: Sequence[Letter]) -> dict[int, tuple[int, float]]:
        """partition → (next offset, append time) after the last of them. Raises Unavailable: some may be there, or all."""

    def close(self) -> None: ...


class PythonWriter:
    """By kafka-python: idempotent, acks=all, lz4. A producer that has failed is thrown away with what it still holds."""

    def __init__(self, address: KafkaAddress, topic: str, partitions: int, timeout_seconds: float) -> None:
        self._address, self._topic, self._partitions, self._seconds = address, topic, partitions, timeout_seconds
        self._lock = threading.Lock()
        self._producer: Any = None

    def append(self, letters: Sequence[Letter]) -> dict[int, tuple[int, float]]:
        with self._lock:
            if self._producer is None:
                self._producer = client(KafkaProducer, self._address, self._seconds, **producing(self._seconds))
            try:
                with named(self._address):
                    return self._append(letters)
            except Unavailable:
                producer, self._producer = self._producer, None
                with named(self._address):
                    producer.close(timeout=0)
                raise

    def close(self) -> None:
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=self._seconds)
            self._producer = None

    def _append(self, letters: Sequence[Letter]) -> dict[int, tuple[int, float]]:
        send, topic, count = self._producer.send, self._topic, self._partitions
        futures = {}
        last = []
        for one in letters:
            partition = partition_of(one.key, count) if one.partition < 0 else one.partition
            future = send(topic, one.value, one.key, list(one.headers), partition)
            last.append(future)
            futures[partition] = future
        self._producer.flush(self._seconds)
        for future in last:
            future.get(0)
        ends = {partition: future.get(0) for partition, future in futures.items()}
        return {partition: (one.offset + 1, one.timestamp / 1000) for partition, one in ends.items()}


def producing(timeout_seconds: float) -> dict[str, Any]:
    """kafka-python's options of a producer that loses nothing and gives up within about `timeout_seconds`."""
    milliseconds = int(timeout_seconds * 1000)
    return {
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "lz4",
        "linger_ms": _LINGER_MS,
        "batch_size": _BATCH_BYTES,
        "max_request_size": REQUEST_BYTES,
        "delivery_timeout_ms": milliseconds + _LINGER_MS,
        "max_block_ms": milliseconds,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
