"""The scoring process: workers that share one bound port, each of which listens only when it is warm.

The parent binds and holds the socket, so connections wait in its backlog while a dead worker is started again. uvicorn
does the HTTP; its protocol is told here to note the first byte of a request and to admit it before its task runs.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.keys import Keys
from services.lifetime import PARENT, follow_parent, stopping
from services.scoring.app import ADMITTED, FIRST_BYTE, REPLY, Front, create_app
from services.scoring.service import Scoring
from services.settings import Settings
from services.telemetry import configure_logs, forget_process, share
from services.wiring import open_bundles, open_claims, open_log, open_spool, open_state

log = logging.getLogger("slatewise.scoring")
BACKLOG = 2048
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
SWITCH_SECONDS = 0.0005  # Python's default lets a background thread hold the interpreter for 5 ms
DRAIN_SECONDS = 0.25  # callers with an open connection are told to close it before it is closed
GRACE_SECONDS = 15
POLL_SECONDS, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 0.2, 5.0


class Stamped(HttpToolsProtocol):
    """Notes when a request's first byte came and takes its place before its task runs; closes politely when draining."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[FIRST_BYTE] = time.perf_counter()

    def on_headers_complete(self) -> None:
        waiting = self.cycle is not None and not self.cycle.response_complete  # pipelined: admitted when its turn comes
        super().on_headers_complete()
        admission = cast(Front, self.app).admission
        if not waiting:
            scope = cast(dict[str, Any], self.scope)  # ASGI scopes may carry more than their type says
            scope[ADMITTED] = admission.enter(scope["path"] == "/v1/feedback")
            scope[REPLY] = partial(_reply, self.cycle)
        if admission.draining:
            self.cycle.keep_alive = False


def _reply(cycle: RequestResponseCycle, body: bytes) -> bool:
    """A whole 200 in one write, where uvicorn takes two and checks every header; False when it has to go the usual way."""
    if cycle.flow.write_paused or cycle.disconnected:
        return False
    close = b"" if cycle.keep_alive else b"connection: close\r\n"
    cycle.transport.write(OK % (len(body), close) + body)
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


class Server(uvicorn.Server):
    """uvicorn's server, which forgets the garbage of starting and drains before it closes."""

    def __init__(self, config: uvicorn.Config, scoring: Scoring) -> None:
        super().__init__(config)
        self._scoring = scoring

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # numba's and onnxruntime's objects live as long as the process: no need to look at them again
        log.info("listening", extra={"surfaces": list(self._scoring.live.surfaces)})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._scoring.admission.draining = True
        log.info("draining", extra={"admitted": self._scoring.admission.admitted})
        await asyncio.sleep(DRAIN_SECONDS)
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGTERM; with several workers this process only watches over them."""
    bound = bind(settings)
    share(settings.metrics_path, clear=True)
    if settings.workers == 1:
        serve(settings, bound)
    else:
        watch(settings, bound)


def bind(settings: Settings) -> socket.socket:
    """The socket of the service's address, bound and not listening: until a worker is warm, callers are refused."""
    host, port = settings.http_address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    bound.set_inheritable(True)
    return bound


def open_scoring(settings: Settings) -> Scoring:
    """A scoring service over the adapters that the settings name."""
    return Scoring(
        state=open_state(settings),
        claims=open_claims(settings),
        bundles=open_bundles(settings),
        spool=open_spool(settings),
        keys=Keys.load(settings.keys_path),
        acknowledge=open_log(settings) if settings.ack == "log" else None,
    )


def serve(settings: Settings, bound: socket.socket) -> None:
    """One worker on a bound socket."""
    sys.setswitchinterval(SWITCH_SECONDS)
    signal.signal(signal.SIGTERM, _ignore)  # uvicorn raises it again when it has shut down
    scoring = open_scoring(settings)
    server = Server(configured(create_app(scoring)), scoring)
    server.run(sockets=[bound])
    if not server.started:
        raise SystemExit(3)  # the reason is in the log


def configured(app: Any) -> uvicorn.Config:
    """uvicorn as this service wants it: our logs, no headers that nobody reads."""
    return uvicorn.Config(
        app,
        http=Stamped,
        ws="none",
        interface="asgi3",
        proxy_headers=False,  # would stand between the protocol and our front
        lifespan="on",
        loop="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def watch(settings: Settings, bound: socket.socket) -> None:
    """Keep the workers alive until SIGTERM, then let them drain."""
    stop = stopping()
    workers = [Worker(settings, bound) for _ in range(settings.workers)]
    while not stop.wait(POLL_SECONDS):
        for worker in workers:
            worker.keep()
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.end()


class Worker:
    """A child process that serves, started again when it dies."""

    def __init__(self, settings: Settings, bound: socket.socket) -> None:
        self._settings, self._bound = settings, bound
        self._pause, self._again_at = FIRST_PAUSE_SECONDS, 0.0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        fd = self._bound.fileno()
        environment = {**os.environ, **self._settings.environment(), PARENT: str(os.getpid())}
        return subprocess.Popen(
            [sys.executable, "-m", "services.scoring.serve", str(fd)],
            env=environment,
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
        )

    def keep(self) -> None:
        code = self.process.poll()
        if code is None:
            return
        now = time.monotonic()
        if not self._again_at:
            log.warning("worker_died", extra={"pid": self.process.pid, "exit": code})
            forget_process(self.process.pid)
            self._again_at = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        elif now >= self._again_at:
            self.process, self._again_at = self._start(), 0.0

    def end(self) -> None:
        try:
            self.process.wait(GRACE_SECONDS + 2)
        except subprocess.TimeoutExpired:
            log.warning("worker_killed", extra={"pid": self.process.pid})
            self.process.kill()
            self.process.wait()


def _ignore(number: int, frame: object) -> None:
    """A signal that has done its work."""


def main() -> None:
    """A worker: the settings come from the environment, the socket from the parent."""
    settings = Settings.load()
    configure_logs("scoring", settings.log_level)
    follow_parent()
    bound = socket.socket(fileno=int(sys.argv[1]))
    serve(settings, bound)


if __name__ == "__main__":
    main()
