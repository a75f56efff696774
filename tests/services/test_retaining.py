"""Retention as the learning service runs it: over real stores, with what must not go kept."""

import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from policies.errors import Rejected, Unavailable
from services.configuring import quickstart
from services.control.window import Window
from services.epochs import take_epoch
from services.releases import KEY, KIND, Releases
from services.retaining import Retaining
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_dead_letters, open_log, open_settlements, open_state, open_uploads
from streaming.configuration import Configs, publish_surface
from streaming.ports import Commit, DeadLetter
from streaming.publish import Publisher
from streaming.retention import GRACE_SECONDS, HOUR
from streaming.uploads import Checkpoint, Uploads

DAY = 24 * HOUR
HOME = "home/home-ts"


class House:
    """An embedded installation with a publisher, and retention for its first epoch."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.settings = replace(Settings.load({}, data=folder / "data", partitions=2), **settings)  # type: ignore[arg-type]
        self.state, self.configs = open_state(self.settings), Configs()
        publish_surface(self.state, quickstart()[0])
        self.configs.follow(self.state)
        self.epoch = take_epoch(self.state)
        self.retaining = Retaining(self.settings, self.state, self.configs, self.epoch)
        self.log, self.letters = open_log(self.settings), open_dead_letters(self.settings)
        self.now = time.time()

    def publish(self, at: float) -> str:
        compiled = self.configs.current("home")
        assert compiled is not None
        publisher = Publisher(self.retaining.bundles, self.configs, self.epoch)
        manifest = publisher.publish(compiled.policies["home-ts"], [], {0: 0}, at).manifest
        assert manifest is not None
        return manifest.bundle

    @property
    def bundles(self) -> set[str]:
        return {name[10:-5] for name in self.retaining.bundles.names("manifests")}

    def fill(self) -> None:
        """Records in both partitions, with a dead letter each."""
        self.log.append([(b"%016x" % n, b"record") for n in range(40)])
        self.letters.put(
            [DeadLetter(p, offset, "why", "", b"", b"") for p in range(2) for offset in range(self.log.end(p)[0])]
        )

    def upload(self, partition: int, rebuild_from: int, log: str | None = None) -> None:
        """A checkpoint that a restart would go on from."""
        checkpoint = Checkpoint(
            log=log or self.log.identity, offset=rebuild_from + 3, rebuild_from=rebuild_from, clock=self.now,
            longest=DAY, ghosts=b"", examples={}, statistics={},
        )  # fmt: skip
        Uploads(open_uploads(self.settings), partition, 1).put(checkpoint)

    def firsts(self) -> list[int]:
        return [self.log.first(p) for p in range(2)]


def test_bundles_go_and_those_held_stay(tmp_path: Path) -> None:
    house = House(tmp_path)
    start = house.now // HOUR * HOUR + 60
    held, gone, newest = (house.publish(start + minute * 60) for minute in range(3))
    house.state.put([(KIND, KEY, msgspec.json.encode({HOME: held}))])
    house.retaining.turn(house.now + HOUR)
    assert house.bundles == {held, gone, newest}
    turn = house.retaining.turn(house.now + 3 * DAY)
    assert (turn.removed["manifests"], turn.bundles, turn.errors) == (1, 2, 0)
    assert house.bundles == {held, newest}
    assert house.retaining.turn(house.now + 3 * DAY + GRACE_SECONDS).removed["arrays"] > 0
    Releases.of(house.settings).verify(held)
    Releases.of(house.settings).verify(newest)


def test_no_record_goes_that_a_restart_needs(tmp_path: Path) -> None:
    """By age and from where the newest upload rebuilds; dead letters with their records. Without an upload, none."""
    house = House(tmp_path)
    house.fill()
    assert house.retaining.turn(house.now + 8 * DAY).removed["records"] == 0
    house.upload(0, 5)
    house.upload(1, 4, log="another log")
    assert house.retaining.turn(house.now + 6 * DAY).removed["records"] == 0
    turn = house.retaining.turn(house.now + 8 * DAY)
    assert (turn.removed["records"], turn.removed["letters"], house.firsts()) == (5, 5, [5, 0])
    assert {letter.offset for _, letter in house.letters.read() if letter.partition == 0} == set(
        range(5, house.log.end(0)[0])
    )
    assert turn.headroom[0] == pytest.approx(1 - 8 / 7, abs=0.01)
    house.upload(0, house.log.end(0)[0])
    assert house.retaining.turn(house.now + 8 * DAY).headroom[0] == 1.0


def test_a_short_retention_keeps_what_correctable_needs(tmp_path: Path) -> None:
    house = House(tmp_path, retention_seconds=60)
    house.fill()
    house.upload(0, 5)
    house.retaining.turn(house.now + 2 * DAY)
    assert house.firsts() == [0, 0]
    house.retaining.turn(house.now + 2 * DAY + 2 * HOUR)
    assert house.firsts() == [5, 0]


def test_no_record_goes_that_is_still_to_be_settled(tmp_path: Path) -> None:
    house = House(tmp_path, experiences=f"file://{tmp_path}/experiences")
    house.fill()
    house.upload(0, 5)
    settling = open_settlements(house.settings, 0)
    settling.commit(Commit(partition=0, offset=2, clock=house.now + DAY, epoch=1))
    house.retaining.turn(house.now + 9 * DAY)
    assert house.firsts() == [0, 0]
    settling.commit(Commit(partition=0, offset=9, clock=house.now + 8 * DAY, epoch=1))
    house.retaining.turn(house.now + 9 * DAY)
    assert house.firsts() == [5, 0]


def test_a_service_that_was_replaced_removes_nothing_more(tmp_path: Path) -> None:
    house = House(tmp_path)
    start = house.now // HOUR * HOUR + 60
    made = {house.publish(start + second) for second in range(40)}
    take_epoch(house.state)
    house.retaining.turn(house.now + 3 * DAY)
    assert len(house.bundles) >= len(made) - 16  # what it was at when it found out
    after = house.bundles
    house.retaining.turn(house.now + 3 * DAY)
    assert house.bundles == after


def test_a_store_that_is_away_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    house.fill()
    house.upload(0, 5)

    def away(*_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(house.retaining._retention, "sweep", away)
        turn = house.retaining.turn(house.now + 8 * DAY)
    assert (turn.errors, turn.bundles, turn.removed["records"]) == (1, None, 5)
    assert house.retaining.turn(house.now + 8 * DAY).errors == 0


def test_it_runs_by_itself_and_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.retaining.FIRST_SECONDS", 0.01)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    house = House(tmp_path)
    start = house.now // HOUR * HOUR - 3 * DAY + 60
    for minute in range(3):
        house.publish(start + minute * 60)
    telemetry = Telemetry()
    house.retaining.start()
    until = time.monotonic() + 60
    while "slatewise_bundles_kept_count" not in (text := telemetry.text().decode()):
        assert time.monotonic() < until
        time.sleep(0.02)
        house.retaining.report(telemetry)
    house.retaining.stop()
    assert 'slatewise_retention_removed_total{kind="manifests"} 2.0' in text
    assert "slatewise_bundles_kept_count 1.0" in text
    assert 'slatewise_log_retention_headroom_ratio{partition="0"} 1.0' in text
    assert not house.retaining._thread.is_alive()


def test_what_reads_the_log_backwards_reads_what_is_left(tmp_path: Path) -> None:
    """A rollback by time and the operator's window start where the log does."""
    house = House(tmp_path)
    house.fill()
    house.publish(house.now)
    house.upload(0, house.log.end(0)[0])
    house.upload(1, house.log.end(1)[0] - 1)
    house.retaining.turn(house.now + 8 * DAY)
    assert house.firsts() == [house.log.end(0)[0], house.log.end(1)[0] - 1]
    window = Window(house.log, house.configs)
    assert window.follow() == 1
    with pytest.raises(Rejected, match="No decision of home/home-ts found"):
        Releases.of(house.settings).answered_by(HOME, time.time())
