"""Trainers follow the cluster: on Ray when it is there, here when nobody wants it or it stays away, and never in two places."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from policies.errors import Unavailable
from services.learning.placing import PATIENCE_SECONDS, PAUSE_SECONDS, Placing
from services.learning.training import Taught
from services.telemetry import Telemetry
from tests.scoring_setup import until


class Trains:
    """Trainers that say where they are; `alive` counts those that were not told to stop."""

    def __init__(self, where: str, alive: set[str], may_stop: threading.Event) -> None:
        self.where, self._alive, self._may_stop = where, alive, may_stop
        assert not alive, f"{where} begins while {alive} trains"
        alive.add(where)
        self.needed = {0: 1.0}
        self.lost = False

    def report(self, telemetry: Telemetry) -> list[Taught]:
        if self.lost:
            raise Unavailable("Ray: gone")
        made: Any = self.where
        return [made]

    def stop(self) -> None:
        self._may_stop.wait(30.0)
        self._alive.discard(self.where)


class Site:
    def __init__(self, on_ray: bool = False, awaits_ray: bool = True) -> None:
        self.on_ray, self.awaits_ray, self.now = on_ray, awaits_ray, 100.0
        self.alive: set[str] = set()
        self.may_stop = threading.Event()
        self.may_stop.set()
        self.made: list[Trains] = []
        self.wants = True
        self.placing = Placing(
            self._makes("near"), self._makes("far"), self, lambda: self.wants, clock=lambda: self.now
        )

    def _makes(self, where: str) -> Callable[[], Trains]:
        def make() -> Trains:
            self.made.append(Trains(where, self.alive, self.may_stop))
            return self.made[-1]

        return make

    def says(self) -> str:
        """Where whoever reports is; empty: nobody."""
        return "".join(map(str, self.placing.report(Telemetry())))


def test_nobody_wants_ray() -> None:
    site = Site(awaits_ray=False)
    assert site.says() == "near"
    assert site.placing.needed == {0: 1.0}
    site.placing.stop()
    assert site.alive == set()


def test_without_a_policy_that_is_trained_no_process_is_started() -> None:
    site = Site(on_ray=True, awaits_ray=False)
    site.wants = False
    assert site.says() == "near"
    site.wants = True
    assert site.says() == ""  # asked to leave first
    until(lambda: site.says() == "far", "those on Ray to begin")
    site.wants = False
    assert site.says() == ""
    until(lambda: site.says() == "near", "the thread to idle again")
    assert site.alive == {"near"}


def test_ray_is_waited_for_and_not_for_ever() -> None:
    site = Site()
    assert site.says() == ""
    site.now += PATIENCE_SECONDS + 1
    assert site.says() == "near"
    site.may_stop.clear()
    site.on_ray, site.awaits_ray = True, False
    assert site.says() == ""  # the last checkpoint is being written
    assert site.says() == ""
    site.may_stop.set()
    until(lambda: site.says() == "far", "those on Ray to begin")
    assert site.alive == {"far"}


def test_a_ray_that_is_lost_and_comes_back_has_its_trainers_again() -> None:
    site = Site(on_ray=True, awaits_ray=False)
    assert site.says() == "far"
    site.on_ray, site.awaits_ray = False, True
    site.alive.clear()  # died with it
    assert site.says() == ""
    site.now += PATIENCE_SECONDS / 2
    assert site.says() == ""
    site.on_ray, site.awaits_ray = True, False
    assert site.says() == "far"
    site.on_ray, site.awaits_ray = False, True
    site.alive.clear()
    site.now += PATIENCE_SECONDS + 1
    assert site.says() == ""  # asked to leave first
    assert site.says() == "near"


def test_a_seat_that_is_lost_is_taken_again_after_a_pause() -> None:
    site = Site(on_ray=True, awaits_ray=False)
    site.says()
    site.made[0].lost = True
    site.alive.clear()
    assert site.says() == ""
    assert site.says() == ""
    site.now += PAUSE_SECONDS
    assert site.says() == "far"
    assert len(site.made) == 2


def test_two_are_never_told_to_train() -> None:
    """The stand-in notices: planted, so that the tests above can fail."""
    site = Site(awaits_ray=False)
    site.says()
    with pytest.raises(AssertionError, match="begins while"):
        Trains("far", site.alive, site.may_stop)
