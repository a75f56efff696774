"""The fast decoder of record batches against kafka-python's own: the same records, and the same refusal of what is none."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaProducer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder

from streaming.adapters import kafka_batches, kafka_sockets
from streaming.adapters.kafka_batches import Batches, positions
from streaming.ports import Record
from tests import kafka_setup

PLACE = TopicPartition("events", 0)
NONE, GZIP, LZ4 = 0, 1, 3
Said = tuple[list[Record], dict[int, dict[str, bytes]]]

texts = st.text(max_size=4)
records = st.tuples(
    st.integers(0, 1 << 41),
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=300),
    st.lists(st.tuples(texts, st.none() | st.binary(max_size=5)), max_size=3, unique_by=lambda pair: pair[0]),
)
batches = st.lists(st.tuples(st.sampled_from([NONE, GZIP, LZ4]), st.lists(records, min_size=1, max_size=9)), max_size=4)


def encoded(made: list[tuple[int, list[Any]]]) -> bytes:
    """What a broker would send: batches one after the other, as producers made them, offsets counted on."""
    data, offset = b"", 0
    for codec, rows in made:
        builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
        for n, (at, key, value, headers) in enumerate(rows):
            builder.append(n, at, key, value, headers)
        batch = bytearray(builder.build())
        batch[:8] = offset.to_bytes(8, "big")
        data += batch
        offset += len(rows)
    return data


def theirs(data: bytes, start: int = 0) -> Said:
    found = list(_parts(Fetcher.PartitionRecords, data, start).record_iterator)
    headers = {one.offset: {name: value or b"" for name, value in one.headers} for one in found if one.headers}
    return [Record(one.offset, one.timestamp / 1000, one.key or b"", one.value or b"") for one in found], headers


def ours(data: bytes, start: int = 0) -> Said:
    headers: dict[int, dict[str, bytes]] = {}
    parts = _parts(type("Ours", (Batches,), {"headers": headers}), data, start)
    found = parts.take(1)  # whatever is asked for, it is everything
    assert not parts
    assert parts.next_fetch_offset == _parts_end(data, start)
    return found, headers


def _parts(kind: Any, data: bytes, start: int) -> Any:
    return kind(start, PLACE, MemoryRecords(data), isolation_level=IsolationLevel.READ_COMMITTED)


def _parts_end(data: bytes, start: int) -> int:
    parts = _parts(Fetcher.PartitionRecords, data, start)
    list(parts.record_iterator)
    return int(parts.next_fetch_offset)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(batches, st.integers(0, 12))
def test_the_same_records(made: list[tuple[int, list[Any]]], start: int) -> None:
    data = encoded(made)
    assert ours(data, start) == theirs(data, start)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(batches.filter(lambda made: len(made) > 1))
def test_what_lies_before_a_broken_batch_is_given_first(made: list[tuple[int, list[Any]]]) -> None:
    sound, broken = encoded(made[:1]), bytearray(encoded(made))
    broken[len(sound) + 30] ^= 0x40
    parts = _parts(type("Ours", (Batches,), {"headers": {}}), bytes(broken), 0)
    assert parts.take(1) == theirs(sound)[0]
    assert parts.next_fetch_offset == len(made[0][1])
    with pytest.raises(CorruptRecordError, match="checksum"):
        parts.take(1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batches.filter(bool), st.integers(0, 10_000))
def test_a_batch_that_fails_its_checksum_is_refused(made: list[tuple[int, list[Any]]], where: int) -> None:
    data = bytearray(encoded(made[:1]))
    data[21 + where % (len(data) - 21)] ^= 0x40
    with pytest.raises(CorruptRecordError, match="checksum"):
        ours(bytes(data))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(records, min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(-3, 9),
)
def test_bytes_that_are_no_records_are_counted_short_and_never_read_beyond(
    rows: list[Any], changes: list[tuple[int, int]], more: int
) -> None:
    data = bytearray(encoded([(NONE, rows)])[61:])
    for where, byte in changes:
        data[where % len(data)] = byte
    found = positions(np.frombuffer(bytes(data), np.uint8), len(rows) + more)
    assert len(found) <= max(len(rows) + more, 0)
    if not changes and len(rows) + more > 0:
        assert (len(found) == len(rows) + more) == (more == 0)
    for _, _, key, key_end, value, value_end, headers, at in found.tolist():
        assert headers >= 0
        assert -1 <= key <= key_end <= value_end <= at <= len(data)
        assert value <= value_end


@pytest.mark.parametrize("length", [b"\xff" * 9 + b"\x01", b"\xfe" * 9 + b"\x01", b"\xff" * 12, b"\x80" * 3, b""])
def test_lengths_without_an_end_or_beyond_all_bounds_are_refused(length: bytes) -> None:
    assert len(positions(np.frombuffer(length, np.uint8), 1)) == 0
    assert len(positions(np.frombuffer(length + b"\x00" * 30, np.uint8), 2)) < 2


def test_the_log_decodes_this_way(tmp_path: Path) -> None:
    """Else everything would still work, and several times slower."""
    assert kafka_batches.POSSIBLE
    assert kafka_sockets.POSSIBLE
    with closing(kafka_setup.log(tmp_path, 1)) as log:
        log.append([(b"k", b"v")])
        assert log.read(0, 0, 1)[0].value == b"v"
        consumer = log._readers[0]._source._consumer
        assert issubclass(consumer._fetcher.PartitionRecords, Batches)
        connections = consumer._manager._conns.values()
        assert any(connection.transport._sock_recv.func is kafka_sockets._received for connection in connections)


def test_where_the_inner_names_are_others_the_library_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_batches, "POSSIBLE", False)
    with closing(kafka_setup.log(tmp_path, 1)) as log:
        log.append([(b"k", b"%d" % n) for n in range(300)])
        with closing(KafkaProducer(bootstrap_servers=kafka_setup.bootstrap())) as producer:
            producer.send(log.topic, b"", b"k", [("h", b"1")])
            producer.flush(30)
        until = time.monotonic() + 60
        found = log.read(0, 0, 1000)
        while len(found) < 301 and time.monotonic() < until:
            found += log.read(0, len(found), 1000)
        assert [record.value for record in found] == [*(b"%d" % n for n in range(300)), b""]
        assert log._readers[0].marked[300] == {"h": b"1"}
