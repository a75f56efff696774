"""Kafka for tests: one real broker a session, or the one at `KAFKA_BOOTSTRAP`; every test uses topics of its own."""

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.stack.kafka import Broker, missing
from streaming.adapters.kafka import KafkaAddress, KafkaDeadLetters, KafkaLog, KafkaState, parse_kafka
from streaming.adapters.kafka_confluent import ConfluentLog

Test = TypeVar("Test", bound=Callable[..., None])
_lock = threading.Lock()
_started: list[Broker] = []
_folders: list[tempfile.TemporaryDirectory[str]] = []


def bootstrap() -> str:
    """host:port of the session's broker, started by the first test that asks; skips where there is no Java."""
    given = os.environ.get("KAFKA_BOOTSTRAP")
    if given:
        return given
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with _lock:
        if not _started:
            _folders.append(tempfile.TemporaryDirectory(prefix="slatewise-kafka-"))
            _started.append(Broker(Path(_folders[-1].name)).start())
        return _started[0].bootstrap


def stop() -> None:
    """At the end of the session."""
    while _started:
        _started.pop().stop()
    while _folders:
        _folders.pop().cleanup()


def address(confluent: bool = False) -> KafkaAddress:
    return parse_kafka(f"kafka{'+confluent' if confluent else ''}://{bootstrap()}", "test")


def fresh(what: str = "topic") -> str:
    """A topic name nobody has used."""
    return f"{what}-{uuid.uuid4().hex}"


def topic_of(folder: Path, what: str) -> str:
    """One name for one folder, so that opening an adapter on a folder again finds what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    named = folder / f"{what}.name"
    if not named.exists():
        named.write_text(fresh(what))
    return named.read_text()


def log(folder: Path, partitions: int = 4, *, confluent: bool = False, **options: Any) -> KafkaLog:
    """A log on a topic of this folder's own."""
    kind = ConfluentLog if confluent else KafkaLog
    options.setdefault("topic", topic_of(folder, "events"))
    place = folder / "positions"
    return kind(address(confluent), partitions=partitions, positions=place, clock=time.monotonic, **options)


def state(folder: Path) -> KafkaState:
    return KafkaState(address(), topic_of(folder, "state"), clock=time.monotonic)


def letters(folder: Path) -> KafkaDeadLetters:
    return KafkaDeadLetters(address(), topic_of(folder, "dead"), clock=time.monotonic)


def away(test: Test) -> Test:
    """Of a test in which a cluster goes away or refuses: kafka-python lets go of the sockets it could not use without
    closing them. They are collected before the next test, which would be blamed for them."""
    unclosed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return unclosed(pytest.mark.usefixtures("swept")(test))  # type: ignore[no-any-return]  # marks are untyped


@contextmanager
def broker(**options: Any) -> Iterator[Broker]:
    """A broker of a test's own, to be stopped, killed or paused."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slatewise-kafka-") as folder:
        one = Broker(Path(folder), **options)
        try:
            yield one.start()
        finally:
            one.stop()
