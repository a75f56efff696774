"""How every Redis adapter asks: through the circuit breaker of a connection they share, never for longer than a timeout.

Redis gone is Unavailable: at first after the timeout, and once the breaker is open at once. While it is open nobody waits
for Redis; a thread of its own asks it from time to time and closes the breaker when it answers. What is half done when
Redis goes is not tried again here: every adapter's write can be repeated.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as SilentError

from policies.errors import Unavailable
from streaming.adapters.redis_address import RedisAddress, parse_redis
from streaming.breaker import Admission, Breaker

T = TypeVar("T")
_AWAY = (RedisError, RedisClusterException, OSError)


class RedisConnection:
    """Thread-safe; connects when it is first asked for something, so a process starts while Redis is away.

    clock  seconds that never go back, for the breaker and for those who share it
    """

    def __init__(self, address: RedisAddress, clock: Callable[[], float], breaker: Breaker | None = None) -> None:
        self.address, self.clock = address, clock
        self.breaker = breaker or Breaker(clock, slow_seconds=address.timeout_seconds / 2)
        self._open = address.opener()
        self._opening = threading.Lock()
        self._client: Any = None

    def name(self, *parts: str) -> str:
        """A key or channel of this installation."""
        return ":".join((self.address.prefix, *parts))

    def ask(self, question: Callable[[Any], T]) -> T:
        """What `question` gets from the client: one command or one pipeline. Raises Unavailable."""
        admission = self.breaker.admit()
        if admission is Admission.PROBE:
            threading.Thread(target=self._probe, name="redis-probe", daemon=True).start()
        if admission is not Admission.ASK:
            raise Unavailable("redis: did not answer, and is not asked for now")
        return self._asked(question, admission)

    @contextmanager
    def subscribed(self, channel: str) -> Iterator[Any]:
        """A subscription on a connection of its own: `get_message(timeout=…)`. Raises Unavailable, inside too."""
        listening = self.ask(lambda client: client.pubsub(ignore_subscribe_messages=True))
        try:
            with _unavailable():
                listening.subscribe(channel)
                yield listening
        finally:
            with suppress(*_AWAY):
                listening.close()

    def close(self) -> None:
        with self._opening:
            client, self._client = self._client, None
        if client is not None:
            with suppress(*_AWAY):
                client.close()

    def _asked(self, question: Callable[[Any], T], admission: Admission) -> T:
        began, answered = self.clock(), False
        try:
            with _unavailable():
                try:
                    found = question(self._opened())
                except ResponseError as error:
                    answered = not isinstance(error, GoneError | SilentError)  # it is there, and refuses
                    raise
                answered = True
                return found
        finally:
            self.breaker.ended(answered, self.clock() - began, admission)

    def _probe(self) -> None:
        with suppress(Unavailable):
            self._asked(lambda client: client.ping(), Admission.PROBE)

    def _opened(self) -> Any:
        with self._opening:
            if self._client is None:
                self._client = self._open()
            return self._client


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        raise Unavailable(f"redis: {error or type(error).__name__}") from error


def connect(url: str, *, clock: Callable[[], float], at: str = "$", password: str = "") -> RedisConnection:
    """A connection for every adapter of this process. Asks nothing yet. Raises Rejected at `at` for a URL that is none.

    password  of the URL's user, so that the URL need not hold it
    """
    return RedisConnection(parse_redis(url, at, password), clock)
