"""A service of its own for a measurement: fresh folders, free ports, the real processes of `slatewise up`, drained at the end."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from services.loopback import free_port

START_SECONDS = 120.0  # the port opens only when warm: code compiled, sessions run
DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    """url of scoring; data folder; the supervisor's pid; seconds from start to ready."""

    url: str
    data: Path
    pid: int
    ready_seconds: float


@contextlib.contextmanager
def running(
    surfaces: Sequence[dict[str, Any]],
    *,
    workers: int = 1,
    ray: str = "inline",
    data: Path | None = None,
    part: str = "up",
    variables: dict[str, str] | None = None,
) -> Iterator[Running]:
    """`slatewise up` (or one part of it, on data that `up` has made) until the block ends.

    surfaces  documents to apply; none: those that `data` holds. Raises RuntimeError with its last lines if it dies.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slatewise-run-")))
        config, where = folder / "config", data or folder / "data"
        http, control = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        flags = ["--data", str(where), "--http", http, "--control-http", control]
        if surfaces:
            config.mkdir()
            (config / "surfaces.yaml").write_text(yaml.safe_dump_all(surfaces, sort_keys=False), encoding="utf-8")
            flags += ["--config", str(config)]
        command = [sys.executable, "-m", "services.cli", part, *flags, "--workers", str(workers), "--ray", ray]
        said = stack.enter_context((folder / "output").open("w+b"))
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": "1", **os.environ, **(variables or {})},
        )
        try:
            until_ready(f"http://{http}", process, folder / "output")
            yield Running(f"http://{http}", where, process.pid, time.perf_counter() - start)
        finally:
            _end(process)


def until_ready(url: str, process: "subprocess.Popen[bytes]", output: Path | None) -> None:
    """Until /readyz answers 200. Raises RuntimeError with the last lines of `output` when the process ends before."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}:\n{_tail(output)}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=2.0).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"not ready after {START_SECONDS:g} s:\n{_tail(output)}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.kill()
        process.wait()


def _tail(output: Path | None) -> str:
    if output is None:
        return ""
    return output.read_text(encoding="utf-8", errors="replace")[-3000:]
