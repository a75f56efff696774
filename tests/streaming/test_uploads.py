"""Uploaded checkpoints: only what changed is written, what nobody needs goes, what is spoilt is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policies.errors import Corrupt, Rejected, Unavailable
from policies.types import Arrays
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles
from streaming.ports import Bundles
from streaming.uploads import MOST_FILES, Checkpoint, Uploads

FOLDER = "3"
Open = Callable[[Path], Bundles]
STORES = pytest.mark.parametrize(
    "opened", [lambda _: MemoryBundles(), lambda folder: FileBundles(folder / "store")], ids=["memory", "files"]
)


def sums(value: float) -> Arrays:
    return {"S": np.full((2, 3), value), "items": np.array([7], np.uint64), "names": np.array(["größe"])}


def checkpoint(offset: int, statistics: dict[str, Arrays], versions: dict[str, int]) -> Checkpoint:
    return Checkpoint(
        log="a log",
        offset=offset,
        rebuild_from=offset // 2,
        clock=float(offset),
        longest=60.0,
        ghosts=np.array([2**63], np.uint64).tobytes(),
        examples={"t/home/a/1": 5},
        statistics=statistics,
        versions=versions,
    )


def newest(store: Bundles) -> Checkpoint:
    reader = Uploads(store, int(FOLDER), 0)
    manifest = reader.newest()
    assert manifest is not None
    return reader.read(manifest)


@STORES
def test_what_was_uploaded_comes_back(opened: Open, tmp_path: Path) -> None:
    store = opened(tmp_path)
    uploads = Uploads(store, 3, 1)
    assert uploads.newest() is None
    assert uploads.known() == {}
    uploads.put(checkpoint(8, {"t/home/a/1": sums(1.0), "t/home/b/1": sums(2.0)}, {"t/home/a/1": 4, "t/home/b/1": 9}))
    assert uploads.known() == {"t/home/a/1": 4, "t/home/b/1": 9}
    found = newest(store)
    assert (found.log, found.offset, found.rebuild_from, found.clock, found.longest) == ("a log", 8, 4, 8.0, 60.0)
    assert np.frombuffer(found.ghosts, np.uint64).tolist() == [2**63]
    assert found.examples == {"t/home/a/1": 5}
    for key, value in (("t/home/a/1", 1.0), ("t/home/b/1", 2.0)):
        assert found.statistics[key].keys() == sums(value).keys()
        for name, array in sums(value).items():
            assert found.statistics[key][name].dtype == array.dtype
            np.testing.assert_array_equal(found.statistics[key][name], array)


@STORES
def test_only_what_changed_is_written_and_what_nobody_needs_goes(opened: Open, tmp_path: Path) -> None:
    store = opened(tmp_path)
    uploads = Uploads(store, 3, 1)
    uploads.put(checkpoint(1, {"a/x": sums(1.0), "b/x": sums(2.0)}, {"a/x": 1, "b/x": 1}))
    for offset in range(2, 6):
        uploads.put(checkpoint(offset, {"b/x": sums(float(offset))}, {"a/x": 1, "b/x": offset}))
        found = newest(store)
        assert found.offset == offset
        assert (found.statistics["a/x"]["S"][0, 0], found.statistics["b/x"]["S"][0, 0]) == (1.0, offset)
    # of this upload and the one before: two manifests, the first sums of `a`, two of `b`
    assert len(store.names(FOLDER)) == 5


@STORES
def test_sums_are_gathered_before_they_lie_in_many_files(opened: Open, tmp_path: Path) -> None:
    store = opened(tmp_path)
    uploads = Uploads(store, 3, 1)
    versions: dict[str, int] = {}
    for n in range(3 * MOST_FILES):
        versions[f"key-{n}/x"] = n
        changed = [key for key, version in versions.items() if uploads.known().get(key) != version]
        uploads.put(checkpoint(n, {key: sums(float(versions[key])) for key in changed}, dict(versions)))
    found = newest(store)
    assert {key: arrays["S"][0, 0] for key, arrays in found.statistics.items()} == versions
    assert len(store.names(FOLDER)) <= 2 * MOST_FILES


@STORES
def test_a_successor_replaces_and_shuts_out_its_predecessor(opened: Open, tmp_path: Path) -> None:
    store = opened(tmp_path)
    old, new = Uploads(store, 3, 1), Uploads(store, 3, 2)
    for offset in (1, 2, 3):
        old.put(checkpoint(offset, {"a/x": sums(float(offset))}, {"a/x": offset}))
    new.put(checkpoint(2, {"a/x": sums(2.0)}, {"a/x": 1}))
    with pytest.raises(Rejected, match="epoch 1 is over"):
        old.put(checkpoint(4, {"a/x": sums(4.0)}, {"a/x": 4}))
    assert newest(store).offset == 2
    for offset in (5, 6, 7):
        new.put(checkpoint(offset, {"a/x": sums(float(offset))}, {"a/x": offset}))
    left = [name for name in store.names(FOLDER) if name.startswith(f"{FOLDER}/1-")]
    assert len(left) == 2  # what the old one wrote after it was shut out: its successor had swept the rest by then
    assert newest(store).statistics["a/x"]["S"][0, 0] == 7.0


@STORES
def test_partitions_do_not_see_each_other(opened: Open, tmp_path: Path) -> None:
    store = opened(tmp_path)
    Uploads(store, 3, 1).put(checkpoint(8, {"a/x": sums(1.0)}, {"a/x": 1}))
    other = Uploads(store, 4, 1)
    assert other.newest() is None
    other.put(checkpoint(9, {"a/x": sums(1.0)}, {"a/x": 1}))
    assert newest(store).offset == 8


def test_a_spoilt_upload_is_refused() -> None:
    store = MemoryBundles()
    uploads = Uploads(store, 3, 1)
    uploads.put(checkpoint(8, {"a/x": sums(1.0)}, {"a/x": 1}))
    for name in store.names(FOLDER):
        sound = store.get(name)
        for spoilt in (sound[:-1], sound[:40] + bytes([sound[40] ^ 1]) + sound[41:], b""):
            store.put(name, spoilt)
            with pytest.raises(Corrupt, match="upload"):
                newest(store)
        store.put(name, sound)
    assert newest(store).offset == 8
    store.remove(next(name for name in store.names(FOLDER) if name.endswith("npz")))
    with pytest.raises(Unavailable):
        newest(store)
