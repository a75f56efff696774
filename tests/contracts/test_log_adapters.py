"""What every log promises, whatever it is stored in."""

import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Corrupt, Rejected, Unavailable
from streaming.adapters.memory import MemoryLog
from streaming.adapters.sqlite import SqliteLog
from streaming.partition import murmur2, partition_of, partitions_of
from streaming.ports import Log, Position, Record
from tests import kafka_setup
from tests.contracts.adapter_suite import Adapter, Check, Suite, run

PARTITIONS = 4
log: Suite[Any] = Suite(
    [
        Adapter("MemoryLog", lambda _: MemoryLog(PARTITIONS, time.time), durable=False),
        Adapter("SqliteLog", lambda folder: SqliteLog(folder / "log.sqlite", PARTITIONS)),
        Adapter("KafkaLog", lambda folder: kafka_setup.log(folder, PARTITIONS), examples=6),
        Adapter("ConfluentLog", lambda folder: kafka_setup.log(folder, PARTITIONS, confluent=True), examples=6),
    ]
)


def numbered(count: int, start: int = 0) -> list[tuple[bytes, bytes]]:
    """Records of many keys, told apart by their values."""
    return [(b"%016x" % (n * 7919 % 31), b"%d" % n) for n in range(start, start + count)]


def everything(found: Log) -> list[list[Record]]:
    return [found.read(p, 0, 1_000_000) for p in range(found.partitions)]


