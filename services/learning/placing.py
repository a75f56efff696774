"""Where trainers run now: on Ray where the shards do, in a thread of the learning service where nobody wants Ray or it stays away.

Nobody waits for a settled decision as for a click, and a trainer takes seconds to begin: while Ray starts, or is lost and may
come back, nothing is trained for a while. What has settled meanwhile is trained afterwards. Where no policy has a trainer the
thread idles, and no process is started for it.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from policies.errors import Unavailable
from services.learning.training import Taught
from services.telemetry import Telemetry

log = logging.getLogger("slatewise.training")
PATIENCE_SECONDS = 30.0  # for Ray, before a thread trains instead
PAUSE_SECONDS = 5.0  # after Ray was lost to a trainer's seat, and before the next


class Trainers(Protocol):
    """Whoever steps a course: `beside.Beside`, `trainer_actor.TrainerSeat`."""

    needed: dict[int, float]

    def report(self, telemetry: Telemetry) -> list[Taught]: ...

    def stop(self) -> None: ...


class Cluster(Protocol):
    """What is known of Ray: `switching.Switching`."""

    on_ray: bool

    @property
    def awaits_ray(self) -> bool: ...


class Placing:
    """Trainers out of two, one after the other. `near` makes some that run in a thread here, `far` some on Ray; `wants`: whether any
    policy has a trainer."""

    def __init__(
        self,
        near: Callable[[], Trainers],
        far: Callable[[], Trainers],
        cluster: Cluster,
        wants: Callable[[], bool],
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._near, self._far, self._cluster, self._wants, self._clock = near, far, cluster, wants, clock
        self._patience = patience_seconds
        self._waits_since = clock()
        self._again = 0.0
        self._now: Trainers | None = None
        self.on_ray = False  # where those are that train now
        self._leaving: threading.Thread | None = None
        self.needed: dict[int, float] = {}

    def report(self, telemetry: Telemetry) -> list[Taught]:
        """What is to be published since the last call, and metrics. Trainers move when Ray comes or goes."""
        self._place()
        if self._now is None:
            return []
        try:
            taught = self._now.report(telemetry)
        except Unavailable as error:  # Ray, or the way to it
            self._lost(error)
            return []
        self.needed |= self._now.needed
        return taught

    def stop(self) -> None:
        """What was trained is durable then."""
        if self._leaving is not None:
            self._leaving.join()
        if self._now is not None:
            self._now.stop()

    def _place(self) -> None:
        if self._leaving is not None:
            if self._leaving.is_alive():
                return
            self._leaving = None
        wanted = self._wanted()
        if self._now is not None and wanted is not None and wanted == self.on_ray:
            return
        if self._now is not None:
            self._leave(self._now)
        elif wanted is not None and self._clock() >= self._again:
            try:
                self._now, self.on_ray = (self._far if wanted else self._near)(), wanted
            except Unavailable as error:
                self._lost(error)

    def _wanted(self) -> bool | None:
        """Whether on Ray; None: wait."""
        if not self._wants():
            return False
        if self._cluster.on_ray:
            self._waits_since = self._clock()
            return True
        if not self._cluster.awaits_ray or self._clock() - self._waits_since > self._patience:
            return False
        return None if self._now is None or self.on_ray else False

    def _leave(self, trainers: Trainers) -> None:
        """Let go of them, in a thread: the last checkpoint may take a while. On a Ray that is gone there is nothing to say."""
        self._now = None
        if self.on_ray and not self._cluster.on_ray:
            return
        self._leaving = threading.Thread(target=trainers.stop, name="leaving", daemon=True)
        self._leaving.start()

    def _lost(self, error: Unavailable) -> None:
        log.warning("trainers lost", extra={"why": str(error)})
        self._now, self._again = None, self._clock() + PAUSE_SECONDS
