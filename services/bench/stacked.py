"""Freshness on the real stack: accepted by HTTP on one replica, drawn from on any, over Kafka, Redis and Ray."""

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from policies.bundle import read_manifest
from services.bench.freshness import BUDGET_MS, load, until_learning
from services.bench.http import fill
from services.bench.report import Report
from services.bench.requests import surface
from services.bench.serving import running
from services.settings import Settings
from services.stack.kafka import missing
from services.wiring import open_bundles

RATE = 300.0
WORKERS = 2


def measure(report: Report, seconds: float = 30.0, rate: float = RATE) -> None:
    """A note where the stack cannot be started."""
    from services.stack.command import standing
    from services.stack.ray import ENVIRONMENT

    lacking = missing()
    if lacking:
        report.note(f"stack: {lacking}")
        return
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as place:
        folder = Path(place)
        with standing(folder) as urls:
            variables = {f"SLATEWISE_{name.upper()}": url for name, url in urls.items()} | ENVIRONMENT
            data = folder / "host"
            with running([surface()], data=data, workers=WORKERS, ray=urls["ray"], variables=variables) as service:
                fill(service.url)
                until_learning(service.url, rate)
                seen = asyncio.run(load(service.url, seconds, rate))
            bundles = open_bundles(Settings.load({}, data=data, bundles=urls["bundles"]))
            lags = [
                first - accepted
                for bundle, first in seen.first.items()
                if bundle
                for accepted in read_manifest(bundle, bundles.get).fresh
            ]
    if not lags:
        raise RuntimeError(f"no bundle of {len(seen.first)} contained new feedback; {seen.failed} requests failed")
    answered = len(seen.decisions) / seen.took
    note = f"{answered:.0f} decisions/s answered by {WORKERS} workers, {len(lags)} feedback"
    p50, p95, p99 = (1e3 * float(np.percentile(lags, p)) for p in (50, 95, 99))
    report.add("freshness on Kafka, Redis and Ray, p50", p50, "ms", note=note)
    report.add("freshness on Kafka, Redis and Ray, p95", p95, "ms", at_most=BUDGET_MS)
    report.add("freshness on Kafka, Redis and Ray, p99", p99, "ms")
    report.add("  decision p99 under this load", 1e3 * float(np.percentile(seen.decisions, 99)), "ms")
    if seen.failed:
        report.note(f"freshness on the stack: {seen.failed} requests failed")
