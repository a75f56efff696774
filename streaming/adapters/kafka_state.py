"""The record `slatewise.state` on a compacted topic of one partition; every process holds it in memory and follows.

    record    key ["kind","key"], value the entry's bytes; headers `version`, `by` (a token of the put), and `deleted`
              where there is no value
    version   counted by writers, in a header: offsets have holes, because a transaction leaves a marker behind
    write     a transaction under one transactional id for all writers. Beginning as a writer ends the one before, so:
              read to the end, check what the caller expects, write, commit; who was ended meanwhile begins again.
              Only one of two writers at once commits on top of what both have read, which makes it compare-and-set.

A deletion is an entry and stays; a tombstone that an operator produces takes an entry out of the record for good.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

import msgspec
from kafka import KafkaProducer, errors

from policies.errors import Corrupt, Unavailable
from streaming.adapters.kafka_address import KafkaAddress, client, named
from streaming.adapters.kafka_reader import Headers, PythonSource, Reader
from streaming.adapters.kafka_topic import KafkaTopic
from streaming.adapters.kafka_writer import producing
from streaming.adapters.rules import refuse_stale
from streaming.ports import Record, Versioned

_PAGE = 5_000
_TURNS = 50  # tries against other writers before a put gives up
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.01, 0.3
ENDED = (
    errors.ProducerFencedError,
    errors.InvalidProducerEpochError,
    errors.ConcurrentTransactionsError,
    errors.InvalidTxnStateError,
    errors.InvalidProducerIdMappingError,
)
_name = msgspec.json.Decoder(tuple[str, str]).decode


class KafkaState:
    """The state port. Reads are of this process's memory, brought up to date by the call: what others commit is seen
    within milliseconds, what this process commits at once. `clock` is monotonic seconds."""

    def __init__(
        self,
        address: KafkaAddress,
        topic: str = "slatewise.state",
        *,
        clock: Callable[[], float],
        timeout_seconds: float = 10.0,
    ) -> None:
        self._address, self._name, self._clock, self._seconds = address, topic, clock, timeout_seconds
        self._topic = KafkaTopic(
            address,
            topic,
            partitions=1,
            made_with={"cleanup.policy": "compact", "compression.type": "lz4"},
            demanded={"cleanup.policy": ("compact",), "compression.type": ("lz4", "gzip", "uncompressed", "producer")},
            timeout_seconds=timeout_seconds,
            clock=clock,
        )

        def source(partition: int, fetch_bytes: int) -> PythonSource:
            return PythonSource(address, topic, partition, timeout_seconds, fetch_bytes)

        self._reader = Reader(self._topic, 0, source, clock)
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, str], Versioned] = {}  # in version order: a rewritten entry moves to the end
        self._version = 0
        self._offset = -1  # next to be read; −1: the record's beginning, wherever compaction has put it
        self._producer: Any = None
        self._token, self._arrived = b"", 0  # of the put at hand: in its records; the version they have reached

    def put(self, entries: Sequence[tuple[str, str, bytes | None]], expect: int | None = None) -> int:
        """Raises Rejected('conflict'), and Unavailable; then it may have been committed all the same."""
        with self._lock:
            self._follow(certain=True)
            if expect is not None:
                refuse_stale(expect, (self._entries.get((kind, key)) for kind, key, _ in entries))
            if not entries:
                return self._version
            self._token, self._arrived = os.urandom(8).hex().encode(), 0
            until = self._clock() + self._seconds
            for turn in range(_TURNS):
                try:
                    return self._attempt(entries, expect)
                except (*ENDED, Unavailable) as error:
                    self._drop()  # the next to begin ends the transaction, or finds it committed
                    if turn + 1 == _TURNS or self._clock() > until:
                        raise Unavailable(f"{self._address}: {self._name} was not written: {error}") from error
                pause = min(_FIRST_PAUSE_SECONDS * 2**turn, _LONGEST_PAUSE_SECONDS)
                Event().wait(pause * (1 + self._token[turn % len(self._token)] / 256))  # no two writers in step
            raise AssertionError("the last turn returns or raises")

    def read(self, after: int = 0, limit: int = 10_000) -> list[Versioned]:
        with self._lock:
            self._follow()
            newer = itertools.takewhile(lambda entry: entry.version > after, reversed(self._entries.values()))
            return list(newer)[::-1][:limit]

    def get(self, kind: str, key: str) -> Versioned | None:
        with self._lock:
            self._follow()
            return self._entries.get((kind, key))

    def version(self) -> int:
        with self._lock:
            self._follow()
            return self._version

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._drop()
            self._topic.close()

    def _attempt(self, entries: Sequence[tuple[str, str, bytes | None]], expect: int | None) -> int:
        """One transaction on top of what was read after this writer began. Raises one of ENDED when another began since.

        What an earlier turn has committed without being told so is found by its token, and not written again.
        """
        with _named_but_ended(self._address):
            if self._producer is None:
                self._producer = self._begin()
            self._follow(certain=True)
            if self._arrived:
                return self._arrived
            if expect is not None:
                refuse_stale(expect, (self._entries.get((kind, key)) for kind, key, _ in entries))
            self._producer.begin_transaction()
            sent = []
            for version, (kind, key, value) in enumerate(entries, self._version + 1):
                headers = [("version", str(version).encode()), ("by", self._token)]
                if value is None:
                    headers.append(("deleted", b""))
                name = msgspec.json.encode((kind, key))
                sent.append(self._producer.send(self._name, value or b"", name, headers, 0))
            self._producer.flush(self._seconds)
            for future in sent:
                future.get(0)
            self._producer.commit_transaction()
        return self._see(self._version + len(entries))

    def _see(self, version: int) -> int:
        """Follow up to a version that is committed: its transaction's marker may still be on its way."""
        until = self._clock() + self._seconds
        while True:
            self._follow(certain=True)
            if self._version >= version:
                return version
            if self._clock() > until:
                raise Unavailable(f"{self._address}: {self._name} does not show what was committed to it")
            Event().wait(_FIRST_PAUSE_SECONDS / 4)

    def _begin(self) -> Any:
        options = {**producing(self._seconds), "transactional_id": self._name}
        producer = client(KafkaProducer, self._address, self._seconds, **options)
        try:
            producer.init_transactions()
        except BaseException:
            producer.close(timeout=0)
            raise
        return producer

    def _drop(self) -> None:
        if self._producer is not None:
            self._producer.close(timeout=0)
        self._producer = None

    def _follow(self, *, certain: bool = False) -> None:
        """Read what came; `certain`: the cluster is asked where the record ends now."""
        if self._offset < 0:
            self._offset = self._topic.first(0)
        if certain:
            self._reader.refresh()
        while records := self._reader.read(self._offset, _PAGE):
            for record in records:
                self._take(record, self._reader.marked.get(record.offset, {}))
            self._offset = records[-1].offset + 1

    def _take(self, record: Record, headers: Headers) -> None:
        try:
            name = _name(record.key)
        except msgspec.DecodeError:
            return  # not ours: nobody but us writes here, and one stray record must not stop every process
        version = headers.get("version", b"")
        if not version.isdigit():
            if not record.value:
                self._entries.pop(name, None)  # an operator's tombstone
            return
        if int(version) <= self._version:
            raise Corrupt("state", f"{self._name}: version {int(version)} at offset {record.offset} is not a new one")
        self._version = int(version)
        if headers.get("by") == self._token:
            self._arrived = self._version
        self._entries.pop(name, None)
        value = None if "deleted" in headers else record.value
        self._entries[name] = Versioned(self._version, *name, value)


@contextmanager
def _named_but_ended(address: KafkaAddress) -> Iterator[None]:
    """`named`, but what says that another writer has begun comes through as it is."""
    try:
        with named(address):
            yield
    except Unavailable as error:
        if isinstance(error.__cause__, ENDED):
            raise error.__cause__ from None
        raise
