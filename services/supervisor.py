"""`slatewise up`: starts the processes of one machine, starts a dead one again, stops them in an order that loses nothing.

Order of stopping: scoring answers what it has admitted and closes its spools, the forwarder brings the rest of them to
the log, learning commits, control and settling end. Each process leads a session of its own, so that a terminal's Ctrl-C reaches
only the supervisor, and so that what a killed process leaves behind can be told from everything else on the machine.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from policies.errors import Rejected
from services.lifetime import PARENT
from services.settings import PREFIX, Settings

log = logging.getLogger("slatewise.supervisor")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 10.0
STEADY_SECONDS = 30.0  # alive for this long: the next death starts with the first pause again
DRAIN_SECONDS = 20.0  # a process that has not ended by then is killed
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep alive: its name and the command that starts it.

    patient  SIGTERM waits for it until it listens (`lifetime.hear`): a forwarder that was told to end while it starts
             would else die of it, and leave what is in the spools to the next start
    """

    name: str
    command: tuple[str, ...]
    patient: bool = False


def parts_of(settings: Settings) -> list[Part]:
    """The processes of one machine; settling among them where settled decisions have somewhere to go."""
    names = ["scoring", "forwarder", "learning", "control", *(["settle"] if settings.experiences else [])]
    return [Part(name, (sys.executable, "-m", "services.cli", name), name == "forwarder") for name in names]


def prepare(settings: Settings) -> None:
    """Make the data folder and apply the configuration, before any process starts. Raises ConfigInvalid, Rejected."""
    from services.configuring import apply_folder, apply_quickstart  # a restart of a process needs none of this
    from services.wiring import open_state
    from streaming.tenancy import claim

    if settings.metrics_http:
        raise Rejected("Expected nothing: here scoring gives out the metrics of all", at=f"{PREFIX}METRICS_HTTP")
    settings.data.mkdir(parents=True, exist_ok=True)
    state = open_state(settings)
    claim(state, settings.tenant)
    if settings.config is not None:
        apply_folder(state, settings.config)
    else:
        apply_quickstart(state)


@dataclass(slots=True)
class _Child:
    part: Part
    process: subprocess.Popen[bytes]
    started: float
    pause: float = FIRST_PAUSE_SECONDS
    again_at: float | None = None  # dead: when to start it again


@dataclass
class Supervisor:
    """Keeps `parts` alive until `stop` is set; none given: `parts_of` the settings. What they say goes to `output`; None: where ours goes."""

    settings: Settings
    parts: Sequence[Part] = ()
    output: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    restarts: int = 0
    _children: dict[str, _Child] = field(default_factory=dict)

    def pids(self) -> dict[str, int]:
        """part → process, of those that are alive."""
        found = {name: child.process for name, child in list(self._children.items())}
        return {name: process.pid for name, process in found.items() if process.poll() is None}

    def run(self) -> None:
        children = self._children
        try:
            for part in self.parts or parts_of(self.settings):
                children[part.name] = self._start(part)
            while not self.stop.wait(POLL_SECONDS):
                for child in children.values():
                    self._keep(child)
        finally:
            for name, child in children.items():
                _end(child.process, name)

    def _start(self, part: Part) -> _Child:
        with _term_held(part.patient), self.output.open("ab") if self.output else contextlib.nullcontext() as output:
            process = subprocess.Popen(
                part.command,
                env={**os.environ, **self.settings.environment(), PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        log.info("started", extra={"part": part.name, "pid": process.pid})
        return _Child(part, process, time.monotonic())

    def _keep(self, child: _Child) -> None:
        now = time.monotonic()
        if child.again_at is None:
            code = child.process.poll()
            if code is None:
                return
            sweep(child.process.pid)
            if now - child.started > STEADY_SECONDS:
                child.pause = FIRST_PAUSE_SECONDS
            child.again_at = now + child.pause
            child.pause = min(2 * child.pause, LONGEST_PAUSE_SECONDS)
            log.warning("died", extra={"part": child.part.name, "pid": child.process.pid, "exit": code})
        if now >= child.again_at:
            child.process = self._start(child.part).process
            child.started, child.again_at = now, None
            self.restarts += 1


@contextlib.contextmanager
def _term_held(held: bool) -> Iterator[None]:
    """Processes started here begin with SIGTERM blocked, when `held`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if held else set())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def sweep(session: int) -> None:
    """Kill what is left of the session that a process of ours led: its workers, when it died without stopping them."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if process.pid != session and os.getsid(process.pid) == session:
                process.kill()


def _end(process: subprocess.Popen[bytes], name: str) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("killed", extra={"part": name, "pid": process.pid})
            process.kill()
            process.wait()
    sweep(process.pid)
