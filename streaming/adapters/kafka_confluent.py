"""The log on Kafka by confluent-kafka (librdkafka): several times more records a second, the same contract.

Topics, offsets and the record `slatewise.state` stay with kafka-python; only the two ways that records take are here.
librdkafka hashes keys with CRC32 unless it is told to do as Java does: `partitioner=murmur2_random` (`semantics.md` 8).
"""

import threading
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from policies.errors import Corrupt, Unavailable
from streaming.adapters.kafka import KafkaLog
from streaming.adapters.kafka_address import KafkaAddress, knock
from streaming.adapters.kafka_reader import FETCH_BYTES, Headers, Source
from streaming.adapters.kafka_writer import REQUEST_BYTES, Letter, Writer
from streaming.ports import Record

_OUT_OF_RANGE = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET)


class ConfluentLog(KafkaLog):
    """`KafkaLog` with librdkafka reading and appending."""

    def _source(self, partition: int, fetch_bytes: int) -> Source:
        return ConfluentSource(self._address, self._name, partition, self._seconds, fetch_bytes)

    def _writer_of(self) -> Writer:
        return ConfluentWriter(self._address, self._name, self._seconds)


class ConfluentSource:
    """One consumer, one partition. It is assigned by the first `seek`, which may come again at any time."""

    def __init__(
        self, address: KafkaAddress, topic: str, partition: int, timeout_seconds: float, fetch_bytes: int = FETCH_BYTES
    ) -> None:
        knock(address)
        self._address, self._topic, self._partition = address, topic, partition
        self._position = 0
        self._consumer = Consumer(
            address.confluent_options()
            | {
                "group.id": "slatewise",  # demanded by the client; offsets are not stored there, nobody joins
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "allow.auto.create.topics": False,
                "enable.partition.eof": True,  # tells an end that is nothing but markers of transactions
                "check.crcs": True,
                "fetch.wait.max.ms": 250,
                "fetch.message.max.bytes": fetch_bytes,
                "queued.max.messages.kbytes": 8 * fetch_bytes >> 10,  # decompressed, read ahead
                "fetch.queue.backoff.ms": 2,  # when that much is there: by default it would stop for a second
                "socket.timeout.ms": int(timeout_seconds * 1000),
            }
        )

    def seek(self, offset: int) -> None:
        try:
            self._consumer.assign([TopicPartition(self._topic, self._partition, offset)])
        except KafkaException as error:
            raise Unavailable(f"{self._address}: {error}") from error
        self._position = offset

    def poll(self, seconds: float, limit: int, marked: dict[int, Headers]) -> list[Record]:
        found: list[Record] = []
        try:
            messages = self._consumer.consume(limit, seconds)
        except KafkaException as error:
            raise Unavailable(f"{self._address}: {error}") from error
        for one in messages:
            offset, refused = one.offset(), one.error()
            if refused is not None:
                if refused.code() != KafkaError._PARTITION_EOF:
                    self._refuse(refused)
                self._position = max(self._position, offset)
                continue
            headers = one.headers()
            if headers:
                marked[offset] = {name: _bytes(value) for name, value in headers}
            found.append(Record(offset, one.timestamp()[1] / 1000, one.key() or b"", one.value() or b""))
        if found:
            self._position = max(self._position, found[-1].offset + 1)
        return found

    def position(self) -> int:
        return self._position

    def close(self) -> None:
        self._consumer.close()

    def _refuse(self, error: KafkaError) -> None:
        if error.code() in _OUT_OF_RANGE:
            raise Corrupt("offset_out_of_range", str(error))
        if error.code() in (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG):
            raise Corrupt("log_record", str(error))
        raise Unavailable(f"{self._address}: {error}")


class ConfluentWriter:
    """Idempotent, acks=all, lz4; a producer that has failed is thrown away with what it still holds."""

    def __init__(self, address: KafkaAddress, topic: str, timeout_seconds: float) -> None:
        self._address, self._topic, self._seconds = address, topic, timeout_seconds
        self._lock = threading.Lock()
        self._producer: Producer | None = None

    def append(self, letters: Sequence[Letter]) -> dict[int, tuple[int, float]]:
        with self._lock:
            if self._producer is None:
                self._producer = self._made()
            producer = self._producer
            ends: dict[int, tuple[int, float]] = {}
            failed: list[str] = []

            def told(error: KafkaError | None, message: Any) -> None:
                if error is not None:
                    failed.append(str(error))
                elif message.offset() >= ends.get(message.partition(), (0, 0.0))[0]:
                    ends[message.partition()] = (message.offset() + 1, message.timestamp()[1] / 1000)

            try:
                for one in letters:
                    self._produce(producer, one, told)
                left = producer.flush(self._seconds)
            except (KafkaException, BufferError) as error:
                self._forget()
                raise Unavailable(f"{self._address}: {error}") from error
            if failed or left:
                self._forget()
                raise Unavailable(f"{self._address}: {failed[0] if failed else f'{left} records not acknowledged'}")
            return ends

    def close(self) -> None:
        with self._lock:
            if self._producer is not None:
                self._producer.flush(self._seconds)
            self._forget()

    def _produce(self, producer: Producer, one: Letter, told: Any) -> None:
        where = {} if one.partition < 0 else {"partition": one.partition}
        while True:
            try:
                producer.produce(
                    self._topic, one.value, one.key, on_delivery=told, headers=list(one.headers) or None, **where
                )
            except BufferError:  # the producer's queue is full: let some of it go
                if not producer.poll(self._seconds):
                    raise
            else:
                return

    def _made(self) -> Producer:
        knock(self._address)
        milliseconds = int(self._seconds * 1000)
        return Producer(
            self._address.confluent_options()
            | {
                "partitioner": "murmur2_random",
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": 5,
                "batch.size": 512 << 10,
                "message.max.bytes": REQUEST_BYTES,
                "delivery.timeout.ms": milliseconds,
                "request.timeout.ms": milliseconds,
                "socket.timeout.ms": milliseconds,
                "allow.auto.create.topics": False,
            }
        )

    def _forget(self) -> None:
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
        self._producer = None


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
