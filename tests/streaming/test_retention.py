"""Retention: what the rules keep is there, nothing that is named is ever missing, and everything else goes."""

import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import bundle as bundling
from policies.errors import Corrupt
from policies.surface import Category, FeatureSpec, Objective, PolicySpec, Surface
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles, MemoryDeadLetters, MemoryLog
from streaming.adapters.sqlite import SqliteDeadLetters, SqliteLog
from streaming.configuration import Configs
from streaming.ports import Bundles, DeadLetter
from streaming.publish import Publisher
from streaming.retention import GRACE_SECONDS, HOUR, Kept, Retention, expired, trim

DAY = 24 * HOUR
NOW = 1_800_000_000.0  # a full hour
SURFACE = Surface(
    "home",
    slots=2,
    features=FeatureSpec(items={"genre": Category(["jazz", "rock"])}),
    objectives={"click": Objective("click", range=(0.0, 1.0))},
    policies={name: PolicySpec("linear_thompson", objective="click", options={"draws": 8}) for name in ("ts", "other")},
    live="ts",
)


def day(surface: str) -> float:
    return DAY


def nothing() -> list[str]:
    return []


class Store:
    """A bundle store with a publisher, and what is in it."""

    def __init__(self, bundles: Bundles) -> None:
        self.configs, self.bundles = Configs(), bundles
        self.compiled = self.configs.add(SURFACE)
        self.retention = Retention(bundles)
        self.publisher = Publisher(self.retention.bundles, self.configs, 1)

    def publish(self, at: float, policy: str = "ts") -> str:
        """A bundle of its own arrays: the pool is drawn from the publish's number."""
        outcome = self.publisher.publish(self.compiled.policies[policy], [], {0: 0}, at)
        assert outcome.manifest is not None
        return outcome.manifest.bundle

    def sweep(self, now: float, named: Callable[[], list[str]] = nothing) -> dict[str, int]:
        return self.retention.sweep(now, day, named).removed

    def settle(self, now: float, named: Callable[[], list[str]] = nothing) -> None:
        """Twice, a grace time apart, so that files that nothing names are gone."""
        self.sweep(now, named)
        self.sweep(now + GRACE_SECONDS, named)

    @property
    def manifests(self) -> set[str]:
        return {name[len("manifests/") : -len(".json")] for name in self.bundles.names("manifests")}

    @property
    def files(self) -> set[str]:
        return {name for folder in ("arrays", "graphs") for name in self.bundles.names(folder)}

    def whole(self) -> None:
        """Every bundle there is can be read, and there is no file that none of them names."""
        named: set[str] = set()
        for bundle in self.manifests:
            named |= set(bundling.files(bundling.read(bundle, self.bundles.get)))
        assert {name for name in named if not name.startswith("manifests/")} == self.files


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(MemoryBundles() if request.param == "memory" else FileBundles(tmp_path / "bundles"))


def test_a_day_of_all_then_hours_then_nothing_else(store: Store) -> None:
    """Publishes every 20 minutes for 30 hours: of the first six hours those live at each full hour are left."""
    made = {minute: store.publish(NOW + 60 * minute) for minute in range(5, 30 * 60, 20)}
    store.settle(NOW + 30 * HOUR)
    recent = {bundle for minute, bundle in made.items() if minute >= 6 * 60 - 20}  # the first is live into the last day
    hourly = {made[60 * hour - 15] for hour in range(1, 6)}  # published at :45, live at the full hour
    assert store.manifests == recent | hourly
    store.whole()


def test_what_a_pointer_or_a_release_names_stays(store: Store) -> None:
    held, *others = [store.publish(NOW + 60 * minute) for minute in range(1, 40)]
    alone = store.publish(NOW + 60, "other")
    store.settle(NOW + 40 * DAY, lambda: [held])
    assert store.manifests == {held, others[-1], alone}  # the newest of each is pointed at
    store.whole()
    store.settle(NOW + 50 * DAY)
    assert store.manifests == {others[-1], alone}
    store.whole()


def test_each_surface_keeps_for_its_own_time(store: Store) -> None:
    first, second, third = (store.publish(NOW + 60 * minute) for minute in (1, 2, 3))
    store.retention.sweep(NOW + HOUR, lambda surface: 2 * HOUR if surface == "home" else 0.0, nothing)
    assert store.manifests == {first, second, third}
    store.retention.sweep(NOW + HOUR, lambda surface: 0.0 if surface == "home" else DAY, nothing)
    assert store.manifests == {third}


