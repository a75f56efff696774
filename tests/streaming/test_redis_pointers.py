"""Pointers through Redis: told within moments, the store's last word, and the store alone while Redis is away or empty.

A paused server holds its connections open and says nothing; while it is paused, that a call comes back at all shows that
its time is bounded.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.errors import Rejected, Unavailable
from services.stack.redis import RedisServer
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles
from streaming.adapters.redis import RedisBundles
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
