"""Producers that are not ours: any client, any hash, any codec, any nonsense. What is right is learned, once; what is not is
set aside with its reason; no partition stops."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from kafka import KafkaProducer

from policies.types import Arrays
from streaming.adapters.kafka import KafkaLog
from streaming.adapters.kafka_strays import REROUTED
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters
from streaming.events import encode
from streaming.partition import partition_of
from streaming.shard import Shard
from tests import kafka_setup
from tests.streaming.joining import TallyConfigs, decision, feedback, same, surface, total

PARTITIONS = 4
CONFIGS = TallyConfigs()
PLAIN = CONFIGS.add(surface())
UNITS = [f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in range(1, 25)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[KafkaLog]:
    with closing(kafka_setup.log(tmp_path, PARTITIONS)) as opened:
        yield opened


def decisions(now: float) -> list[tuple[bytes, bytes]]:
    """One decision of each unit, as our forwarder sends them."""
    return [(unit.encode(), encode(decision(PLAIN, f"{unit}-d", now, unit=unit))) for unit in UNITS]


def clicks(now: float) -> list[tuple[bytes, bytes]]:
    """Feedback on each of them, as a backend would write it: some with an id, some without."""
    return [
        (
            unit.encode(),
            encode(feedback(f"{unit}-d", now, unit=unit, slot=n % 3, value=n / 8, feedback_id="f" * (n % 2))),
        )
        for n, unit in enumerate(UNITS)
    ]


class House:
    """The shards of all partitions of a log."""

    def __init__(self, log: KafkaLog) -> None:
        self.log, self.letters = log, MemoryDeadLetters()
        self.shards = [
            Shard(p, log, MemoryCheckpoints(), CONFIGS, self.letters, epoch=1, read_limit=7)
            for p in range(log.partitions)
        ]

    def drain(self) -> None:
        """Until every partition has been read to its end, also what was moved meanwhile."""
        self.log_ends()
        while any(shard.offset < self.log.end(p)[0] for p, shard in enumerate(self.shards)):
            for shard in self.shards:
                shard.step()

    def log_ends(self) -> None:
        for reader in self.log._readers:
            reader.forget()  # strangers have written: do not wait a second to find out

    def sums(self) -> Arrays:
        found: Arrays = {}
        for shard in self.shards:
            for name, array in total(shard.statistics().arrays).items():
                found[name] = found.get(name, np.zeros_like(array)) + array
        return found

    def reasons(self) -> list[str]:
        return [letter.reason for _, letter in self.letters.read()]


def expected(tmp_path: Path, now: float) -> Arrays:
    """The sums when all came through our own log."""
    with closing(kafka_setup.log(tmp_path / "expected", PARTITIONS)) as opened:
        opened.append(decisions(now))
        opened.append(clicks(now))
        house = House(opened)
        house.drain()
        assert house.reasons() == []
        return house.sums()


def by_kafka_python(topic: str, records: Sequence[tuple[bytes | None, bytes]], **options: Any) -> None:
    with closing(KafkaProducer(bootstrap_servers=kafka_setup.bootstrap(), **options)) as producer:
        for key, value in records:
            producer.send(topic, value, key)
        producer.flush(30)


def by_confluent(topic: str, records: Sequence[tuple[bytes | None, bytes]], **options: Any) -> None:
    producer = Producer({"bootstrap.servers": kafka_setup.bootstrap(), **options})
    for key, value in records:
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0


def test_a_plain_kafka_python_producer_is_learned_from(log: KafkaLog, tmp_path: Path) -> None:
    now = time.time()
    log.append(decisions(now))
    by_kafka_python(log.topic, clicks(now), compression_type="gzip")
    house = House(log)
    house.drain()
    assert house.reasons() == []
    same(house.sums(), expected(tmp_path, now))


@pytest.mark.parametrize("codec", ["none", "zstd", "snappy"])
def test_librdkafkas_own_hash_finds_the_right_partition_after_all(log: KafkaLog, tmp_path: Path, codec: str) -> None:
    now = time.time()
    log.append(decisions(now))
    by_confluent(log.topic, clicks(now), **{"compression.type": codec})
    found = [record.key.decode() for p in range(PARTITIONS) for record in log.read(p, 0, 1000)]
    lying = [(p, record) for p in range(PARTITIONS) for record in log.read(p, 0, 1000)]
    assert sorted(found) == sorted([*UNITS, *UNITS])
    assert any(partition_of(record.key, PARTITIONS) != p for p, record in lying), (
        "CRC32 would have to agree with murmur2"
    )
    house = House(log)
    house.drain()
    assert house.reasons() == []
    same(house.sums(), expected(tmp_path, now))


def test_what_counts_is_the_unit_and_not_the_key(log: KafkaLog, tmp_path: Path) -> None:
    now = time.time()
    log.append(decisions(now))
    keys = [None, b"user-42", b""]
    by_kafka_python(log.topic, [(keys[n % 3], value) for n, (_, value) in enumerate(clicks(now))])
    house = House(log)
    house.drain()
    assert house.reasons() == []
    same(house.sums(), expected(tmp_path, now))


def test_a_stray_is_moved_once_and_then_set_aside(log: KafkaLog) -> None:
    unit = UNITS[0]
    home = partition_of(unit.encode(), PARTITIONS)
    wrong = (home + 1) % PARTITIONS
    value = encode(feedback(f"{unit}-d", time.time(), unit=unit))
    log.identity  # noqa: B018 - makes the topic
    with closing(KafkaProducer(bootstrap_servers=kafka_setup.bootstrap())) as producer:
        producer.send(log.topic, value, unit.encode(), partition=wrong)
        producer.send(log.topic, value, unit.encode(), [(REROUTED, b"3:17")], partition=wrong)
        producer.flush(30)
    house = House(log)
    house.drain()
    moved = log.read(home, 0, 10)
    assert [(record.key, record.value) for record in moved] == [(unit.encode(), value)]
    ((_, letter),) = house.letters.read()
    assert (letter.reason, letter.partition, letter.offset) == ("misplaced", wrong, 1)
    assert letter.detail == f"belongs to partition {home}, was found at 3:17 before"


def test_a_step_that_is_repeated_after_moving_changes_nothing(log: KafkaLog, tmp_path: Path) -> None:
    now = time.time()
    log.append(decisions(now))
    by_confluent(log.topic, clicks(now))
    for p in range(PARTITIONS):  # a shard that died after it had moved its strays and before its commit
        log.reroute(p, log.read(p, 0, 1000))
    house = House(log)
    house.drain()
    assert house.reasons() == []
    same(house.sums(), expected(tmp_path, now))


def test_what_is_read_again_to_rebuild_joins_is_not_moved_again(log: KafkaLog) -> None:
    log.append(decisions(time.time()))
    by_confluent(log.topic, clicks(time.time()))
    before = [log.end(p)[0] for p in range(PARTITIONS)]
    for p in range(PARTITIONS):
        ours, letters = log.reroute(p, log.read(p, 0, 1000), again=False)
        assert letters == []
        assert all(partition_of(record.key, PARTITIONS) == p for record in ours)
    house = House(log)
    house.log_ends()
    assert [log.end(p)[0] for p in range(PARTITIONS)] == before


def test_a_transaction_that_was_aborted_never_happened(log: KafkaLog, tmp_path: Path) -> None:
    now = time.time()
    log.append(decisions(now))
    with closing(
        KafkaProducer(bootstrap_servers=kafka_setup.bootstrap(), transactional_id=kafka_setup.fresh("id"))
    ) as producer:
        producer.init_transactions()
        for commits in (False, True):
            producer.begin_transaction()
            for key, value in clicks(now) if commits else clicks(now - 1):
                producer.send(log.topic, value, key)
            producer.flush(30)
            producer.commit_transaction() if commits else producer.abort_transaction()
    house = House(log)
    records = 0
    until = time.monotonic() + 60
    while records < 2 * len(UNITS) and time.monotonic() < until:
        records += sum(shard.step().records for shard in house.shards)
    assert records == 2 * len(UNITS)
    assert house.reasons() == []
    same(house.sums(), expected(tmp_path, now))
    started = time.monotonic()
    assert [shard.step().records for shard in house.shards] == [0] * PARTITIONS, "the markers at the end are no records"
    assert time.monotonic() - started < 8, "a read that waited for a record behind the markers gave up only after 10 s"


def bad(now: float) -> list[tuple[str, bytes]]:
    """(reason, value) of what a stranger may send."""
    unit = UNITS[0]
    good = encode(feedback(f"{unit}-d", now, unit=unit, slot=0))
    made = decision(PLAIN, f"{unit}-e", now, unit=unit)
    return [
        ("undecodable", good[:-7]),
        ("undecodable", b""),
        ("undecodable", b"\xff\xfe" * 40),
        ("undecodable", b'{"type":"feedback","v":1}'),
        ("undecodable", b"[" * 100_000),
        ("undecodable", good.replace(b'"at":', b'"at":1e999,"x":')),
        ("undecodable", b'{"type":"feedback","decision_id":"' + b"x" * 1_000_000 + b'"}'),
        ("version", good[:-1] + b',"v":2}'),
        ("bad_time", encode(feedback(f"{unit}-d", 0.0, unit=unit, slot=0))),
        ("bad_time", encode(feedback(f"{unit}-d", 4102444800.0, unit=unit, slot=0))),
        ("bad_time", encode(decision(PLAIN, f"{unit}-f", 4102444800.0, unit=unit))),
        ("too_late", encode(decision(PLAIN, f"{unit}-g", 0.0, unit=unit))),
        ("unknown_config", encode(made).replace(PLAIN.hash.encode(), b"0" * len(PLAIN.hash))),
        ("bad_slot", encode(feedback(f"{unit}-d", now, unit=unit, slot=77))),
        ("unknown_kind", encode(feedback(f"{unit}-d", now, unit=unit, kind="no such kind"))),
        ("wrong_unit", encode(feedback(f"{unit}-d", now, unit=_neighbour(unit), slot=0))),
    ]


def _neighbour(unit: str) -> str:
    """Another unit of the same partition."""
    home = partition_of(unit.encode(), PARTITIONS)
    return next(other for other in UNITS if other != unit and partition_of(other.encode(), PARTITIONS) == home)


def test_nonsense_is_set_aside_with_its_reason_and_stops_nothing(log: KafkaLog) -> None:
    now = time.time()
    unit = UNITS[0]
    log.append([(unit.encode(), encode(decision(PLAIN, f"{unit}-d", now, unit=unit)))])
    sent = bad(now)
    by_kafka_python(log.topic, [(unit.encode(), value) for _, value in sent])
    by_kafka_python(log.topic, [(unit.encode(), encode(feedback(f"{unit}-d", now, unit=unit, slot=0)))])
    house = House(log)
    house.drain()
    letters = [letter for _, letter in house.letters.read()]
    assert [(letter.reason, letter.value[:99]) for letter in letters] == [(reason, v[:99]) for reason, v in sent]
    alone = House(log)
    assert alone.sums() == {}
    home = partition_of(unit.encode(), PARTITIONS)
    assert house.shards[home].offset == len(sent) + 2, "what came after them was read"
    assert total(house.shards[home].statistics().arrays)["n"].sum() > 0


def test_dead_letters_hold_what_was_set_aside(log: KafkaLog, tmp_path: Path) -> None:
    now, unit = time.time(), UNITS[0]
    log.identity  # noqa: B018 - makes the topic
    by_kafka_python(log.topic, [(unit.encode(), value) for _, value in bad(now)])
    with closing(kafka_setup.letters(tmp_path)) as letters:
        home = partition_of(unit.encode(), PARTITIONS)
        shard = Shard(home, log, MemoryCheckpoints(), CONFIGS, letters, epoch=1)
        while shard.step().records:
            pass
        values = [letter.value for _, letter in letters.read()]
        assert b"[" * 100_000 in values
        assert sum(letters.count().values()) == len(values) > 10
