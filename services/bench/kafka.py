"""From Kafka to learned, beside the raw clients on the same topic: records a second, one run, taken in turns.

    raw        a consumer of the client library that reads and looks at nothing, from the first record to the last
    learned    a shard over the adapter of that client: read, join, learn, commit
    two        two shards, each a process with a partition of its own
    sustained  decisions of some 10 kB produced at a steady rate while a shard learns: how far behind it is at the end

A record is a decision of 100 candidates and 10 slots, or its feedback. The broker is real and shares the machine, so what
it uses is missing elsewhere, for raw clients and for shards alike.
"""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import msgspec

from services.bench.report import Report
from services.bench.stream import make_log, records, surface
from services.settings import Settings
from services.stack.kafka import Broker, missing
from services.wiring import open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Configs
from streaming.events import Decision, decode, encode
from streaming.ports import Log
from streaming.shard import Shard

POLL = 4_000
TOPIC = "slatewise.events"
CLIENTS = {"kafka-python": "kafka", "confluent-kafka": "kafka+confluent"}
LARGE_CANDIDATES, LARGE_RATE = 650, 2_000  # ids that make a record of 10 kB; records a second
EACH_SECONDS = 0.05  # a batch of the producer


def measure(report: Report, decisions: int = 120_000, sustained_seconds: float = 10.0) -> None:
    """Rows of both clients; a note where no broker can be started."""
    lacking = missing()
    if lacking:
        report.note(f"kafka: {lacking}")
        return
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as place, Broker(Path(place) / "kafka") as broker:
        filled = Settings.load(
            {}, data=Path(place) / "filled", log=f"kafka+confluent://{broker.bootstrap}", partitions=2
        )
        with contextlib.closing(cast(Any, open_log(filled))) as log:
            make_log(log, Configs().add(surface()), decisions, time.time())
        both = 2 * decisions
        for client, scheme in CLIENTS.items():
            settings, python = replace(filled, log=f"{scheme}://{broker.bootstrap}"), scheme == "kafka"
            raw = (_raw_python if python else _raw_confluent)(broker.bootstrap, both)
            one = both / _shards(replace(settings, data=Path(place) / f"{scheme}-1"), [[0, 1]])
            two = both / _shards(replace(settings, data=Path(place) / f"{scheme}-2"), [[0], [1]])
            report.add(f"raw {client}", raw, "records/s")
            least = 0.7 if python else 60_000.0
            name = f"  joined and learned over {client}"
            report.add(name, one, "records/s", floor=raw, at_least=least, of_floor=python)
            report.add("  two shards, against one", two, "records/s", floor=one, at_least=1.7, of_floor=True)
        behind, size = _sustained(replace(filled, log=f"kafka://{broker.bootstrap}"), sustained_seconds)
        note = f"{LARGE_RATE} decisions/s of {size / 1000:.0f} kB for {sustained_seconds:g} s, kafka-python"
        report.add("  behind after sustained load", behind, "s", at_most=1.0, note=note)


def _sustained(settings: Settings, seconds: float) -> tuple[float, float]:
    """(seconds from the last record produced until it is learned, mean bytes of a record)."""
    context = multiprocessing.get_context("spawn")
    ready: Barrier = context.Barrier(2)
    told: Queue[tuple[float, float]] = context.Queue()
    producer = context.Process(target=_produce, args=(settings, seconds, ready, told))
    producer.start()
    _, shards = _opened(replace(settings, data=settings.data.with_name("sustained")), [0, 1])
    while any(shard.step().records for shard in shards):
        pass  # what the other measurements left
    ready.wait(timeout=900)
    wanted = sum(shard.offset for shard in shards) + int(seconds * LARGE_RATE)
    while sum(shard.offset for shard in shards) < wanted:
        for shard in shards:
            shard.step()
    done = time.monotonic()
    ended, size = told.get(timeout=60)
    producer.join()
    return max(done - ended, 0.0), size


def _produce(settings: Settings, seconds: float, ready: Barrier, told: "Queue[tuple[float, float]]") -> None:
    configs, count = Configs(), int(seconds * LARGE_RATE)
    compiled = configs.add(surface())
    large = [f"item-{number}" for number in range(LARGE_CANDIDATES)]
    made = []
    for key, value in records(compiled, count, time.time(), after=count, seed=1):
        event = decode(value)
        if not isinstance(event, Decision):
            break
        made.append((key, encode(msgspec.structs.replace(event, candidates=large))))
    log = open_log(replace(settings, data=settings.data.with_name("producer")))
    each = int(EACH_SECONDS * LARGE_RATE)
    ready.wait(timeout=900)
    started = time.monotonic()
    for number in range(0, count, each):
        time.sleep(max(0.0, started + number / LARGE_RATE - time.monotonic()))
        log.append(made[number : number + each])
    told.put((time.monotonic(), sum(len(value) for _, value in made) / count))


def _raw_python(bootstrap: str, records: int) -> float:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="none")
    partitions = [TopicPartition(TOPIC, p) for p in range(2)]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    try:
        return _rate(
            lambda: sum(len(batch) for batch in consumer.poll(timeout_ms=1_000, max_records=POLL).values()), records
        )
    finally:
        consumer.close(autocommit=False)


def _raw_confluent(bootstrap: str, records: int) -> float:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition(TOPIC, p, 0) for p in range(2)])
    try:
        return _rate(lambda: len(consumer.consume(POLL, timeout=1.0)), records)
    finally:
        consumer.close()


def _rate(more: Callable[[], int], records: int) -> float:
    """Records a second once records come: connecting is nobody's merit."""
    while not (first := more()):
        pass
    found, started = first, time.perf_counter()
    while found < records:
        found += more()
    return (records - first) / (time.perf_counter() - started)


def _shards(settings: Settings, seats: list[list[int]]) -> float:
    """Seconds from the first read to the last commit, of as many processes as seats."""
    context = multiprocessing.get_context("spawn")
    ready: Barrier = context.Barrier(len(seats))
    spans: Queue[tuple[float, float]] = context.Queue()
    workers = [context.Process(target=_seat, args=(settings, seat, ready, spans)) for seat in seats]
    for worker in workers:
        worker.start()
    started, ended = zip(*[spans.get(timeout=900) for _ in workers], strict=True)
    for worker in workers:
        worker.join()
    return float(max(ended) - min(started))


def _opened(settings: Settings, partitions: list[int]) -> tuple[Log, list[Shard]]:
    configs = Configs()
    configs.add(surface())
    log, letters = open_log(settings), open_dead_letters(settings)
    shards = [
        Shard(p, log, open_checkpoints(settings, p), configs, letters, epoch=1, read_limit=POLL) for p in partitions
    ]
    for shard in shards:
        shard.statistics()  # loaded, and connected, before any clock starts
    return log, shards


def _seat(settings: Settings, partitions: list[int], ready: Barrier, spans: "Queue[tuple[float, float]]") -> None:
    log, shards = _opened(settings, partitions)
    ends = [log.end(p)[0] for p in partitions if log.read(p, 0, 1)]
    ready.wait(timeout=900)
    started = time.monotonic()
    while any(shard.offset < end for shard, end in zip(shards, ends, strict=True)):
        for shard in shards:
            shard.step()
    spans.put((started, time.monotonic()))
