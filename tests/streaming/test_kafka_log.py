"""What the Kafka log promises beyond the suite: topics that would break a promise, retention, tools, clusters that are away."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import KafkaError

from policies.errors import Corrupt, Rejected, Unavailable
from services.loopback import free_port
from services.stack.kafka import Broker, missing
from streaming.adapters.kafka import GROUP, KafkaLog, parse_kafka
from streaming.adapters.kafka_confluent import ConfluentLog
from streaming.events import MAX_RECORD_BYTES
from streaming.forward import Forwarder
from streaming.partition import partition_of
from streaming.ports import Position
from streaming.spool import Spool
from tests import kafka_setup

KINDS: tuple[type[KafkaLog], ...] = (KafkaLog, ConfluentLog)
BOTH = pytest.mark.parametrize("confluent", [False, True], ids=["KafkaLog", "ConfluentLog"])


@pytest.fixture
def admin() -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=kafka_setup.bootstrap())) as opened:
        yield opened


def records(count: int, start: int = 0) -> list[tuple[bytes, bytes]]:
    return [(b"%016x" % (n * 7919 % 31), b"%d" % n) for n in range(start, start + count)]


def values(log: KafkaLog) -> list[int]:
    return sorted(int(record.value) for p in range(log.partitions) for record in log.read(p, 0, 1_000_000))


def eventually(call: Any) -> Any:
    until = time.monotonic() + 120
    while True:
        try:
            return call()
        except Unavailable:
            assert time.monotonic() < until
            time.sleep(0.2)


# --- topics ----------------------------------------------------------------------------------------------------------


def test_a_topic_is_made_as_stated(tmp_path: Path, admin: KafkaAdminClient) -> None:
    with closing(kafka_setup.log(tmp_path, 3, retention_seconds=12_345)) as log:
        assert log.identity
        assert len(admin.describe_topics([log.topic])[0]["partitions"]) == 3
        resource = ConfigResource(ConfigResourceType.TOPIC, log.topic)
        settings = admin.describe_configs([resource], config_filter="all")["topic"][log.topic]
        found = {name: settings[name]["value"] for name in ("retention.ms", "message.timestamp.type", "cleanup.policy")}
    assert found == {
        "retention.ms": "12345000",
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "delete",
    }


@pytest.mark.parametrize(
    ("partitions", "settings", "said"),
    [
        (4, {}, "message.timestamp.type=CreateTime, it must be LogAppendTime: kafka-configs --alter"),
        (2, {"message.timestamp.type": "LogAppendTime"}, "has 2 partitions, not 4: set SLATEWISE_PARTITIONS=2"),
        (4, {"message.timestamp.type": "LogAppendTime", "compression.type": "producer"}, "compression.type=producer"),
        (4, {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "compact"}, "cleanup.policy=compact"),
    ],
)
def test_a_topic_that_breaks_a_promise_is_refused_by_name(
    tmp_path: Path, admin: KafkaAdminClient, partitions: int, settings: dict[str, str], said: str
) -> None:
    name = kafka_setup.fresh("events")
    configs = {"compression.type": "lz4", **settings}
    admin.create_topics({name: {"num_partitions": partitions, "configs": configs}}, wait_for_metadata=True)
    with closing(kafka_setup.log(tmp_path, 4, topic=name)) as log:
        for call in (lambda: log.identity, lambda: log.read(0, 0, 1), lambda: log.append([(b"k", b"v")])):
            with pytest.raises(Rejected) as caught:
                call()
            assert name in str(caught.value)
            assert said in str(caught.value)
        assert admin.list_partition_offsets({TopicPartition(name, 0): -1})[TopicPartition(name, 0)].offset == 0


def test_two_that_make_the_topic_at_once_share_it(tmp_path: Path) -> None:
    name = kafka_setup.fresh("events")
    logs = [kafka_setup.log(tmp_path / str(n), 2, topic=name) for n in range(3)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda log=log: found.append(log.identity)) for log in logs]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for log in logs:
        log.close()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_topic_made_again_under_its_name_is_another_log(tmp_path: Path, admin: KafkaAdminClient) -> None:
    with closing(kafka_setup.log(tmp_path, 2)) as log:
        before = log.identity
        assert log.topic in before
    admin.delete_topics([log.topic])
    with closing(kafka_setup.log(tmp_path, 2)) as log:
        assert eventually(lambda: log.identity) != before


def test_partitions_that_an_operator_adds_stop_whoever_would_not_read_them(
    tmp_path: Path, admin: KafkaAdminClient
) -> None:
    now = [0.0]
    address, name = kafka_setup.address(), kafka_setup.fresh("events")
    with closing(KafkaLog(address, topic=name, partitions=2, positions=tmp_path, clock=lambda: now[0])) as log:
        log.append(records(10))
        admin.create_partitions({name: 3})

        def keep(call: Any) -> None:
            """What an operator changes is known to every broker a moment later."""
            for _ in range(600):
                now[0] += 60.0
                call()
                time.sleep(0.1)

        for call in (lambda: log.append(records(1)), lambda: log.read(0, 0, 10), lambda: log.end(1)):
            with pytest.raises(Rejected, match="has 3 partitions, not 2: set SLATEWISE_PARTITIONS=3"):
                keep(call)


def test_a_topic_that_is_replaced_while_it_is_read_is_another_log(tmp_path: Path, admin: KafkaAdminClient) -> None:
    now = [0.0]
    address, name = kafka_setup.address(), kafka_setup.fresh("events")
    with closing(KafkaLog(address, topic=name, partitions=1, positions=tmp_path, clock=lambda: now[0])) as log:
        log.append(records(10))
        admin.delete_topics([name])
        with closing(kafka_setup.log(tmp_path, 1, topic=name)) as other:
            eventually(lambda: other.append(records(1)))

        def later() -> None:
            now[0] += 60.0
            log.end(0)

        with pytest.raises(Rejected, match="was deleted and made again") as caught:
            eventually(later)
        assert caught.value.code == "another_log"


# --- reading ---------------------------------------------------------------------------------------------------------


@BOTH
def test_what_another_appends_is_seen_soon_by_one_that_waits_at_the_end(tmp_path: Path, confluent: bool) -> None:
    with (
        closing(kafka_setup.log(tmp_path, 1, confluent=confluent)) as reader,
        closing(kafka_setup.log(tmp_path, 1)) as writer,
    ):
        assert reader.read(0, 0, 100) == []
        for n in range(5):
            writer.append([(b"k", b"%d" % n)])
            until = time.monotonic() + 30
            while not (found := reader.read(0, n, 100)):
                assert time.monotonic() < until
                time.sleep(0.002)
            assert [(one.offset, one.value) for one in found] == [(n, b"%d" % n)]


@BOTH
def test_a_long_log_is_read_in_full_batches(tmp_path: Path, confluent: bool) -> None:
    with closing(kafka_setup.log(tmp_path, 1, confluent=confluent)) as log:
        for start in range(0, 6000, 1000):
            log.append([(b"k", b"%d" % n * 50) for n in range(start, start + 1000)])
        offset, sizes = 0, []
        while found := log.read(0, offset, 700):
            assert [one.offset for one in found] == list(range(offset, offset + len(found)))
            sizes.append(len(found))
            offset += len(found)
        assert sizes == [700] * 8 + [400]


@BOTH
def test_a_look_elsewhere_does_not_lose_the_place(tmp_path: Path, confluent: bool) -> None:
    with closing(kafka_setup.log(tmp_path, 1, confluent=confluent)) as log:
        log.append([(b"k", b"%d" % n) for n in range(3000)])
        assert [one.offset for one in log.read(0, 0, 1000)] == list(range(1000))
        for back in (3, 17, 4):
            assert [one.offset for one in log.read(0, back, 2)] == [back, back + 1]
        assert not log._readers[0].elsewhere(1000), "the place where the shard goes on"
        assert [one.offset for one in log.read(0, 1000, 1000)] == list(range(1000, 2000))


@BOTH
def test_the_largest_record_comes_through_every_reader(tmp_path: Path, confluent: bool) -> None:
    large = os.urandom(MAX_RECORD_BYTES)  # as large as ours may be, and nothing to compress
    with closing(kafka_setup.log(tmp_path, 1, confluent=confluent)) as log:
        for value in (b"before", large, b"after"):
            log.append([(b"k", value)] * 2)
        wanted = [b"before", b"before", large, large, b"after", b"after"]
        assert [record.value for record in log.read(0, 0, 1000)] == wanted
        assert [record.value for record in log.read(0, 2, 3)] == wanted[2:5], "by the reader for a few"


@BOTH
def test_retention_that_passes_a_reader_is_named_and_nothing_is_reset(
    tmp_path: Path, admin: KafkaAdminClient, confluent: bool
) -> None:
    with closing(kafka_setup.log(tmp_path, 1, confluent=confluent)) as log:
        log.append(records(10))
        place = TopicPartition(log.topic, 0)
        assert len(log.read(0, 0, 5)) == 5
        admin.delete_records({place: 8})  # by the cluster, behind the reader's back
        with closing(kafka_setup.log(tmp_path, 1, confluent=confluent)) as late:
            for _ in range(2):
                with pytest.raises(Corrupt, match="offset_out_of_range"):
                    late.read(0, 5, 1000)
            assert [one.offset for one in late.read(0, 8, 10)] == [8, 9]


def test_a_log_that_was_cut_short_is_named(tmp_path: Path) -> None:
    """An offset beyond the end means another log, or a leader that had not everything: not an empty read."""
    with closing(kafka_setup.log(tmp_path, 1)) as log:
        log.append(records(3))
        with pytest.raises(Corrupt, match=r"0\.\.3, not 4"):
            log.read(0, 4, 10)


# --- what a broker has besides ---------------------------------------------------------------------------------------


def test_lag_tools_see_how_far_the_shard_is(tmp_path: Path, admin: KafkaAdminClient) -> None:
    group = kafka_setup.fresh("group")
    with closing(kafka_setup.log(tmp_path, 2, group=group)) as log:
        log.append(records(40))
        place = TopicPartition(log.topic, 1)
        for offset in (3, 7):
            log.commit_offsets(1, offset)
            until = time.monotonic() + 60
            while committed(admin, group).get(place) != offset:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert log.lag(1, 7) == log.end(1)[0] - 7
        assert GROUP == "slatewise.learning"


def committed(admin: KafkaAdminClient, group: str) -> dict[TopicPartition, int]:
    with suppress(KafkaError):  # until the first commit there is no such group
        found = admin.list_group_offsets({group: None})[group]
        return {place: one.offset for place, one in found.items()}
    return {}


def test_headroom_is_the_share_of_retention_that_is_left(tmp_path: Path) -> None:
    with closing(kafka_setup.log(tmp_path, 1, retention_seconds=1000)) as log:
        assert log.headroom(0, 0, time.time()) == 1.0
        log.append(records(3))
        appended = log.read(0, 0, 1)[0].appended
        assert log.headroom(0, 0, appended + 250) == pytest.approx(0.75, abs=0.01)
        assert log.headroom(0, 0, appended + 1000) == pytest.approx(0.0, abs=0.01)
        assert log.headroom(0, 3, appended + 5000) == 1.0, "nothing is there that could be lost"
        log.trim(0, 2)
        assert log.headroom(0, 1, appended) == 0.0, "it is lost already"


# --- clusters that are away ------------------------------------------------------------------------------------------


@BOTH
def test_nothing_that_listens_is_unavailable_at_once_and_leaves_nothing_behind(tmp_path: Path, confluent: bool) -> None:
    kind = ConfluentLog if confluent else KafkaLog
    address = parse_kafka(f"kafka://127.0.0.1:{free_port()}", "test")
    before = threading.active_count()
    log = kind(address, positions=tmp_path, clock=time.monotonic)
    for call in (lambda: log.append([(b"k", b"v")]), lambda: log.read(0, 0, 1), lambda: log.end(0)):
        with pytest.raises(Unavailable, match="nothing listens"):
            call()
    assert threading.active_count() == before
    log.close()


@pytest.fixture(scope="module")
def own() -> Iterator[Broker]:
    """A broker that may be killed and paused."""
    with kafka_setup.broker() as broker:
        yield broker


def logs(broker: Broker, folder: Path, stack: ExitStack, seconds: float) -> list[KafkaLog]:
    """One of each kind, on topics of their own."""
    address = parse_kafka(f"kafka://{broker.bootstrap}", "test")
    opened = [
        kind(
            address,
            topic=f"{kind.__name__}-{folder.name}",
            partitions=2,
            positions=folder / kind.__name__,
            clock=time.monotonic,
            timeout_seconds=seconds,
        )
        for kind in KINDS
    ]
    for log in opened:
        stack.callback(log.close)
    return opened


def read_until_away(log: KafkaLog, offset: int) -> None:
    """A reader at the end asks once a second."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        log.read(0, offset, 10)
        time.sleep(0.05)


