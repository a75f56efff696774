"""What every store of counters and profiles promises: values of a chain of marks, whatever is repeated, late or lost."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles
from streaming.adapters.redis import RedisCounters, RedisProfiles
from streaming.adapters.sqlite_tables import SqliteCounters, SqliteProfiles
from streaming.partition import partition_of
from streaming.ports import Counters, Mark, Profiles
from tests.contracts.adapter_suite import Adapter, Check, Suite
from tests.redis_setup import close_opened, namespace, opened, shared_redis

PARTITIONS = 3

counters: Suite[Any] = Suite(
    [
        Adapter("MemoryCounters", lambda _: MemoryCounters(PARTITIONS), durable=False),
        Adapter("SqliteCounters", lambda folder: SqliteCounters(folder / "counters.sqlite", PARTITIONS)),
        Adapter("RedisCounters", lambda folder: RedisCounters(opened(namespace(folder)), PARTITIONS)),
    ]
)
profiles: Suite[Any] = Suite(
    [
        Adapter("MemoryProfiles", lambda _: MemoryProfiles(PARTITIONS), durable=False),
        Adapter("SqliteProfiles", lambda folder: SqliteProfiles(folder / "profiles.sqlite", PARTITIONS)),
        Adapter("RedisProfiles", lambda folder: RedisProfiles(opened(namespace(folder)), PARTITIONS)),
    ]
)


def flush(store: Any) -> None:
    """Take everything away behind the adapter's back."""
    if hasattr(store, "flush"):
        store.flush()
    else:
        shared_redis().flush()


