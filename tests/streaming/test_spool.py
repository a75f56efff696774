"""The spool: what was appended is there, whatever happens to its writer; full is said, never swallowed."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from policies.errors import Rejected, Unavailable
from streaming import spool as spool_module
from streaming.adapters.memory import MemoryLog
from streaming.forward import Forwarder
from streaming.frames import MAX_BYTES, frame, scan
from streaming.spool import Spool, segment_path, segments
from tests.streaming.children import KILLED, run, running, said

HELD = """
from streaming.spool import Spool
spool = Spool(sys.argv[2])
spool.append(b"key", b"from a child")
print(spool.spool_id, flush=True)
sys.stdin.readline()
"""


def content(folder: Path) -> list[tuple[bytes, bytes]]:
    """Whole records of a spool, segment by segment."""
    return [record for n in segments(folder) for record in scan(segment_path(folder, n).read_bytes()).records]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=1000)
    sent = [(b"%d" % (n % 3), bytes([n]) * n) for n in range(200)]
    for key, value in sent:
        spool.append(key, value)
    folder = tmp_path / spool.spool_id
    assert content(folder) == sent
    sizes = segments(folder)
    assert len(sizes) > 15
    assert all(size <= 1000 for size in sizes.values())
    assert spool.bytes == sum(sizes.values())


def test_a_record_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=100)
    for size in (10, 5000, 10):
        spool.append(b"k", b"v" * size)
    assert [len(value) for _, value in content(tmp_path / spool.spool_id)] == [10, 5000, 10]


@pytest.mark.parametrize(("key", "value"), [(b"", b"v"), (b"k" * 70_000, b"v"), (b"k", b"v" * MAX_BYTES)])
def test_what_is_no_record_is_rejected_and_not_written(tmp_path: Path, key: bytes, value: bytes) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(Rejected) as caught:
        spool.append(key, value)
    assert (caught.value.code, caught.value.status) == ("too_large", 413)
    assert spool.bytes == 0


def test_levels_and_the_quota(tmp_path: Path) -> None:
    record = len(frame(b"k", b"v" * 90))
    spool = Spool(tmp_path, quota_bytes=100 * record, segment_bytes=10 * record)
    levels = []
    for _ in range(100):
        spool.append(b"k", b"v" * 90)
        levels.append(spool.level)
    assert levels == ["ok"] * 89 + ["feedback_full"] * 10 + ["full"]
    with pytest.raises(Unavailable, match="full"):
        spool.append(b"k", b"v" * 90)
    assert len(content(tmp_path / spool.spool_id)) == 100


def test_a_record_that_does_not_fit_makes_it_full(tmp_path: Path) -> None:
    spool = Spool(tmp_path, quota_bytes=1000)
    spool.append(b"k", b"v" * 800)
    assert spool.level == "ok"
    with pytest.raises(Unavailable):
        spool.append(b"k", b"v" * 800)
    assert spool.level == "full"


def test_room_made_by_the_forwarder_is_noticed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, quota_bytes=10_000, segment_bytes=1000)
    for _ in range(24):
        spool.append(b"k", b"v" * 400)
    with pytest.raises(Unavailable):
        spool.append(b"k", b"v" * 400)
    assert spool.level == "full"
    folder = tmp_path / spool.spool_id
    for n in list(segments(folder))[:3]:
        segment_path(folder, n).unlink()  # from another process, in real life
    spool.append(b"k", b"v" * 400)  # looks again before it refuses
    spool.sync()
    for n in list(segments(folder))[:-1]:
        segment_path(folder, n).unlink()
    spool.look()
    assert spool.bytes == sum(segments(folder).values())
    assert spool.level == "ok"


def test_what_a_dead_writer_left_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path, quota_bytes=1000)
    spool.append(b"k", b"v" * 940)
    spool.close()
    assert Spool(tmp_path, quota_bytes=1000).level == "feedback_full"


def test_a_short_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append(b"k", b"before")
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    with pytest.raises(Unavailable, match="only"):
        spool.append(b"k", b"refused")
    monkeypatch.undo()
    spool.append(b"k", b"after")
    (segment,) = segments(tmp_path / spool.spool_id)
    found = scan(segment_path(tmp_path / spool.spool_id, segment).read_bytes())
    assert found.records == [(b"k", b"before"), (b"k", b"after")]
    assert found.used == spool.bytes


def test_a_short_write_that_cannot_be_taken_back_ends_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "disk")

    spool = Spool(tmp_path)
    spool.append(b"k", b"before")
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(Unavailable):
        spool.append(b"k", b"refused")
    monkeypatch.undo()
    spool.append(b"k", b"after")
    assert content(tmp_path / spool.spool_id) == [(b"k", b"before"), (b"k", b"after")]


def test_a_full_disk_is_unavailable_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    spool = Spool(tmp_path)
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(Unavailable, match="no space"):
        spool.append(b"k", b"refused")
    monkeypatch.undo()
    spool.append(b"k", b"after")
    assert content(tmp_path / spool.spool_id) == [(b"k", b"after")]


def test_a_failed_flush_is_told_to_all_who_waited_and_not_to_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "disk")

    spool = Spool(tmp_path)
    spool.append(b"k", b"1")
    spool.sync()
    spool.append(b"k", b"2")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Unavailable, match="disk"):
        spool.sync()
    monkeypatch.undo()
    with pytest.raises(Unavailable, match="refused"):
        spool.sync()  # the same records: a second flush would succeed without having written them
    spool.append(b"k", b"3")
    spool.sync()
    assert content(tmp_path / spool.spool_id) == [(b"k", b"1"), (b"k", b"2"), (b"k", b"3")]


def test_threads_that_wait_share_one_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append(b"k", b"first")
    spool.sync()
    begun, go_on, flushes = threading.Event(), threading.Event(), []
    fsync = os.fsync

    def slow(handle: int) -> None:
        flushes.append(handle)
        begun.set()
        assert go_on.wait(60)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)

    def write() -> None:
        spool.append(b"k", b"more")
        waiting.release()
        spool.sync()

    waiting = threading.Semaphore(0)
    threads = [threading.Thread(target=write) for _ in range(8)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=60)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(flushes) == 2  # the one under way, and one for all seven others
    assert len(content(tmp_path / spool.spool_id)) == 9


def test_threads_append_whole_records(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=5000)

    def write(name: int) -> None:
        for n in range(300):
            spool.append(b"%d" % name, b"%d" % n)
            if n % 50 == 0:
                spool.sync()

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = content(tmp_path / spool.spool_id)
    for name in range(4):
        assert [value for key, value in found if key == b"%d" % name] == [b"%d" % n for n in range(300)]
    assert spool.bytes == sum(segments(tmp_path / spool.spool_id).values())


def test_without_sync_handles_do_not_pile_up(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        spool.append(b"k", b"v" * 80)
    assert len(os.listdir("/proc/self/fd")) <= before + spool_module._UNFLUSHED_SEGMENTS + 1
    spool.sync()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(content(tmp_path / spool.spool_id)) == 100


def test_a_closed_spool_is_adopted_and_segment_numbers_never_come_again(tmp_path: Path) -> None:
    used: set[int] = set()
    ids = set()
    for _ in range(3):
        spool = Spool(tmp_path, segment_bytes=100)
        for _ in range(5):
            spool.append(b"k", b"v" * 80)
        spool.close()
        ids.add(spool.spool_id)
        found = set(segments(tmp_path / spool.spool_id))
        assert len(found) == 5
        assert not used & found
        used |= found
        for n in found:
            segment_path(tmp_path / spool.spool_id, n).unlink()  # all forwarded: only the lock file remembers
    assert len(ids) == 1


def test_more_segments_than_were_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_RESERVED", 3)
    spool = Spool(tmp_path, segment_bytes=50)
    for n in range(20):
        spool.append(b"k", b"%040d" % n)
    folder = tmp_path / spool.spool_id
    spool.close()
    assert [int(value) for _, value in content(folder)] == list(range(20))
    newest = max(segments(folder))
    for n in segments(folder):
        segment_path(folder, n).unlink()
    Spool(tmp_path, segment_bytes=50)
    assert min(segments(folder)) > newest


def test_a_held_spool_is_not_adopted(tmp_path: Path) -> None:
    with running(HELD, tmp_path) as child:
        held = said(child)
        own = Spool(tmp_path)
        assert own.spool_id != held
        child.kill()
        child.wait(60)
        assert Spool(tmp_path).spool_id == held  # its holder is dead
        assert content(tmp_path / held) == [(b"key", b"from a child")]


def test_a_spool_asked_for_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_PAUSE_SECONDS", 0.0)
    spool = Spool(tmp_path, spool_id="worker-1")
    assert spool.spool_id == "worker-1"
    with pytest.raises(Unavailable, match="held by another"):
        Spool(tmp_path, spool_id="worker-1")
    spool.close()
    assert Spool(tmp_path, spool_id="worker-1").spool_id == "worker-1"
    with pytest.raises(ValueError, match="not a spool id"):
        Spool(tmp_path, spool_id="../elsewhere")


def test_a_killed_writers_records_are_all_there(tmp_path: Path) -> None:
    script = """
