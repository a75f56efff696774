"""Redis killed, paused, flushed, restarted, failed over: each is a stated degraded mode, never an error nobody expects and
never an answer that waits for Redis.

A paused server holds its connections open and says nothing; while it is paused, that a call comes back at all shows that
its time is bounded.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.errors import Rejected, Unavailable
from services.stack.redis import RedisNodes, RedisServer, RedisService
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles
from streaming.adapters.redis import RedisBundles, RedisClaims, RedisConnection, RedisCounters, RedisProfiles
from streaming.adapters.redis_tables import PIECE
from streaming.derived import Derived
from streaming.feed import Feed
from streaming.ports import Mark
from tests.redis_setup import close_opened, eventually, opened, started, told

POLICY = "home/ts"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with started(lambda: RedisServer(tmp_path / "redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_opened()


def claims(server: RedisServer) -> tuple[RedisConnection, RedisClaims]:
    connection = opened(server.url)
    return connection, RedisClaims(connection)


def refused(store: RedisClaims, name: str) -> bool:
    try:
        store.claim("default", name, b"x", 0.0)
    except Unavailable:
        return True
    return False


def until_open(connection: RedisConnection, store: RedisClaims) -> None:
    """Ask until the breaker has seen enough; each of these calls comes back."""
    for n in range(3):
        assert refused(store, f"opening-{n}")
    assert not connection.breaker.closed


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_gone_is_unavailable_and_soon_nobody_waits_to_find_out(
    server: RedisServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, store = claims(server)
    assert store.claim("default", "d1", b"first", 0.0) is None
    getattr(server, fault)()
    until_open(connection, store)
    asked: list[str] = []
    ask = RedisConnection._asked

    def spy(self: RedisConnection, question: Any, admission: Any) -> Any:
        asked.append(admission.value)
        return ask(self, question, admission)

    monkeypatch.setattr(RedisConnection, "_asked", spy)
    assert all(refused(store, f"after-{n}") for n in range(1000))
    assert set(asked) <= {"probe"}  # threads of their own; no caller waited
    server.start() if fault == "kill" else server.resume()
    eventually(lambda: refused(store, "back"), False)
    held = store.claim("default", "d1", b"second", 0.0)
    assert held == (b"first" if fault == "pause" else None)  # what a restart lost is claimed afresh


def test_a_process_starts_while_redis_is_away(server: RedisServer) -> None:
    server.kill()
    _, store = claims(server)
    assert refused(store, "d1")
    server.start()
    eventually(lambda: refused(store, "d1"), False)


def test_connections_that_a_restart_broke_are_made_again(server: RedisServer) -> None:
    connection, store = claims(server)
    store.claim("default", "d1", b"first", 0.0)
    server.kill()
    server.start()
    assert store.claim("default", "d2", b"second", 0.0) is None
    assert connection.breaker.closed


def test_a_flush_frees_claims(server: RedisServer) -> None:
    _, store = claims(server)
    store.claim("default", "d1", b"first", 0.0)
    server.flush()
    assert store.claim("default", "d1", b"second", 0.0) is None


def test_a_claim_ends_by_redis_own_clock(server: RedisServer) -> None:
    store = RedisClaims(opened(server.url), life_seconds=0.05)
    assert store.claim("default", "d1", b"first", 0.0) is None
    eventually(lambda: store.claim("default", "d1", b"second", 0.0), None)
    with pytest.raises(Rejected):
        RedisClaims(opened(server.url), life_seconds=0.0)


def test_a_server_that_refuses_is_away_but_not_asked_less(server: RedisServer) -> None:
    """Out of memory, or a wrong password: told by an answer, not by silence."""
    connection, store = claims(server)
    with server.client() as client:
        client.config_set("maxmemory", "1")
        assert all(refused(store, f"d{n}") for n in range(5))
        assert connection.breaker.closed
        client.config_set("maxmemory", "0")
    assert store.claim("default", "d1", b"x", 0.0) is None


# --- pointers --------------------------------------------------------------------------------------------------------


def replicas(server: RedisServer, folder: Path) -> tuple[RedisBundles, RedisBundles]:
    """A publisher and a scoring replica over one folder, the replica following."""
    writer = told(FileBundles(folder / "bundles"), opened(server.url))
    reader = told(FileBundles(folder / "bundles"), opened(server.url))
    writer.point(POLICY, "b0", 1)
    assert reader.pointers() == {POLICY: "b0"}
    eventually(lambda: reader.following, True)
    return writer, reader


def in_redis(server: RedisServer) -> dict[str, str]:
    with server.client() as client:
        return {k.decode(): v.decode().split(" ")[2] for k, v in client.hgetall("slatewise:pointers").items()}


def test_a_move_is_told_and_not_only_found(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nobody looking at Redis or at the store, the message alone moves the replica."""
    writer, reader = replicas(server, tmp_path)
    monkeypatch.setattr(RedisBundles, "_look", lambda self, *, store: None)
    for n in range(1, 20):
        writer.point(POLICY, f"b{n}", 1)
        eventually(reader.pointers, {POLICY: f"b{n}"})


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_pointers_come_from_the_store_while_redis_is_away(server: RedisServer, tmp_path: Path, fault: str) -> None:
    writer, reader = replicas(server, tmp_path)
    getattr(server, fault)()
    writer.point(POLICY, "b1", 1)
    eventually(reader.pointers, {POLICY: "b1"})
    writer.point(POLICY, "b2", 1)
    eventually(reader.pointers, {POLICY: "b2"})
    assert writer.pointers() == {POLICY: "b2"}
    server.start() if fault == "kill" else server.resume()
    eventually(lambda: in_redis(server), {POLICY: "b2"})  # told again by those who follow
    eventually(lambda: reader.following, True)
    writer.point(POLICY, "b3", 1)
    eventually(reader.pointers, {POLICY: "b3"})


