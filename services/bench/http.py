"""Decisions over HTTP: the scoring service alone with its spool on disk, then the whole of `up`, each beside the bare floor.

Scoring is measured without the processes that share the machine with it in `up`, because the floor has none either; what
they cost is measured too, in rows of their own.
"""

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from services.bench.load import Load, post
from services.bench.report import Report
from services.bench.requests import FORMS, bodies, items, surface
from services.bench.serving import Running, running, until_ready
from services.client import Slatewise
from services.loopback import free_port

CONNECTIONS = (1, 8, 64)
ITEMS_A_CALL = 500
SPOOL_BYTES = str(64 << 30)  # a measurement writes gigabytes that nothing forwards
RATE_BUDGET, P99_AT_8, P99_AT_1, MEMORY_MB = 0.7, 5.0, 1.0, 300.0


def fill(url: str) -> None:
    """The catalogue of 10,000 items."""
    with Slatewise(url, timeout=60.0) as client:
        catalogue = items()
        for start in range(0, len(catalogue), ITEMS_A_CALL):
            client.put_items(catalogue[start : start + ITEMS_A_CALL])


@contextlib.contextmanager
def floor(workers: int) -> Iterator[str]:
    """The floor's server; its url."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "services.bench.floors:app", "--factory", "--port", str(port)]
    process = subprocess.Popen([*command, "--workers", str(workers), "--log-level", "warning", "--no-access-log"])
    try:
        url = f"http://127.0.0.1:{port}"
        until_ready(url, process, None)
        settle(url, workers)
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(
    report: Report,
    seconds: float,
    workers: tuple[int, ...] = (1, 2),
    rounds: int = 1,
    connections: tuple[int, ...] = CONNECTIONS,
) -> None:
    """Every form, connection count and worker count, into the report. `rounds` > 1: medians of alternating runs."""
    report.note(
        f"HTTP: {seconds:g} s a run, {rounds} run(s) alternating with the floor's, closed loop by "
        f"{'wrk' if shutil.which('wrk') else 'a Python generator'} on the same machine"
    )
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        data = Path(folder) / "data"
        with running([surface()], data=data) as service:
            report.add("up: first start to ready", service.ready_seconds, "s", note="one scoring worker")
            fill(service.url)
            _up(report, service, seconds)
        for count in workers:
            shutil.rmtree(data / "spool", ignore_errors=True)
            with (
                floor(count) as bare,
                running(
                    [], workers=count, data=data, part="scoring", variables={"SLATEWISE_SPOOL_BYTES": SPOOL_BYTES}
                ) as service,
            ):
                settle(service.url, count)
                _scoring(report, service, bare, count, seconds, rounds, connections)


def _scoring(
    report: Report, service: Running, bare: str, workers: int, seconds: float, rounds: int, counts: tuple[int, ...]
) -> None:
    names = f"{workers} worker{'s' if workers > 1 else ''}"
    by_id = bodies()
    for connections in counts:
        floors, ours = [], []
        for _ in range(rounds):
            floors.append(post(f"{bare}/v1/decisions", by_id, connections, seconds))
            ours.append(post(f"{service.url}/v1/decisions", by_id, connections, seconds))
        base = statistics.median(f.rate for f in floors)
        budget = RATE_BUDGET if connections == 8 else None
        p99 = {1: P99_AT_1, 8: P99_AT_8}.get(connections) if workers == 1 else None
        _rows(report, f"{names}, {connections} conn., by id", ours, base, budget, p99)
        report.add(f"  floor p99, {names}, {connections} conn.", statistics.median(f.p99 for f in floors), "ms")
    for form in FORMS[1:]:
        for connections in counts:
            found = post(f"{service.url}/v1/decisions", bodies(form), connections, seconds)
            _rows(report, f"{names}, {connections} conn., {form}", [found], None, None, None)
    resident = [p.memory_info().rss / 2**20 for p in _workers(service)]
    report.add(f"memory of a scoring worker, {names}", max(resident), "MB", at_most=MEMORY_MB, note="resident, largest")


def _up(report: Report, service: Running, seconds: float) -> None:
    found = post(f"{service.url}/v1/decisions", bodies(), 8, seconds)
    _rows(report, "the whole of up, 1 worker, 8 conn., by id", [found], None, None, None)


def _rows(
    report: Report, name: str, found: list[Load], base: float | None, budget: float | None, p99: float | None
) -> None:
    report.add(
        name,
        statistics.median(f.rate for f in found),
        "decisions/s",
        floor=base,
        at_least=budget,
        of_floor=True,
        note=f"{errors} errors" if (errors := sum(f.errors for f in found)) else "",
    )
    report.add("  p50", statistics.median(f.p50 for f in found), "ms")
    report.add("  p95", statistics.median(f.p95 for f in found), "ms")
    report.add("  p99", statistics.median(f.p99 for f in found), "ms", at_most=p99)


def _workers(service: Running) -> list[psutil.Process]:
    """The scoring processes that answer: those that have loaded the model, or the only one there is."""
    main = psutil.Process(service.pid)
    return main.children(recursive=True) or [main]


def settle(url: str, workers: int) -> None:
    """Ask until every worker is likely to have answered: a pool opens its port with its first worker."""
    with httpx.Client() as client:
        for _ in range(20 * workers):
            client.get(f"{url}/readyz", timeout=10.0, headers={"connection": "close"})
            time.sleep(0.05)
