"""The trainers as a Ray actor, where shards run as actors: named, detached, passive, fenced by its owner's number like them (`rays`).

It takes a turn when it is asked for one. When it dies, when its node dies or when it does not answer another sits down wherever Ray finds
room, under the next number, and goes on from its disk or, where that is not the newest, from the upload: same weights, same
optimiser, same replay. In a list of processes it is `ray::Trainer`.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import ray

from policies.errors import SlatewiseError, Unavailable
from services.learning.beside import AWAY_SECONDS, tell
from services.learning.rays import end, end_older, got, namespace, options, reached
from services.learning.training import Course, Taught, Turn
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_state

log = logging.getLogger("slatewise.training")
PREFIX = "trainer-"
IDLE_SECONDS = 0.05
START_SECONDS = 180.0  # for the process, torch, and what was recorded since the checkpoint
STUCK_SECONDS = 120.0  # without an answer to a turn: a slice of training, a checkpoint, stores' bounded waits
CLOSE_SECONDS = 10.0  # for the turn it is in, the last checkpoint and its upload


class Trainer:
    """The actor: a course with a view of the configuration of its own."""

    def __init__(self, environment: dict[str, str], owner: int) -> None:
        settings = Settings.load(environment)
        self._course = Course(settings, open_state(settings), owner)

    def ready(self) -> int:
        """The process id."""
        return os.getpid()

    def pull(self) -> Turn:
        """One turn; a pause after one that had nothing to do."""
        turn = self._course.turn(time.time())
        if not turn.busy:
            time.sleep(IDLE_SECONDS)
        return turn

    def close(self) -> None:
        """Makes durable and uploads what was trained."""
        self._course.close()


class TrainerSeat:
    """Drives the actor from the learning service, whose connection to Ray is there. Nothing here waits for a turn.

    failed   why there will be no more turns
    needed   as in `beside.Beside`
    """

    def __init__(self, settings: Settings, owner: Callable[[], int]) -> None:
        self._settings, self._owner = settings, owner
        self.failed = ""
        self.needed: dict[int, float] = {}
        self.replaced = 0  # times another had to sit down
        self._heard = False  # whether the one that sits there ever answered
        self._next = 0.0
        with reached():
            self._namespace = namespace(settings)
            number = owner()
            end_older(self._namespace, PREFIX, number)
            self._sit(number)

    def report(self, telemetry: Telemetry) -> list[Taught]:
        """What is to be published since the last call, and metrics of the turns. Raises Lost."""
        turn = None if self.failed or time.monotonic() < self._next else self._turn()
        telemetry.set("train_failed", value=float(bool(self.failed)))
        if turn is None:
            return []
        self.needed |= turn.needed
        tell(turn, telemetry)
        return turn.taught

    def pid(self) -> int:
        """The actor's process, once it is up."""
        with reached():
            return int(ray.get(self._actor.ready.remote(), timeout=START_SECONDS))

    def stop(self) -> None:
        """What was trained is durable then, and uploaded. One that cannot say so is fenced by whoever comes next."""
        with contextlib.suppress(ray.exceptions.RayError, SlatewiseError), reached():
            ray.get(self._actor.close.remote(), timeout=CLOSE_SECONDS)
        with contextlib.suppress(SlatewiseError), reached():
            end(self._actor)

    def _turn(self) -> Turn | None:
        with reached():
            done, _ = ray.wait([self._pull], timeout=0)
            if not done:
                if time.monotonic() - self._asked > (STUCK_SECONDS if self._heard else START_SECONDS):
                    self._replace("does not answer")
                return None
            try:
                turn: Turn = got(self._pull)
            except ray.exceptions.RayActorError as error:  # its process or node died
                self._replace(str(error))
                return None
            except Unavailable as error:  # a store it needs: the next turn begins with what is durable
                log.warning("away", extra={"error": str(error)})
                self._next, turn = time.monotonic() + AWAY_SECONDS, Turn()
            except (SlatewiseError, ray.exceptions.RayTaskError) as error:
                # another has taken over, nothing can be gone on with, a library is not installed there
                self.failed = str(error)
                log.error("training stopped", extra={"error": self.failed})
                return None
            self._heard = True
            self._ask()
            return turn

    def _replace(self, why: str) -> None:
        number = self._owner()
        log.warning("trainer replaced", extra={"why": why, "owner": number})
        end(self._actor)
        self.replaced += 1
        self._sit(number)

    def _sit(self, owner: int) -> None:
        made = ray.remote(Trainer).options(**options(f"{PREFIX}{owner}", self._namespace))
        self._actor: Any = made.remote(self._settings.environment(), owner)
        self._heard = False
        self._ask()

    def _ask(self) -> None:
        self._pull, self._asked = self._actor.pull.remote(), time.monotonic()