def test_a_flush_is_mended_and_changes_nothing(server: RedisServer, tmp_path: Path) -> None:
    writer, reader = replicas(server, tmp_path)
    server.flush()
    eventually(lambda: in_redis(server), {POLICY: "b0"})
    assert reader.pointers() == {POLICY: "b0"}
    writer.point(POLICY, "b1", 1)
    eventually(reader.pointers, {POLICY: "b1"})


def test_a_move_that_was_told_to_nobody_is_found(server: RedisServer, tmp_path: Path) -> None:
    _, reader = replicas(server, tmp_path)
    FileBundles(tmp_path / "bundles").point(POLICY, "b1", 1)  # a writer that died between its two steps
    eventually(reader.pointers, {POLICY: "b1"})
    eventually(lambda: in_redis(server), {POLICY: "b1"})


def test_an_old_message_undoes_nothing(server: RedisServer, tmp_path: Path) -> None:
    writer, reader = replicas(server, tmp_path)
    with server.client() as client:
        old = client.hget("slatewise:pointers", POLICY)
        writer.point(POLICY, "b1", 1)
        eventually(reader.pointers, {POLICY: "b1"})
        client.publish("slatewise:moved", POLICY.encode() + b"\n" + old)
        client.publish("slatewise:moved", b"what is this")
        client.publish("slatewise:moved", b"home/new\n1 1 bundle")
        eventually(lambda: "home/new" in reader.pointers(), True)  # all three have arrived
    assert reader.pointers()[POLICY] == "b1"


def test_what_another_life_left_in_redis_is_mended(server: RedisServer, tmp_path: Path) -> None:
    """A higher epoch, and values that are none, in a Redis that outlived the data of the installation."""
    with server.client() as client:
        client.hset("slatewise:pointers", mapping={POLICY: "9 5 other", "home/popular": "nonsense"})
    writer, reader = replicas(server, tmp_path)
    writer.point("home/popular", "p0", 1)
    eventually(reader.pointers, {POLICY: "b0", "home/popular": "p0"})
    assert in_redis(server) == {POLICY: "b0", "home/popular": "p0"}


