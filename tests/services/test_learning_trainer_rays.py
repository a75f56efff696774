"""The trainers as a Ray actor: killed, followed by another; the order that was recorded gives what it has come to."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from policies.errors import Rejected
from services.learning.retracing import retraced, trained
from services.learning.training import Taught
from services.settings import Settings
from services.wiring import open_log, open_training, open_uploads
from streaming.training_uploads import TrainingUploads
from tests.scoring_setup import until
from tests.services import test_training as house_of
from tests.services.test_training_recurrent import of_genres

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'slatewise[learning]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own: sockets and files of processes that end with it
]


@pytest.fixture
def ray_stopped() -> Iterator[None]:
    """Whatever the test started is gone after it."""
    yield
    ray.shutdown()


def happen(house: house_of.House, first: int) -> None:
    """Decisions and clicks that have settled; two of each unit, so that the first of them is a whole transition."""
    for unit in range(first, first + 4):
        house.visit(f"u-{unit}")
        house.visit(f"u-{unit}")
    house.forward()
    time.sleep(house_of.HORIZON)
    house.visit_log()


def newest(settings: Settings) -> dict[int, int]:
    """Partition → offset of its last decision."""
    log = open_log(settings)
    return {
        partition: record.offset
        for partition in range(log.partitions)
        for record in log.read(partition, 0, 10_000)
        if b'"type":"decision"' in record.value
    }


def replays(house: house_of.House) -> list[str]:
    """What the checkpoint differs in from the recorded order, gone through once more."""
    order, outboxes = open_training(house.settings)
    found = replace(trained(order.load()), entries=order.numbers()[1])  # all of it
    assert any(key.startswith("default/home/agent") for key in found.statistics)
    return retraced(order, outboxes, open_log(house.settings), house.configs, found)


def test_an_actor_that_is_killed_is_followed_by_one_with_the_same_optimiser(
    tmp_path: Path, ray_stopped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story on one Ray, because a Ray takes long to start."""
    from services.learning.rays import start_ray
    from services.learning.trainer_actor import TrainerSeat

    options = {"group": "genre", "size": 2, "steps": 3, "floor": 0.1}
    house = of_genres(tmp_path, monkeypatch, options)
    house.course.close()
    settings = Settings.load(house.settings.environment(), ray="local")
    owners = itertools.count(100)
    start_ray(settings)
    seat = TrainerSeat(settings, lambda: next(owners))
    taught: list[Taught] = []

    def trained() -> bool:
        """Every decision that the log has is in what was handed out last."""
        assert not seat.failed
        taught.extend(seat.report(house.telemetry))
        settled = newest(settings)
        return bool(taught and settled) and all(taught[-1].through.get(p, 0) > offset for p, offset in settled.items())

    happen(house, 0)
    until(trained, "the actor to train")
    first = seat.pid()
    assert psutil.Process(first).name().startswith("ray::Trainer")
    os.kill(first, signal.SIGKILL)
    happen(house, 4)
    until(trained, "another to go on")
    assert (seat.replaced, seat.pid() == first) == (1, False)
    with pytest.raises(Rejected, match="sits there"):
        TrainerSeat(settings, lambda: 7)
    seat.stop()
    assert replays(house) == []
    uploads = TrainingUploads(open_uploads(settings), 0)
    manifest = uploads.newest()
    assert manifest is not None  # written at the end, if not before
    assert (manifest.epoch, manifest.entries) == (101, open_training(settings)[0].numbers()[1])
    house.scoring.close()
