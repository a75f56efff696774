"""What can go wrong, done to a running house. A fault lasts about `seconds` and leaves everything in its place again.

Each is a function of (house, traffic, seconds) that blocks; the traffic goes on in another thread. A fault waits for what
has to happen, a successor or a swap, before it returns, so that what it shows is a recovery and not luck.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.chaos.house import House, wait_for
from services.chaos.traffic import SURFACE, TRAINED, Traffic
from services.epochs import current_epoch
from services.wiring import open_bundles, open_log, open_state
from streaming.events import Feedback, encode

Inflict = Callable[[House, Traffic, float], None]
BEHIND_SECONDS = 0.4  # how long a slow shard stands still at a time
FOREIGN_PER_SECOND = 50
RECENT = 500  # answers


@dataclass(frozen=True, slots=True)
class Fault:
    """`options` are settings that its house needs, `surface` what is asked for there: with others than usual it has one of its own."""

    name: str
    does: str
    inflict: Inflict
    options: tuple[tuple[str, str], ...] = ()
    surface: str = SURFACE

    @property
    def apart(self) -> bool:
        """Whether it needs a house of its own."""
        return bool(self.options) or self.surface != SURFACE


FAULTS: dict[str, Fault] = {}


def fault(does: str, surface: str = SURFACE, **options: str) -> Callable[[Inflict], Inflict]:
    def add(inflict: Inflict) -> Inflict:
        name = inflict.__name__
        FAULTS[name] = Fault(name, does, inflict, tuple(options.items()), surface)
        return inflict

    return add


@fault("kill -9 of a shard's actor")
def shard_killed(house: House, _: Traffic, seconds: float) -> None:
    before = set(house.shards())
    os.kill(min(before), signal.SIGKILL)
    wait_for(lambda: len(set(house.shards()) - before) >= 1, "another shard sits there")
    time.sleep(seconds)


@fault("kill -9 of the trainers' actor, whose recorded order is replayed afterwards", surface=TRAINED)
def trainer_killed(house: House, _: Traffic, seconds: float) -> None:
    bundles = open_bundles(house.a.settings)

    def trained() -> str:
        return bundles.pointers().get("page/agent", "")

    first = wait_for(trained, "an agent was trained and published")
    [before] = wait_for(house.trainers, "a trainer sits there")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: set(house.trainers()) - {before}, "another trainer sits there")
    known = trained() or first
    time.sleep(seconds)
    wait_for(lambda: trained() != known, "the successor's training is published")


@fault("kill -9 of the learning service, which publishes")
def learning_killed(house: House, _: Traffic, seconds: float) -> None:
    house.a.kill("learning")
    time.sleep(seconds)
    house.a.pid("learning")


@fault("kill -9 of both forwarders")
def forwarder_killed(house: House, _: Traffic, seconds: float) -> None:
    for host in (house.a, house.b):
        host.kill("forwarder")
    time.sleep(seconds)


@fault("kill -9 of a scoring replica")
def scoring_killed(house: House, _: Traffic, seconds: float) -> None:
    house.b.kill("scoring")
    time.sleep(seconds)
    wait_for(house.b.ready, "the replica is back")


@fault("kill -9 of a Ray node with all on it, replaced")
def ray_node_killed(house: House, _: Traffic, seconds: float) -> None:
    house.ray.kill_node()
    time.sleep(seconds)
    house.ray.add_node()
    wait_for(house.shards, "shards sit somewhere")


@fault("a shard stopped (SIGSTOP), replaced, and let go on (SIGCONT)")
def shard_paused(house: House, _: Traffic, seconds: float) -> None:
    before = set(house.shards())
    paused = min(before)
    os.kill(paused, signal.SIGSTOP)
    try:
        wait_for(lambda: set(house.shards()) - before, "a successor of the paused shard")
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the seat's newcomer may have had it ended
            os.kill(paused, signal.SIGCONT)


@fault("a second learning service, then the first again, then the second killed")
def two_learning_services(house: House, _: Traffic, seconds: float) -> None:
    """Who comes later fences the other, which stands by: first the second one, then the first, started again."""
    state = open_state(house.a.settings)
    before = current_epoch(state)
    second = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "learning"],
        env={**os.environ, **house.b.settings.environment(), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: current_epoch(state) > before, "the second one took over")
        time.sleep(seconds / 2)
        house.a.kill("learning")
        time.sleep(seconds / 2)
        wait_for(moved_on(house), "the first one publishes again")
    finally:
        second.kill()
        second.wait()


@fault("Ray's head and all nodes stopped, started again")
def ray_head_stopped(house: House, _: Traffic, seconds: float) -> None:
    house.ray.stop()
    time.sleep(seconds)
    house.ray.start()


@fault("Kafka stopped")
def kafka_stopped(house: House, _: Traffic, seconds: float) -> None:
    house.kafka.stop()
    time.sleep(min(seconds, 20.0))
    house.kafka.start()


@fault("Redis stopped")
def redis_stopped(house: House, _: Traffic, seconds: float) -> None:
    house.redis.kill()
    time.sleep(seconds)
    house.redis.start()


@fault("Redis flushed, several times")
def redis_flushed(house: House, _: Traffic, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        house.redis.flush()
        time.sleep(1.0)


@fault("the spools' quota full while Kafka is away", spool_bytes=str(1 << 20))
def quota_full(house: House, traffic: Traffic, seconds: float) -> None:
    house.kafka.stop()
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
        wait_for(lambda: any(not one.logged for _, one in traffic.told.sequence[-RECENT:]), "a spool is full")
    finally:
        house.kafka.start()


@fault("the disk of the shards lost")
def disk_lost(house: House, _: Traffic, seconds: float) -> None:
    for pid in (house.a.pid("learning"), *house.shards()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(house.a.settings.data / "shards")
    time.sleep(seconds)
    wait_for(house.shards, "shards sit again")


@fault("every record produced once more")
def everything_twice(house: House, _: Traffic, seconds: float) -> None:
    log = open_log(house.a.settings)
    offsets = [log.end(partition)[0] for partition in range(log.partitions)]
    doubled: set[bytes] = set()  # a copy comes by again, and is not to be copied for ever
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for partition, offset in enumerate(offsets):
            records = log.read(partition, offset, 500)
            log.append([(record.key, record.value) for record in records if record.value not in doubled])
            doubled.update(record.value for record in records)
            offsets[partition] = offset + len(records)
        time.sleep(0.2)


@fault("one shard slower than the other")
def uneven_partitions(house: House, _: Traffic, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        slow = wait_for(house.shards, "shards sit")[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(slow, signal.SIGSTOP)
            time.sleep(BEHIND_SECONDS)
            os.kill(slow, signal.SIGCONT)
        time.sleep(BEHIND_SECONDS / 4)


@fault("feedback from a librdkafka producer with its own partitioner")
def foreign_partitioner(house: House, traffic: Traffic, seconds: float) -> None:
    """What is acknowledged counts as accepted, like feedback over HTTP."""
    from confluent_kafka import Producer  # optional, as the adapter is

    producer = Producer({"bootstrap.servers": house.kafka.bootstrap, "acks": "all", "client.id": "somebody else"})
    told, until = traffic.told, time.monotonic() + seconds
    sent: set[str] = set()
    while time.monotonic() < until:
        for name, answer in told.sequence[-FOREIGN_PER_SECOND:]:
            if not answer.items or not answer.logged or answer.unchecked:
                continue
            if name in sent:
                continue
            sent.add(name)
            item = answer.items[-1]
            event = Feedback(
                decision_id=name,
                unit=answer.key,
                at=time.time(),
                kind="score",
                item=item,
                feedback_id="foreign",
                value=2.0,
            )

            def done(error: object, _: object, name: str = name, item: str = item) -> None:
                if error is None:
                    told.accepted[name, "foreign"] = item, 2.0

            producer.produce("slatewise.events", key=answer.key.encode(), value=encode(event), on_delivery=done)
        producer.poll(0)
        time.sleep(1.0)
    producer.flush(30.0)


def recovered(house: House) -> bool:
    """Both replicas answer, and shards sit."""
    return house.a.ready() and house.b.ready() and bool(house.shards())


def moved_on(house: House) -> Callable[[], bool]:
    """Whether something was published since now: the loop is whole again."""
    bundles = open_bundles(house.a.settings)
    before = bundles.pointers()

    def moved() -> bool:
        return bundles.pointers() != before

    return moved
