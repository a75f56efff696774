"""The forwarder: every record of every spool in the log once, whoever is killed, whatever byte is wrong."""

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Unavailable
from streaming.adapters.memory import MemoryLog
from streaming.adapters.sqlite import SqliteLog
from streaming.forward import Forwarder
from streaming.frames import MAX_BYTES, frame, next_record, scan
from streaming.ports import Log, Position
from streaming.spool import LOCK, Spool, hold, segment_path, segments
from tests.streaming.children import DEADLINE_SECONDS, KILLED, run, running, said

FORWARD = """
from streaming.adapters.sqlite import SqliteLog
from streaming.forward import Forwarder
log = SqliteLog(sys.argv[3], 2)
forwarder = Forwarder(sys.argv[2], log)
"""
DRAIN = "while forwarder.step(): pass\n"


def values(log: Log) -> list[bytes]:
    return [r.value for p in range(log.partitions) for r in log.read(p, 0, 1_000_000)]


def drain(forwarder: Forwarder) -> int:
    total = 0
    while moved := forwarder.step():
        total += moved
    return total


def spool_of(folder: Path, data: bytes, segment: int = 0) -> Path:
    """A spool nobody holds, with one segment of these bytes."""
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    (spool / LOCK).touch()
    segment_path(spool, segment).write_bytes(data)
    return spool


def filled(folder: Path, count: int, **more: int) -> Spool:
    spool = Spool(folder, **more)  # type: ignore[arg-type]  # sizes only
    for n in range(count):
        spool.append(b"%d" % (n % 5), b"%d" % n)
    return spool


def test_records_reach_the_log_in_order(tmp_path: Path) -> None:
    log, spool = MemoryLog(), filled(tmp_path, 500, segment_bytes=400)
    forwarder = Forwarder(tmp_path, log)
    assert drain(forwarder) == 500
    assert values(log) == [b"%d" % n for n in range(500)]
    spool.append(b"k", b"live")
    assert drain(forwarder) == 1
    assert values(log)[-1] == b"live"
    assert forwarder.stats.records == 501


def test_wholly_forwarded_segments_go_and_the_growing_one_stays(tmp_path: Path) -> None:
    spool = filled(tmp_path, 500, segment_bytes=400)
    folder = tmp_path / spool.spool_id
    newest = max(segments(folder))
    forwarder = Forwarder(tmp_path, MemoryLog())
    drain(forwarder)
    assert list(segments(folder)) == [newest]
    spool.close()
    drain(forwarder)
    assert list(segments(folder)) == []
    assert (folder / LOCK).exists()  # remembers which numbers were used


def test_several_spools_and_ones_that_come_later(tmp_path: Path) -> None:
    forwarder = Forwarder(tmp_path / "not made yet", log := MemoryLog())
    assert forwarder.step() == 0
    one = Spool(tmp_path / "not made yet")
    one.append(b"k", b"one")
    assert forwarder.step() == 1
    other = Spool(tmp_path / "not made yet")
    other.append(b"k", b"other")
    one.append(b"k", b"two")
    assert forwarder.step() == 2
    assert Counter(values(log)) == Counter([b"one", b"two", b"other"])
    assert forwarder.stats.spools == 2


def test_a_log_that_is_away_loses_and_doubles_nothing(tmp_path: Path) -> None:
    class Away(MemoryLog):
        """Fails before and after it has written, in turn."""

        calls = 0

        def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
            self.calls += 1
            if self.calls % 3 == 1:
                raise Unavailable("away")
            super().append(records, position)
            if self.calls % 3 == 2:
                raise Unavailable("no answer")

    log = Away()
    filled(tmp_path, 300, segment_bytes=300).close()
    forwarder = Forwarder(tmp_path, log)
    failures = 0
    while any(segments(path) for path in tmp_path.iterdir() if path.is_dir()):
        try:
            forwarder.step()
        except Unavailable:
            failures += 1
    assert failures > 10
    assert values(log) == [b"%d" % n for n in range(300)]


