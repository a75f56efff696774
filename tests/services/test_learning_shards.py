"""Shards under one roof: what one of them meets does not stop the others, and a lost disk is an upload and some reading."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from policies.errors import Rejected, Unavailable
from services.configuring import apply_quickstart
from services.epochs import take_epoch
from services.learning import app
from services.learning.app import Learning
from services.learning.group import Group
from services.learning.inline import InlineShards
from services.learning.shards import Lost, open_shards
from services.learning.standby import stand_by
from services.learning.switching import Switching
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_log, open_state, open_uploads
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints, MemoryDeadLetters, MemoryLog
from streaming.configuration import Configs
from streaming.events import encode
from streaming.losses import accept
from streaming.publish import Publisher
from streaming.shard import Shard, Statistics, StepReport
from streaming.uploads import Uploads
from tests.services.test_learning import PARTITIONS, House, decision, turns

SECONDS = 60.0


def wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


class Site:
    """A learning service's stores in a folder: its own disk, and what it shares with others."""

    def __init__(self, folder: Path) -> None:
        shared = folder / "shared"
        self.settings = Settings.load(
            {},
            data=folder / "disk",
            log=f"sqlite:///{shared}/log.sqlite",
            state=f"sqlite:///{shared}/state.sqlite",
            bundles=f"file://{shared}/bundles",
            partitions=PARTITIONS,
            ray="inline",
        )
        self.state, self.log = open_state(self.settings), open_log(self.settings)
        apply_quickstart(self.state)
        self.configs = Configs()
        self.configs.follow(self.state)
        self.made = 0

    def elsewhere(self) -> "Site":
        """The same service on another machine, whose disk is empty."""
        found = object.__new__(Site)
        found.__dict__.update(self.__dict__)
        found.settings = replace(self.settings, data=self.settings.data.with_name("other"))
        return found

    def happen(self, count: int = 30) -> None:
        compiled = self.configs.current("home")
        assert compiled is not None
        for _ in range(count):
            self.made += 1
            unit = f"{self.made:016x}"
            made = msgspec.structs.replace(decision(compiled, unit), at=time.time())
            self.log.append([(unit.encode(), encode(made))])

    def shards(self) -> InlineShards:
        owner = take_epoch(self.state)
        return InlineShards(open_shards(self.settings, self.state, self.configs, owner, range(PARTITIONS)))

    def same(self, found: list[Statistics]) -> None:
        for one in found:
            alone = Shard(one.partition, self.log, MemoryCheckpoints(), self.configs, MemoryDeadLetters(), epoch=1)
            while alone.step().records:
                pass
            again = alone.statistics()
            assert (one.offset, one.examples) == (again.offset, again.examples)
            for key, arrays in again.arrays.items():
                for name, array in arrays.items():
                    if array.dtype.kind == "f":
                        np.testing.assert_allclose(one.arrays[key][name], array, rtol=1e-9, atol=1e-9)


def read_out(engine: InlineShards | Group) -> None:
    while any(report.records or report.rebuilding for report in engine.step()):
        pass


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# --- one that stops --------------------------------------------------------------------------------------------------