def test_files_that_bundles_share_stay(store: Store) -> None:
    """Probe queries and the graph are every bundle's: they go with the last of them only."""
    for minute in range(1, 5):
        store.publish(NOW + 60 * minute)
    shared = len([name for name in store.files if name.startswith("graphs/")])
    store.settle(NOW + 2 * DAY)
    assert len(store.manifests) == shared == 1
    store.whole()


def test_a_file_whose_manifest_is_on_its_way_stays(store: Store) -> None:
    """Its writer has the grace time; then it is taken for what a killed writer left."""
    store.publish(NOW)
    store.bundles.put("arrays/" + "ab" * 16 + ".npy", b"of a bundle being written")
    store.sweep(NOW)
    assert store.sweep(NOW + GRACE_SECONDS - 1)["arrays"] == 0
    assert store.sweep(NOW + GRACE_SECONDS)["arrays"] == 1
    store.whole()


def test_what_is_doubted_takes_few_bytes_a_file() -> None:
    store, count = Store(MemoryBundles()), 3_000
    store.sweep(NOW - GRACE_SECONDS)  # imports what a first sweep does
    for number in range(count):
        store.bundles.put(f"arrays/{number:032x}.npy", b"")
    tracemalloc.start()
    try:
        store.sweep(NOW)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * count  # names and a dict of them would be 250 bytes a file
    assert store.sweep(NOW + GRACE_SECONDS - 1)["arrays"] == 0
    assert store.sweep(NOW + GRACE_SECONDS)["arrays"] == count


def test_a_file_that_is_named_again_starts_anew(store: Store) -> None:
    """What a bundle that was removed had, and a later one has again, is not doubted any more."""
    made = store.publisher
    first = made.publish(store.compiled.policies["ts"], [], {0: 0}, NOW + 60, number=1)
    made.publish(store.compiled.policies["ts"], [], {0: 0}, NOW + 61, number=2)
    assert store.sweep(NOW + 2 * DAY)["manifests"] == 1
    again = made.publish(store.compiled.policies["ts"], [], {0: 0}, NOW + 3 * DAY, number=1)
    assert first.manifest is not None
    assert again.manifest is not None
    assert first.manifest.arrays == again.manifest.arrays
    store.settle(NOW + 3 * DAY)
    assert again.manifest.bundle in store.manifests
    store.whole()


def test_a_file_that_is_written_while_files_are_removed_stays(store: Store) -> None:
    """The publisher finds an old array in place and leaves it, and the sweep that had decided on it lets it be."""
    made = store.publisher
    policy = store.compiled.policies["ts"]
    made.publish(policy, [], {0: 0}, NOW + 60, number=1)  # between two full hours
    made.publish(policy, [], {0: 0}, NOW + 61, number=2)
    store.sweep(NOW + 2 * DAY)  # the first bundle's manifest goes, its arrays are doubted from now on
    complete = store.retention._complete

    def publishes_meanwhile() -> bool:
        found = complete()  # all is listed, the arrays are about to go, and come back into use
        made.publish(policy, [], {0: 0}, NOW + 3 * DAY, number=1)
        return found

    store.retention._complete = publishes_meanwhile  # type: ignore[method-assign]
    store.sweep(NOW + 3 * DAY)
    newest = store.bundles.pointers()["home/ts"]
    assert bundling.read(newest, store.bundles.get).manifest.number == 1


def test_a_listing_without_what_is_pointed_at_removes_no_file(store: Store) -> None:
    store.publish(NOW)
    names = store.retention.bundles.names
    store.retention.bundles.names = lambda folder: [] if folder == "manifests" else names(folder)  # type: ignore[method-assign]
    before = store.files
    store.settle(NOW + 2 * DAY)
    assert store.files == before


def test_a_manifest_that_cannot_be_read_stays_with_all_it_names(store: Store) -> None:
    """It may be of a build that is newer than this one."""
    store.publish(NOW)
    name = "arrays/" + "cd" * 16 + ".npy"
    store.bundles.put(name, b"of another format")
    store.bundles.put("manifests/" + "ef" * 16 + ".json", b'{"format": 2, "weights": ["' + b"cd" * 16 + b'"]}')
    store.sweep(NOW)
    assert store.retention.sweep(NOW + 9 * DAY, day, nothing).unreadable == 1
    assert name in store.files
    assert "ef" * 16 in store.manifests


def test_a_sweep_that_is_told_to_stop_goes_on_later(store: Store) -> None:
    for minute in range(1, 40):
        store.publish(NOW + 60 * minute)
    turns = iter([False] * 40 + [True] * 100)
    store.retention.sweep(NOW + 2 * DAY, day, nothing, lambda: next(turns))
    assert len(store.manifests) == 39 - 16
    store.settle(NOW + 2 * DAY)
    assert len(store.manifests) == 1
    store.whole()