@kafka_setup.away
def test_a_broker_that_dies_and_comes_back_has_lost_nothing(own: Broker, tmp_path: Path) -> None:
    with ExitStack() as stack:
        opened = logs(own, tmp_path, stack, 3.0)
        read = []
        for log in opened:
            log.append(records(50), Position("s", 0, 1))
            read.append([len(log.read(p, 0, 1000)) for p in range(2)])
        spool = stack.enter_context(closing(Spool(tmp_path / "spool", segment_bytes=4 << 20)))
        forwarder = stack.enter_context(closing(Forwarder(tmp_path / "spool", opened[0])))
        own.kill()
        for log, (first, _) in zip(opened, read, strict=True):
            with pytest.raises(Unavailable):
                log.append(records(10, 50), Position("s", 0, 2))
            assert log.position("s") == Position("s", 0, 1), "what is not acknowledged is sent again"
            with pytest.raises(Unavailable):
                read_until_away(log, first)
        for key, value in records(30, 60):
            spool.append(key, value)
        spool.sync()
        with pytest.raises(Unavailable):
            forwarder.step()
        own.start()
        eventually(lambda: drained(forwarder))
        for log, (first, _) in zip(opened, read, strict=True):
            eventually(partial(log.append, records(10, 50), Position("s", 0, 2)))
            assert set(eventually(partial(values, log))) == set(range(90 if log is opened[0] else 60))
            assert eventually(partial(log.read, 0, first, 1000))[0].offset == first


