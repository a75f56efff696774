"""How long a process lives: until it is told to stop, and never longer than the supervisor that started it."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from types import FrameType

PARENT = "SLATEWISE_PARENT"  # pid of the supervisor, set for the processes it starts
PR_SET_PDEATHSIG = 1  # prctl(2)

_tell: list[int] = []  # pipes to the threads that wait for a signal


def follow_parent() -> None:
    """Ask for SIGTERM when the supervisor that started this process dies, even by kill -9 (Linux; elsewhere a poll).

    Without a supervisor nothing happens.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(int(parent),), name="parent", daemon=True).start()
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def stopping() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Call in the main thread; `listen_again` after a library took the signals.

    The handler only writes a byte, and a thread sets the event: a handler that sets it itself runs inside the main
    thread's `wait`, and finds the event's lock held by the very thread it has interrupted.
    """
    stop = threading.Event()
    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def listen() -> None:
        os.read(told, 1)
        stop.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    _tell.append(tell)
    listen_again()
    hear()
    return stop


def hear() -> None:
    """From now on SIGTERM is heard, also one that came while a patient part of the supervisor was starting."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def listen_again() -> None:
    """Have SIGTERM and SIGINT reach the events of `stopping` again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)


def _handle(_number: int, _frame: FrameType | None) -> None:
    for tell in _tell:
        with contextlib.suppress(BlockingIOError):  # full of signals already
            os.write(tell, b"s")


def _watch(parent: int) -> None:
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
