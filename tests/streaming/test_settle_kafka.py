"""Settling from a real Kafka log: read again after a restart, and from what is left after retention."""

import time
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition

from policies.errors import Corrupt
from streaming.adapters.sqlite import SqliteCheckpoints
from streaming.configuration import Configs
from streaming.events import Decision, Feedback, encode
from streaming.experiences import Experiences
from streaming.settle import Settler, first_offset
from tests import kafka_setup
from tests.streaming.joining import UNIT, decision, feedback, surface

N = 60


def told(configs: Configs, now: float) -> list[tuple[bytes, bytes]]:
    """Decisions with a click each, dated a moment after their decision whenever the log may get them."""
    compiled = configs.add(surface(horizon=100.0))
    events: list[Decision | Feedback] = [decision(compiled, f"{UNIT}-{i:03}", now + i / 1000) for i in range(N)]
    events += [feedback(f"{UNIT}-{i:03}", now + i / 1000, slot=0, value=float(i), feedback_id="f") for i in range(N)]
    return [(UNIT.encode(), encode(event)) for event in events]


@pytest.mark.slow
def test_a_kafka_log_is_settled_once_and_in_order(tmp_path: Path) -> None:
    configs, now = Configs(), time.time()
    with closing(kafka_setup.log(tmp_path, 1)) as log, closing(SqliteCheckpoints(tmp_path / "s.sqlite")) as kept:
        log.append(told(configs, now))
        before = Settler(0, log, kept, configs, epoch=1, read_limit=25)
        while before.step().records:
            pass
        assert kept.numbers() == (0, 0)
        later = now + 1_000.0
        assert sum(before.step(later).settled.values()) == N
        after = Settler(0, log, kept, configs, epoch=2)
        assert after.step(later).settled == {}
        found = Experiences(0, kept, log).pull(0, 1_000)
        assert [one.decision.decision_id for one in found] == [f"{UNIT}-{i:03}" for i in range(N)]
        assert [one.rewards[0, 1] for one in found] == [float(i) for i in range(N)]


@pytest.mark.slow
def test_a_kafka_log_without_its_beginning_is_settled_from_what_is_left(tmp_path: Path) -> None:
    configs, now = Configs(), time.time()
    with closing(kafka_setup.log(tmp_path, 1)) as log, closing(SqliteCheckpoints(tmp_path / "s.sqlite")) as kept:
        log.append(told(configs, now))
        end = log.end(0)[0]
        topic = kafka_setup.topic_of(tmp_path, "events")
        with closing(KafkaAdminClient(bootstrap_servers=kafka_setup.bootstrap())) as admin:
            admin.delete_records({TopicPartition(topic, 0): 20})
        assert first_offset(log, 0) == 20
        settler = Settler(0, log, kept, configs, epoch=1)
        while settler.step(now + 1_000.0).records:
            pass
        settler.step(now + 1_000.0)
        assert kept.numbers() == (end, end + N - 20)
        assert {one.row.offset for one in Experiences(0, kept, log).pull(end, 1_000)} == set(range(20, N))
        with pytest.raises(Corrupt, match="offset_out_of_range"):
            log.read(0, 19, 1)
