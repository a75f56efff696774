"""The supervisor over small processes of the test's own: what dies comes back, what must stop leaves nothing."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from policies.errors import Rejected
from services.settings import Settings
from services.supervisor import Part, Supervisor, prepare

SECONDS = 60.0  # generous: nothing here depends on how fast the machine is

# Writes its pid and its child's, then waits for SIGTERM; with an argument it ignores the signal's wish to drain at once.
LIVES = """
import os, pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
folder = pathlib.Path(sys.argv[1])
def stop(*_):
    (folder / f"stopped-{sys.argv[2]}").write_text(str(time.monotonic()))
    child.kill(); child.wait()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(folder / f"{sys.argv[2]}.new").write_text(f"{os.getpid()} {child.pid}")
os.replace(folder / f"{sys.argv[2]}.new", folder / f"{sys.argv[2]}.pid")
while True:
    time.sleep(0.05)
"""


def wait_for(found: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def pids(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.pid"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Supervisor]:
    parts = [Part(name, (sys.executable, "-c", LIVES, str(tmp_path), name)) for name in ("first", "second")]
    supervisor = Supervisor(Settings(data=tmp_path), parts)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_for(lambda: len(pids(tmp_path, "first")) == len(pids(tmp_path, "second")) == 2, "both start")
        yield supervisor
    finally:
        supervisor.stop.set()
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_killed_process_comes_back_and_what_it_left_is_gone(running: Supervisor, tmp_path: Path) -> None:
    before, other = pids(tmp_path, "first"), pids(tmp_path, "second")
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: pids(tmp_path, "first") not in ([], before), "started again")
    wait_for(lambda: not any(alive(pid) for pid in before), "its child is gone")
    assert running.restarts == 1
    assert pids(tmp_path, "second") == other
    assert all(alive(pid) for pid in other)


def test_it_stops_in_order_and_leaves_no_child(running: Supervisor, tmp_path: Path) -> None:
    every = pids(tmp_path, "first") + pids(tmp_path, "second")
    running.stop.set()
    wait_for(lambda: not any(alive(pid) for pid in every), "all ended")
    stopped = [float((tmp_path / f"stopped-{name}").read_text()) for name in ("first", "second")]
    assert stopped == sorted(stopped)


def test_a_process_that_cannot_start_is_tried_less_and_less_often(tmp_path: Path) -> None:
    count = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x'); sys.exit(3)"
    tries = tmp_path / "tries"
    tries.write_text("")
    supervisor = Supervisor(Settings(data=tmp_path), [Part("broken", (sys.executable, "-c", count, str(tries)))])
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    started = time.monotonic()
    wait_for(lambda: len(tries.read_text()) >= 3, "tried again")
    took = time.monotonic() - started
    supervisor.stop.set()
    thread.join(SECONDS)
    assert took >= 0.2 + 0.4  # the pauses, each twice the one before


def test_processes_that_share_a_scrape_do_not_listen_for_another(tmp_path: Path) -> None:
    """All of them would want the same address."""
    with pytest.raises(Rejected) as refused:
        prepare(Settings.load({}, data=tmp_path / "data", metrics_http="127.0.0.1:8082"))
    assert refused.value.at == "SLATEWISE_METRICS_HTTP"
    assert not (tmp_path / "data").exists()


def test_children_follow_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """No `finally` runs at kill -9: the children themselves ask to be told."""
    child = (
        "import os, pathlib, sys, time; from services.lifetime import follow_parent, stopping; stop = stopping();"
        "follow_parent(); pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); stop.wait(600)"
    )
    parent = (
        "import pathlib, sys; from services.settings import Settings; from services.supervisor import Part, Supervisor;"
        "part = Part('child', (sys.executable, '-c', sys.argv[1], sys.argv[2]));"
        "Supervisor(Settings(data=pathlib.Path(sys.argv[2]).parent), [part]).run()"
    )
    pid_file = tmp_path / "pid"
    started = psutil.Popen([sys.executable, "-c", parent, child, str(pid_file)])
    try:
        wait_for(lambda: pid_file.exists() and pid_file.read_text() != "", "the child runs")
        pid = int(pid_file.read_text())
        assert alive(pid)
    finally:
        started.kill()
        started.wait()
    wait_for(lambda: not alive(pid), "the child follows")
