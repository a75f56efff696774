"""One redis-server for all tests that only need a Redis, and a namespace of its own for each folder that asks."""

import atexit
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.stack.redis import RedisServer
from streaming.adapters.redis import RedisBundles, RedisConnection, connect
from streaming.ports import Bundles

DEADLINE_SECONDS = 60.0
T = TypeVar("T")
S = TypeVar("S", bound=AbstractContextManager[Any])
_opened: list[Any] = []


@cache
def shared_redis() -> RedisServer:
    """The server, started with the first test that needs it."""
    folder = tempfile.TemporaryDirectory(prefix="slatewise-redis-")
    server = start_or_skip(lambda: RedisServer(Path(folder.name)))
    atexit.register(folder.cleanup)
    atexit.register(server.stop)  # the other way round: first stopped, then removed
    return server


def start_or_skip(start: Callable[[], T]) -> T:
    """Only what is not installed is skipped: a server that does not come up is a failure."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server: apt-get install redis-server")
    return start()


@contextmanager
def started(start: Callable[[], S]) -> Iterator[S]:
    """Servers of a test's own."""
    with start_or_skip(start) as servers:
        yield servers


def namespace(folder: Path) -> str:
    """The URL of the shared server, with a prefix that is the folder's, and patience with a busy machine."""
    return f"{shared_redis().url}?timeout_ms=20000&prefix={hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()}"


def opened(url: str) -> RedisConnection:
    """A connection, closed by `close_opened`."""
    connection = connect(url, clock=time.monotonic)
    _opened.append(connection)
    return connection


def told(bundles: Bundles, connection: RedisConnection) -> RedisBundles:
    """Pointers through Redis, closed by `close_opened`."""
    wrapped = RedisBundles(bundles, connection)
    _opened.append(wrapped)
    return wrapped


def close_opened() -> None:
    while _opened:
        _opened.pop().close()


def eventually(look: Callable[[], T], wanted: T) -> None:
    """Wait until something is as wanted: a generous deadline, no promise of speed."""
    until = time.monotonic() + DEADLINE_SECONDS
    while (found := look()) != wanted:
        assert time.monotonic() < until, f"still {found!r}, expected {wanted!r}"
        time.sleep(0.005)
