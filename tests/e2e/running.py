"""`slatewise up` as the real process tree it is, in a folder of its own on free ports."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from services.loopback import free_port
from services.settings import Settings

SECONDS = 120.0  # generous: nothing depends on how fast the machine is


def wait_for(found: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@dataclass
class Up:
    """A running service."""

    settings: Settings
    process: subprocess.Popen[bytes]
    said: Path

    @property
    def url(self) -> str:
        return f"http://{self.settings.http}"

    @property
    def control_url(self) -> str:
        return f"http://{self.settings.control_http}"

    def child(self, name: str) -> int | None:
        """The pid of one of its processes."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if child.cmdline()[-1:] == [name]:
                    return int(child.pid)
            except psutil.Error:  # it has just ended
                continue
        return None

    def everyone(self) -> list[psutil.Process]:
        """Every process below the supervisor."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, name: str) -> None:
        """kill -9 one of its processes and wait for the next one."""
        pid = self.child(name)
        assert pid is not None, f"{name} is not running"
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.child(name) not in (None, pid), f"{name} comes back")

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def is_operated(self) -> bool:
        """Whether the control service answers: it is started with the others, and need not be the first."""
        try:
            return httpx.get(f"{self.control_url}/healthz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> list[psutil.Process]:
        """SIGTERM and wait for the end; the processes that are still there afterwards."""
        everyone = self.everyone()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)
        _, left = psutil.wait_procs(everyone, timeout=5.0)
        return list(left)


@contextmanager
def up(folder: Path, *flags: str, config: str | None = None, **options: str) -> Iterator[Up]:
    """A service over `folder`, ready to decide; killed with everything it started when the test ends."""
    arguments = {
        "data": str(folder / "data"),
        "http": f"127.0.0.1:{free_port()}",
        "control_http": f"127.0.0.1:{free_port()}",
        "ray": "inline",
        **options,
    }
    if config is not None:
        (folder / "config").mkdir(exist_ok=True)
        (folder / "config" / "surface.yaml").write_text(config)
        arguments["config"] = str(folder / "config")
    settings = Settings.load({}, **arguments)
    said = folder / "up.log"
    with said.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", *flags],
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Up(settings, process, said)
    everyone: list[psutil.Process] = []
    try:
        wait_for(lambda: running.answers() or process.poll() is not None, "ready")
        assert process.poll() is None, said.read_text()
        yield running
    finally:
        if process.poll() is None:
            everyone = running.everyone()
        process.kill()
        process.wait(SECONDS)
        for one in everyone:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everyone, timeout=SECONDS)