from streaming.spool import Spool
spool = Spool(sys.argv[2])
for n in range(100):
    spool.append(b"key", b"%d" % n)
write = os.write
os.write = lambda handle, data: (write(handle, data[:len(data) // 2]), die())
spool.append(b"key", b"never answered")
"""
    assert run(script, tmp_path) == KILLED
    (folder,) = (path for path in tmp_path.iterdir())
    assert [value for _, value in content(folder)] == [b"%d" % n for n in range(100)]
    (segment,) = segments(folder)
    data = segment_path(folder, segment).read_bytes()
    found = scan(data)
    assert not found.broken
    assert found.used < len(data)  # the torn tail
    Spool(tmp_path).append(b"key", b"next life")  # in a segment of its own
    assert [value for _, value in content(folder)][-1] == b"next life"


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        Spool(tmp_path / "file")


def test_a_spool_smaller_than_a_segment_has_room_again_once_forwarded(tmp_path: Path) -> None:
    """The segment that is being written is never deleted: a full spool must not consist of it alone."""
    spool, log = Spool(tmp_path, quota_bytes=10_000), MemoryLog()
    while spool.level != "full":
        with suppress(Unavailable):
            spool.append(b"key", bytes(50))
    forwarder = Forwarder(tmp_path, log)
    while forwarder.step():
        pass
    spool.look()
    spool.append(b"key", b"again")
    forwarder.close()
    spool.close()
