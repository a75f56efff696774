"""A circuit breaker: who asks for something that is away is told so at once, instead of waiting to find out.

    closed     everyone asks; `failures` in a row, be they errors or slow answers, open it
    open       everyone is refused for `cool_seconds`; then one is let through as the probe
    half open  that probe is out and the others are refused; its success closes the breaker, its failure opens it again

The clock is handed in: seconds that never go back, from any origin. Thread-safe.

Source   Nygard, Release It!, 2007
"""

import threading
from collections.abc import Callable
from enum import Enum


class Admission(Enum):
    ASK = "ask"
    PROBE = "probe"
    REFUSE = "refuse"


class Breaker:
    """One for each thing that may be away. Whoever was admitted says with `ended` how it went.

    slow_seconds  an answer that took longer counts as a failure, although whoever asked has it
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        failures: int = 3,
        slow_seconds: float = 0.1,
        cool_seconds: float = 0.5,
    ) -> None:
        self._clock, self._failures = clock, failures
        self._slow_seconds, self._cool_seconds = slow_seconds, cool_seconds
        self._lock = threading.Lock()
        self._failed = 0
        self._retry_at: float | None = None  # None while closed
        self.opened = 0  # times it has opened, for metrics

    @property
    def closed(self) -> bool:
        return self._retry_at is None

    def admit(self) -> Admission:
        """Whether to ask now. A probe that is never reported ends by itself after `cool_seconds`."""
        if self.closed:  # without the lock: one who asks a moment too late only fails once more
            return Admission.ASK
        with self._lock:
            now = self._clock()
            if self._retry_at is None:
                return Admission.ASK
            if now < self._retry_at:
                return Admission.REFUSE
            self._retry_at = now + self._cool_seconds
            return Admission.PROBE

    def ended(self, ok: bool, seconds: float, admission: Admission) -> None:
        """An answer came after `seconds`, or none did."""
        good = ok and seconds <= self._slow_seconds
        with self._lock:
            if good:
                if (
                    self._retry_at is None or admission is Admission.PROBE
                ):  # one that began before the fault proves nothing
                    self._failed, self._retry_at = 0, None
                return
            self._failed += 1
            if self._retry_at is not None or self._failed >= self._failures:
                if self._retry_at is None:
                    self.opened += 1
                self._retry_at = self._clock() + self._cool_seconds
