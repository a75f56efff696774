"""One redis-server for all tests that only need a Redis, and a namespace of its own for each folder that asks."""

import atexit
import hashlib
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from policies.errors import Unavailable
from services.stack.redis import RedisServer
from streaming.adapters.redis import RedisBundles, RedisConnection, connect
from streaming.ports import Bundles

DEADLINE_SECONDS = 60.0
T = TypeVar("T")
_opened: list[Any] = []


@cache
def shared_redis() -> RedisServer:
    """The server, started with the first test that needs it."""
    folder = tempfile.TemporaryDirectory(prefix="slatewise-redis-")
    try:
        server = RedisServer(Path(folder.name))
    except Unavailable as error:
        pytest.skip(f"needs redis-server: {error}")
    atexit.register(folder.cleanup)
    atexit.register(server.stop)  # the other way round: first stopped, then removed
    return server


def namespace(folder: Path) -> str:
    """The URL of the shared server, with a prefix that is the folder's."""
    return f"{shared_redis().url}?prefix={hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()}"


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
