"""Traffic for `slatewise load`: decisions, a few of them explained, batches and feedback, closed or open loop, over bare sockets.

closed   every connection asks again when it is answered: as much as the service can do
open     requests are due at a rate, whatever has been answered; latency counts from when a request is written, and how far the
         generator falls behind its own schedule is counted beside (it shares the machine)
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec
import numpy as np

from services.bench.requests import bodies

DECISION, EXPLAINED, BATCH, FEEDBACK = "decision", "explained", "batch", "feedback"
SHARES = {DECISION: 0.70, EXPLAINED: 0.03, BATCH: 0.02, FEEDBACK: 0.25}
IN_A_BATCH, REMEMBERED = 4, 512
PAUSE_SECONDS = 0.001  # of the pacer, when nothing is due
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb'"decision_id":"([^"]+)"')


@dataclass(slots=True)
class Answered:
    """One request's end. `at`: seconds since the run began, when it was written; `full`: it got all that it asked for (live, and
    explained where that was asked)."""

    kind: str
    at: float
    took: float
    status: int
    full: bool


@dataclass
class Run:
    """What a run came to. `late`: seconds that the generator was behind at most; `broken`: connections that ended."""

    seconds: float
    answers: list[Answered] = field(default_factory=list)
    asked: int = 0
    late: float = 0.0
    broken: int = 0

    @property
    def rate(self) -> float:
        return len(self.answers) / self.seconds

    def of(self, *kinds: str) -> list[Answered]:
        return [one for one in self.answers if one.kind in kinds]

    def p99(self) -> float:
        """Milliseconds, of decisions that were accepted."""
        took = [one.took for one in self.of(DECISION, EXPLAINED) if one.status == 200]
        return float(np.percentile(took, 99)) * 1e3 if took else float("nan")


class Traffic:
    """Requests in their mix, the same every time; feedback names decisions that were answered lately."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._plain = bodies()
        self.ids: deque[str] = deque(maxlen=REMEMBERED)
        self._kinds = self._mix()
        self._turn = 0

    def __next__(self) -> tuple[str, bytes]:
        """(kind, the request's bytes)."""
        kind = next(self._kinds)
        self._turn += 1
        body = self._plain[self._turn % len(self._plain)]
        if kind == FEEDBACK and not self.ids:
            kind = DECISION
        if kind == EXPLAINED:
            return kind, _post("/v1/decisions", body[:-1] + b',"explain":true}')
        if kind == BATCH:
            return kind, _post("/v1/decisions:batch", b'{"requests":[%b]}' % b",".join([body] * IN_A_BATCH))
        if kind == FEEDBACK:
            click = {"decision_id": self.ids[self._turn % len(self.ids)], "slot": self._turn % 10, "kind": "click"}
            return kind, _post("/v1/feedback", msgspec.json.encode(click))
        return kind, _post("/v1/decisions", body)

    def _mix(self) -> Iterator[str]:
        names, shares = list(SHARES), list(SHARES.values())
        while True:
            yield from self._rng.choice(names, 4_096, p=shares).tolist()


class _Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time."""

    def __init__(self, driver: "Driver") -> None:
        self._driver, self._held = driver, b""
        self.kind, self.since = "", 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, kind: str, request: bytes) -> None:
        assert self.transport is not None  # asked only when connected
        self.kind, self.since = kind, time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._held += data
        head = self._held.find(b"\r\n\r\n")
        if head < 0:
            return
        size = _LENGTH.search(self._held, 0, head)
        end = head + 4 + (int(size[1]) if size else 0)
        if len(self._held) >= end:
            answer, self._held = self._held[:end], self._held[end:]
            self._driver.answered(self, int(answer[9:12]), answer[head + 4 :])

    def connection_lost(self, exc: Exception | None) -> None:
        self._driver.lost(self)


class Driver:
    """One run against a service."""

    def __init__(self, url: str, connections: int, traffic: Traffic) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._count, self._traffic = connections, traffic
        self._idle: deque[_Connection] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.Transport] = set()
        self._closed, self._open = False, True

    async def closed(self, seconds: float) -> Run:
        await self._begin(seconds)
        self._closed = True
        while self._idle:
            self._send(self._idle.popleft())
        await asyncio.sleep(seconds)
        return await self._end()

    async def paced(self, rate: float, seconds: float) -> Run:
        await self._begin(seconds)
        began = time.perf_counter()
        due = 0
        while (now := time.perf_counter() - began) < seconds:
            while due / rate <= now and self._idle:
                self._send(self._idle.popleft())
                due += 1
            self._run.late = max(self._run.late, now - due / rate)
            await asyncio.sleep(PAUSE_SECONDS if due / rate > now else 0)
        self._run.asked = due
        return await self._end()

    def answered(self, connection: _Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        kind = connection.kind
        full = status in (200, 202)
        if full and kind in (DECISION, EXPLAINED):
            full = b'"mode":"live"' in body and (kind == DECISION or b'"explain":[' in body)
            found = _ID.search(body)
            if found:
                self._traffic.ids.append(found[1].decode())
        if self._open:
            at = connection.since - self._began
            self._run.answers.append(Answered(kind, at, now - connection.since, status, full))
            if self._closed:
                self._send(connection)
                return
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection that the service ended is opened again: callers come back."""
        if connection.transport is not None:
            self._transports.discard(connection.transport)
        with contextlib.suppress(ValueError):  # it may be in the middle of a request
            self._idle.remove(connection)
        if self._open:
            self._run.broken += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, connection: _Connection) -> None:
        connection.ask(*next(self._traffic))

    async def _begin(self, seconds: float) -> None:
        self._run, self._began = Run(seconds), time.perf_counter()
        await asyncio.gather(*(self._connect() for _ in range(self._count)))
        self._began = time.perf_counter()

    async def _connect(self) -> None:
        transport, made = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), self._host, self._port
        )
        self._transports.add(transport)
        if self._closed and self._open:
            self._send(made)
        else:
            self._idle.append(made)

    async def _end(self) -> Run:
        self._open = False
        for task in self._tasks:
            task.cancel()
        for transport in self._transports:
            transport.abort()  # what was not answered in time is not waited for
        while self._transports:
            await asyncio.sleep(PAUSE_SECONDS)
        return self._run


def closed(url: str, traffic: Traffic, connections: int, seconds: float) -> Run:
    """As much as the service answers."""
    return asyncio.run(Driver(url, connections, traffic).closed(seconds))


def paced(url: str, traffic: Traffic, rate: float, connections: int, seconds: float) -> Run:
    """`rate` requests a second."""
    return asyncio.run(Driver(url, connections, traffic).paced(rate, seconds))


def _post(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )
