"""From Kafka to learned, beside the raw clients on the same topic: records a second, one run, taken in turns.

    raw        a consumer of the client library that reads and looks at nothing, from the first record to the last
    learned    a shard over the adapter of that client: read, join, learn, commit
    two        two shards, each a process with a partition of its own

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

from services.bench.report import Report
from services.bench.stream import make_log, surface
from services.settings import Settings
from services.stack.kafka import Broker, missing
from services.wiring import open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Configs
from streaming.shard import Shard

POLL = 4_000
TOPIC = "slatewise.events"
CLIENTS = {"kafka-python": "kafka", "confluent-kafka": "kafka+confluent"}


def measure(report: Report, decisions: int = 30_000) -> None:
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
        records = 2 * decisions
        for client, scheme in CLIENTS.items():
            settings, python = replace(filled, log=f"{scheme}://{broker.bootstrap}"), scheme == "kafka"
            raw = (_raw_python if python else _raw_confluent)(broker.bootstrap, records)
            one = records / _shards(replace(settings, data=Path(place) / f"{scheme}-1"), [[0, 1]])
            two = records / _shards(replace(settings, data=Path(place) / f"{scheme}-2"), [[0], [1]])
            report.add(f"raw {client}", raw, "records/s")
            least = 0.7 if python else 60_000.0
            name = f"  joined and learned over {client}"
            report.add(name, one, "records/s", floor=raw, at_least=least, of_floor=python)
            report.add("  two shards, against one", two, "records/s", floor=one, at_least=1.7, of_floor=True)


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


def _seat(settings: Settings, partitions: list[int], ready: Barrier, spans: "Queue[tuple[float, float]]") -> None:
    configs = Configs()
    configs.add(surface())
    log, letters = open_log(settings), open_dead_letters(settings)
    shards = [
        Shard(p, log, open_checkpoints(settings, p), configs, letters, epoch=1, read_limit=POLL) for p in partitions
    ]
    for shard in shards:
        shard.statistics()  # loaded, and connected, before the clock starts
    ends = [log.end(p)[0] for p in partitions if log.read(p, 0, 1)]
    ready.wait(timeout=900)
    started = time.monotonic()
    while any(shard.offset < end for shard, end in zip(shards, ends, strict=True)):
        for shard in shards:
            shard.step()
    spans.put((started, time.monotonic()))
