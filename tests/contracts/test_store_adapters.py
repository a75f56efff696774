"""What every state record, claim store, dead-letter store, checkpoint store and bundle store promises."""

import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Corrupt, Rejected, Unavailable
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import (
    MemoryBundles,
    MemoryCheckpoints,
    MemoryClaims,
    MemoryDeadLetters,
    MemoryLeases,
    MemoryState,
)
from streaming.adapters.redis import RedisClaims, RedisLeases
from streaming.adapters.sqlite import SqliteCheckpoints, SqliteClaims, SqliteDeadLetters, SqliteLeases, SqliteState
from streaming.ports import Bundles, Checkpoints, Claims, Commit, DeadLetter, DeadLetters, Leases, State, Versioned
from tests import kafka_setup
from tests.contracts.adapter_suite import Adapter, Check, Suite, run
from tests.redis_setup import close_opened, eventually, namespace, opened, told

state: Suite[Any] = Suite(
    [
        Adapter("MemoryState", lambda _: MemoryState(), durable=False),
        Adapter("SqliteState", lambda folder: SqliteState(folder / "state.sqlite")),
        Adapter("KafkaState", kafka_setup.state, examples=8),
    ]
)
claims: Suite[Any] = Suite(
    [
        Adapter("MemoryClaims", lambda _: MemoryClaims(), durable=False),
        Adapter("SqliteClaims", lambda folder: SqliteClaims(folder / "claims.sqlite")),
        Adapter("RedisClaims", lambda folder: RedisClaims(opened(namespace(folder))), own_clock=True),
    ]
)
leases: Suite[Any] = Suite(
    [
        Adapter("MemoryLeases", lambda _: MemoryLeases(), durable=False),
        Adapter("SqliteLeases", lambda folder: SqliteLeases(folder / "leases.sqlite")),
        Adapter("RedisLeases", lambda folder: RedisLeases(opened(namespace(folder)))),
    ]
)
letters: Suite[Any] = Suite(
    [
        Adapter("MemoryDeadLetters", lambda _: MemoryDeadLetters(), durable=False),
        Adapter("SqliteDeadLetters", lambda folder: SqliteDeadLetters(folder / "dead.sqlite")),
        Adapter("KafkaDeadLetters", kafka_setup.letters),
    ]
)
checkpoints: Suite[Any] = Suite(
    [
        Adapter("MemoryCheckpoints", lambda _: MemoryCheckpoints(), durable=False),
        Adapter("SqliteCheckpoints", lambda folder: SqliteCheckpoints(folder / "shards" / "0.sqlite")),
    ]
)
bundles: Suite[Any] = Suite(
    [
        Adapter("MemoryBundles", lambda _: MemoryBundles(), durable=False),
        Adapter("FileBundles", lambda folder: FileBundles(folder / "bundles")),
        Adapter(
            "RedisBundles",
            lambda folder: told(FileBundles(folder / "bundles"), opened(namespace(folder))),
            at_once=False,
        ),
    ]
)

# --- state -----------------------------------------------------------------------------------------------------------


