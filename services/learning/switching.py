"""Which engine the shards run on now: in this process at once, on Ray as soon as it is up, and here again while it is away.

State is per partition and every owner has a number of its own, so a switch is a restart of the shards from their
checkpoints, whose predecessors are shut out if they are still there. Nothing waits for Ray: with its head stopped,
learning goes on in this process with this machine's processors, and returns to the cluster when the cluster does.

    auto         Ray where it is installed and starts; given up when it cannot start at all
    local, ray://…   tried again for ever, with longer and longer pauses
"""

import logging
import threading
import time
from collections.abc import Callable

from policies.errors import Rejected
from services.learning.shards import Engine, Lost
from services.lifetime import listen_again
from streaming.shard import Statistics, StepReport

log = logging.getLogger("slatewise.learning")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 60.0


class Later:
    """An engine that takes seconds to start, built in a thread that then stays: what it started may end with its thread."""

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._build = build
        self._done, self._over = threading.Event(), threading.Event()
        self._engine: Engine | None = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def take(self) -> Engine | None:
        """The engine, once, when it is there. Raises what building it raised."""
        if not self._done.is_set():
            return None
        if self._error is not None:
            raise self._error
        engine, self._engine = self._engine, None
        return engine

    def end(self) -> None:
        self._over.set()

    def _run(self) -> None:
        try:
            self._engine = self._build()
        except Exception as error:  # noqa: BLE001 - handed to `take`, in the thread that decides what it means
            self._error = error
        self._done.set()
        self._over.wait()


class Switching:
    """An engine out of two: `near` makes one in this process, `far` one on Ray, None where nobody wants it.

    insist  whether Ray was asked for by name: then it is tried again for ever, and an error that is not Ray's is raised
    """

    def __init__(
        self,
        near: Callable[[], Engine],
        far: Callable[[], Engine] | None,
        *,
        insist: bool,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._near, self._far, self._insist = near, far, insist
        self.engine, self.on_ray = near(), False
        self._first_pause = self._pause = first_pause_seconds
        self._again = 0.0
        self._later: Later | None = None

    @property
    def awaits_ray(self) -> bool:
        """Whether Ray is wanted and not there: it may come up at any time."""
        return self._far is not None and not self.on_ray

    def step(self) -> list[StepReport]:
        self._switch()
        try:
            return self.engine.step()
        except Lost as error:
            self._return(error)
            return []

    def statistics(self) -> list[Statistics]:
        try:
            return self.engine.statistics()
        except Lost as error:
            self._return(error)
            return self.engine.statistics()

    def close(self) -> None:
        self.engine.close()
        if self._later is not None:
            self._later.end()

    def _switch(self) -> None:
        """Start Ray when it is time, and go there when it is up."""
        if self._far is None or self.on_ray:
            return
        if self._later is None:
            if time.monotonic() >= self._again:
                self._later = Later(self._far)
            return
        try:
            found = self._later.take()
        except Rejected:
            raise
        except Exception as error:  # noqa: BLE001 - whatever kept Ray from starting, learning goes on without it
            self._failed(error)
            return
        if found is not None:
            self.engine.close()
            self.engine, self.on_ray, self._pause = found, True, self._first_pause
            listen_again()  # Ray takes the signals for itself
            log.info("on Ray")

    def _failed(self, error: Exception) -> None:
        assert self._later is not None  # it is what failed
        self._later.end()
        self._later = None
        if not self._insist:
            self._far = None
        elif isinstance(error, ImportError):
            raise error
        log.warning("inline", extra={"why": f"no Ray: {error}", "again_seconds": self._pause if self._far else None})
        self._wait()

    def _return(self, error: Exception) -> None:
        """Ray is gone: its actors, if any are left, are shut out by the shards that begin here."""
        log.warning("inline", extra={"why": str(error), "again_seconds": self._pause})
        lost, self.on_ray = self.engine, False
        closing = threading.Thread(target=lost.close, name="closing", daemon=True)  # Ray may not let go at once
        closing.start()
        closing.join(self._first_pause)
        if self._later is not None:
            self._later.end()
            self._later = None
        self.engine = self._near()
        self._wait()

    def _wait(self) -> None:
        self._again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