@counters.check
def readers_sum_over_partitions(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    assert store.write(0, Mark(1, 10), {"home/a": 1.5, "home/b": 1.0}, None)
    assert store.write(2, Mark(1, 4), {"home/a": 0.1}, None)
    assert store.read(["home/b", "home/a", "home/c"]) == [1.0, 1.5 + 0.1, 0.0]
    assert store.read([]) == []


@counters.check
def numbers_keep_every_bit(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    numbers = {"third": 1 / 3, "tiny": 5e-324, "large": -1.7e308, "größe\n ": 2.0**53 + 1}
    store.write(1, Mark(1, 1), numbers, None)
    assert store.read(list(numbers)) == list(numbers.values())


@counters.check
def changes_follow_the_mark_they_are_since(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    store.write(0, Mark(1, 10), {"a": 1.0, "b": 2.0}, None)
    assert store.write(0, Mark(1, 20), {"a": 3.0}, Mark(1, 10))
    assert store.read(["a", "b"]) == [3.0, 2.0]
    assert store.write(0, Mark(1, 30), {"b": 0.0}, Mark(1, 20))
    assert store.read(["a", "b"]) == [3.0, 0.0]


@counters.check
def a_repeat_and_what_is_older_change_nothing(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    store.write(0, Mark(2, 10), {"a": 1.0}, None)
    for mark in (Mark(2, 10), Mark(2, 9), Mark(1, 99)):
        for since in (None, Mark(2, 10), Mark(1, 50)):
            assert store.write(0, mark, {"a": 7.0, "b": 7.0}, since)
    assert store.read(["a", "b"]) == [1.0, 0.0]


@counters.check
def a_new_owner_replaces_everything(adapter: Adapter[Counters], folder: Path) -> None:
    """Also when it starts from an older offset: a checkpoint that had not told the store all it learned."""
    store = adapter.open(folder)
    store.write(0, Mark(1, 90), {"a": 9.0, "gone": 1.0}, None)
    assert store.write(0, Mark(2, 80), {"a": 8.0}, None)
    assert store.read(["a", "gone"]) == [8.0, 0.0]
    assert store.write(0, Mark(1, 95), {"a": 9.5}, Mark(1, 90))  # whom it replaced
    assert store.read(["a"]) == [8.0]


@counters.check
def a_gap_is_refused_and_writes_nothing(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    store.write(0, Mark(1, 10), {"a": 1.0}, None)
    assert not store.write(0, Mark(1, 30), {"a": 3.0}, Mark(1, 20))
    assert not store.write(0, Mark(2, 5), {"a": 3.0}, Mark(2, 0))
    assert store.read(["a"]) == [1.0]
    assert store.write(0, Mark(1, 30), {"a": 3.0}, None)
    assert store.read(["a"]) == [3.0]


@counters.check
def a_flushed_store_asks_for_everything(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    store.write(0, Mark(1, 10), {"a": 1.0, "b": 2.0}, None)
    flush(store)
    assert store.read(["a", "b"]) == [0.0, 0.0]
    assert not store.write(0, Mark(1, 10), {}, Mark(1, 10))  # how a partition finds out in which nothing happens
    assert not store.write(0, Mark(1, 20), {"a": 3.0}, Mark(1, 10))
    assert store.write(0, Mark(1, 20), {"a": 3.0, "b": 2.0}, None)
    assert store.read(["a", "b"]) == [3.0, 2.0]


@counters.check
def thousands_are_written_in_one_step(adapter: Adapter[Counters], folder: Path) -> None:
    store = adapter.open(folder)
    names = [f"home/item/{n}" for n in range(5_000)]
    assert store.write(0, Mark(1, 1), dict.fromkeys(names, 1.0), None)
    assert store.write(0, Mark(1, 2), {name: float(n) for n, name in enumerate(names)}, Mark(1, 1))
    assert store.read(names) == [float(n) for n in range(5_000)]
    assert store.write(0, Mark(1, 3), {}, None)
    assert store.read(names[:3]) == [0.0] * 3


@counters.check_durable
def processes_share_counters(adapter: Adapter[Counters], folder: Path) -> None:
    one, other = adapter.open(folder), adapter.open(folder)
    one.write(0, Mark(1, 10), {"a": 1.0}, None)
    assert other.read(["a"]) == [1.0]
    assert other.write(0, Mark(1, 20), {"a": 2.0}, Mark(1, 10))
    assert not one.write(0, Mark(1, 30), {"a": 2.0}, Mark(1, 10))


@counters.check
def any_history_ends_at_the_greatest_mark(adapter: Adapter[Any], folder: Path) -> None:
    """Writers that are late, repeat themselves, skip or lose the store: what is read is what the newest one means."""
    marks = st.builds(Mark, st.integers(0, 2), st.integers(0, 5))
    names = st.dictionaries(st.sampled_from("ab"), st.integers(0, 3).map(float))
    writes = st.lists(st.none() | st.tuples(marks, st.none() | marks, names), max_size=12)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(writes)
    def holds(history: list[Any]) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            store = adapter.open(Path(place))
            held: Mark | None = None
            wanted: dict[str, float] = {}
            for one in history:
                if one is None:
                    flush(store)
                    held, wanted = None, {}
                    continue
                mark, since, values = one
                if held is not None and held >= mark:
                    assert store.write(1, mark, values, since)
                elif since is None or since == held:
                    assert store.write(1, mark, values, since)
                    held, wanted = mark, {**({} if since is None else wanted), **values}
                else:
                    assert not store.write(1, mark, values, since)
                assert store.read(["a", "b"]) == [wanted.get("a", 0.0), wanted.get("b", 0.0)]
            close_opened()

    holds()


def units(count: int) -> list[str]:
    return [hashlib.blake2b(str(n).encode(), digest_size=8).hexdigest() for n in range(count)]


@profiles.check
def each_unit_is_found_in_its_partition(adapter: Adapter[Profiles], folder: Path) -> None:
    store = adapter.open(folder)
    names = units(60)
    for partition in range(PARTITIONS):
        own = {name: b"\x00" + name.encode() for name in names if partition_of(name.encode(), PARTITIONS) == partition}
        assert own
        assert store.write(partition, Mark(1, 1), own, None)
    asked = [*names[::-1], "0" * 16]
    assert store.read(asked) == [*(b"\x00" + name.encode() for name in names[::-1]), b""]
    assert store.read([]) == []


@profiles.check
def who_is_forgotten_goes_at_once_and_the_chain_goes_on(adapter: Adapter[Profiles], folder: Path) -> None:
    """Without a new mark: a forget is no step of the partition's log."""
    store, names = adapter.open(folder), units(20)
    for partition in range(PARTITIONS):
        mine = {name: b"x" for name in names if partition_of(name.encode(), PARTITIONS) == partition}
        assert store.write(partition, Mark(1, 5), mine | {f"{name}/shown": b"y" for name in mine}, None)
    assert store.forget([names[0], f"{names[0]}/shown", "0" * 16]) == 2
    assert store.read([names[0], f"{names[0]}/shown", names[1]]) == [b"", b"", b"x"]
    assert store.forget([names[0]]) == 0
    place = partition_of(names[1].encode(), PARTITIONS)
    assert store.write(place, Mark(1, 6), {names[1]: b"z"}, Mark(1, 5))
    assert store.read([names[1]]) == [b"z"]


@profiles.check
def a_unit_that_is_forgotten_is_gone(adapter: Adapter[Profiles], folder: Path) -> None:
    store = adapter.open(folder)
    unit = units(1)[0]
    partition = partition_of(unit.encode(), PARTITIONS)
    store.write(partition, Mark(1, 1), {unit: b"x"}, None)
    store.write(partition, Mark(1, 2), {unit: b""}, Mark(1, 1))
    assert store.read([unit]) == [b""]
    flush(store)
    assert not store.write(partition, Mark(1, 3), {unit: b"y"}, Mark(1, 2))


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_opened()


@counters.parametrize()
def test_counters(adapter: Adapter[Any], check: Callable[..., None], tmp_path: Path) -> None:
    check(adapter, tmp_path)


@profiles.parametrize()
def test_profiles(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    check(adapter, tmp_path)