@state.check
def entries_come_back_newest_version_last(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.version() == 0
    assert opened.put([("item", "a", b"1"), ("item", "b", b"\x00")]) == 2
    assert opened.put([("surface", "a", b"home")]) == 3
    assert opened.read() == [
        Versioned(1, "item", "a", b"1"),
        Versioned(2, "item", "b", b"\x00"),
        Versioned(3, "surface", "a", b"home"),
    ]
    assert opened.get("surface", "a") == Versioned(3, "surface", "a", b"home")
    assert opened.get("surface", "b") is None


@state.check
def a_follower_sees_each_entrys_last_value(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    seen = opened.put([("item", "a", b"1"), ("item", "b", b"1")])
    opened.put([("item", "a", b"2")])
    opened.put([("item", "a", b"3"), ("item", "c", b"1")])
    assert opened.read(seen) == [Versioned(4, "item", "a", b"3"), Versioned(5, "item", "c", b"1")]
    assert [e.key for e in opened.read()] == ["b", "a", "c"]


@state.check
def a_deleted_entry_is_told_to_followers(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    seen = opened.put([("item", "a", b"1")])
    opened.put([("item", "a", None)])
    assert opened.read(seen) == [Versioned(2, "item", "a", None)]
    assert opened.get("item", "a") == Versioned(2, "item", "a", None)


@state.check
def pages_miss_nothing_even_inside_one_put(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put([("item", str(n), b"") for n in range(25)])
    found, after = [], 0
    while page := opened.read(after, 4):
        assert len(page) <= 4
        found += page
        after = page[-1].version
    assert [e.key for e in found] == [str(n) for n in range(25)]


@state.check
def a_stale_writer_is_refused_and_writes_nothing(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    seen = opened.put([("surface", "home", b"1")])
    opened.put([("surface", "home", b"2")], expect=seen)
    with pytest.raises(Rejected, match="surface home has been written") as caught:
        opened.put([("item", "x", b""), ("surface", "home", b"3")], expect=seen)
    assert caught.value.status == 409
    assert opened.version() == 2
    assert opened.get("item", "x") is None
    assert opened.get("surface", "home").value == b"2"  # type: ignore[union-attr]  # it is there


@state.check
def expecting_nothing_creates_only_once(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put([("item", "other", b"")])
    opened.put([("epoch", "0", b"1")], expect=0)
    with pytest.raises(Rejected):
        opened.put([("epoch", "0", b"2")], expect=0)


@state.check
def writing_nothing_reaches_nothing_new(adapter: Adapter[State], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put([("item", "a", b"1")])
    assert opened.put([]) == 1


@state.check
def versions_only_grow_in_any_history(adapter: Adapter[Any], folder: Path) -> None:
    names = st.tuples(st.sampled_from(["item", "surface"]), st.sampled_from("abc"))
    entries = st.lists(st.tuples(names, st.none() | st.binary(max_size=5)), max_size=4)

    @settings(max_examples=adapter.examples, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(entries, st.none() | st.integers(0, 12)), max_size=10), st.integers(1, 5))
    def holds(history: list[tuple[Any, int | None]], limit: int) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            opened = adapter.open(Path(place))
            wanted: dict[tuple[str, str], tuple[int, bytes | None]] = {}
            version = 0
            for puts, expect in history:
                sent = [(kind, key, value) for (kind, key), value in puts]
                if expect is not None and any(wanted.get(name, (0,))[0] > expect for name, _ in puts):
                    with pytest.raises(Rejected):
                        opened.put(sent, expect)
                    continue
                for name, value in puts:
                    version += 1
                    wanted[name] = (version, value)
                assert opened.put(sent, expect) == version
            named = (Versioned(v, kind, key, value) for (kind, key), (v, value) in wanted.items())
            listed = sorted(named, key=lambda entry: entry.version)
            assert opened.version() == version
            for after in range(version + 1):
                assert opened.read(after, limit) == [e for e in listed if e.version > after][:limit]
            if adapter.durable:
                opened.close()
                assert adapter.open(Path(place)).read() == listed

    holds()


# --- claims ----------------------------------------------------------------------------------------------------------


@claims.check
def the_first_wins_and_the_others_get_its_answer(adapter: Adapter[Claims], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.claim("default", "d1", b"first", 100.0) is None
    assert opened.claim("default", "d1", b"second", 101.0) == b"first"
    assert opened.claim("default", "d1", b"third", 3699.0) == b"first"


@claims.check_given_clock
def a_claim_ends_after_an_hour(adapter: Adapter[Claims], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.claim("default", "d1", b"first", 100.0)
    assert opened.claim("default", "d1", b"second", 3700.0) is None
    assert opened.claim("default", "d1", b"third", 7299.0) == b"second"


@claims.check
def many_are_claimed_in_one_visit_in_order(adapter: Adapter[Claims], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.claim("default", "taken", b"before", 0.0)
    several = [("a", b"1"), ("taken", b"2"), ("a", b"3"), ("b", b"4")]
    assert opened.claim_all("default", several, 1.0) == [None, b"before", b"1", None]
    assert opened.claim("default", "b", b"5", 2.0) == b"4"
    assert opened.claim_all("other", several[:1], 1.0) == [None]
    assert opened.claim_all("default", [], 1.0) == []


@claims.check
def tenants_do_not_meet(adapter: Adapter[Claims], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.claim("one", "d1", b"1", 0.0) is None
    assert opened.claim("other", "d1", b"2", 0.0) is None
    assert opened.claim("one", "d1", b"3", 0.0) == b"1"


@claims.check
def an_empty_answer_is_an_answer(adapter: Adapter[Claims], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.claim("default", "d1", b"", 0.0) is None
    assert opened.claim("default", "d1", b"x", 0.0) == b""


@claims.check_given_clock
def sweeping_takes_expired_claims_only(adapter: Adapter[Any], folder: Path) -> None:
    opened = adapter.open(folder)
    for n in range(600):
        opened.claim("default", f"old{n}", b"old", 0.0)
    for n in range(600):
        opened.claim("default", f"new{n}", b"new", 4000.0)
    assert all(opened.claim("default", f"new{n}", b"x", 4001.0) == b"new" for n in range(600))
    if adapter.durable:
        assert opened._file.read("SELECT count(*) FROM claims WHERE expires <= 4000") == [(0,)]
    else:
        assert len(opened._claims) == 600


@claims.check
def what_names_a_unit_is_forgotten_of_its_tenant_alone(adapter: Adapter[Claims], folder: Path) -> None:
    """In the value or in the id; among more claims than are looked at in one trip."""
    store, unit = adapter.open(folder), "00000000000000aa"
    store.claim("t", "a", b"x" + unit.encode() + b"y", 0.0)
    store.claim("t", f"goal\0{unit}\0*[", b"z", 0.0)
    store.claim("u", "a", unit.encode(), 0.0)
    store.claim_all("t", [(f"other-{i}", b"00000000000000bb") for i in range(600)], 0.0)
    assert store.forget("t", unit) == 2
    assert store.forget("t", unit) == 0
    assert store.claim("t", "a", b"again", 0.0) is None
    assert store.claim("u", "a", b"again", 0.0) == unit.encode()
    assert store.claim("t", "other-599", b"again", 0.0) == b"00000000000000bb"


@claims.check_durable
def processes_share_claims(adapter: Adapter[Claims], folder: Path) -> None:
    one, other = adapter.open(folder), adapter.open(folder)
    assert one.claim("default", "d1", b"one", 0.0) is None
    assert other.claim("default", "d1", b"other", 0.0) == b"one"


# --- leases ----------------------------------------------------------------------------------------------------------


@leases.check
def a_value_is_exchanged_where_it_is_still_the_one_that_was_read(adapter: Adapter[Leases], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.read(["a", "b", "a"]) == [b"", b"", b""]
    assert opened.read([]) == []
    assert not opened.exchange("a", b"one", b"two")
    assert opened.exchange("a", b"", b"\x00one")
    assert not opened.exchange("a", b"", b"two")
    assert not opened.exchange("a", b"one", b"two")
    assert opened.exchange("b", b"", b"other")
    assert opened.exchange("a", b"\x00one", b"two")
    assert opened.read(["b", "a"]) == [b"other", b"two"]


@leases.check
def one_of_those_that_race_for_a_value_gets_it(adapter: Adapter[Leases], folder: Path) -> None:
    opened, racers, rounds = adapter.open(folder), 4, 5
    for n in range(rounds):
        [held] = opened.read(["a"])
        with ThreadPoolExecutor(racers) as racing:
            done = [racing.submit(opened.exchange, "a", held, b"%d by %d" % (n, i)) for i in range(racers)]
        won = [i for i, one in enumerate(done) if one.result()]
        assert opened.read(["a"]) == [b"%d by %d" % (n, won[0])]
        assert len(won) == 1


@leases.check_durable
def processes_share_leases(adapter: Adapter[Leases], folder: Path) -> None:
    one, other = adapter.open(folder), adapter.open(folder)
    assert one.exchange("a", b"", b"one")
    assert other.read(["a"]) == [b"one"]
    assert not other.exchange("a", b"", b"other")
    assert other.exchange("a", b"one", b"other")
    assert one.read(["a"]) == [b"other"]


# --- dead letters ----------------------------------------------------------------------------------------------------


def letter(offset: int, reason: str = "undecodable", partition: int = 0) -> DeadLetter:
    return DeadLetter(partition, offset, reason, "what was wrong", b"key", b"\x00value")


@letters.check
def letters_come_back_in_the_order_they_came(adapter: Adapter[DeadLetters], folder: Path) -> None:
    opened = adapter.open(folder)
    sent = [letter(5), letter(3), letter(3, partition=1)]
    opened.put(sent[:2])
    opened.put(sent[2:])
    found = opened.read()
    assert [x for _, x in found] == sent
    assert opened.read(found[0][0], 1) == found[1:2]


@letters.check
def a_repeated_letter_changes_nothing(adapter: Adapter[DeadLetters], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put([letter(1), letter(2)])
    opened.put([letter(2, "other"), letter(1), letter(3)])
    assert [(x.offset, x.reason) for _, x in opened.read()] == [
        (1, "undecodable"),
        (2, "undecodable"),
        (3, "undecodable"),
    ]


@letters.check
def letters_are_counted_by_reason(adapter: Adapter[DeadLetters], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.count() == {}
    opened.put([letter(1, "too_late"), letter(2, "conflict"), letter(3, "too_late")])
    opened.put([])
    assert opened.count() == {"too_late": 2, "conflict": 1}


@letters.check_durable
def letters_are_there_after_reopening(adapter: Adapter[Any], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put([letter(1), letter(2)])
    before = opened.read()
    opened.close()
    assert adapter.open(folder).read() == before


# --- checkpoints -----------------------------------------------------------------------------------------------------


def packed(first: int, count: int) -> tuple[int, bytes]:
    return first, struct.pack(f"<{count}Q", *range(first, first + count))


def unpacked(ids: Any) -> dict[int, int]:
    """row → id hash, as a shard reads it."""
    return {
        first + i: value for first, data in ids for i, value in enumerate(struct.unpack(f"<{len(data) // 8}Q", data))
    }


def commit(offset: int, **more: Any) -> Commit:
    return Commit(partition=0, offset=offset, clock=float(offset), epoch=more.pop("epoch", 1), **more)


@checkpoints.check
def nothing_committed_is_the_beginning(adapter: Adapter[Checkpoints], folder: Path) -> None:
    loaded = adapter.open(folder).load()
    assert (loaded.offset, loaded.clock, loaded.epoch, loaded.next_row, loaded.evicted) == (0, 0.0, 0, 0, 0)
    assert (list(loaded.ids), loaded.statistics, loaded.extra) == ([], {}, b"")


@checkpoints.check
def commits_add_up(adapter: Adapter[Checkpoints], folder: Path) -> None:
    opened = adapter.open(folder)
    a, b = {"S": np.eye(3), "n": np.float64(2.0).reshape(())}, {"S": np.arange(4.0)}
    opened.commit(commit(10, joins=[(0, b"zero"), (1, b"one")], ids=packed(0, 2), statistics={"a": a, "b": b}))
    opened.commit(
        commit(20, joins=[(1, b"uno"), (2, b"two")], ids=packed(2, 1), statistics={"a": {"S": 2 * np.eye(3)}})
    )
    opened.commit(commit(30, extra=b"early"))
    loaded = opened.load()
    assert (loaded.offset, loaded.clock, loaded.epoch, loaded.next_row, loaded.extra) == (30, 30.0, 1, 3, b"early")
    assert unpacked(loaded.ids) == {0: 0, 1: 1, 2: 2}
    assert [opened.join(row) for row in range(4)] == [b"zero", b"uno", b"two", None]
    assert {k: sorted(v) for k, v in loaded.statistics.items()} == {"a": ["S", "n"], "b": ["S"]}
    np.testing.assert_array_equal(loaded.statistics["a"]["S"], 2 * np.eye(3))
    np.testing.assert_array_equal(loaded.statistics["b"]["S"], np.arange(4.0))
    assert loaded.statistics["a"]["n"].shape == ()


@checkpoints.check
def arrays_keep_shape_type_and_bits(adapter: Adapter[Checkpoints], folder: Path) -> None:
    arrays = {
        "f4": np.array([[1.5, np.nan], [np.inf, -0.0]], np.float32),
        "f8": np.array([0.1, 5e-324]),
        "i8": np.array([[[2**62]]]),
        "u8": np.array([2**64 - 1], np.uint64),
        "names": np.array(["price", "größe"]),
        "empty": np.zeros((0, 7)),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    opened = adapter.open(folder)
    opened.commit(commit(1, statistics={"k": arrays}))
    loaded = opened.load().statistics["k"]
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert loaded[name].tobytes() == array.tobytes()


@checkpoints.check
def what_was_loaded_or_committed_is_the_callers_own(adapter: Adapter[Checkpoints], folder: Path) -> None:
    opened = adapter.open(folder)
    array = np.zeros(3)
    opened.commit(commit(1, statistics={"k": {"S": array}}))
    array += 1
    loaded = opened.load().statistics["k"]["S"]
    assert loaded.tolist() == [0, 0, 0]
    loaded += 1  # a learner goes on from it in place
    assert opened.load().statistics["k"]["S"].tolist() == [0, 0, 0]


@checkpoints.check
def evicted_rows_are_gone(adapter: Adapter[Checkpoints], folder: Path) -> None:
    opened = adapter.open(folder)
    for first in range(0, 12, 4):
        opened.commit(commit(first, joins=[(first + i, b"j") for i in range(4)], ids=packed(first, 4)))
    opened.commit(commit(20, evicted=6))
    loaded = opened.load()
    assert (loaded.evicted, loaded.next_row) == (6, 12)
    assert unpacked(loaded.ids) == {row: row for row in range(6, 12)}
    assert [row for row in range(12) if opened.join(row) is not None] == list(range(6, 12))
    opened.commit(commit(21, joins=[(12, b"j")], ids=packed(12, 1)))  # says nothing about eviction
    assert opened.load().evicted == 6
    assert unpacked(opened.load().ids) == {row: row for row in range(6, 13)}
    opened.commit(commit(22, evicted=13))
    assert list(opened.load().ids) == []
    assert opened.load().next_row == 13


@checkpoints.check
def a_lower_epoch_is_refused_and_writes_nothing(adapter: Adapter[Checkpoints], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.commit(commit(5, epoch=2, joins=[(0, b"a")]))
    with pytest.raises(Rejected, match="epoch 1 is over") as caught:
        opened.commit(commit(9, epoch=1, joins=[(0, b"b"), (1, b"c")]))
    assert caught.value.code == "fenced"
    assert opened.load().offset == 5
    assert (opened.join(0), opened.join(1)) == (b"a", None)
    opened.commit(commit(6, epoch=2))
    opened.commit(commit(7, epoch=3))
    assert (opened.load().offset, opened.load().epoch) == (7, 3)


@checkpoints.check
def who_loads_with_an_epoch_shuts_the_older_ones_out(adapter: Adapter[Checkpoints], folder: Path) -> None:
    """Before the newcomer has committed anything: what it loaded would be overtaken otherwise."""
    opened = adapter.open(folder)
    assert opened.load(2).offset == 0
    with pytest.raises(Rejected, match="epoch 1 is over"):
        opened.commit(commit(5, epoch=1))
    opened.commit(commit(5, epoch=2, joins=[(0, b"a")]))
    loaded = opened.load(3)
    assert (loaded.offset, loaded.epoch, opened.load().epoch) == (5, 3, 3)
    with pytest.raises(Rejected, match="epoch 2 is over"):
        opened.commit(commit(6, epoch=2))
    with pytest.raises(Rejected, match="epoch 2 is over") as caught:
        opened.load(2)
    assert caught.value.code == "fenced"
    assert (opened.load().offset, opened.join(0)) == (5, b"a")


@checkpoints.check
def a_restart_forgets_what_was_committed_before(adapter: Adapter[Checkpoints], folder: Path) -> None:
    opened = adapter.open(folder)
    sums = {"a": {"S": np.ones(2)}, "b": {"S": np.ones(2)}}
    opened.commit(commit(9, epoch=2, joins=[(n, b"j") for n in range(8)], ids=packed(0, 8), evicted=3, statistics=sums))
    with pytest.raises(Rejected, match="epoch 1 is over"):
        opened.commit(commit(4, epoch=1, restart=True))
    opened.commit(commit(4, epoch=2, joins=[(0, b"k")], ids=packed(0, 1), statistics={"a": sums["a"]}, restart=True))
    loaded = opened.load()
    assert (loaded.offset, loaded.epoch, loaded.next_row, loaded.evicted) == (4, 2, 1, 0)
    assert (unpacked(loaded.ids), list(loaded.statistics)) == ({0: 0}, ["a"])
    assert (opened.join(0), opened.join(5)) == (b"k", None)


class Breaking(list[tuple[int, bytes]]):
    """Rows whose reading fails half way."""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        yield from list(super().__iter__())
        raise MemoryError("half way")


@checkpoints.check
def a_commit_that_breaks_half_way_leaves_nothing(adapter: Adapter[Checkpoints], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.commit(commit(1, joins=[(0, b"a")], statistics={"k": {"S": np.zeros(2)}}))
    with pytest.raises(MemoryError):
        opened.commit(commit(2, joins=Breaking([(0, b"b"), (1, b"c")]), statistics={"k": {"S": np.ones(2)}}))
    loaded = opened.load()
    assert (loaded.offset, loaded.next_row, loaded.statistics["k"]["S"].tolist()) == (1, 1, [0, 0])
    assert (opened.join(0), opened.join(1)) == (b"a", None)


@checkpoints.check_durable
def a_checkpoint_is_there_after_reopening(adapter: Adapter[Any], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.commit(commit(3, joins=[(0, b"a")], ids=packed(0, 1), statistics={"k": {"S": np.ones(2)}}, extra=b"x"))
    opened.close()
    again = adapter.open(folder)
    loaded = again.load()
    assert (loaded.offset, unpacked(loaded.ids), loaded.extra, again.join(0)) == (3, {0: 0}, b"x", b"a")
    assert loaded.statistics["k"]["S"].tolist() == [1, 1]


# --- bundles ---------------------------------------------------------------------------------------------------------


@bundles.check
def files_come_back(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put("arrays/aa.npy", b"\x00" * 100_000)
    opened.put("graphs/bb.onnx", b"")
    opened.put("arrays/aa.npy", b"\x00" * 100_000)
    assert opened.get("arrays/aa.npy") == b"\x00" * 100_000
    assert opened.get("graphs/bb.onnx") == b""


@bundles.check
def a_name_that_is_not_there_is_unavailable(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put("arrays/aa.npy", b"1")
    for name in ("arrays/bb.npy", "other/aa.npy", "arrays"):
        with pytest.raises(Unavailable):
            opened.get(name)


@bundles.check
def no_name_leads_out_of_the_store(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    for name in ("../x", "/etc/passwd", "arrays/../../x", "", "arrays/", ".hidden", "a\nb"):
        with pytest.raises(ValueError, match="not a bundle file's name"):
            opened.put(name, b"")
        with pytest.raises(ValueError, match="not a bundle file's name"):
            opened.get(name)


@bundles.check
def a_file_that_a_fault_has_changed_is_mended(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.put("arrays/aa.npy", b"rotten")
    opened.put("arrays/aa.npy", b"as named")
    assert opened.get("arrays/aa.npy") == b"as named"


@bundles.check
def pointers_move_by_policy(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    assert opened.pointers() == {}
    opened.point("home/ts", "b1", 1)
    opened.point("home/popular", "b2", 4)
    opened.point("home/ts", "b3", 1)
    assert opened.pointers() == {"home/ts": "b3", "home/popular": "b2"}
    assert opened.epochs() == {"home/ts": 1, "home/popular": 4}


@bundles.check
def a_passed_epoch_moves_no_pointer(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.point("home/ts", "b1", 5)
    with pytest.raises(Rejected, match="epoch 4 is over") as caught:
        opened.point("home/ts", "b2", 4)
    assert (caught.value.code, caught.value.status) == ("fenced", 409)
    assert opened.pointers() == {"home/ts": "b1"}
    opened.point("home/popular", "b2", 4)  # fenced by policy, not all together


@bundles.check
def pointers_given_out_do_not_change(adapter: Adapter[Bundles], folder: Path) -> None:
    opened = adapter.open(folder)
    opened.point("home/ts", "b1", 1)
    opened.pointers()["home/ts"] = "mine"
    assert opened.pointers() == {"home/ts": "b1"}


@bundles.check
def files_are_listed_and_forgotten(adapter: Adapter[Any], folder: Path) -> None:
    opened = adapter.open(folder)
    for name in ("arrays/b.npy", "arrays/a.npy", "manifests/c.json"):
        opened.put(name, b"1")
    assert opened.names("arrays") == ["arrays/a.npy", "arrays/b.npy"]
    opened.remove("arrays/a.npy")
    opened.remove("arrays/a.npy")
    assert opened.names("arrays") == ["arrays/b.npy"]
    assert opened.names("nothing") == []


@bundles.check_durable
def every_move_is_seen_from_elsewhere(adapter: Adapter[Bundles], folder: Path) -> None:
    writer, reader = adapter.open(folder), adapter.open(folder)
    for n in range(100):  # names of one length, moved as fast as the disk allows
        writer.point("home/ts", f"{n:064d}", 1)
        if not adapter.at_once:
            eventually(reader.pointers, {"home/ts": f"{n:064d}"})
        assert reader.pointers() == {"home/ts": f"{n:064d}"}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Connections and threads of the Redis adapters end with the test that opened them."""
    yield
    close_opened()


@state.parametrize()
def test_state(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


@claims.parametrize()
def test_claims(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


@leases.parametrize()
def test_leases(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


@letters.parametrize()
def test_dead_letters(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


@checkpoints.parametrize()
def test_checkpoints(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


@bundles.parametrize()
def test_bundles(adapter: Adapter[Any], check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


def test_an_unchanged_pointer_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = FileBundles(tmp_path)
    opened.point("home/ts", "b1", 1)
    assert opened.pointers() == {"home/ts": "b1"}
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened a file"))
    assert opened.pointers() == {"home/ts": "b1"}


def test_pointers_that_are_no_json_are_corrupt(tmp_path: Path) -> None:
    opened = FileBundles(tmp_path)
    opened.point("home/ts", "b1", 1)
    (tmp_path / "pointers.json").write_bytes(b"{half")
    with pytest.raises(Corrupt, match="pointers"):
        opened.pointers()
