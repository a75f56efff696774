"""Freshness: from feedback accepted to the first decision drawn from a bundle that contains it, measured from outside.

An open loop sends decisions at a rate over HTTP, one request each, and one feedback a decision shortly after. Every answer
names its bundle; the manifest of a bundle lists when feedback that is new in it was accepted. The first answer from a
bundle less those times is the freshness; clocks are one machine's.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from policies.bundle import read_manifest
from services.bench.http import fill
from services.bench.report import Report
from services.bench.requests import bodies, surface
from services.bench.serving import running
from services.bench.sockets import Connection
from services.settings import Settings
from services.wiring import open_bundles

RATE, BUDGET_MS, CONNECTIONS = 500.0, 500.0, 32
WARM_SECONDS = 60.0


class _Answer(msgspec.Struct):
    decision_id: str
    bundle: str


@dataclass
class Observed:
    """First answer by bundle; latencies of decisions and of feedback, seconds; requests that failed."""

    first: dict[str, float] = field(default_factory=dict)
    decisions: list[float] = field(default_factory=list)
    feedback: list[float] = field(default_factory=list)
    failed: int = 0
    took: float = 0.0  # seconds until the last answer


def measure(report: Report, seconds: float = 20.0, rate: float = RATE) -> None:
    """Freshness at `rate` decisions and as many feedback a second, once the learner publishes."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        data = Path(folder) / "data"
        with running([surface()], data=data) as service:
            fill(service.url)
            until_learning(service.url, rate)
            seen = asyncio.run(load(service.url, seconds, rate))
        bundles = open_bundles(Settings.load(environ={}, data=data))
        lags = [
            first - accepted
            for bundle, first in seen.first.items()
            if bundle
            for accepted in read_manifest(bundle, bundles.get).fresh
        ]
    if not lags:
        raise RuntimeError(f"no bundle of {len(seen.first)} contained new feedback; {seen.failed} requests failed")
    p50, p95, p99 = (1e3 * float(np.percentile(lags, p)) for p in (50, 95, 99))
    answered = len(seen.decisions) / seen.took  # less than asked for where the service or this loop fell behind
    note = f"{answered:.0f} decisions/s answered, {len(seen.first)} bundles, {len(lags)} feedback"
    report.add("freshness p50", p50, "ms", note=note)
    report.add("freshness p95", p95, "ms", at_most=BUDGET_MS)
    report.add("freshness p99", p99, "ms")
    report.add("  decision p99 under this load", 1e3 * float(np.percentile(seen.decisions, 99)), "ms")
    report.add(
        "  feedback p99 under this load", 1e3 * float(np.percentile(seen.feedback, 99)), "ms", note="on disk before 202"
    )
    if seen.failed:
        report.note(f"freshness: {seen.failed} requests failed")


def until_learning(url: str, rate: float) -> None:
    """The same load until the learner has published what it learned: it starts beside scoring and may be later."""
    deadline = time.monotonic() + WARM_SECONDS
    bundles: set[str] = set()
    while len(bundles) < 3:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the learner published nothing in {WARM_SECONDS:g} s of feedback")
        bundles |= set(asyncio.run(load(url, 1.0, rate)).first)


async def load(url: str, seconds: float, rate: float) -> Observed:
    """Requests at their times, late ones at once, over `CONNECTIONS` kept-alive connections."""
    seen, asked = Observed(), bodies(count=64)
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await Connection.open(url))

    async def one(body: bytes, connection: Connection) -> None:
        await _one(connection, body, seen)
        free.put_nowait(connection)

    start = time.perf_counter()
    busy: set[asyncio.Task[None]] = set()
    for i in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
        task = asyncio.create_task(one(asked[i % len(asked)], await free.get()))
        busy.add(task)
        task.add_done_callback(busy.discard)
    await asyncio.gather(*busy)
    seen.took = time.perf_counter() - start
    while not free.empty():
        free.get_nowait().close()
    return seen


async def _one(connection: Connection, body: bytes, seen: Observed) -> None:
    start = time.perf_counter()
    status, content = await connection.post("/v1/decisions", body)
    now = time.time()
    if status != 200:
        seen.failed += 1
        return
    seen.decisions.append(time.perf_counter() - start)
    answer = msgspec.json.decode(content, type=_Answer)
    seen.first.setdefault(answer.bundle, now)
    heard = msgspec.json.encode({"decision_id": answer.decision_id, "slot": 0, "kind": "click"})
    start = time.perf_counter()
    status, _ = await connection.post("/v1/feedback", heard)
    seen.feedback.append(time.perf_counter() - start)
    seen.failed += status != 202
