"""A step is all or nothing: whichever operation of its ports is the last, the next life goes on as if nothing had happened."""

import gc
from pathlib import Path

import numpy as np
import pytest

from policies.errors import Corrupt, Rejected, Unavailable
from streaming.adapters.sqlite import SqliteDeadLetters, SqliteLog
from streaming.adapters.sqlite_checkpoints import SqliteCheckpoints
from streaming.configuration import Configs
from streaming.events import encode
from streaming.ports import Commit
from streaming.shard import Shard
from tests.streaming.joining import (
    CORRECTABLE,
    EPOCH0,
    UNIT,
    Abort,
    Ports,
    TallyConfigs,
    decision,
    drain,
    feedback,
    reasons,
    same,
    surface,
    total,
)

CONFIGS = TallyConfigs()
PLAIN = CONFIGS.add(surface())
WAIT = CONFIGS.add(surface(silence="wait"))


def fill(ports: Ports) -> None:
    """Cold rows, early feedback, corrections, dead letters and a wait surface: every operation a step can need."""
    for i in range(4):
        ports.append(decision(PLAIN, f"{UNIT}-{i}", EPOCH0 + i), at=EPOCH0 + i)
    ports.append(feedback(f"{UNIT}-8", EPOCH0, slot=1), decision(WAIT, f"{UNIT}-9", EPOCH0 + 5), b"broken")
    for i in range(4):
        ports.append(feedback(f"{UNIT}-{i}", EPOCH0 + 10, slot=0, feedback_id="f", value=float(i)), at=EPOCH0 + 10 + i)
    ports.append(decision(PLAIN, f"{UNIT}-8", EPOCH0 + 20), at=EPOCH0 + 20)
    ports.append(feedback(f"{UNIT}-0", EPOCH0 + 30, slot=0, feedback_id="f", value=9.0), at=EPOCH0 + 30)
    ports.append(feedback(f"{UNIT}-1", EPOCH0 + 30, kind="", retracts="f"), at=EPOCH0 + 200)
    ports.append(feedback(f"{UNIT}-2", EPOCH0 + CORRECTABLE, slot=0), at=EPOCH0 + CORRECTABLE + 10)


def clean() -> Ports:
    ports = Ports(CONFIGS)
    fill(ports)
    drain(ports.shard(read_limit=3, hot_limit=1))
    return ports


def test_a_crash_at_any_operation_leaves_no_trace() -> None:
    expected = clean()
    operations, whole = expected.operations, expected.shard().statistics()
    for death in range(operations):
        ports = Ports(CONFIGS, die_at=death)
        fill(ports)
        with pytest.raises(Abort):
            drain(ports.shard(read_limit=3, hot_limit=1))
        shard = ports.shard(read_limit=3, hot_limit=1)
        drain(shard)
        statistics = shard.statistics()
        assert (statistics.offset, statistics.examples) == (whole.offset, whole.examples)
        assert reasons(ports.letters.read()) == reasons(expected.letters.read())
        same(total(statistics.arrays), total(whole.arrays))


def test_a_failed_step_is_forgotten_by_the_same_shard() -> None:
    expected = clean()
    operations, whole = expected.operations, expected.shard().statistics()
    for death in range(operations):
        ports = Ports(CONFIGS, die_at=death)
        fill(ports)
        shard = ports.shard(read_limit=3, hot_limit=1)
        with pytest.raises(Abort):
            drain(shard)
        drain(shard)
        same(total(shard.statistics().arrays), total(whole.arrays))
        assert gc.isenabled()


def test_statistics_are_those_of_a_prefix_of_the_log() -> None:
    ports = Ports(CONFIGS)
    fill(ports)
    shard = ports.shard(read_limit=3)
    seen = []
    while shard.step().records:
        seen.append(shard.statistics())
    for statistics in seen:
        prefix = Ports(CONFIGS)
        for record in ports.log.read(0, 0, statistics.offset):
            prefix.append(record.value, at=record.appended)
        alone = prefix.shard()
        drain(alone)
        same(total(alone.statistics().arrays), total(statistics.arrays))
        assert alone.statistics().examples == statistics.examples


def test_a_batch_is_longer_where_it_changes_more_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a learner costs a batch is paid seldom, however many surfaces share a partition."""
    monkeypatch.setattr("streaming.shard.LEARNERS", 1)
    ports = Ports(CONFIGS)
    for i in range(60):
        ports.append(decision(WAIT if i % 2 else PLAIN, f"{UNIT}-{i}", EPOCH0), at=EPOCH0)
        ports.append(decision(CONFIGS.add(surface(surface=f"shop-{i % 3}")), f"{UNIT}-shop-{i}", EPOCH0), at=EPOCH0)
    shard = ports.shard(read_limit=10)
    sizes, learned = [], []
    while (report := shard.step()).records:
        sizes.append(report.records)
        learned.append(len(report.learned))
    assert sizes[0] == 10
    assert sizes[1] == 10 * learned[0] > 10
    assert sum(sizes) == 120


def test_what_statistics_gave_stays_as_it_was() -> None:
    ports = Ports(CONFIGS)
    ports.append(decision(PLAIN, f"{UNIT}-1", EPOCH0))
    shard = ports.shard()
    shard.step()
    before = shard.statistics()
    kept = {name: np.array(array) for name, array in total(before.arrays).items()}
    ports.append(decision(PLAIN, f"{UNIT}-2", EPOCH0))
    shard.step()
    same(total(before.arrays), kept)


def test_a_lower_epoch_is_refused_at_the_commit_and_at_the_start() -> None:
    ports = Ports(CONFIGS)
    old, new = ports.shard(epoch=1), ports.shard(epoch=2)
    ports.append(decision(PLAIN, f"{UNIT}-1", EPOCH0))
    assert old.offset == 0
    new.step()
    with pytest.raises(Rejected, match=r"."):
        old.step()
    with pytest.raises(Rejected, match="epoch 1 is over"):
        ports.shard(epoch=1).step()
    assert new.statistics().examples.popitem()[1] == 3


def test_an_offset_out_of_range_stops_the_shard() -> None:
    ports = Ports(CONFIGS)
    ports.checkpoints.commit(Commit(partition=0, offset=5, clock=EPOCH0, epoch=1))
    with pytest.raises(Corrupt, match="offset_out_of_range"):
        ports.shard().step()


def test_a_decision_that_the_log_lost_stops_the_shard_until_it_has_closed() -> None:
    ports = Ports(CONFIGS)
    ports.append(decision(PLAIN, f"{UNIT}-1", EPOCH0))
    drain(ports.shard())
    ports.log.trim(0, 1)
    ports.append(feedback(f"{UNIT}-1", EPOCH0, slot=0))
    with pytest.raises(Corrupt):
        ports.shard().step()
    later = Ports(CONFIGS)
    later.append(decision(PLAIN, f"{UNIT}-1", EPOCH0))
    drain(later.shard())
    later.log.trim(0, 1)
    later.append(feedback(f"{UNIT}-1", EPOCH0 + CORRECTABLE, slot=0), at=EPOCH0 + CORRECTABLE + 1)
    assert later.shard().step().dead == {"too_late": 1}


def test_reports_say_what_was_learned_how_far_and_how_fresh() -> None:
    ports = Ports(CONFIGS)
    ports.append(
        decision(PLAIN, f"{UNIT}-1", EPOCH0),
        feedback(f"{UNIT}-1", EPOCH0, slot=0, accepted_at=EPOCH0 - 1),
        b"broken",
        feedback(f"{UNIT}-2", EPOCH0),
    )
    report = ports.shard(read_limit=3).step()
    assert (report.records, report.decisions, report.feedback, report.offset) == (3, 1, 1, 3)
    assert report.lag_records == 1
    assert report.clock == EPOCH0
    assert report.fresh == [("home", "tally", EPOCH0 - 1)]
    assert report.learned == {f"default/home/tally/{PLAIN.hash}": 3}
    assert report.dead == {"undecodable": 1}


def test_an_unavailable_port_costs_nothing_but_time() -> None:
    ports = Ports(CONFIGS)
    ports.append(decision(PLAIN, f"{UNIT}-1", EPOCH0))
    shard = ports.shard()
    commit = ports.checkpoints.commit

    def away(made: Commit) -> None:
        ports.checkpoints.commit = commit  # type: ignore[method-assign]
        raise Unavailable("disk full")

    ports.checkpoints.commit = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        shard.step()
    assert shard.offset == 0
    assert shard.step().decisions == 1
    assert shard.statistics().examples.popitem()[1] == 3


def test_real_learners_and_files_come_back_as_they_were(tmp_path: Path) -> None:
    """Every algorithm of the registry that learns, on SQLite, reopened after each step, against one undisturbed run."""
    configs = Configs()
    compiled = configs.add(surface(silence="eager"))
    log = SqliteLog(tmp_path / "log.sqlite", partitions=1)
    now = log.end(0)[1]
    log.append([(UNIT.encode(), b"{}")])
    now = log.end(0)[1]
    for i in range(30):
        log.append([(UNIT.encode(), encode(decision(compiled, f"{UNIT}-{i}", now)))])
    for i in range(30):
        log.append([(UNIT.encode(), encode(feedback(f"{UNIT}-{i}", now, slot=i % 3, value=1.0)))])

    def shard(name: str, read_limit: int) -> Shard:
        checkpoints = SqliteCheckpoints(tmp_path / f"{name}.sqlite")
        letters = SqliteDeadLetters(tmp_path / f"{name}-dead.sqlite")
        return Shard(0, log, checkpoints, configs, letters, epoch=1, read_limit=read_limit)

    whole = shard("whole", 1000)
    drain(whole)
    while shard("broken", 7).step().records:
        pass
    expected, found = whole.statistics(), shard("broken", 7).statistics()
    assert expected.offset == found.offset == 61
    assert expected.examples == found.examples
    assert len(expected.arrays) == 2
    assert expected.arrays.keys() == found.arrays.keys()
    for key, sums in expected.arrays.items():
        for name, array in sums.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(
                    array, found.arrays[key][name], rtol=1e-9, atol=1e-9, err_msg=f"{key} {name}"
                )
            else:
                np.testing.assert_array_equal(array, found.arrays[key][name])