def test_a_second_forwarder_waits_for_the_first(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    log = MemoryLog()
    first, second = Forwarder(tmp_path, log), Forwarder(tmp_path, log)
    assert first.step() == 10
    filled(tmp_path, 10)
    assert second.step() == 0
    assert second.stats.waiting
    first.close()
    assert drain(second) == 10
    assert not second.stats.waiting


def test_a_killed_forwarders_place_is_taken(tmp_path: Path) -> None:
    script = FORWARD + DRAIN + "print('holding', flush=True); sys.stdin.readline()"
    filled(tmp_path / "spool", 10)
    with running(script, tmp_path / "spool", tmp_path / "log.sqlite") as child:
        assert said(child) == "holding"
        log = SqliteLog(tmp_path / "log.sqlite", 2)
        second = Forwarder(tmp_path / "spool", log)
        filled(tmp_path / "spool", 7)
        assert second.step() == 0
        child.kill()
        child.wait(DEADLINE_SECONDS)
        assert drain(second) == 7
    assert len(values(log)) == 17


KILLS = {
    "before_commit": "log._file._db.set_trace_callback(lambda sql: die() if sql == 'COMMIT' and moved() else None)",
    "after_commit": "append = log.append\nlog.append = lambda *a: (append(*a), moved() and die())",
    "before_delete": "Path.unlink = lambda *a, **k: die()",
    "after_delete": "unlink = Path.unlink\nPath.unlink = lambda *a, **k: (unlink(*a, **k), die())",
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_between_insert_and_delete_forwards_nothing_twice(tmp_path: Path, moment: str) -> None:
    spool = filled(tmp_path / "spool", 400, segment_bytes=1000)
    spool.close()
    script = FORWARD + "moved = lambda: forwarder.stats.records >= 100\n" + KILLS[moment] + "\n" + DRAIN
    assert run(script, tmp_path / "spool", tmp_path / "log.sqlite") == KILLED
    log = SqliteLog(tmp_path / "log.sqlite", 2)
    left = len(values(log))
    assert 0 < left < 400
    assert drain(Forwarder(tmp_path / "spool", log)) == 400 - left
    assert sorted(map(int, values(log))) == list(range(400))
    assert list(segments(tmp_path / "spool" / spool.spool_id)) == []


def test_killed_writers_and_forwarders_in_any_order(tmp_path: Path) -> None:
    """Every record whose append returned is in the log once; of those killed in the middle, at most once."""
    writer = """
from streaming.spool import Spool
spool = Spool(sys.argv[2], segment_bytes=20_000)
for n in range(1_000_000):
    spool.append(b"%d" % (n % 7), b"%s %d" % (sys.argv[3].encode(), n))
    os.write(1, b"%d\\n" % n)  # answered
"""
    forward = FORWARD + "print('begun', flush=True)\nwhile True:\n    forwarder.step()\n"
    dice = random.Random(11)
    answered: dict[str, int] = {}
    spool, path = tmp_path / "spool", tmp_path / "log.sqlite"
    for life in range(4):
        with running(writer, spool, f"w{life}") as writing, running(forward, spool, path) as forwarding:
            assert said(writing) == "0"
            assert said(forwarding) == "begun"
            time.sleep(dice.uniform(0.02, 0.2))
            for child in dice.sample([writing, forwarding], 2):
                child.kill()
                time.sleep(dice.uniform(0.0, 0.05))
            assert writing.stdout is not None
            lines = writing.stdout.read().splitlines()
            answered[f"w{life}"] = int(lines[-2]) if len(lines) > 1 else 0  # the last line may be cut
    log = SqliteLog(path, 2)
    drain(Forwarder(spool, log))
    found: dict[str, list[int]] = {name: [] for name in answered}
    for value in values(log):
        name, n = value.decode().split()
        found[name].append(int(n))
    assert sum(answered.values()) > 100  # the lives were long enough to show something
    for name, last in answered.items():
        assert sorted(found[name]) == list(range(len(found[name])))  # none twice, none missing
        assert len(found[name]) > last


def test_a_torn_tail_is_cut_only_when_nobody_writes(tmp_path: Path) -> None:
    log, spool = MemoryLog(), filled(tmp_path, 3)
    folder = tmp_path / spool.spool_id
    (segment,) = segments(folder)
    whole = segments(folder)[segment]
    with segment_path(folder, segment).open("ab") as file:
        file.write(frame(b"k", b"half of this")[:15])
    forwarder = Forwarder(tmp_path, log)
    assert drain(forwarder) == 3
    assert segments(folder)[segment] == whole + 15  # its writer lives, and may be writing
    spool.close()
    assert drain(forwarder) == 0
    assert list(segments(folder)) == []
    assert forwarder.stats.torn == 1
    assert forwarder.stats.corrupt == 0
    assert values(log) == [b"0", b"1", b"2"]


def test_a_writer_killed_in_the_middle_of_an_append(tmp_path: Path) -> None:
    script = """
from streaming.spool import Spool
spool = Spool(sys.argv[2])
spool.append(b"key", b"answered")
write = os.write
os.write = lambda handle, data: (write(handle, data[:-3]), die())
spool.append(b"key", b"never answered")
"""
    assert run(script, tmp_path) == KILLED
    forwarder = Forwarder(tmp_path, log := MemoryLog())
    drain(forwarder)
    assert values(log) == [b"answered"]
    assert forwarder.stats.torn == 1


def test_an_orphan_that_is_adopted_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forwarder finds nobody there, and before it can hold the spool a new writer does and begins a segment."""
    filled(tmp_path, 3).close()
    forwarder = Forwarder(tmp_path, log := MemoryLog())
    adopted: list[Spool] = []

    def late(spool: Path) -> int | None:
        if not adopted:
            adopted.append(filled(tmp_path, 2))
            adopted[0].close()  # and is gone again, so the spool can be held
        return hold(spool)

    monkeypatch.setattr("streaming.forward.hold", late)
    drain(forwarder)
    drain(forwarder)
    assert values(log) == [b"0", b"1", b"2", b"0", b"1"]


RECORDS = st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=60)), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(RECORDS, st.data())
def test_one_wrong_byte_costs_at_most_its_own_record(records: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    records = [(key, b"%d:" % n + value) for n, (key, value) in enumerate(records)]
    frames = [frame(*record) for record in records]
    at = data.draw(st.integers(0, sum(map(len, frames)) - 1))
    wrong = bytearray(b"".join(frames))
    wrong[at] ^= data.draw(st.integers(1, 255))
    hit = next(n for n in range(len(frames)) if at < sum(map(len, frames[: n + 1])))
    with tempfile.TemporaryDirectory() as place:
        spool = spool_of(Path(place), bytes(wrong))
        forwarder = Forwarder(place, log := MemoryLog())
        drain(forwarder)
        assert [(r.key, r.value) for r in log.read(0, 0, 99)] == records[:hit] + records[hit + 1 :]
        assert list(segments(spool)) == []
        assert forwarder.stats.corrupt + forwarder.stats.torn == 1
        aside = [path.read_bytes() for path in spool.glob("*.corrupt")]
        start = sum(map(len, frames[:hit]))
        assert aside == [bytes(wrong[start : start + len(frames[hit])])] * forwarder.stats.corrupt
        if hit < len(frames) - 1:  # only a last record may look torn
            assert forwarder.stats.corrupt == 1


@settings(max_examples=80, deadline=None, derandomize=True)
@given(RECORDS, st.data())
def test_cut_at_any_byte_the_whole_records_arrive(records: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    frames = [frame(*record) for record in records]
    at = data.draw(st.integers(0, sum(map(len, frames))))
    whole = [record for n, record in enumerate(records) if sum(map(len, frames[: n + 1])) <= at]
    with tempfile.TemporaryDirectory() as place:
        spool_of(Path(place), b"".join(frames)[:at])
        forwarder = Forwarder(place, log := MemoryLog())
        drain(forwarder)
        assert [(r.key, r.value) for r in log.read(0, 0, 99)] == whole
        assert forwarder.stats.torn == (at not in {sum(map(len, frames[:n])) for n in range(len(frames) + 1)})
        assert forwarder.stats.corrupt == 0


def test_a_hole_of_zeros_is_set_aside(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, frame(b"k", b"1") + bytes(4096) + frame(b"k", b"2"))
    forwarder = Forwarder(tmp_path, log := MemoryLog())
    drain(forwarder)
    assert values(log) == [b"1", b"2"]
    assert [path.read_bytes() for path in spool.glob("*.corrupt")] == [bytes(4096)]
    assert forwarder.stats.corrupt_bytes == 4096


def test_a_wrong_region_longer_than_a_piece(tmp_path: Path) -> None:
    junk = random.Random(5).randbytes(6 << 20)
    spool = spool_of(tmp_path, frame(b"k", b"1") + junk + frame(b"k", b"2" * 500_000) + frame(b"k", b"3"))
    forwarder = Forwarder(tmp_path, log := MemoryLog(), piece_bytes=(2 << 20) + 100)
    drain(forwarder)
    assert values(log) == [b"1", b"2" * 500_000, b"3"]
    aside = sorted(spool.glob("*.corrupt"), key=lambda path: int(path.stem.split("-")[1]))
    assert b"".join(path.read_bytes() for path in aside) == junk


def test_wrong_bytes_in_a_spool_that_is_written_to(tmp_path: Path) -> None:
    log, spool = MemoryLog(), filled(tmp_path, 3)
    folder = tmp_path / spool.spool_id
    (segment,) = segments(folder)
    with segment_path(folder, segment).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"X")
    forwarder = Forwarder(tmp_path, log)
    drain(forwarder)
    assert values(log) == [b"0", b"1"]
    assert forwarder.stats.corrupt == 0  # what follows will tell where to go on
    spool.append(b"k", b"next")
    drain(forwarder)
    drain(forwarder)
    assert values(log) == [b"0", b"1", b"next"]
    assert forwarder.stats.corrupt == 1


def test_a_segment_shorter_than_its_position_is_done(tmp_path: Path) -> None:
    """After a power cut the log may be ahead of what the spool's disk has kept."""
    log = MemoryLog()
    spool = spool_of(tmp_path, frame(b"k", b"1"), segment=4)
    segment_path(spool, 3).write_bytes(frame(b"k", b"0"))
    log.append([(b"k", b"0"), (b"k", b"1"), (b"k", b"2")], Position("spool", 4, 1000))
    assert drain(Forwarder(tmp_path, log)) == 0
    assert list(segments(spool)) == []


def test_pieces_are_at_least_two_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two records"):
        Forwarder(tmp_path, MemoryLog(), piece_bytes=MAX_BYTES)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=10))
def test_frames_are_read_as_written(records: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(frame(*record) for record in records)
    assert scan(data) == (records, len(data), False)


def test_the_next_record_is_the_first_that_checks() -> None:
    good = frame(b"k", b"v")
    broken = bytearray(good)
    broken[-1] ^= 1
    assert next_record(bytes(broken) + good, 0) == len(good)
    assert next_record(bytes(broken) * 3, 0) is None
    assert next_record(b"", 0) is None
