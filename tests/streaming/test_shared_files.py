"""Files that several real processes share, or that a killed process was writing: never half of anything."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Corrupt, Unavailable
from streaming.adapters.files import FileBundles
from streaming.adapters.sqlite import SqliteCheckpoints, SqliteLog, SqliteState
from streaming.durable import replace_file, sweep
from streaming.ports import Commit, Versioned
from streaming.snapshot import Snapshot
from tests.streaming.children import DEADLINE_SECONDS, KILLED, run, start

READY = """
print("ready", flush=True)
sys.stdin.readline()
"""


def race(script: str, *arguments: list[object]) -> list[str]:
    """What processes said that began `script` after READY at the same moment, one for each list of arguments."""
    before, _, after = script.partition("GO\n")
    children = [start(before + READY + after, *given) for given in arguments]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        said = [child.communicate(timeout=DEADLINE_SECONDS)[0] for child in children]
        assert [child.returncode for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()
    return said


def test_processes_append_to_one_log(tmp_path: Path) -> None:
    """They also make the file at the same moment."""
    script = """
from streaming.adapters.sqlite import SqliteLog
from streaming.ports import Position
GO
log = SqliteLog(sys.argv[2], 3)
name = sys.argv[3]
for start in range(0, 600, 20):
    log.append([(b"%d" % (n % 11), b"%s %d" % (name.encode(), n)) for n in range(start, start + 20)], Position(name, 0, start))
"""
    race(script, *[[tmp_path / "log.sqlite", name] for name in "abc"])
    log = SqliteLog(tmp_path / "log.sqlite", 3)
    found: dict[str, dict[int, list[int]]] = {name: {} for name in "abc"}
    for p in range(3):
        records = log.read(p, 0, 10_000)
        assert [r.offset for r in records] == list(range(len(records)))
        assert [r.appended for r in records] == sorted(r.appended for r in records)
        for record in records:
            name, n = record.value.decode().split()
            found[name].setdefault(p, []).append(int(n))
    for name, partitions in found.items():
        assert sorted(n for numbers in partitions.values() for n in numbers) == list(range(600))
        assert all(numbers == sorted(numbers) for numbers in partitions.values())
        assert log.position(name) is not None


def test_processes_claim_one_id_and_one_wins(tmp_path: Path) -> None:
    script = """
from policies.errors import Unavailable
from streaming.adapters.sqlite import SqliteClaims
GO
claims, me = SqliteClaims(sys.argv[2]), sys.argv[3].encode()
def winner(name):
    while True:
        try:
            return claims.claim("default", name, me, 0.0) or me
        except Unavailable:  # waited too long for a lock: a slow machine
            pass
print([winner(f"d{n}").decode() for n in range(200)])
"""
    said = race(script, *[[tmp_path / "claims.sqlite", name] for name in "abc"])
    assert said[0] == said[1] == said[2]  # each id has one answer, whoever asked
    assert said[0].count("'") == 400


def test_processes_take_an_epoch_and_none_is_given_twice(tmp_path: Path) -> None:
    script = """
from policies.errors import Rejected
from streaming.adapters.sqlite import SqliteState
GO
state, mine = SqliteState(sys.argv[2]), []
while len(mine) < 30:
    seen = state.get("epoch", "0")
    epoch = int(seen.value) + 1 if seen else 1
    try:
        state.put([("epoch", "0", b"%d" % epoch)], expect=seen.version if seen else 0)
        mine.append(epoch)
    except Rejected:
        pass
print(*mine)
"""
    said = race(script, *[[tmp_path / "state.sqlite"] for _ in "ab"])
    assert sorted(int(n) for line in said for n in line.split()) == list(range(1, 61))
    assert SqliteState(tmp_path / "state.sqlite").version() == 60


def test_processes_move_pointers_and_none_is_lost(tmp_path: Path) -> None:
    script = """
from streaming.adapters.files import FileBundles
GO
bundles = FileBundles(sys.argv[2])
for n in range(40):
    bundles.point(sys.argv[3], f"{n:08d}", n)
    assert bundles.pointers()[sys.argv[3]] == f"{n:08d}"
