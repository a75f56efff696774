"""The forwarder process: brings the spools of this host to the log, for ever, and the rest of them before it ends."""

import logging
import threading
import time

from policies.errors import Unavailable
from services.lifetime import stopping
from services.settings import Settings
from services.wiring import open_forwarder
from streaming.forward import Forwarder

log = logging.getLogger("slatewise.forwarder")
IDLE_SECONDS = 0.005
DRAIN_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0


def run(settings: Settings) -> None:
    stop = stopping()
    forwarder = _take(settings, stop)
    if forwarder is None:
        return
    forward(forwarder, stop)
    log.info("stopped", extra={"drained": _drain(forwarder)})


def forward(forwarder: Forwarder, stop: threading.Event) -> None:
    """Forward until `stop`; while the log is away, wait longer and longer: the spools keep everything."""
    pause = FIRST_PAUSE_SECONDS
    while not stop.is_set():
        try:
            if forwarder.step() == 0:
                stop.wait(IDLE_SECONDS)
            pause = FIRST_PAUSE_SECONDS
        except Unavailable as error:
            log.warning("log away", extra={"error": str(error), "again_in_seconds": pause})
            stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _take(settings: Settings, stop: threading.Event) -> Forwarder | None:
    """The folder's lock; another forwarder of this host may still be ending."""
    while not stop.is_set():
        try:
            return open_forwarder(settings)
        except Unavailable as error:
            log.warning("waiting", extra={"error": str(error)})
            stop.wait(FIRST_PAUSE_SECONDS)
    return None


def _drain(forwarder: Forwarder) -> bool:
    """Whether everything that was spooled reached the log before the end; what did not stays in the spools.

    Scoring may be told to end at the same moment, and answers what it has admitted: its spools are waited for.
    """
    until = time.monotonic() + DRAIN_SECONDS
    while True:
        try:
            if forwarder.step():
                continue
            if not forwarder.written():
                return True
        except Unavailable as error:
            log.warning("log away", extra={"error": str(error)})
        if time.monotonic() > until:
            return False
        time.sleep(IDLE_SECONDS)