@kafka_setup.away
def test_a_broker_that_hangs_is_unavailable_in_bounded_time(own: Broker, tmp_path: Path) -> None:
    with ExitStack() as stack:
        opened = logs(own, tmp_path, stack, 2.0)
        for log in opened:
            log.append(records(5))
            log.read(0, 0, 10)
        os.kill(own.pid, signal.SIGSTOP)
        try:
            for log in opened:
                with pytest.raises(Unavailable):
                    log.append(records(5, 5))
            for log in logs(own, tmp_path, stack, 2.0):
                with pytest.raises(Unavailable):
                    log.end(0)
        finally:
            os.kill(own.pid, signal.SIGCONT)
        for log in opened:
            eventually(partial(log.append, records(5, 10)))
            assert {0, 1, 2, 3, 4, 10, 11, 12, 13, 14} <= set(eventually(partial(values, log)))


def drained(forwarder: Forwarder) -> None:
    while forwarder.step():
        pass


def test_a_crash_between_acknowledgement_and_position_sends_twice_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(kafka_setup.log(tmp_path, 1)) as log:
        log.append(records(2), Position("s", 0, 1))

        def full(*_: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr("streaming.adapters.kafka.replace_file", full)
        with pytest.raises(Unavailable, match="no space"):
            log.append(records(2, 2), Position("s", 0, 2))
        monkeypatch.undo()
        assert log.position("s") == Position("s", 0, 1)
        log.append(records(2, 2), Position("s", 0, 2))
        assert values(log) == [0, 1, 2, 2, 3, 3]


def test_a_position_file_that_is_no_position_is_named(tmp_path: Path) -> None:
    with closing(kafka_setup.log(tmp_path, 1)) as log:
        log.append(records(1), Position("s", 0, 1))
        (tmp_path / "positions" / "s.json").write_bytes(b"{half")
        with pytest.raises(Corrupt, match="position"):
            log.position("s")


@BOTH
def test_keys_go_where_javas_hash_sends_them(tmp_path: Path, confluent: bool) -> None:
    with closing(kafka_setup.log(tmp_path, 7, confluent=confluent)) as log:
        log.append(records(200))
        for p in range(7):
            assert all(partition_of(record.key, 7) == p for record in log.read(p, 0, 1000))
            assert log.end(p)[0] > 0


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    broker = Broker(tmp_path, properties={"log.retention.ms": "soon"})
    with pytest.raises(Unavailable, match="soon"):
        broker.start()
    assert broker.process is None
