"""HTTP load on a port: wrk where it is on PATH, else a generator of our own (slower, and it says so)."""

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """rate answers/s; latencies in ms; errors = answers that were not 2xx, and broken connections."""

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int
    generator: str


def post(url: str, bodies: list[bytes], connections: int, seconds: float) -> Load:
    """POST the bodies in turn over so many kept-alive connections, each asking again when answered (closed loop)."""
    if shutil.which("wrk"):
        return _wrk(url, bodies, connections, seconds)
    return asyncio.run(_generate(url, bodies, connections, seconds))


def _wrk(url: str, bodies: list[bytes], connections: int, seconds: float) -> Load:
    with tempfile.TemporaryDirectory(prefix="slatewise-wrk-") as folder:
        script = Path(folder) / "bodies.lua"
        listed = ",\n".join(f"[==[{body.decode()}]==]" for body in bodies)
        script.write_text(
            f"local bodies = {{{listed}}}\nlocal i = 0\nwrk.method = 'POST'\n"
            "wrk.headers['Content-Type'] = 'application/json'\n"
            "request = function() i = i % #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end\n"
            "done = function(summary, latency, requests)\n"
            "  io.write(string.format('P %f %f %f E %d\\n', latency:percentile(50), latency:percentile(95), latency:percentile(99),\n"
            "    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))\nend\n",
            encoding="utf-8",
        )
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    measured = re.search(r"P ([\d.]+) ([\d.]+) ([\d.]+) E (\d+)", out)
    if not rate or not measured:
        raise RuntimeError(f"wrk answered something new: {out[:400]}")
    p50, p95, p99 = (float(measured[i]) / 1e3 for i in (1, 2, 3))
    return Load(float(rate[1]), p50, p95, p99, int(measured[4]), "wrk")


async def _generate(url: str, bodies: list[bytes], connections: int, seconds: float) -> Load:
    found = re.fullmatch(r"http://([^/:]+):(\d+)(/.*)", url)
    if not found:
        raise ValueError(f"expected http://host:port/path, got {url}")
    host, port, path = found[1], int(found[2]), found[3]
    heads = [
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(b)}\r\n\r\n".encode()
        + b
        for b in bodies
    ]
    took: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def one(first: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(host, port)
        try:
            turn = first
            while (start := time.perf_counter()) < end:
                writer.write(heads[turn % len(heads)])
                turn += 1
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(size[1]) if size else 0)
                took.append(time.perf_counter() - start)
                errors += not head.startswith(b"HTTP/1.1 2")
        finally:
            writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(one(c) for c in range(connections)))
    wall = time.perf_counter() - start
    p50, p95, p99 = (float(np.percentile(took, p)) * 1e3 for p in (50, 95, 99))
    return Load(len(took) / wall, p50, p95, p99, errors, "asyncio")