@log.check
def values_come_back(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    odd = [(b"\x00\xff", b""), (b"k", b"\x00" * 70_000), ("é".encode(), bytes(range(256)))]
    opened.append(odd)
    assert sorted((r.key, r.value) for records in everything(opened) for r in records) == sorted(odd)


@log.check
def a_log_says_which_it_is(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.identity
    assert opened.identity == opened.identity
    if adapter.durable:
        assert adapter.open(folder).identity == opened.identity
        assert adapter.open(folder / "another").identity != opened.identity


@log.check
def offsets_count_from_zero_without_holes(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    for start in range(0, 300, 60):
        opened.append(numbered(60, start))
    for p, records in enumerate(everything(opened)):
        assert [r.offset for r in records] == list(range(len(records)))
        assert opened.end(p)[0] == len(records) > 0


@log.check
def records_lie_in_the_partition_of_their_key_in_order(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    sent = numbered(200)
    opened.append(sent[:150])
    opened.append(sent[150:])
    for p, records in enumerate(everything(opened)):
        assert [(r.key, r.value) for r in records] == [x for x in sent if partition_of(x[0], PARTITIONS) == p]


@log.check
def a_read_starts_and_stops_where_asked(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.append([(b"one key", b"%d" % n) for n in range(20)])
    p = partition_of(b"one key", PARTITIONS)
    assert [r.offset for r in opened.read(p, 5, 3)] == [5, 6, 7]
    assert [r.offset for r in opened.read(p, 18, 100)] == [18, 19]
    assert opened.read(p, 20, 100) == []
    assert opened.read(p, 5, 0) == []


@log.check
def an_offset_beyond_the_end_is_named(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.append(numbered(50))
    with pytest.raises(Corrupt, match="offset_out_of_range"):
        opened.read(0, opened.end(0)[0] + 1, 10)


@log.check
def an_offset_that_retention_took_is_named(adapter: Adapter[Any], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.append(numbered(200))
    end = opened.end(0)[0]
    opened.trim(0, 3)
    with pytest.raises(Corrupt, match="offset_out_of_range"):
        opened.read(0, 2, 10)
    assert opened.read(0, 3, 1)[0].offset == 3
    opened.trim(0, end + 100)
    assert opened.end(0)[0] == end
    assert opened.read(0, end, 10) == []


@log.check
def append_times_are_now_and_never_go_back(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    before = time.time()
    for start in range(0, 200, 20):
        opened.append(numbered(20, start))
    after = time.time()
    for p, records in enumerate(everything(opened)):
        times = [r.appended for r in records]
        assert times == sorted(times)
        assert before - 0.001 <= times[0] <= times[-1] <= after + 0.001  # the log's clock counts milliseconds
        assert opened.end(p) == (len(records), times[-1])


@log.check
def an_empty_partition_ends_at_zero(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    assert [opened.end(p) for p in range(opened.partitions)] == [(0, 0.0)] * PARTITIONS
    assert everything(opened) == [[]] * PARTITIONS


@log.check
def positions_are_kept_by_spool(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.position("a") is None
    opened.append(numbered(3), Position("a", 1, 100))
    opened.append(numbered(3), Position("b", 0, 7))
    opened.append([], Position("a", 2, 50))
    assert opened.position("a") == Position("a", 2, 50)
    assert opened.position("b") == Position("b", 0, 7)


@log.check
def a_failed_append_leaves_nothing(adapter: Adapter[Log], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.append(numbered(5), Position("a", 1, 1))
    before = everything(opened)
    broken: Any = [*numbered(40), (b"key", object())]
    with pytest.raises((Unavailable, TypeError)):
        opened.append(broken, Position("a", 1, 2))
    assert everything(opened) == before
    assert opened.position("a") == Position("a", 1, 1)


@log.check_durable
def opened_again_it_is_all_there(adapter: Adapter[Any], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.append(numbered(100), Position("a", 3, 4))
    opened.trim(1, 2)
    before = [opened.read(p, 2, 1000) for p in range(PARTITIONS)]
    ends = [opened.end(p) for p in range(PARTITIONS)]
    opened.close()
    again = adapter.open(folder)
    assert [again.read(p, 2, 1000) for p in range(PARTITIONS)] == before
    assert [again.end(p) for p in range(PARTITIONS)] == ends
    assert again.position("a") == Position("a", 3, 4)
    with pytest.raises(Corrupt, match="offset_out_of_range"):
        again.read(1, 1, 1)


@log.check_durable
def two_openings_see_each_other(adapter: Adapter[Log], folder: Path) -> None:
    one, other = adapter.open(folder), adapter.open(folder)
    one.append(numbered(10))
    other.append(numbered(10, 10))
    one.append(numbered(10, 20))
    assert everything(one) == everything(other)
    for p, records in enumerate(everything(one)):
        assert [(r.key, r.value) for r in records] == [x for x in numbered(30) if partition_of(x[0], PARTITIONS) == p]


Append = tuple[list[tuple[bytes, bytes]], Position | None]
appends = st.tuples(
    st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=40)), max_size=30),
    st.none() | st.builds(Position, st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 1 << 40)),
)
steps = st.one_of(
    st.tuples(st.just("append"), appends),
    st.tuples(st.just("read"), st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 40), st.integers(0, 12))),
    st.tuples(st.just("trim"), st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 20))),
)


@log.check
def any_history_reads_as_lists_would(adapter: Adapter[Any], folder: Path) -> None:
    @settings(max_examples=adapter.examples, deadline=None, derandomize=True)
    @given(st.lists(steps, max_size=12))
    def holds(history: list[tuple[str, Any]]) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            opened = adapter.open(Path(place))
            lists: list[list[tuple[bytes, bytes]]] = [[] for _ in range(PARTITIONS)]
            first = [0] * PARTITIONS
            positions: dict[str, Position] = {}
            for step, values in history:
                if step == "append":
                    records, position = values
                    opened.append(records, position)
                    for record in records:
                        lists[partition_of(record[0], PARTITIONS)].append(record)
                    if position:
                        positions[position.spool] = position
                elif step == "trim":
                    p, before = values
                    opened.trim(p, before)
                    first[p] = max(first[p], min(before, len(lists[p])))
                else:
                    p, offset, limit = values
                    if limit and not first[p] <= offset <= len(lists[p]):
                        with pytest.raises(Corrupt, match="offset_out_of_range"):
                            opened.read(p, offset, limit)
                    else:
                        found = [(r.offset, r.key, r.value) for r in opened.read(p, offset, limit)]
                        wanted = [(n, *record) for n, record in enumerate(lists[p])][offset : offset + limit]
                        assert found == wanted
            assert [opened.end(p)[0] for p in range(PARTITIONS)] == [len(records) for records in lists]
            assert {s: opened.position(s) for s in "ab"} == {s: positions.get(s) for s in "ab"}
            if adapter.durable:
                opened.close()

    holds()


@log.parametrize()
def test_log(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


# --- what one adapter promises besides -------------------------------------------------------------------------------


def test_memory_log_holds_back_a_clock_that_goes_back() -> None:
    times = iter([5.0, 3.0, 7.0])
    opened = MemoryLog(1, lambda: next(times))
    for _ in range(3):
        opened.append([(b"k", b"v")])
    assert [r.appended for r in opened.read(0, 0, 9)] == [5.0, 5.0, 7.0]


def test_sqlite_log_holds_back_a_clock_that_goes_back(tmp_path: Path) -> None:
    opened = SqliteLog(tmp_path / "log.sqlite", 1)
    future = time.time() + 1000
    with opened._file.write() as db:  # as if the machine's clock had been ahead
        db.execute("UPDATE ends SET clock = ?", (future,))
    opened.append([(b"k", b"v")])
    assert opened.read(0, 0, 1)[0].appended == future
    assert opened.end(0) == (1, future)


def test_sqlite_log_refuses_another_number_of_partitions(tmp_path: Path) -> None:
    SqliteLog(tmp_path / "log.sqlite", 4).close()
    with pytest.raises(Rejected, match="4 partitions, not 8") as caught:
        SqliteLog(tmp_path / "log.sqlite", 8)
    assert caught.value.code == "partitions"


def test_what_is_no_database_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite").write_bytes(b"not a database, but long enough to look like one" * 50)
    with pytest.raises(Corrupt, match="database"):
        SqliteLog(tmp_path / "log.sqlite")


def test_a_path_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        SqliteLog(tmp_path / "file" / "log.sqlite")
    with pytest.raises(Unavailable):
        SqliteLog(tmp_path)


@pytest.mark.parametrize(
    ("key", "hashed"),  # from UtilsTest.testMurmur2 of Apache Kafka, as signed 32-bit integers
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed % 2**32


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=40), st.integers(1, 20), st.integers(1, 20))
def test_partitions_of_many_keys_are_those_of_each(keys: list[bytes], partitions: int, width: int) -> None:
    assert partitions_of(keys, partitions) == [partition_of(key, partitions) for key in keys]
    alike = [(key * 20)[:width] for key in keys]  # keys of one length take the other way
    assert partitions_of(alike, partitions) == [partition_of(key, partitions) for key in alike]
