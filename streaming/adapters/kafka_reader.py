"""Reading one partition in order, and knowing when there is no more.

A consumer waits at the cluster for what comes next, so whoever reads all the time at the end of a partition asks nobody:
what is new is there within milliseconds, and whether the cluster still answers is asked once a second. Whoever reads now
and then, or anywhere else, first asks where the partition begins and ends: so it misses nothing, an offset that retention
took is named, and nothing is ever reset (`semantics.md` 13).
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from kafka import KafkaConsumer, TopicPartition

from policies.errors import Corrupt, Unavailable
from streaming.adapters.kafka_address import KafkaAddress, client, named
from streaming.adapters.kafka_batches import install
from streaming.adapters.kafka_sockets import widen
from streaming.adapters.kafka_topic import KafkaTopic
from streaming.ports import Record

Headers = dict[str, bytes]
_ASK_SECONDS = 1.0  # between two questions whether an idle partition has more: that finds out a cluster that is away
_STALE_SECONDS = 0.1  # after as long without a look nothing is waiting at the cluster for what comes: ask
_IDLE_SECONDS = 0.02  # between two looks at an idle partition: a look costs kafka-python a fifth of a millisecond
_LONG_POLL_SECONDS = 0.25  # also how long a seek at the end of a partition waits for the consumer's last question
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.001, 0.05  # between two looks whether only markers are left
_AHEAD = 100_000  # records taken from a consumer at once: all that one answer holds
FETCH_BYTES = 4 << 20  # compressed, read ahead for a partition
GLANCE_BYTES = 64 << 10  # for a few records somewhere else: a batch at least
GLANCE_RECORDS = 256


class Source(Protocol):
    """A consumer of one partition, by whichever client. Raises Unavailable and Corrupt."""

    def seek(self, offset: int) -> None: ...

    def poll(self, seconds: float, limit: int, marked: dict[int, Headers]) -> list[Record]:
        """What has come, after waiting for it at most `seconds`; headers go to `marked`, by offset."""

    def position(self) -> int:
        """The next offset that is looked at, past the markers of transactions."""

    def close(self) -> None: ...


class PythonSource:
    """By kafka-python. Records of transactions that were aborted never happened; a missing key or value is empty."""

    def __init__(
        self, address: KafkaAddress, topic: str, partition: int, timeout_seconds: float, fetch_bytes: int = FETCH_BYTES
    ) -> None:
        self._address, self._place = address, TopicPartition(topic, partition)
        self._consumer: Any = client(
            KafkaConsumer,
            address,
            timeout_seconds,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=int(_LONG_POLL_SECONDS * 1000),
            max_partition_fetch_bytes=fetch_bytes,
            fetch_max_bytes=fetch_bytes,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        self._consumer.assign([self._place])
        self._headers: dict[int, Headers] = {}
        self._decoded = install(self._consumer, self._headers)
        widen(self._consumer)
        # of one answer of the cluster: while it is used, the consumer waits for the next
        self._ahead: list[Record] = []
        self._taken = 0  # of them

    def seek(self, offset: int) -> None:
        self._ahead, self._taken = [], 0
        self._headers.clear()
        self._consumer.seek(self._place, offset)

    def poll(self, seconds: float, limit: int, marked: dict[int, Headers]) -> list[Record]:
        left = len(self._ahead) - self._taken
        if left < limit:
            self._ahead = self._ahead[self._taken :] + self._fetched(0.0 if left else seconds)
            self._taken = 0
        found = self._ahead[self._taken : self._taken + limit]
        self._taken += len(found)
        for offset in [o for o in self._headers if o <= found[-1].offset] if found else ():
            marked[offset] = self._headers.pop(offset)
        return found

    def position(self) -> int:
        if self._taken < len(self._ahead):
            return self._ahead[self._taken].offset
        with named(self._address):
            return int(self._consumer.position(self._place))

    def _fetched(self, seconds: float) -> list[Record]:
        """All that an answer holds. The next one is asked for at once, which a poll that had to wait does not do."""
        with named(self._address):
            found = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=_AHEAD).get(self._place, [])
            if found:
                found += self._consumer.poll(timeout_ms=0, max_records=_AHEAD).get(self._place, [])
        if self._decoded:
            return list(found)
        self._headers |= {one.offset: {name: v or b"" for name, v in one.headers} for one in found if one.headers}
        return [Record(one.offset, one.timestamp / 1000, one.key or b"", one.value or b"") for one in found]

    def close(self) -> None:
        self._consumer.close(autocommit=False)


class Reader:
    """Reads one partition for any thread; `source` makes a consumer of (partition, bytes to read ahead).

    `marked` holds the headers of what the last read brought, by offset.
    """

    def __init__(
        self,
        topic: KafkaTopic,
        partition: int,
        source: Callable[[int, int], Source],
        clock: Callable[[], float],
        fetch_bytes: int = FETCH_BYTES,
    ) -> None:
        self._topic, self._partition, self._make, self._clock = topic, partition, source, clock
        self._fetch_bytes = fetch_bytes
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._next = -1  # the offset after the last one that was read; −1: the next read asks where it is
        self._first, self._end, self._newest = 0, -1, -1.0  # as far as is known; −1: not known
        self._asked = self._looked = float("-inf")
        self.marked: dict[int, Headers] = {}

    def elsewhere(self, offset: int) -> bool:
        """Whether a read at `offset` would give up the place where the last one stopped."""
        return self._next not in (-1, offset)

    def read(self, offset: int, limit: int) -> list[Record]:
        """Up to `limit` records from `offset`; none at the end. Raises Unavailable, Corrupt('offset_out_of_range')."""
        with self._lock:
            self.marked = {}
            if limit <= 0:
                return []
            source = self._seek(offset)
            now = self._clock()
            if offset >= self._end and now - self._looked < _IDLE_SECONDS and now - self._asked < _ASK_SECONDS:
                return []
            found, before, self._looked = self._poll(source, 0.0, limit), self._looked, now
            missed = now - before >= _STALE_SECONDS and len(found) < limit  # something may have come meanwhile
            if missed or (not found and now - self._asked >= _ASK_SECONDS):
                self._ask()
            self._fill(source, offset, found, limit)
            if found:
                self._next = found[-1].offset + 1
                if self._next >= self._end:
                    self._end, self._newest = self._next, found[-1].appended
            return found

    def end(self) -> tuple[int, float]:
        """(next offset, newest append time); asked unless this reader is looking all the time."""
        with self._lock:
            now = self._clock()
            missed = now - self._looked >= _STALE_SECONDS and self._next >= self._end
            if self._newest < 0 or now - self._asked >= _ASK_SECONDS or missed:
                self._ask()
            if self._newest < 0:
                self._newest = self._topic.newest(self._partition)
            return self._end, self._newest

    def saw(self, end: int, newest: float) -> None:
        """Something was acknowledged before `end`: the next read does not stop short of it."""
        with self._lock:
            if end > self._end >= 0:
                self._end, self._newest = end, newest

    def refresh(self) -> None:
        """Ask where the partition ends now, so that the next read stops nowhere before it."""
        with self._lock:
            self._ask()

    def forget(self) -> None:
        """The next read asks where the partition begins and ends."""
        with self._lock:
            self._next, self._end, self._newest = -1, -1, -1.0

    def close(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.close()
            self._source, self._next, self._end, self._newest = None, -1, -1, -1.0

    def _seek(self, offset: int) -> Source:
        if self._source is None:
            self._topic.facts()
            self._source = self._make(self._partition, self._fetch_bytes)
            self._next = -1
        if offset != self._next:
            if not self._first <= offset <= self._end or self._clock() - self._asked >= _ASK_SECONDS:
                self._first = self._topic.first(self._partition)
                self._ask()
            if not self._first <= offset <= self._end:
                held = f"partition {self._partition} has {self._first}..{self._end}, not {offset}"
                raise Corrupt("offset_out_of_range", held)
            self._source.seek(offset)
            self._next, self._looked = offset, float("-inf")
        return self._source

    def _ask(self) -> None:
        end = self._topic.end(self._partition)
        if end != self._end:
            self._end, self._newest = end, -1.0
        self._asked = self._clock()

    def _poll(self, source: Source, seconds: float, limit: int) -> list[Record]:
        try:
            return source.poll(seconds, limit, self.marked)
        except BaseException:
            self._next = -1  # what the consumer has thrown away must not be missed
            raise

    def _fill(self, source: Source, offset: int, found: list[Record], limit: int) -> None:
        """Go on until the limit, or the end as far as it is known. Raises Unavailable when nothing comes."""
        until, wait = self._clock() + self._topic.timeout_seconds, _FIRST_WAIT_SECONDS
        while len(found) < limit and (found[-1].offset + 1 if found else offset) < self._end:
            left = self._end - source.position()
            if left <= 0:
                return  # nothing but the markers of transactions is left
            more = self._poll(source, wait, min(limit - len(found), left))
            found += more
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            if not more and self._clock() >= until:
                self._next = -1
                raise Unavailable(f"{self._topic.address}: {self._topic.name} {self._partition} does not answer")
