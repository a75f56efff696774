"""`slatewise dead-letters replay`: what was refused is brought to the log again, on every adapter, each letter once a call."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from policies.errors import Unavailable
from services.cli import main
from services.dead_letters import PAGE, Replayed, replay
from services.settings import Settings
from services.wiring import open_dead_letters, open_log
from streaming.adapters.memory import MemoryDeadLetters, MemoryLog
from streaming.adapters.sqlite import SqliteDeadLetters, SqliteLog
from streaming.ports import DeadLetter, DeadLetters, Log
from tests import kafka_setup

Stores = tuple[DeadLetters, Log]


def kafka(folder: Path) -> tuple[Any, Any]:
    return kafka_setup.letters(folder), kafka_setup.log(folder, 2)


STORES: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "memory": lambda _: (MemoryDeadLetters(), MemoryLog(2)),
    "sqlite": lambda folder: (SqliteDeadLetters(folder / "dead.sqlite"), SqliteLog(folder / "log.sqlite", 2)),
    "kafka": kafka,
}


@pytest.fixture(params=STORES)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    opened = STORES[request.param](tmp_path)
    with ExitStack() as stack:
        for one in opened:
            if hasattr(one, "close"):
                stack.callback(one.close)
        yield opened


def letter(offset: int, reason: str = "unknown_surface") -> DeadLetter:
    return DeadLetter(0, offset, reason, "why", b"%016x" % (offset % 7), b"value %d" % offset)


def in_log(log: Log) -> list[bytes]:
    return sorted(record.value for p in range(log.partitions) for record in log.read(p, 0, 100_000))


def test_records_come_back_with_their_keys(stores: Stores) -> None:
    letters, log = stores
    letters.put([letter(n, "too_late" if n % 3 else "unknown_surface") for n in range(30)])
    done = replay(letters, log, reason="unknown_surface")
    assert done.records == 10
    assert done.last == letters.read()[-1][0]
    assert in_log(log) == sorted(b"value %d" % n for n in range(0, 30, 3))
    assert all(r.key == letter(int(r.value.split()[1])).key for p in range(2) for r in log.read(p, 0, 100))


def test_it_goes_on_after_the_last_number(stores: Stores) -> None:
    letters, log = stores
    letters.put([letter(n) for n in range(5)])
    first = replay(letters, log)
    letters.put([letter(9)])
    second = replay(letters, log, after=first.last)
    assert (first.records, second.records) == (5, 1)
    assert replay(letters, log, after=second.last) == Replayed(0, second.last)
    assert in_log(log) == sorted(b"value %d" % n for n in (0, 1, 2, 3, 4, 9))


class Refusing(MemoryLog):
    """A log whose reader sets everything aside again at once."""

    def __init__(self, letters: MemoryDeadLetters) -> None:
        super().__init__(1)
        self._letters = letters

    def append(self, records: Any, position: Any = None) -> None:
        start = 1000 + self.end(0)[0]
        super().append(records, position)
        self._letters.put([DeadLetter(0, start + n, "again", "", key, value) for n, (key, value) in enumerate(records)])


def test_what_comes_back_is_left_for_the_next_time() -> None:
    letters = MemoryDeadLetters()
    letters.put([letter(n) for n in range(PAGE + 3)])
    log = Refusing(letters)
    assert replay(letters, log) == Replayed(PAGE + 3, PAGE + 3)
    assert log.end(0)[0] == PAGE + 3


def test_a_log_that_is_away_is_said_and_nothing_is_skipped() -> None:
    class Away(MemoryLog):
        def append(self, records: Any, position: Any = None) -> None:
            raise Unavailable("gone")

    letters = MemoryDeadLetters()
    letters.put([letter(1)])
    with pytest.raises(Unavailable, match="gone"):
        replay(letters, Away())


def test_the_command(tmp_path: Path) -> None:
    settings = Settings.load({}, data=tmp_path / "data")
    open_dead_letters(settings).put([letter(1), letter(2, "too_late"), letter(3)])
    arguments = ["dead-letters", "replay", "--reason", "unknown_surface", "--data", str(tmp_path / "data")]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 0, ended.output
    assert "2 records are in the log again; go on with --after 3" in ended.output
    assert in_log(open_log(settings)) == [b"value 1", b"value 3"]
    ended = CliRunner().invoke(main, [*arguments, "--after", "3"])
    assert "0 records" in ended.output
    assert in_log(open_log(settings)) == [b"value 1", b"value 3"]
