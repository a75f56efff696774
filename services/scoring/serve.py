"""The scoring process: workers that share one bound port, each of which listens only when it is warm.

The parent binds and holds the socket, so connections wait in its backlog while a dead worker is started again.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from policies.errors import Unavailable
from services.access import Access
from services.keys import Keys
from services.lifetime import PARENT, follow_parent, stopping
from services.scoring.app import VERSION, create_app
from services.scoring.countings import Countings
from services.scoring.exposures import Exposures
from services.scoring.histories import Histories
from services.scoring.leases import Lending
from services.scoring.listening import GRACE_SECONDS, Server, configured
from services.scoring.service import Scoring
from services.settings import Settings
from services.telemetry import configure_logs, forget_process, share
from services.wiring import open_claims, open_copies, open_derived, open_leases, open_log, open_spool
from streaming.kept import PAUSE_SECONDS, Reaching
from streaming.tenancy import check

log = logging.getLogger("slatewise.scoring")
SWITCH_SECONDS = 0.0005  # Python's default lets a background thread hold the interpreter for 5 ms
POLL_SECONDS, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 0.2, 5.0


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


class Acknowledging:
    """The log of hosts whose disk dies with them, opened when feedback comes: decisions do not wait for it to be there."""

    def __init__(self, settings: Settings) -> None:
        self._log = Reaching(lambda: open_log(settings), time.monotonic, PAUSE_SECONDS)

    def append(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        self._log.ask(lambda log: log.append(records))


def open_scoring(settings: Settings) -> Scoring:
    """A scoring service over the adapters that the settings name."""
    state, bundles, copies = open_copies(settings)
    with suppress(Unavailable):  # it starts from its copies, which were its own
        check(state, settings.tenant)
    return Scoring(
        state=state,
        claims=open_claims(settings),
        bundles=bundles,
        spool=open_spool(settings),
        keys=Keys.load(settings.keys_path, (settings.tenant,)),
        tenant=settings.tenant,
        access=Access(settings.tenant, settings.admin_key),
        acknowledge=Acknowledging(settings) if settings.ack == "log" else None,
        copies=copies,
        exposures=Exposures(lambda: open_derived(settings, open_log(settings).partitions), settings.tenant),
        countings=Countings(lambda: open_derived(settings, open_log(settings).partitions)[0], settings.tenant),
        leases=Lending(
            lambda: (open_derived(settings, open_log(settings).partitions)[0], open_leases(settings)), settings.tenant
        ),
        histories=Histories(lambda: open_derived(settings, open_log(settings).partitions)[1]),
    )


def serve(settings: Settings, bound: socket.socket) -> None:
    """One worker on a bound socket."""
    sys.setswitchinterval(SWITCH_SECONDS)
    signal.signal(signal.SIGTERM, _ignore)  # uvicorn raises it again when it has shut down
    scoring = open_scoring(settings)
    if settings.otel:
        _serve_traced(settings, scoring, bound)
    else:
        _run(configured(create_app(scoring)), settings, scoring, bound)


def _serve_traced(settings: Settings, scoring: Scoring, bound: socket.socket) -> None:
    from services.scoring.tracing import TracedProtocol, exporting  # OpenTelemetry, which not everyone has, or wants

    traces = exporting(settings.otel, VERSION)
    try:
        _run(configured(create_app(scoring, traces=traces), TracedProtocol), settings, scoring, bound)
    finally:
        traces.shutdown()  # what waits is sent


def _run(config: uvicorn.Config, settings: Settings, scoring: Scoring, bound: socket.socket) -> None:
    server = Server(config, scoring, alone=settings.workers == 1)
    server.run(sockets=[bound])
    if not server.started:
        raise SystemExit(3)  # the reason is in the log


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
