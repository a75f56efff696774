"""What traces cost: CPU of the scoring process for a decision over HTTP, without them, with one in a hundred sampled, with all of them.

Three services with the same items, asked in turns over one connection each; their CPU is the processes' own, so the machine may be
busy otherwise. The collector is a sink beside them that says yes: spans are made, encoded and sent.
"""

import contextlib
import importlib.util
import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil

from services.bench.http import SPOOL_BYTES, fill, settle
from services.bench.report import Report
from services.bench.requests import FORMS, bodies, surface
from services.bench.serving import Running, running

WAYS = {
    "off": {},
    "1% sampled": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "all sampled": {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
}


def measure(report: Report, requests: int = 400, rounds: int = 7) -> None:
    """Medians over `rounds` turns of `requests` decisions each, and the ratio to the turn's own without traces."""
    if importlib.util.find_spec("opentelemetry") is None:
        report.note("traces: not measured, they need the extra `otel`")
        return
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(sink())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slatewise-bench-")))
        with running([surface()], data=folder / "data") as whole:
            fill(whole.url)
        services = {}
        for way, variables in WAYS.items():
            told = {"SLATEWISE_OTEL": collector, **variables} if way != "off" else {}
            spooling = {"SLATEWISE_SPOOL_BYTES": SPOOL_BYTES, **told}
            data = shutil.copytree(folder / "data", folder / way.replace("%", ""))
            services[way] = stack.enter_context(running([], data=data, part="scoring", variables=spooling))
            settle(services[way].url, 1)
        for form in FORMS:
            asked = bodies(form, 64)
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(rounds + 1):
                for way, service in services.items():
                    cost = _asked(service, asked, requests)
                    if turn:  # the first warms
                        found[way].append(cost)
            for way in WAYS:
                ratio = statistics.median(a / b for a, b in zip(found[way], found["off"], strict=True))
                report.add(
                    f"decision, {form}, traces {way}",
                    statistics.median(found[way]),
                    "µs CPU",
                    floor=statistics.median(found["off"]),
                    note=f"in turns × {ratio:.2f} [{min(found[way]):.0f}, {max(found[way]):.0f}]",
                )


def _asked(service: Running, asked: list[bytes], requests: int) -> float:
    """Microseconds of the scoring process' CPU for a decision."""
    scoring = psutil.Process(service.pid)
    with httpx.Client(base_url=service.url, timeout=60.0) as client:
        before = scoring.cpu_times()
        for i in range(requests):
            client.post("/v1/decisions", content=asked[i % len(asked)]).raise_for_status()
        after = scoring.cpu_times()
    return 1e6 * (after.user + after.system - before.user - before.system) / requests


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """A collector that takes everything; its url."""

    class Yes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Yes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
