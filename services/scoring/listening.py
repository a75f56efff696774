"""uvicorn as this service wants it: connections taken together, decisions answered by the protocol, a polite end."""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import uvicorn

from services.scoring.deciding import DECISIONS, FIRST_BYTE
from services.scoring.direct import Whole
from services.scoring.front import ADMITTED, FEEDBACK, Front
from services.scoring.service import Scoring
from services.scoring.wire import LARGE_BODY_BYTES
from services.timely import Timely

log = logging.getLogger("slatewise.scoring")
BACKLOG = 2048
DRAIN_SECONDS = 0.25  # callers with an open connection are told to close it before it is closed
GRACE_SECONDS = 15
AT_ONCE = 64  # connections taken in one turn of the event loop, where nobody else takes from the same socket
OUT_OF_HANDLES_SECONDS = 0.1
ROUTE = DECISIONS.encode()


class Stamped(Timely):
    """Notes when a request's first byte came and takes its place before its body is read."""

    _first_byte = 0.0

    def on_message_begin(self) -> None:
        self._first_byte = time.perf_counter()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        front = cast(Front, self.app)
        if self.cycle is not None and not self.cycle.response_complete:
            super().on_headers_complete()  # pipelined: admitted when its turn comes
            cast(dict[str, Any], self.scope)[FIRST_BYTE] = self._first_byte
        elif self._usual():
            keep = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            refused = front.refused(self.headers)
            admitted = refused is None and front.admission.enter()
            self.cycle = cast(Any, Whole(self, self._first_byte, keep, admitted, refused))
            return
        else:
            super().on_headers_complete()
            scope = cast(dict[str, Any], self.scope)  # ASGI scopes may carry more than their type says
            scope[FIRST_BYTE] = self._first_byte
            scope[ADMITTED] = front.admission.enter(scope["path"] == FEEDBACK)
        if front.admission.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        cycle: object = self.cycle
        if isinstance(cycle, Whole):
            cast(Front, self.app).queue.put(cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cycle: object = self.cycle
        if isinstance(cycle, Whole):
            cast(Front, self.app).queue.forget(cycle)

    def send(self, answer: bytes, *, keep: bool) -> None:
        """A whole response in one write."""
        if self.transport.is_closing():
            return
        self.transport.write(answer)
        if not keep:
            self.transport.close()
        self.on_response_complete()

    def _usual(self) -> bool:
        """Whether the request can be answered without a task of its own."""
        if self.url != ROUTE or self.parser.get_method() != b"POST" or self.flow.write_paused:
            return False
        if self.expect_100_continue or self.parser.should_upgrade():
            return False
        sizes = [value for name, value in self.headers if name == b"content-length"]
        return len(sizes) == 1 and sizes[0].isdigit() and int(sizes[0]) <= LARGE_BODY_BYTES


class Listener:
    """Takes connections off a bound socket as they come.

    libuv takes one a turn, so callers that came together waited for each other's answers: of 64, the last a second.
    Several workers of one socket take few at a time, the more the more they have, so that each gets its share.
    """

    def __init__(self, bound: socket.socket, made: Callable[[], asyncio.Protocol], most: Callable[[], int]) -> None:
        self._socket, self._made, self._most = bound, made, most
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open = True
        bound.setblocking(False)
        bound.listen(BACKLOG)
        self._loop.add_reader(bound, self._accept)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """What was taken from the socket has become a connection."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(self._most()):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no handle is left: those that wait are taken when some have been given back
                log.error("accept_failed", extra={"error": str(error)})
                self._loop.remove_reader(self._socket)
                self._loop.call_later(OUT_OF_HANDLES_SECONDS, self._again)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._made, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _again(self) -> None:
        if self._open:
            self._loop.add_reader(self._socket, self._accept)


class Server(uvicorn.Server):
    """uvicorn's server, which forgets the garbage of starting and drains before it closes.

    alone  whether no other process takes connections from the same socket
    """

    def __init__(self, config: uvicorn.Config, scoring: Scoring, *, alone: bool) -> None:
        super().__init__(config)
        self._scoring, self._alone = scoring, alone

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # warm, and not listening yet
        gc.collect()
        gc.freeze()  # numba's and onnxruntime's objects live as long as the process: no need to look at them again
        self.servers = [cast(asyncio.Server, Listener(bound, self._protocol, self._most)) for bound in sockets or []]
        log.info("listening", extra={"surfaces": list(self._scoring.live.surfaces)})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._scoring.admission.draining = True
        log.info("draining", extra={"admitted": self._scoring.admission.admitted})
        await asyncio.sleep(DRAIN_SECONDS)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return cast(type[Stamped], self.config.http_protocol_class)(self.config, self.server_state, self.lifespan.state)

    def _most(self) -> int:
        return AT_ONCE if self._alone else 1 + len(self.server_state.connections) // 4


def configured(app: Any, protocol: type[Stamped] = Stamped) -> uvicorn.Config:
    """Our logs, no headers that nobody reads."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        interface="asgi3",
        proxy_headers=False,  # would stand between the protocol and our front
        lifespan="on",
        loop="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