def test_a_shard_whose_records_are_gone_stops_alone(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    learning, engine = house.start()
    house.people(20)
    turns(learning, engine)
    house.log.trim(0, house.log.end(0)[0])
    before = house.manifest()
    house.people(20)
    house.log.trim(0, house.log.end(0)[0])  # what partition 0 has not read is lost
    telemetry = Telemetry()
    configs, epoch = Configs(), take_epoch(house.state)
    again = Learning(house.state, configs, Publisher(house.bundles, configs, epoch), telemetry, 0.0)
    again.follow()
    shards = [Shard(p, house.log, house.checkpoints[p], configs, house.dead, epoch=epoch) for p in range(PARTITIONS)]
    engine = InlineShards(shards)
    with caplog.at_level(logging.ERROR):
        turns(again, engine)
    stopped = [record for record in caplog.records if record.message == "shard stopped"]
    assert [(record.partition, record.reason) for record in stopped] == [(0, "offset_out_of_range")]  # type: ignore[attr-defined]
    assert b'slatewise_shard_stopped{partition="0"} 1.0' in telemetry.text()
    assert b'slatewise_shard_stopped{partition="1"} 0.0' in telemetry.text()
    assert house.manifest().number > before.number  # published with what the stopped one had learned
    assert house.manifest().trained_through == {"0": before.trained_through["0"], "1": house.log.end(1)[0]}
    assert house.checkpoints[0].load().offset == before.trained_through["0"]  # nothing was reset

    accepted = accept(house.log, house.state, 0, time.time())
    assert accepted.offset == house.log.end(0)[0]
    house.people(20)
    sums = house.checkpoints[0].load().statistics
    again.follow()
    turns(again, engine)
    assert house.checkpoints[0].load().offset == house.log.end(0)[0] > accepted.offset
    lost = accepted.offset - before.trained_through["0"]
    assert b'slatewise_records_lost_total{partition="0"} %.1f' % lost in telemetry.text()
    assert b'slatewise_shard_stopped{partition="0"} 0.0' in telemetry.text()
    for key, arrays in house.checkpoints[0].load().statistics.items():
        assert arrays["n"].sum() > sums[key]["n"].sum()  # what was learned before is kept, and learning goes on


def test_nothing_is_accepted_for_a_partition_that_is_not_there() -> None:
    house = House()
    with pytest.raises(IndexError, match="partition 7 of 2"):
        accept(house.log, house.state, 7, time.time())


def test_a_store_that_is_away_for_one_shard_does_not_hold_up_the_others() -> None:
    house = House()
    house.people(20)

    class Away(MemoryLog):
        def read(self, partition: int, offset: int, limit: int) -> list[object]:  # type: ignore[override]
            raise Unavailable("no leader")

    configs = Configs()
    configs.follow(house.state)
    away = Shard(0, Away(), house.checkpoints[0], configs, house.dead, epoch=5)
    there = Shard(1, house.log, house.checkpoints[1], configs, house.dead, epoch=5)
    group = Group([away, there])
    assert [report.partition for report in group.step() if report.records] == [1]
    with pytest.raises(Unavailable):
        Group([away]).step()


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_learning_goes_on_elsewhere_from_the_upload(site: Site) -> None:
    site.happen()
    first = site.shards()
    read_out(first)
    first.close()  # uploads
    assert sorted(open_uploads(site.settings).pointers()) == [str(p) for p in range(PARTITIONS)]
    shutil.rmtree(site.settings.data)
    site.happen()
    there = site.elsewhere().shards()
    read_out(there)
    site.same(there.statistics())
    there.close()


def test_a_spoilt_checkpoint_is_set_aside(site: Site) -> None:
    site.happen()
    first = site.shards()
    read_out(first)
    first.close()
    path = site.settings.shard_path(0)
    for left in path.parent.glob("*"):
        left.unlink()
    path.write_bytes(b"no database" * 1000)
    second = site.shards()
    read_out(second)
    site.same(second.statistics())
    second.close()
    assert path.with_name("0.sqlite.spoilt").exists()


def test_uploads_are_made_while_learning_and_a_store_that_is_away_does_not_stop_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Uploads.put
    refused = threading.Event()

    def away(self: Uploads, checkpoint: object) -> None:
        refused.set()
        raise Unavailable("bundle store")

    monkeypatch.setattr(Uploads, "put", away)
    shards = open_shards(site.settings, site.state, site.configs, take_epoch(site.state), range(PARTITIONS))
    group = Group(shards, upload_seconds=0.0)
    site.happen()
    read_out(group)
    wait_for(lambda: bool(group.step()) and refused.is_set())
    assert open_uploads(site.settings).pointers() == {}
    monkeypatch.setattr(Uploads, "put", put)
    wait_for(lambda: bool(group.step()) and len(open_uploads(site.settings).pointers()) == PARTITIONS)
    site.happen()
    read_out(group)
    ends = [site.log.end(p)[0] for p in range(PARTITIONS)]
    readers = [shard.uploads for shard in shards]
    wait_for(lambda: bool(group.step()) and [found.offset for r in readers if r and (found := r.newest())] == ends)
    group.close()


# --- two services ----------------------------------------------------------------------------------------------------


def test_the_older_of_two_services_stops_learning(site: Site) -> None:
    stops = [threading.Event(), threading.Event()]
    ended: list[Exception | None] = [None, None]

    def learn(number: int, settings: Settings, epoch: int) -> None:
        try:
            app._reign(settings, open_state(settings), Telemetry(), epoch, stops[number])
        except Rejected as error:
            ended[number] = error

    places = [site.settings, site.elsewhere().settings]
    threads = []
    for number, settings in enumerate(places):
        site.happen()
        thread = threading.Thread(target=learn, args=(number, settings, take_epoch(site.state)))
        thread.start()
        threads.append(thread)
        if number == 0:
            wait_for(lambda: len(open_uploads(site.settings).pointers()) == PARTITIONS)
    threads[0].join(SECONDS)
    assert isinstance(ended[0], Rejected)
    assert ended[0].code == "fenced"
    site.happen()
    readers = [Uploads(open_uploads(site.settings), p, 0) for p in range(PARTITIONS)]
    stops[1].set()  # the newer one reads the log to its end, uploads and ends well
    threads[1].join(SECONDS)
    assert ended[1] is None
    assert [found.offset for r in readers if (found := r.newest())] == [site.log.end(p)[0] for p in range(PARTITIONS)]


class _Growing(MemoryLog):
    """A log in which something waits."""

    def end(self, partition: int) -> tuple[int, float]:
        return 7, 0.0


def test_who_stands_by_takes_over_only_from_a_service_that_is_silent() -> None:
    stop, over = threading.Event(), threading.Event()
    store = MemoryBundles()

    def wait(events: MemoryLog, seconds: float) -> threading.Thread:
        over.clear()

        def run() -> None:
            stand_by(store, events, stop, look_seconds=0.01, takeover_seconds=seconds)
            over.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    thread = wait(_Growing(), 0.05)
    assert over.wait(SECONDS)
    thread.join()
    for events, seconds in ((MemoryLog(), 0.0), (_Growing(), 3600.0)):  # nothing waits; not silent for long
        thread = wait(events, seconds)
        assert not over.wait(0.3)
        stop.set()
        thread.join(SECONDS)
        assert over.is_set()
        stop.clear()


# --- switching -------------------------------------------------------------------------------------------------------


class Fake:
    """An engine that says who it is, until it is lost."""

    def __init__(self, name: int) -> None:
        self.name, self.lost, self.closed = name, False, False

    def step(self) -> list[StepReport]:
        if self.lost:
            raise Lost("gone")
        return [StepReport(self.name, 0, 0, 0, {}, {}, 0, 0.0, 0)]

    def statistics(self) -> list[Statistics]:
        if self.lost:
            raise Lost("gone")
        return [Statistics(self.name, 0, 0, 0.0, {}, {})]

    def close(self) -> None:
        self.closed = True


def at(engine: Switching) -> list[int]:
    return [report.partition for report in engine.step()]


@pytest.mark.parametrize("noticed", ["step", "statistics"])
def test_learning_goes_to_ray_and_back_and_to_ray_again(noticed: str) -> None:
    near, far = iter(map(Fake, range(0, 10))), iter(map(Fake, range(10, 20)))
    engine = Switching(lambda: next(near), lambda: next(far), insist=True, first_pause_seconds=0.01)
    first = engine.engine
    assert isinstance(first, Fake)
    wait_for(lambda: at(engine) == [10])
    assert first.closed
    there = engine.engine
    assert isinstance(there, Fake)
    there.lost = True
    if noticed == "step":
        assert engine.step() == []
    else:
        assert [one.partition for one in engine.statistics()] == [1]
    assert there.closed
    assert engine.engine is not there
    wait_for(lambda: at(engine) == [11])
    engine.close()


def test_a_ray_that_cannot_start_is_given_up_unless_it_was_asked_for() -> None:
    tried = []

    def far() -> Fake:
        tried.append(1)
        if len(tried) < 3:
            raise Lost("refused")
        return Fake(10)

    engine = Switching(lambda: Fake(0), far, insist=False, first_pause_seconds=0.01)
    wait_for(lambda: at(engine) == [0] and bool(tried))
    for _ in range(20):
        assert at(engine) == [0]
        time.sleep(0.01)
    assert len(tried) == 1
    engine = Switching(lambda: Fake(0), far, insist=True, first_pause_seconds=0.01)
    wait_for(lambda: at(engine) == [10])
    assert len(tried) == 3


@pytest.mark.parametrize("error", [ImportError("no ray"), Rejected("newer", code="fenced", status=409)])
def test_what_no_second_try_can_mend_is_raised(error: Exception) -> None:
    def far() -> Fake:
        raise error

    engine = Switching(lambda: Fake(0), far, insist=True)

    def refused() -> bool:
        try:
            engine.step()
        except type(error):
            return True
        return False

    wait_for(refused)
