"""Shards as Ray actors: killed, paused, moved, cut off from their cluster; the sums stay those of the log."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from policies.errors import Rejected, Unavailable
from services.configuring import apply_quickstart
from services.epochs import take_epoch
from services.learning.inline import InlineShards
from services.learning.shards import Engine, Lost, open_shards
from services.learning.switching import Switching
from services.settings import Settings
from services.wiring import open_log, open_state
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters
from streaming.configuration import Configs
from streaming.events import Feedback, encode
from streaming.shard import Shard, Statistics
from tests.services.test_learning import decision

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'slatewise[learning]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own: sockets and files of processes that end with it
]
PARTITIONS = 4
SECONDS = 150.0  # generous: an actor's process takes seconds to start, and a machine may be busy


class Site:
    """Stores in a folder, and events with what is expected of them."""

    def __init__(self, folder: Path, ray_url: str) -> None:
        self.settings = Settings.load({}, data=folder, partitions=PARTITIONS, ray=ray_url)
        self.state, self.configs, self.log = open_state(self.settings), Configs(), open_log(self.settings)
        apply_quickstart(self.state)
        self.configs.follow(self.state)
        self.owners = itertools.count(take_epoch(self.state))
        self._made = itertools.count()

    def owner(self) -> int:
        return next(self.owners)

    def near(self) -> InlineShards:
        return InlineShards(open_shards(self.settings, self.state, self.configs, self.owner(), range(PARTITIONS)))

    def happen(self, count: int = 40) -> None:
        """Decisions, each with a click."""
        compiled = self.configs.current("home")
        assert compiled is not None
        for _ in range(count):
            unit, now = f"{next(self._made):016x}", time.time()
            made = msgspec.structs.replace(decision(compiled, unit), at=now)
            click = Feedback(decision_id=made.decision_id, unit=unit, at=now, kind="click", slot=0, feedback_id="f")
            self.log.append([(unit.encode(), encode(made)), (unit.encode(), encode(click))])

    def learned(self, engine: Engine) -> list[Statistics]:
        """Statistics of a log that was read to its end."""
        until = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < until
            engine.step()
            try:
                found = engine.statistics()
            except Unavailable:  # an actor that was killed, and `step` has not noticed yet
                continue
            if all(one.offset >= self.log.end(one.partition)[0] for one in found):
                return found

    def same(self, found: list[Statistics]) -> None:
        """Equal to those of one undisturbed reading."""
        for one in found:
            alone = Shard(one.partition, self.log, MemoryCheckpoints(), self.configs, MemoryDeadLetters(), epoch=1)
            while alone.step().records:
                pass
            again = alone.statistics()
            assert (one.offset, one.examples) == (again.offset, again.examples)
            assert one.arrays.keys() == again.arrays.keys()
            for key, arrays in again.arrays.items():
                for name, array in arrays.items():
                    if array.dtype.kind == "f":
                        np.testing.assert_allclose(one.arrays[key][name], array, rtol=1e-9, atol=1e-9)


def wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < until
        time.sleep(0.05)


def reached(made: Callable[[], Engine]) -> Engine:
    """What is made once Ray lets a client in: its proxy may fail to start a server, beside other clusters of this machine."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            return made()
        except Lost:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


@pytest.fixture
def ray_stopped() -> Iterator[None]:
    """Whatever the test started is gone after it."""
    yield
    ray.shutdown()


def test_actors_that_are_killed_get_successors_from_their_checkpoints(tmp_path: Path, ray_stopped: None) -> None:
    from services.learning.rays import RayShards

    site = Site(tmp_path, "local")
    site.happen()
    engine = RayShards(site.settings, PARTITIONS, site.owner)
    try:
        site.learned(engine)
        for pid in engine.pids():
            os.kill(pid, signal.SIGKILL)  # what they had committed is there for their successors
        site.happen()
        site.same(site.learned(engine))
    finally:
        engine.close()
    site.same(site.near().statistics())


def test_a_cluster_loses_nodes_and_its_head(tmp_path: Path, ray_stopped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One story on one cluster, because a cluster takes long to start: seats move, and what was learned moves with them."""
    from services.learning import rays
    from services.stack.ray import RayNodes

    with RayNodes(2) as nodes:
        site = Site(tmp_path, nodes.url)
        site.happen()
        engine = Switching(
            site.near,
            lambda: rays.RayShards(site.settings, PARTITIONS, site.owner, 2),
            insist=True,
            first_pause_seconds=1.0,
        )
        site.learned(engine)  # inline, while Ray starts
        wait_for(lambda: bool(engine.step() is not None and engine.on_ray))
        shards = engine.engine
        assert isinstance(shards, rays.RayShards)
        site.happen()
        site.same(site.learned(engine))

        for actors in (4, 1, 2):  # resharding
            shards.reseat(actors)
            site.happen()
            site.same(site.learned(engine))

        nodes.kill_node()
        site.happen()
        site.same(site.learned(engine))

        monkeypatch.setattr(rays, "STUCK_SECONDS", 3.0)
        paused = shards.pids()[0]
        os.kill(paused, signal.SIGSTOP)
        try:
            site.happen()
            site.same(site.learned(engine))
            assert paused not in shards.pids()
        finally:
            with suppress(ProcessLookupError):  # Ray ends one that says nothing, now and then before this
                os.kill(paused, signal.SIGCONT)
        site.happen()
        site.same(site.learned(engine))  # what the paused one still says changes nothing

        nodes.stop()
        site.happen()
        site.same(site.learned(engine))
        assert not engine.on_ray
        nodes.start()
        wait_for(lambda: bool(engine.step() is not None and engine.on_ray))
        site.happen()
        site.same(site.learned(engine))

        epoch = take_epoch(site.state)  # another service, in its own process
        elsewhere = InlineShards(open_shards(site.settings, site.state, site.configs, epoch, range(PARTITIONS)))
        site.happen()
        site.same(site.learned(elsewhere))
        site.happen()
        with pytest.raises(Rejected, match="is over"):  # what an actor says arrives as what it is
            wait_for(lambda: engine.step() is None)
        elsewhere.close()

        ray.shutdown()  # a driver that dies leaves its actors behind
        with pytest.raises(Rejected, match="sits there"):
            reached(lambda: rays.RayShards(site.settings, PARTITIONS, lambda: 1, 1))
        epochs = itertools.count(take_epoch(site.state))
        newest = reached(lambda: rays.RayShards(site.settings, PARTITIONS, epochs.__next__, 1))
        site.same(site.learned(newest))
        newest.close()