"""
    race(script, *[[tmp_path, name] for name in "abc"])
    assert FileBundles(tmp_path).pointers() == dict.fromkeys("abc", "00000039")


KILLS = {
    "half_written": "write = os.write\nos.write = lambda h, d: (write(h, d[:len(d) // 2]), die())",
    "before_rename": "os.rename = lambda *a: die()",
    "after_rename": "rename = os.rename\nos.rename = lambda *a: (rename(*a), die())",
}
moments = pytest.mark.parametrize("moment", KILLS)


@moments
def test_a_bundle_file_is_whole_or_absent(tmp_path: Path, moment: str) -> None:
    script = "from streaming.adapters.files import FileBundles\nbundles = FileBundles(sys.argv[2])\n"
    put = "\nbundles.put('arrays/a.npy', b'x' * 100_000)"
    assert run(script + KILLS[moment] + put, tmp_path) == KILLED
    bundles = FileBundles(tmp_path)
    if moment == "after_rename":
        assert bundles.get("arrays/a.npy") == b"x" * 100_000
    else:
        assert bundles.names("arrays") == []
        with pytest.raises(Unavailable):
            bundles.get("arrays/a.npy")
    bundles.put("arrays/a.npy", b"x" * 100_000)
    assert bundles.get("arrays/a.npy") == b"x" * 100_000
    assert os.listdir(tmp_path / "arrays") == ["a.npy"]  # and what the dead left is swept


@moments
def test_a_pointer_is_the_old_or_the_new(tmp_path: Path, moment: str) -> None:
    FileBundles(tmp_path).point("home/ts", "old", 1)
    script = "from streaming.adapters.files import FileBundles\nbundles = FileBundles(sys.argv[2])\n"
    assert run(script + KILLS[moment] + "\nbundles.point('home/ts', 'new', 2)", tmp_path) == KILLED
    bundles = FileBundles(tmp_path)
    assert bundles.pointers() == {"home/ts": "new" if moment == "after_rename" else "old"}
    bundles.point("home/ts", "next", 2)  # the dead hold no lock
    assert bundles.pointers() == {"home/ts": "next"}


@moments
def test_a_snapshot_is_the_old_or_the_new(tmp_path: Path, moment: str) -> None:
    old, new = [Versioned(1, "item", "a", b"1")], [Versioned(2, "item", "a", b"2")]
    snapshot = Snapshot(tmp_path / "state.snapshot")
    snapshot.save(1, old)
    script = "from streaming.snapshot import Snapshot\nfrom streaming.ports import Versioned\n"
    save = "\nSnapshot(sys.argv[2]).save(2, [Versioned(2, 'item', 'a', b'2')])"
    assert run(script + KILLS[moment] + save, tmp_path / "state.snapshot") == KILLED
    assert snapshot.load() == ((2, new) if moment == "after_rename" else (1, old))
    snapshot.save(3, new)
    assert os.listdir(tmp_path) == ["state.snapshot"]


def test_a_checkpoint_killed_before_its_commit_is_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "0.sqlite"
    before = SqliteCheckpoints(path)
    before.commit(Commit(0, 1, 1.0, 1, joins=[(0, b"one")]))
    script = """
from streaming.adapters.sqlite import SqliteCheckpoints
from streaming.ports import Commit
checkpoints = SqliteCheckpoints(sys.argv[2])
checkpoints._file._db.set_trace_callback(lambda sql: die() if sql == "COMMIT" else None)
checkpoints.commit(Commit(0, 2, 2.0, 1, joins=[(0, b"uno"), (1, b"two")]))
"""
    assert run(script, path) == KILLED
    again = SqliteCheckpoints(path)
    assert (again.load().offset, again.load().next_row, again.join(0), again.join(1)) == (1, 1, b"one", None)
    again.commit(Commit(0, 2, 2.0, 1, joins=[(1, b"two")]))
    assert again.load().offset == 2


# --- snapshots and whole files in one process ------------------------------------------------------------------------

ENTRIES = st.lists(
    st.builds(
        Versioned,
        st.integers(0, 2**40),
        st.sampled_from(["item", "surface"]),
        st.text(max_size=5),
        st.none() | st.binary(),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(ENTRIES, st.integers(0, 2**60), st.data())
def test_a_snapshot_comes_back_or_says_that_it_is_corrupt(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Versioned], version: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "state"
    snapshot = Snapshot(path)
    snapshot.save(version, entries)
    assert snapshot.load() == (version, entries)
    wrong = bytearray(path.read_bytes())
    wrong[data.draw(st.integers(0, len(wrong) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(wrong)
    with pytest.raises(Corrupt, match="snapshot"):
        snapshot.load()
    path.write_bytes(wrong[: data.draw(st.integers(0, len(wrong) - 1))])
    with pytest.raises(Corrupt, match="snapshot"):
        snapshot.load()


def test_no_snapshot_is_the_beginning(tmp_path: Path) -> None:
    assert Snapshot(tmp_path / "none").load() == (0, [])


@pytest.mark.parametrize("use", [lambda s: s.load(), lambda s: s.save(1, [])])
def test_a_snapshot_that_cannot_be_reached_is_unavailable(tmp_path: Path, use: Callable[[Snapshot], object]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        use(Snapshot(tmp_path / "file" / "state"))


def test_a_failed_replacement_leaves_the_old_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "no space")

    replace_file(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(OSError, match="no space"):
        replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_two_versions_never_look_the_same_to_stat(tmp_path: Path) -> None:
    """However fast they follow each other, and if the clock of the files goes back."""
    bundles = FileBundles(tmp_path)
    bundles.point("home/ts", "b0", 1)
    ahead = (tmp_path / "pointers.json").stat().st_mtime_ns + 3600 * 10**9
    os.utime(tmp_path / "pointers.json", ns=(ahead, ahead))
    seen = [ahead]
    for n in range(1, 5):
        bundles.point("home/ts", f"b{n}", 1)
        seen.append((tmp_path / "pointers.json").stat().st_mtime_ns)
    assert seen == sorted(set(seen))


def test_a_file_still_being_written_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles, other = FileBundles(tmp_path), FileBundles(tmp_path)
    rename = os.rename

    def between(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        other.put("arrays/b.npy", b"other")  # sweeps, while the first is not renamed yet
        rename(source, target)

    monkeypatch.setattr(os, "rename", between)
    bundles.put("arrays/a.npy", b"first")
    assert bundles.names("arrays") == ["arrays/a.npy", "arrays/b.npy"]


def test_a_file_swept_before_it_is_locked_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer's sweep may come between the opening of a file and its lock."""
    lock, taken = fcntl.flock, []

    def sweep_first(handle: int, operation: int) -> None:
        if not taken:
            taken.append(handle)
            sweep(tmp_path)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    replace_file(tmp_path / "a", b"new")
    assert taken
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]