def test_sweeps_beside_a_publisher_leave_every_pointer_whole(tmp_path: Path) -> None:
    """A thread publishes, another sweeps, a grace time later with every turn: whatever is pointed at can be read."""
    store = Store(FileBundles(tmp_path / "bundles"))
    store.publish(NOW)
    over = threading.Event()
    broken: list[str] = []

    def sweep() -> None:
        now = NOW + 2 * DAY
        while not over.is_set():
            now += GRACE_SECONDS
            store.retention.sweep(now, lambda surface: 0.0, nothing)

    def follow() -> None:
        while not over.is_set():
            name = store.bundles.pointers()["home/ts"]
            try:
                bundling.read(name, store.bundles.get)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test is about
                if store.bundles.pointers()["home/ts"] == name:  # else it was replaced while it was read
                    broken.append(repr(error))

    threads = [threading.Thread(target=sweep), threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
    for number in range(60):
        store.publisher.publish(store.compiled.policies["ts"], [], {0: 0}, NOW + number, number=number % 3)
    over.set()
    for thread in threads:
        thread.join()
    assert broken == []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40 * 60)), max_size=60), st.integers(0, 40 * 60))
def test_what_expires_is_what_the_rule_says(made: list[tuple[str, int]], now_minutes: int) -> None:
    """Against the rule's own words: a bundle stays if it was live within the last day, or at some full hour."""
    known = {
        f"{i}": Kept("home", policy, NOW + 60.0 * minute, b"") for i, (policy, minute) in enumerate(dict.fromkeys(made))
    }
    now = NOW + 60.0 * now_minutes
    gone = set(expired(known, now, lambda _: 6 * HOUR))
    for bundle, kept in known.items():
        later = [k.created_at for k in known.values() if k.policy == kept.policy and k.created_at > kept.created_at]
        until = min(later, default=np.inf)
        live_lately = until >= now - 6 * HOUR
        at_an_hour = any(kept.created_at <= NOW + HOUR * hour < until for hour in range(42))
        assert (bundle in gone) is not (live_lately or at_an_hour)


# records


def test_records_go_by_age_and_by_need(tmp_path: Path) -> None:
    now = [100.0]
    log = MemoryLog(1, lambda: now[0])
    for second in range(10):
        now[0] = 100.0 + second
        log.append([(b"k", b"%d" % second)])
    assert trim(log, 0, older_than=103.5, needed=2) == 2  # two are read
    assert (log.first(0), trim(log, 0, older_than=103.5, needed=2)) == (2, 0)
    assert trim(log, 0, older_than=103.5, needed=100) == 2
    assert [record.value for record in log.read(0, 4, 1)] == [b"4"]
    with pytest.raises(Corrupt, match="offset_out_of_range"):
        log.read(0, 3, 1)
    assert trim(log, 0, older_than=1e9, needed=100, most=3) == 3  # the rest next time
    assert trim(log, 0, older_than=1e9, needed=100) == 3
    assert (log.first(0), log.end(0)[0], trim(log, 0, older_than=1e9, needed=100)) == (10, 10, 0)


def test_sqlite_records_and_letters_go_together(tmp_path: Path) -> None:
    log, letters = SqliteLog(tmp_path / "log.sqlite", 2), SqliteDeadLetters(tmp_path / "dead.sqlite")
    log.append([(b"k%d" % n, b"v") for n in range(40)])
    ends = [log.end(p)[0] for p in range(2)]
    letters.put([DeadLetter(p, offset, "why", "", b"", b"") for p in range(2) for offset in range(ends[p])])
    before = log.first(0)
    assert (before, trim(log, 0, older_than=log.end(0)[1] - 1, needed=ends[0])) == (0, 0)
    assert trim(log, 0, older_than=log.end(0)[1] + 1, needed=5) == 5
    assert letters.trim(0, log.first(0)) == 5
    assert {(x.partition, x.offset) for _, x in letters.read()} == {
        (p, offset) for p in range(2) for offset in range(5 if p == 0 else 0, ends[p])
    }
    assert letters.read()[0][0] == 6  # numbers go on


def test_memory_letters_keep_their_numbers() -> None:
    letters = MemoryDeadLetters()
    letters.put([DeadLetter(0, offset, "why", "", b"", b"") for offset in range(4)])
    assert letters.trim(0, 2) == 2
    letters.put([DeadLetter(0, 9, "why", "", b"", b"")])
    assert [number for number, _ in letters.read()] == [3, 4, 5]
    assert letters.read(3, 1)[0][1].offset == 3