def test_whoever_was_passed_between_store_and_redis_is_fenced(server: RedisServer) -> None:
    class Overtaken(MemoryBundles):
        """After the first writer has moved the store's pointer, the next owner moves both."""

        def point(self, policy: str, bundle: str, epoch: int) -> None:
            super().point(policy, bundle, epoch)
            if epoch == 1:
                told(self, opened(server.url)).point(policy, "of-the-next", 2)

    store = Overtaken()
    with pytest.raises(Rejected, match="epoch 1 is over"):
        told(store, opened(server.url)).point(POLICY, "of-the-first", 1)
    assert in_redis(server) == {POLICY: "of-the-next"}
    assert store.pointers() == {POLICY: "of-the-next"}


def test_many_writers_of_one_epoch_end_where_the_store_ends(server: RedisServer, tmp_path: Path) -> None:
    """A rollback and a publisher at once: whatever the order in Redis, the store's word stays."""
    import threading

    writer, reader = replicas(server, tmp_path)
    other = told(FileBundles(tmp_path / "bundles"), opened(server.url))

    def write(through: RedisBundles, name: str) -> None:
        for n in range(60):
            through.point(POLICY, f"{name}{n}", 1)

    threads = [threading.Thread(target=write, args=(one, name)) for one, name in ((writer, "w"), (other, "o"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = FileBundles(tmp_path / "bundles").pointers()
    eventually(reader.pointers, final)
    eventually(lambda: in_redis(server), final)


def test_memory_serves_when_everything_is_away(server: RedisServer) -> None:
    class Leaving(MemoryBundles):
        away = False

        def pointers(self) -> dict[str, str]:
            if self.away:
                raise Unavailable("away")
            return super().pointers()

    store = Leaving()
    bundles = told(store, opened(server.url))
    bundles.point(POLICY, "b0", 1)
    assert bundles.pointers() == {POLICY: "b0"}
    eventually(lambda: bundles.following, True)
    store.away = True
    server.kill()
    eventually(lambda: bundles.following, False)
    assert bundles.pointers() == {POLICY: "b0"}


def test_redis_serves_when_the_store_is_away(server: RedisServer, tmp_path: Path) -> None:
    """A replica that keeps copies of bundles can draw from what Redis tells it, also when it starts."""

    class Gone(MemoryBundles):
        def pointers(self) -> dict[str, str]:
            raise Unavailable("away")

        epochs = pointers  # type: ignore[assignment]  # raises all the same

    alone = told(Gone(), opened(server.url))
    with pytest.raises(Unavailable):
        alone.pointers()
    writer = told(FileBundles(tmp_path / "bundles"), opened(server.url))
    writer.point(POLICY, "b0", 1)
    assert alone.pointers() == {POLICY: "b0"}
    eventually(lambda: alone.following, True)
    writer.point(POLICY, "b1", 1)
    eventually(alone.pointers, {POLICY: "b1"})
    server.flush()
    assert alone.pointers() == {POLICY: "b1"}


# --- counters and profiles -------------------------------------------------------------------------------------------


def feed(server: RedisServer) -> tuple[Feed, RedisCounters, RedisProfiles]:
    connection = opened(server.url)
    counters, profiles = RedisCounters(connection), RedisProfiles(connection)
    return Feed(0, 1, counters, profiles, time.monotonic, Derived()), counters, profiles


@pytest.mark.parametrize("fault", ["flush", "kill", "pause"])
def test_counters_and_profiles_are_told_again(server: RedisServer, fault: str) -> None:
    telling, counters, profiles = feed(server)
    telling.derived.counters.put("a", 1.0)
    telling.derived.profiles.put("u", b"one")
    assert telling.tell(1, now=True)
    getattr(server, fault)()
    telling.derived.counters.put("b", 2.0)
    assert telling.tell(2, now=True) is (fault == "flush")
    if fault == "kill":
        server.start()
    server.resume()
    eventually(lambda: telling.tell(2, now=True), True)
    eventually(lambda: _read(counters, profiles), ([1.0, 2.0], [b"one"]))
    server.flush()  # and nothing happens any more
    eventually(lambda: telling.tell(2, now=True), True)
    assert _read(counters, profiles) == ([1.0, 2.0], [b"one"])


def _read(counters: RedisCounters, profiles: RedisProfiles) -> Any:
    try:
        return counters.read(["a", "b"]), profiles.read(["u"])
    except Unavailable:
        return None


def test_readers_see_the_old_values_until_all_new_ones_are_there(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = opened(server.url)
    counters = RedisCounters(connection)
    counters.write(0, Mark(1, 1), {"a": 1.0}, None)
    ask, calls = RedisConnection.ask, iter(range(100))

    def dying(self: RedisConnection, question: Any) -> Any:
        if next(calls) == 2:  # after the first piece
            raise Unavailable("gone")
        return ask(self, question)

    monkeypatch.setattr(RedisConnection, "ask", dying)
    many = {f"n{n}": 1.0 for n in range(2 * PIECE)}
    with pytest.raises(Unavailable):
        counters.write(0, Mark(2, 1), many, None)
    monkeypatch.undo()
    assert counters.read(["a", "n0"]) == [1.0, 0.0]
    with server.client() as client:
        left = [key for key in client.keys("*") if key.endswith(b":2")]
        assert [client.ttl(key) > 0 for key in left] == [True]  # goes by itself
    counters.write(0, Mark(2, 1), many, None)
    assert counters.read(["a", "n0", f"n{2 * PIECE - 1}"]) == [0.0, 1.0, 1.0]
    with server.client() as client:
        assert [client.ttl(key) for key in client.keys("*counters*")] == [-1]  # and these do not


# --- Sentinel and Cluster --------------------------------------------------------------------------------------------


def everything_works(connection: RedisConnection, folder: Path, name: str) -> None:
    """Each adapter, on keys in many slots."""
    store = RedisClaims(connection)
    for n in range(20):
        assert store.claim("default", f"{name}{n}", b"first", 0.0) is None
        assert store.claim("default", f"{name}{n}", b"second", 0.0) == b"first"
    counters = RedisCounters(connection, 5)
    marks = [Mark(1, time.monotonic_ns() + step) for step in range(2)]
    for partition in range(5):
        assert counters.write(partition, marks[0], {name: 1.0}, None)
        assert counters.write(partition, marks[1], {name: 2.0}, marks[0])
    assert counters.read([name, "none"]) == [10.0, 0.0]
    writer, reader = (told(FileBundles(folder / name), connection) for _ in range(2))
    assert reader.pointers() == {}
    eventually(lambda: reader.following, True)
    for n in range(5):
        writer.point(f"{name}/ts", f"b{n}", 1)
        eventually(lambda n=n: reader.pointers().get(f"{name}/ts"), f"b{n}")  # type: ignore[misc]  # a default argument


def test_sentinels_say_who_is_the_master(tmp_path: Path) -> None:
    with started(lambda: RedisService(tmp_path / "service")) as service:
        connection = opened(service.url)
        everything_works(connection, tmp_path, "before")
        service.servers[0].kill()
        store = RedisClaims(connection)
        assert refused(store, "while there is no master")
        eventually(lambda: refused(store, "after"), False)
        everything_works(connection, tmp_path, "then")


def test_a_cluster_holds_each_key_on_its_node(tmp_path: Path) -> None:
    with started(lambda: RedisNodes(tmp_path / "nodes")) as nodes:
        connection = opened(nodes.url)
        everything_works(connection, tmp_path, "before")
        sizes = []
        for server in nodes.servers:
            with server.client() as client:
                sizes.append(client.dbsize())
        assert all(sizes)
        for server in nodes.servers:
            server.kill()
        store = RedisClaims(connection)
        assert all(refused(store, f"gone-{n}") for n in range(10))
