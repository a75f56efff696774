"""The record on Kafka: two writers at once, writers that are ended half way, what an operator does to the topic."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from kafka import KafkaProducer

from policies.errors import Rejected, Unavailable
from services.epochs import take_epoch
from streaming.adapters.kafka import KafkaState
from streaming.ports import Versioned
from tests import kafka_setup
from tests.streaming.children import ROOT

TRIES = 4


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def state(opened: ExitStack, folder: Path) -> KafkaState:
    return opened.enter_context(closing(kafka_setup.state(folder)))


def wait_for(one: KafkaState, version: int) -> None:
    """What others write is seen soon, and not with the very next look."""
    until = time.monotonic() + 60
    while one.version() < version:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_of_two_that_count_at_once_neither_is_lost(opened: ExitStack, tmp_path: Path) -> None:
    """Compare-and-set: every increment is made on top of the one before."""
    states = [state(opened, tmp_path) for _ in range(3)]
    failed: list[BaseException] = []

    def count(mine: KafkaState) -> None:
        done = 0
        try:
            while done < TRIES:
                seen = mine.version()
                found = mine.get("counter", "n")
                value = int(found.value or 0) if found else 0
                try:
                    mine.put([("counter", "n", b"%d" % (value + 1))], expect=seen)
                except Rejected:
                    continue
                done += 1
        except BaseException as error:  # noqa: BLE001 - shown by the test, in its own thread
            failed.append(error)

    threads = [threading.Thread(target=count, args=(one,)) for one in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    for one in states:
        wait_for(one, 3 * TRIES)
        assert one.read() == [Versioned(3 * TRIES, "counter", "n", b"%d" % (3 * TRIES))]


def test_epochs_of_services_that_start_at_once_are_their_own(opened: ExitStack, tmp_path: Path) -> None:
    states = [state(opened, tmp_path) for _ in range(3)]
    taken: list[int] = []
    threads = [threading.Thread(target=lambda one=one: taken.append(take_epoch(one))) for one in states]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(taken)) == 3


def test_writers_follow_each_other_whoever_began_last(opened: ExitStack, tmp_path: Path) -> None:
    one, other = state(opened, tmp_path), state(opened, tmp_path)
    for n in range(4):
        assert (one if n % 2 else other).put([("item", "a", b"%d" % n)]) == n + 1
    with pytest.raises(Rejected, match="item a has been written"):
        one.put([("item", "a", b"late")], expect=2)
    assert one.read() == [Versioned(4, "item", "a", b"3")], "what it wrote or was refused for, it knows"
    wait_for(other, 4)
    assert other.read() == one.read()


def test_a_writer_that_died_before_its_commit_has_written_nothing(opened: ExitStack, tmp_path: Path) -> None:
    mine = state(opened, tmp_path)
    mine.put([("item", "a", b"1")])
    name = kafka_setup.topic_of(tmp_path, "state")
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from kafka import KafkaProducer
producer = KafkaProducer(bootstrap_servers={kafka_setup.bootstrap()!r}, transactional_id={name!r})
producer.init_transactions()
producer.begin_transaction()
producer.send({name!r}, b"half", b'["item","a"]', [("version", b"2")], 0)
producer.flush(30)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == -9
    assert mine.read() == [Versioned(1, "item", "a", b"1")], "what is not committed is not read"
    assert mine.put([("item", "b", b"2")]) == 2
    with closing(kafka_setup.state(tmp_path)) as fresh:
        assert fresh.read() == [Versioned(1, "item", "a", b"1"), Versioned(2, "item", "b", b"2")]


def test_a_commit_whose_answer_is_lost_is_found_and_not_made_twice(
    opened: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = state(opened, tmp_path)
    mine.put([("item", "a", b"1")])
    commit, lost = KafkaProducer.commit_transaction, []

    def losing(producer: KafkaProducer) -> None:
        commit(producer)
        if not lost:
            lost.append(1)
            raise ConnectionError("the answer did not come")

    monkeypatch.setattr(KafkaProducer, "commit_transaction", losing)
    assert mine.put([("item", "a", b"2"), ("item", "b", b"2")], expect=1) == 3
    assert lost
    assert [(entry.version, entry.value) for entry in mine.read()] == [(2, b"2"), (3, b"2")]


def test_a_write_that_never_comes_through_is_unavailable(
    opened: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = opened.enter_context(
        closing(
            KafkaState(
                kafka_setup.address(),
                kafka_setup.topic_of(tmp_path, "state"),
                clock=time.monotonic,
                timeout_seconds=2.0,
            )
        )
    )
    mine.put([("item", "a", b"1")])

    def lost(producer: KafkaProducer) -> None:
        raise ConnectionError("no way through")

    monkeypatch.setattr(KafkaProducer, "commit_transaction", lost)
    with pytest.raises(Unavailable, match="no way through"):
        mine.put([("item", "a", b"2")])
    monkeypatch.undo()
    assert mine.put([("item", "a", b"3")], expect=1) == 2
    assert mine.read() == [Versioned(2, "item", "a", b"3")]


def test_strangers_records_and_tombstones_stop_nobody(opened: ExitStack, tmp_path: Path) -> None:
    mine = state(opened, tmp_path)
    mine.put([("item", "a", b"1"), ("item", "b", b"1")])
    name = kafka_setup.topic_of(tmp_path, "state")
    with closing(KafkaProducer(bootstrap_servers=kafka_setup.bootstrap())) as producer:
        for key, value in ((b"no key of ours", b"x"), (b'["item","c"]', b"no version"), (b'["item","a"]', None)):
            producer.send(name, value, key)
        producer.flush(30)
    assert mine.put([("item", "b", b"2")]) == 3
    with closing(kafka_setup.state(tmp_path)) as fresh:
        assert fresh.read() == mine.read() == [Versioned(3, "item", "b", b"2")]


def test_a_topic_that_is_not_compacted_is_refused(tmp_path: Path) -> None:
    with closing(kafka_setup.log(tmp_path, 1)) as log:
        assert log.identity
        wrong = KafkaState(kafka_setup.address(), log.topic, clock=lambda: 0.0)
        with closing(wrong), pytest.raises(Rejected, match=r"cleanup.policy=delete, it must be compact"):
            wrong.version()


def test_many_entries_are_one_write(opened: ExitStack, tmp_path: Path) -> None:
    mine, other = state(opened, tmp_path), state(opened, tmp_path)
    assert mine.put([("item", str(n), b"x" * 200) for n in range(3000)]) == 3000
    assert [entry.version for entry in other.read(0, 5000)] == list(range(1, 3001))
