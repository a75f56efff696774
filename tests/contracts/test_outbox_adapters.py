"""The numbered outbox of commits, over every adapter of checkpoints."""

from pathlib import Path
from typing import Protocol

import pytest

from policies.errors import Corrupt, Rejected
from streaming.adapters.memory import MemoryCheckpoints
from streaming.adapters.sqlite import SqliteCheckpoints
from streaming.ports import Checkpoints, Commit, Outbox
from tests.contracts.adapter_suite import Adapter, Check, Suite, run


class Settled(Checkpoints, Outbox, Protocol):
    """Both ports in one store, as settling has them."""


suite: Suite[Settled] = Suite(
    [
        Adapter("MemoryCheckpoints", lambda _: MemoryCheckpoints(), durable=False),
        Adapter("SqliteCheckpoints", lambda folder: SqliteCheckpoints(folder / "settled.sqlite")),
    ]
)
Opened = Adapter[Settled]


def commit(offset: int, number: int, *rows: bytes, epoch: int = 1) -> Commit:
    return Commit(partition=0, offset=offset, clock=1.0, epoch=epoch, outbox=(number, rows) if rows else None)


@suite.check
def rows_come_back_by_number(adapter: Opened, folder: Path) -> None:
    store = adapter.open(folder)
    assert (store.numbers(), store.pull(0, 10)) == ((0, 0), [])
    store.commit(commit(3, 0, b"a", b"b"))
    store.commit(commit(5, 2))
    store.commit(commit(6, 2, b"c"))
    assert store.numbers() == (0, 3)
    assert store.pull(0, 10) == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert store.pull(1, 1) == [(1, b"b")]
    assert store.pull(3, 10) == []


@suite.check
def a_repeated_commit_changes_nothing(adapter: Opened, folder: Path) -> None:
    store = adapter.open(folder)
    for _ in range(2):
        store.commit(commit(3, 0, b"a", b"b"))
    assert store.pull(0, 10) == [(0, b"a"), (1, b"b")]


@suite.check
def a_commit_that_is_refused_adds_no_rows(adapter: Opened, folder: Path) -> None:
    store = adapter.open(folder)
    store.commit(commit(3, 0, b"a", epoch=2))
    with pytest.raises(Rejected):
        store.commit(commit(4, 1, b"b", epoch=1))
    assert store.numbers() == (0, 1)
    assert store.pull(0, 1) == [(0, b"a")]


@suite.check
def numbers_may_begin_anywhere(adapter: Opened, folder: Path) -> None:
    store = adapter.open(folder)
    store.commit(commit(900, 1_000, b"a", b"b"))
    assert store.numbers() == (1_000, 1_002)
    assert store.pull(1_001, 10) == [(1_001, b"b")]


@suite.check
def what_is_trimmed_or_not_there_yet_is_refused(adapter: Opened, folder: Path) -> None:
    store = adapter.open(folder)
    with pytest.raises(Corrupt, match="number_out_of_range"):
        store.pull(1, 1)
    store.commit(commit(5, 0, b"a", b"b", b"c", b"d"))
    store.trim(2)
    assert store.numbers() == (2, 4)
    assert store.pull(2, 10) == [(2, b"c"), (3, b"d")]
    for number in (0, 1, 5):
        with pytest.raises(Corrupt, match="number_out_of_range"):
            store.pull(number, 10)
    store.trim(1)
    assert store.numbers() == (2, 4)
    store.trim(1_000)
    assert store.numbers() == (3, 4)  # the newest stays: it tells the next number
    store.commit(commit(6, 4, b"e"))
    assert store.pull(3, 10) == [(3, b"d"), (4, b"e")]


@suite.check
def beginning_again_keeps_what_was_given_out(adapter: Opened, folder: Path) -> None:
    store = adapter.open(folder)
    store.commit(commit(5, 0, b"a", b"b"))
    store.commit(Commit(partition=0, offset=0, clock=0.0, epoch=1, restart=True))
    assert store.pull(0, 10) == [(0, b"a"), (1, b"b")]


@suite.check_durable
def rows_outlive_the_process(adapter: Opened, folder: Path) -> None:
    adapter.open(folder).commit(commit(3, 0, b"a", b"b"))
    again = adapter.open(folder)
    assert again.pull(0, 10) == [(0, b"a"), (1, b"b")]
    assert again.load().offset == 3


@suite.parametrize()
def test_outbox(adapter: Opened, check: Check, tmp_path: Path) -> None:
    run(adapter, check, tmp_path)


def test_a_commit_that_breaks_adds_no_rows_and_moves_no_offset(tmp_path: Path) -> None:
    """One transaction: SQLite refuses a row half way."""
    store = SqliteCheckpoints(tmp_path / "settled.sqlite")
    store.commit(commit(3, 0, b"a"))
    with pytest.raises(Corrupt):
        store.commit(commit(4, 1, b"b", None))  # type: ignore[arg-type]
    assert (store.numbers(), store.load().offset) == ((0, 1), 3)
    store.close()
