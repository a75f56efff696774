"""Dead letters on a topic of one partition: the record as it was, where it came from and why in headers.

A letter is written again when a shard repeats a step, so readers keep the first of each (partition, offset). What a
reader remembers for that is one pair of numbers a letter, for as long as the topic keeps it: by default seven days and
one gigabyte. A value too large for any topic is cut, and its detail says so; it could not be appended again either.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from streaming.adapters.kafka_address import KafkaAddress
from streaming.adapters.kafka_reader import Headers, PythonSource, Reader
from streaming.adapters.kafka_topic import KafkaTopic
from streaming.adapters.kafka_writer import Letter, PythonWriter
from streaming.ports import DeadLetter, Record

_PAGE = 5_000
_MAX_BYTES, _RECORD_BYTES = 2 << 20, 3 << 20
_RETENTION_BYTES = 1 << 30


class KafkaDeadLetters:
    """The dead-letter port; a letter's number is its offset + 1. `clock` is monotonic seconds."""

    def __init__(
        self,
        address: KafkaAddress,
        topic: str = "slatewise.dead-letters",
        *,
        clock: Callable[[], float],
        retention_seconds: float = 7 * 86_400,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._topic = KafkaTopic(
            address,
            topic,
            partitions=1,
            made_with={
                "cleanup.policy": "delete",
                "retention.ms": str(int(retention_seconds * 1000)),
                "retention.bytes": str(_RETENTION_BYTES),
                "message.timestamp.type": "LogAppendTime",
                "compression.type": "lz4",
                "max.message.bytes": str(_RECORD_BYTES),
            },
            demanded={"cleanup.policy": ("delete",)},
            timeout_seconds=timeout_seconds,
            clock=clock,
        )

        def source(partition: int, fetch_bytes: int) -> PythonSource:
            return PythonSource(address, topic, partition, timeout_seconds, fetch_bytes)

        self._follower, self._reader = Reader(self._topic, 0, source, clock), Reader(self._topic, 0, source, clock)
        self._writer = PythonWriter(address, topic, 1, timeout_seconds)
        self._lock = threading.Lock()
        self._first: dict[tuple[int, int], int] = {}  # (partition, offset) → number of the first letter of it
        self._counts: Counter[str] = Counter()
        self._offset = -1  # next to be counted; −1: nothing has been

    def put(self, letters: Sequence[DeadLetter]) -> None:
        """Raises Unavailable; then some of them may be there."""
        if letters:
            self._topic.facts()
            for end, newest in self._writer.append([_packed(letter) for letter in letters]).values():
                self._follower.saw(end, newest)

    def read(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, DeadLetter]]:
        with self._lock:
            self._follow()
            found: list[tuple[int, DeadLetter]] = []
            offset = max(after, self._topic.first(0))
            while len(found) < limit and offset < self._offset:
                records = self._reader.read(offset, min(limit, _PAGE))
                if not records:
                    break
                for record in records:
                    letter = _unpacked(record, self._reader.marked.get(record.offset, {}))
                    if letter and self._first.get((letter.partition, letter.offset)) == record.offset + 1:
                        found.append((record.offset + 1, letter))
                offset = records[-1].offset + 1
            return found[:limit]

    def count(self) -> dict[str, int]:
        with self._lock:
            self._follow()
            return dict(self._counts)

    def close(self) -> None:
        self._writer.close()
        for reader in (self._follower, self._reader):
            reader.close()
        self._topic.close()

    def _follow(self) -> None:
        if self._offset < 0:
            self._offset = self._topic.first(0)
        while records := self._follower.read(self._offset, _PAGE):
            for record in records:
                letter = _unpacked(record, self._follower.marked.get(record.offset, {}))
                if letter and (letter.partition, letter.offset) not in self._first:
                    self._first[letter.partition, letter.offset] = record.offset + 1
                    self._counts[letter.reason] += 1
            self._offset = records[-1].offset + 1


def _packed(letter: DeadLetter) -> Letter:
    value, detail = letter.value, letter.detail
    if len(value) > _MAX_BYTES:
        value, detail = value[:_MAX_BYTES], f"{detail} (cut from {len(letter.value)} bytes)"
    headers = (
        ("partition", str(letter.partition).encode()),
        ("offset", str(letter.offset).encode()),
        ("reason", letter.reason.encode()),
        ("detail", detail.encode()),
    )
    return Letter(letter.key, value, headers, 0)


def _unpacked(record: Record, headers: Headers) -> DeadLetter | None:
    """None of a record that is no letter of ours."""
    partition, offset = headers.get("partition", b""), headers.get("offset", b"")
    if not (partition.isdigit() and offset.isdigit()):
        return None
    reason, detail = (headers.get(name, b"").decode(errors="replace") for name in ("reason", "detail"))
    return DeadLetter(int(partition), int(offset), reason, detail, record.key, record.value)
