"""The trainers' thread in the learning service: no publish of anything else waits for a training step."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from policies.errors import Corrupt, Rejected, Unavailable
from services.learning.training import Course, Taught, Turn
from services.telemetry import Telemetry

log = logging.getLogger("slatewise.training")
IDLE_SECONDS = 0.05
AWAY_SECONDS = 1.0
STOP_SECONDS = 15.0  # for the turn it is in, and the last checkpoint


class Beside:
    """Steps a course until it is stopped or over. What its turns did is handed to the loop that owns metrics and publisher."""

    def __init__(self, begin: Callable[[], Course]) -> None:
        self._begin = begin
        self._over = threading.Event()
        self._turns: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self.failed = ""  # why there will be no more turns
        # partition → time on the log from which its records are needed, as last heard
        self.needed: dict[int, float] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the step it is in; what was trained is durable then."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def report(self, telemetry: Telemetry) -> list[Taught]:
        """What is to be published since the last call, and metrics of the turns."""
        taught: list[Taught] = []
        while not self._turns.empty():
            turn = self._turns.get()
            taught += turn.taught
            self.needed |= turn.needed
            tell(turn, telemetry)
        telemetry.set("train_failed", value=float(bool(self.failed)))
        return taught

    def _run(self) -> None:
        try:
            course = self._begin()
            while not self._over.is_set():
                self._over.wait(self._turn(course))
            course.close()
        except Rejected as error:
            self.failed = str(error)  # another learning service has taken over, or the configuration cannot be trained
            log.error("training stopped", extra={"error": str(error)})
        except (Corrupt, Unavailable) as error:  # what it had not made durable is trained again at the next start
            self.failed = str(error)
            log.error("training stopped", extra={"error": str(error)})
        except Exception as error:  # such as a library that is not installed: all else goes on, the last bundle serves
            self.failed = f"{type(error).__name__}: {error}"
            log.exception("training stopped")

    def _turn(self, course: Course) -> float:
        """One turn; how long to wait before the next."""
        try:
            turn = course.turn(time.time())
        except Unavailable as error:
            log.warning("away", extra={"error": str(error)})
            return AWAY_SECONDS
        self._turns.put(turn)
        return 0.0 if turn.busy else IDLE_SECONDS


def tell(turn: Turn, telemetry: Telemetry) -> None:
    """A turn in the vocabulary of metrics."""
    rows = 0.0
    for report in turn.trained:
        rows += report.rows
        for key, count in report.transitions.items():
            telemetry.add("train_transitions_total", *_labels(key), by=count)
        for key, count in report.steps.items():
            telemetry.add("train_steps_total", *_labels(key), by=count)
        for key, metrics in report.metrics.items():
            for name, value in metrics.items():
                _tell_metric(telemetry, key, name, value)
        for key in {*report.steps, *report.stopped}:
            telemetry.set("train_stopped", *_labels(key), value=float(key in report.stopped))
        for (surface, outcome), count in report.outcomes.items():
            telemetry.add("sequence_outcomes_total", surface, outcome, by=count)
    for settled in turn.settled:
        for surface, count in settled.after_training.items():
            telemetry.add("join_outcomes_total", surface, "after_training", by=count)
    for partition, lag in turn.lag_rows.items():
        telemetry.set("train_lag_rows", str(partition), value=lag)
        telemetry.set("settle_stopped", str(partition), value=float(partition in turn.stopped))
    telemetry.add("train_uploads_total", "written", by=turn.uploads)
    telemetry.add("train_uploads_total", "failed", by=turn.upload_errors)
    if turn.trained and turn.seconds > 0:
        telemetry.set("train_rows_per_second", value=rows / turn.seconds)


def _tell_metric(telemetry: Telemetry, key: str, name: str, value: float) -> None:
    """`multiplier_<objective>` is a constraint's, all else are losses, counts and the like, by name."""
    surface, policy = _labels(key)
    if name.startswith("multiplier_"):
        telemetry.set("constraint_multiplier", surface, policy, name.removeprefix("multiplier_"), value=value)
    else:
        telemetry.set("train_metric_value", surface, policy, name, value=value)


def _labels(key: str) -> tuple[str, str]:
    surface, policy = key.split("/")[1:3]
    return surface, policy
