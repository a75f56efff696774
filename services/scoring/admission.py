"""Who is let in, and what is shed first when there is more than can be done (`semantics.md` 25).

Two signals: how many requests are in this worker, and how long the request at hand has waited since its first byte.
Shed in this order: explanations, batches, decisions to the fallback, decisions to 429; feedback last.
"""

from collections import deque
from dataclasses import dataclass, field

from policies.errors import Rejected

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds a request may have waited before it is answered with less; `requests` at once in a worker.

    Waiting is what a full worker looks like from outside: 64 requests of 0.2 ms wait 13 ms.
    """

    requests: int = 64
    explain: float = 0.1
    batch: float = 0.2
    live: float = 0.4
    decision: float = 1.0


@dataclass(slots=True)
class Admission:
    """Counts the requests of one worker. Feedback may fill twice the places, so it is refused last."""

    patience: Patience = field(default_factory=Patience)
    admitted: int = 0
    draining: bool = False

    def enter(self, feedback: bool = False) -> bool:
        """Take a place; False when there is none, and then nothing has to be given back."""
        if self.admitted >= self.patience.requests * (2 if feedback else 1):
            return False
        self.admitted += 1
        return True

    def leave(self) -> None:
        self.admitted -= 1


def overloaded() -> Rejected:
    return Rejected("More requests than this worker takes at once, try again", code="overloaded", status=429)


class Recent:
    """Running 99th percentile of the last seconds a policy took; refreshed by the tick, read by every decision."""

    def __init__(self, size: int = 512) -> None:
        self.seconds: deque[float] = deque(maxlen=size)
        self.p99 = 0.0

    def refresh(self) -> None:
        if self.seconds:
            ordered = sorted(self.seconds)
            self.p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
