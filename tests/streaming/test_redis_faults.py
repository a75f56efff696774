"""Redis killed, paused, flushed, restarted, failed over: each is a stated degraded mode, never an error nobody expects and
never an answer that waits for Redis.

A paused server holds its connections open and says nothing; while it is paused, that a call comes back at all shows that
its time is bounded.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.connection import Connection

from policies.errors import Rejected, Unavailable
from services.loopback import free_port
from services.stack.redis import RedisNodes, RedisServer, RedisService
from streaming.adapters.files import FileBundles
from streaming.adapters.redis import RedisClaims, RedisConnection, RedisCounters, RedisProfiles, connect
from streaming.adapters.redis_tables import PIECE
from streaming.derived import Derived
from streaming.feed import Feed
from streaming.ports import Mark
from tests.redis_setup import close_opened, eventually, opened, started, told


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


def test_many_claims_are_one_exchange(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = claims(server)
    assert store.claim("default", "taken", b"before", 0.0) is None
    sent: list[int] = []
    send = Connection.send_packed_command

    def counting(self: Connection, command: Any, check_health: bool = True) -> Any:
        sent.append(len(command))
        return send(self, command, check_health)

    monkeypatch.setattr(Connection, "send_packed_command", counting)
    found = store.claim_all("default", [("taken", b"x"), *((f"d{n}", b"first") for n in range(200))], 0.0)
    assert found == [b"before", *[None] * 200]
    assert len(sent) == 1


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
        if self is connection and next(calls) == 2:  # after the first piece; threads of others ask too
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
        assert all(client.ttl(key) > 0 for key in left)  # goes by itself, and on a slow machine has gone
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
        connection = opened(f"{service.url}?timeout_ms=4000")  # patience with a busy machine
        everything_works(connection, tmp_path, "before")
        service.servers[0].kill()
        store = RedisClaims(connection)
        assert refused(store, "while there is no master")
        eventually(lambda: refused(store, "after"), False)
        everything_works(connection, tmp_path, "then")


def test_a_cluster_holds_each_key_on_its_node(tmp_path: Path) -> None:
    with started(lambda: RedisNodes(tmp_path / "nodes")) as nodes:
        connection = opened(f"{nodes.url}?timeout_ms=4000")  # patience with a busy machine
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


# --- passwords and TLS -----------------------------------------------------------------------------------------------


def test_a_password_is_asked_for_and_given(tmp_path: Path) -> None:
    with started(lambda: RedisServer(tmp_path / "redis")) as server:
        with server.client() as client:
            client.config_set("requirepass", "p@ss/word")
        host = f"127.0.0.1:{server.port}"
        for url in (f"redis://{host}", f"redis://:wrong@{host}"):
            assert refused(RedisClaims(opened(url)), "d1")
        assert RedisClaims(opened(f"redis://:p%40ss%2Fword@{host}")).claim("default", "d1", b"x", 0.0) is None
        outside = connect(f"redis://{host}", clock=time.monotonic, password="p@ss/word")
        assert RedisClaims(outside).claim("default", "d1", b"y", 0.0) == b"x"
        outside.close()


def test_tls_is_spoken_and_only_a_known_certificate_believed(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, for a certificate")
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    port = free_port()
    options = [f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}", "tls-auth-clients no"]
    with started(lambda: RedisServer(tmp_path / "redis", options=options)):
        trusting = RedisClaims(opened(f"rediss://127.0.0.1:{port}/0?ca={certificate}"))
        assert trusting.claim("default", "d1", b"x", 0.0) is None
        assert refused(RedisClaims(opened(f"rediss://127.0.0.1:{port}/0")), "d1")
        assert refused(RedisClaims(opened(f"redis://127.0.0.1:{port}/0")), "d1")
