"""Stores that are away: what a copy gives instead, when it gives way, and that nobody waits twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring_setup import publish, surface

from policies.errors import Unavailable
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles, MemoryState
from streaming.kept import KeptBundles, KeptState
from streaming.snapshot import Snapshot


class Switch:
    """A store that can be away: what opens it and what asks it fails then. Counts the visits that failed."""

    def __init__(self, store: Any) -> None:
        self.store, self.away, self.failed = store, False, 0

    def opened(self) -> Any:
        self._visit()
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def asked(*given: Any) -> Any:
            self._visit()
            return getattr(self.store, name)(*given)

        return asked

    def _visit(self) -> None:
        if self.away:
            self.failed += 1
            raise Unavailable("away")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def entries(count: int) -> list[tuple[str, str, bytes | None]]:
    return [("item", f"i{n}", b"%d" % n if n % 7 else None) for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 500, 1_203])
def test_a_snapshot_gives_back_what_was_saved(tmp_path: Path, count: int) -> None:
    state = MemoryState()
    state.put(entries(count))
    snapshot = Snapshot(tmp_path / "state")
    snapshot.save(state.version(), state.read())
    assert snapshot.load() == (state.version(), state.read())


def test_state_is_read_from_the_snapshot_until_the_record_is_reached(tmp_path: Path) -> None:
    clock, switch, snapshot = Clock(), Switch(MemoryState()), Snapshot(tmp_path / "state")
    switch.store.put(entries(10))
    before = KeptState(switch.opened, snapshot, clock)
    assert str(before.standing) == "reached"
    assert (before.keep(), before.keep()) == (True, False)
    wanted = switch.store.read()

    switch.away = True
    after = KeptState(switch.opened, snapshot, clock)
    assert after.read() == wanted
    assert after.read(limit=3) == wanted[:3]
    assert after.read(wanted[3].version) == wanted[4:]
    assert str(after.standing) == "copied"
    with pytest.raises(Unavailable):
        after.read(wanted[-1].version)
    assert switch.failed == 1  # the others did not wait for it

    switch.away = False
    switch.store.put([("item", "new", b"1")])
    with pytest.raises(Unavailable):
        after.read(wanted[-1].version)  # left alone for a while
    clock.now += 2.0
    assert [entry.key for entry in after.read(wanted[-1].version)] == ["new"]
    assert str(after.standing) == "reached"

    switch.away = True
    with pytest.raises(Unavailable):
        after.read()  # what it has read is newer than the copy
    assert str(after.standing) == "away"


def test_without_a_snapshot_or_with_a_damaged_one_the_record_is_away(tmp_path: Path) -> None:
    switch = Switch(MemoryState())
    switch.away = True
    snapshot = Snapshot(tmp_path / "state")
    with pytest.raises(Unavailable):
        KeptState(switch.opened, snapshot, Clock()).read()
    snapshot.save(3, [])
    damaged = bytearray((tmp_path / "state").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "state").write_bytes(damaged)
    with pytest.raises(Unavailable, match="not what was written"):
        KeptState(switch.opened, snapshot, Clock()).read()


def test_bundles_are_kept_as_served_and_the_rest_forgotten(tmp_path: Path) -> None:
    clock, switch, copy = Clock(), Switch(MemoryBundles()), FileBundles(tmp_path)
    kept = KeptBundles(switch.opened, copy, clock)
    publish(MemoryState(), switch.store, surface())
    first = kept.pointers()
    assert kept.keep(first)
    assert not kept.keep(first)
    publish(MemoryState(), switch.store, surface(), number=9, examples=30)
    second = kept.pointers()
    assert second != first
    assert kept.keep(second)
    assert copy.pointers() == second
    assert copy.names("manifests") == sorted(f"manifests/{bundle}.json" for bundle in set(second.values()))

    switch.away = True
    restarted = KeptBundles(switch.opened, copy, clock)
    assert (restarted.pointers(), restarted.standing) == (second, "copied")
    for name in [*copy.names("manifests"), *copy.names("arrays"), *copy.names("graphs")]:
        assert restarted.get(name) == switch.store.get(name)
    with pytest.raises(Unavailable):
        restarted.get("arrays/none.npy")
    with pytest.raises(Unavailable):
        kept.pointers()  # it has served newer ones, and goes on
    assert str(kept.standing) == "away"


def test_an_empty_store_that_was_not_empty_counts_as_away(tmp_path: Path) -> None:
    """A shared folder that is not mounted looks like one that nobody has written to."""
    clock, store = Clock(), MemoryBundles()
    publish(MemoryState(), store, surface())
    kept = KeptBundles(lambda: store, FileBundles(tmp_path), clock)
    kept.keep(kept.pointers())
    empty = KeptBundles(MemoryBundles, FileBundles(tmp_path), clock)
    assert (empty.pointers(), empty.standing) == (store.pointers(), "copied")
    assert np.all([empty.get(name) == store.get(name) for name in store.names("manifests")])


def test_one_missing_file_is_not_a_store_that_is_away(tmp_path: Path) -> None:
    store = MemoryBundles()
    publish(MemoryState(), store, surface())
    kept = KeptBundles(lambda: store, FileBundles(tmp_path), Clock())
    with pytest.raises(Unavailable):
        kept.get("manifests/none.json")
    assert kept.pointers() == store.pointers()
