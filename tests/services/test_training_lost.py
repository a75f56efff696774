"""What trainers have come to survives their disk, and of two owners on two machines one goes on: the newer."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from policies.errors import Corrupt, Rejected
from policies.types import Arrays
from services.cli import main
from services.learning.training import Course, Turn
from services.settings import Settings
from services.wiring import open_log, open_state, open_training, open_uploads
from streaming.parquet import table_of
from streaming.training_uploads import FOLDER, TrainingUploads
from tests.scoring_setup import until
from tests.services.test_training import HORIZON, House
from tests.training_setup import registered


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


class Node:
    """A machine that may train, with a disk of its own; the log, the record and the bundle store are shared."""

    def __init__(self, house: House, name: str) -> None:
        data = house.settings.data
        self.settings: Settings = replace(
            house.settings,
            data=data.with_name(name),
            log=f"sqlite:///{data}/log.sqlite",
            state=f"sqlite:///{data}/state.sqlite",
            bundles=(data / "bundles").as_uri(),
        )

    def course(self, owner: int) -> Course:
        return Course(self.settings, open_state(self.settings), owner)


def busy(course: Course, now: float) -> list[Turn]:
    turns = [course.turn(now)]
    while turns[-1].busy:
        turns.append(course.turn(now))
    return turns


def upload(course: Course, now: float) -> None:
    """What it has come to is in the store."""
    busy(course, now)

    def done() -> bool:
        course._next_upload = 0.0
        return course.turn(now).uploads > 0

    until(done, "an upload")


def state(course: Course) -> dict[str, bytes]:
    assert course._training is not None
    [key] = course._training.policies
    found: Arrays = course._training.arrays(key)
    return {name: array.tobytes() for name, array in found.items()}


def happen(house: House, visits: int, first: int = 0) -> None:
    """Decisions that have settled, if time says so."""
    for unit in range(first, first + visits):
        house.visit(f"u-{unit}")
    house.forward()
    time.sleep(HORIZON)
    house.visit_log()


def given(turns: list[Turn]) -> int:
    return sum(sum(one.transitions.values()) for turn in turns for one in turn.trained)


def test_a_lost_disk_comes_back_bit_for_bit(tmp_path: Path) -> None:
    house = House(tmp_path / "a")
    later = time.time() + 1e4
    happen(house, 6)
    busy(house.course, time.time())
    house.course._next_checkpoint = 0.0
    upload(house.course, time.time())
    happen(house, 6, 6)
    assert given(busy(house.course, later)) > 0  # entries since the checkpoint, and sessions that have ended
    upload(house.course, later)
    assert house.course._training is not None
    assert 0 < house.course._training.checkpointed < house.course._training.entry
    held, entries = state(house.course), house.course._training.entry

    shutil.rmtree(house.settings.training_path.parent)
    course = house.start()
    assert sum(turn.again for turn in busy(course, later)) > 0
    assert state(course) == held
    happen(house, 3, 12)
    assert given(busy(course, later + 1e4)) == 3  # and nothing of before
    assert course._training is not None
    assert course._training.entry > entries
    house.scoring.close()


def test_the_log_may_have_forgotten_what_was_trained_long_ago(tmp_path: Path) -> None:
    """Rows of a settler that begins anew would have other numbers: those of the upload are gone on with."""
    house = House(tmp_path / "a")
    happen(house, 6)
    later = time.time() + 1e4
    busy(house.course, later)
    house.course._next_checkpoint = 0.0
    upload(house.course, later)
    held = state(house.course)
    newest = TrainingUploads(open_uploads(house.settings), 0)
    manifest = newest.newest()
    assert manifest is not None
    places = newest.read(manifest).taken.places
    log = open_log(house.settings)
    for place in places:
        log.trim(place.partition, place.rebuild_from)  # type: ignore[attr-defined]  # of a log whose retention is ours
    shutil.rmtree(house.settings.training_path.parent)
    course = house.start()
    busy(course, later)
    assert state(course) == held
    happen(house, 4, 6)
    assert given(busy(course, later + 1e4)) == 4
    house.scoring.close()


def test_of_two_machines_the_newer_owner_counts(tmp_path: Path) -> None:
    house = House(tmp_path / "a")
    a, b = Node(house, "node-a"), Node(house, "node-b")
    first, now = a.course(10), time.time() + 1e4
    happen(house, 4)
    upload(first, now)
    second = b.course(11)
    busy(second, now)
    assert state(second) == state(first)
    happen(house, 4, 4)
    busy(first, now + 1e4)  # nobody has told it
    upload(second, now + 2e4)
    with pytest.raises(Rejected, match="is over"):
        upload(first, now + 1e4)
    held = state(second)
    second.close()
    third = a.course(12)  # back on the first machine, whose disk is further than where the second began
    busy(third, now + 2e4)
    assert state(third) == held
    assert a.settings.training_path.parent.with_name("training.before").exists()
    third.close()
    fourth = a.course(13)  # on its own disk again, as nobody was elsewhere meanwhile
    assert sum(turn.again for turn in busy(fourth, now + 2e4)) == 0
    assert state(fourth) == held
    house.scoring.close()


def test_a_disk_that_is_no_database_begins_with_the_upload(tmp_path: Path) -> None:
    house = House(tmp_path / "a")
    happen(house, 4)
    later = time.time() + 1e4
    upload(house.course, later)
    held = state(house.course)
    house.course.close()
    for store in open_training(house.settings)[1]:
        store.close()
    for left in house.settings.training_path.parent.glob("order.sqlite*"):
        left.write_bytes(b"no database" * 1000)
    course = house.start()
    busy(course, later)
    assert state(course) == held
    house.scoring.close()


def test_an_upload_that_is_spoilt_is_not_begun_with(tmp_path: Path) -> None:
    house = House(tmp_path / "a")
    happen(house, 4)
    upload(house.course, time.time() + 1e4)
    house.scoring.close()
    shutil.rmtree(house.settings.training_path.parent)
    store = open_uploads(house.settings)
    [arrays] = [name for name in store.names(FOLDER) if name.endswith(".npz")][-1:]
    store.remove(arrays)
    store.put(arrays, b"spoilt")
    with pytest.raises(Corrupt, match="not what was written"):
        house.start().turn(time.time())


def test_what_was_learned_from_files_is_uploaded_too(tmp_path: Path) -> None:
    """The trainer may sit on another machine than the one where the command was run."""
    house = House(tmp_path / "there")
    happen(house, 4)
    busy(house.course, time.time() + 1e4)
    house.scoring.close()
    files = tmp_path / "log.parquet"
    pq.write_table(table_of(house.settled()), files)
    here = House(tmp_path / "here")
    here.course.close()
    here.scoring.close()
    command = ["train", str(files), "--policy", "agent", "--data", str(here.settings.data)]
    said = CliRunner(env={"SLATEWISE_PARTITIONS": "2"}).invoke(main, command, catch_exceptions=False).output
    assert "not uploaded" not in said
    course = Node(here, "elsewhere").course(20)
    [turn] = busy(course, time.time())[:1]
    [taught] = turn.taught
    assert taught.published.diagnostics["seen"] == 2 * 4  # slots, decisions
    course.close()
