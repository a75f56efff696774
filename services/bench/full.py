"""Decisions over HTTP with everything on: experiment, rules, diversity, fairness, profiles, metrics; 100 candidates inline.

Beside it, in turns on the same service, a surface with nothing of that and the same candidates. First `up` makes the data: items,
and decisions whose looks the learner derives, so that there is something seen and something owed. Then scoring alone is asked, as
by many people: a profile is read for almost every request, `/metrics` once a second.
"""

import contextlib
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np

from services.bench.floors import CANDIDATES, CATALOGUE
from services.bench.http import SPOOL_BYTES, settle
from services.bench.load import Load, post
from services.bench.report import Report
from services.bench.requests import NAMES, surface
from services.bench.serving import running
from services.client import Slatewise

P99, CONNECTIONS, PEOPLE, SCRAPE_SECONDS = 10.0, 8, 512, 1.0
FORMS = ("inline rows", "inline columns")
STYLES = ("calm", "loud", "odd", "plain")
ITEMS_A_CALL = 500


def measure(report: Report, seconds: float, rounds: int = 1, workers: tuple[int, ...] = (1, 2)) -> None:
    """Latencies of both surfaces, each form of candidates, into the report. `rounds` > 1: medians of alternating runs."""
    report.note(
        f"{PEOPLE} people, {rounds} run(s) of {seconds:g} s each in turns, /metrics every second; "
        f"load of the machine before {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        data = Path(folder) / "data"
        with running(documents(), data=data) as service:
            _begin(service.url)
        for count in workers:
            shutil.rmtree(data / "spool", ignore_errors=True)
            with (
                running(
                    [], workers=count, data=data, part="scoring", variables={"SLATEWISE_SPOOL_BYTES": SPOOL_BYTES}
                ) as service,
                scraped(service.url),
            ):
                settle(service.url, count)
                _measured(report, service.url, f"{count} worker{'s' * (count > 1)}", seconds, rounds)


def _measured(report: Report, url: str, workers: str, seconds: float, rounds: int) -> None:
    for form in FORMS:
        asked = {name: bodies(name, form) for name in ("home", "full")}
        found: dict[str, list[Load]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, requests in asked.items():
                found[name].append(post(f"{url}/v1/decisions", requests, CONNECTIONS, seconds))
        for name, called in (("home", "nothing on"), ("full", "everything on")):
            what = f"{workers}, {CONNECTIONS} conn., {form}, {called}"
            _rows(report, what, found[name], P99 if name == "full" else None)


def documents() -> list[dict[str, Any]]:
    """A bare surface, one with everything, and an experiment on that."""
    bare = surface()
    features = {
        **bare["features"],
        "items": {**bare["features"]["items"], "style": {"type": "category", "values": STYLES}},
    }
    bare["features"] = features
    full = {
        **bare,
        "surface": "full",
        "rules": [
            {"available": True},
            {"filter": "f00 < 3.5 and style in ['calm', 'loud', 'odd']"},
            {"seen": {"window": "10m"}},
            {"frequency": {"cap": 1_000, "per": "item", "window": "1d"}},
            {"cap": 3, "by": "creator"},
            {"quota": {"min": 2, "by": "style", "value": "calm"}},
            {"spacing": 2, "by": "creator"},
        ],
        "diversity": {"mmr": 0.3, "coverage": 0.2, "by": "style"},
        "fairness": {"exposure": {"by": "style"}, "prefix": {"by": "style", "min": {"odd": 0.2}}},
        "exploration": {"max_share": 0.3, "segments": [{"when": "device == 'web'", "max_share": 0.1}]},
    }
    experiment = {
        "experiment": "bench",
        "surface": "full",
        "layer": "ranking",
        "arms": {"control": {"policy": "given_order", "share": 0.1}, "treatment": {"policy": "bench-ts", "share": 0.9}},
        "metrics": {"primary": "click"},
    }
    return [msgspec.to_builtins(one) for one in (bare, full, experiment)]


def _begin(url: str) -> None:
    """Items, and a few decisions of everybody with their feedback, learned from."""
    with Slatewise(url, timeout=60.0) as client:
        catalogue = [
            {"id": f"item-{i}", "features": _features(i), "attributes": {"creator": f"c{i % 40}"}}
            for i in range(CATALOGUE)
        ]
        for start in range(0, len(catalogue), ITEMS_A_CALL):
            client.put_items(catalogue[start : start + ITEMS_A_CALL])
    with httpx.Client(base_url=url, timeout=60.0) as plain:
        for body in bodies("full", FORMS[1]):
            answer = plain.post("/v1/decisions", content=body).raise_for_status().json()
            plain.post(
                "/v1/feedback", json={"decision_id": answer["decision_id"], "kind": "click", "slot": 0}
            ).raise_for_status()


_VALUES = np.random.default_rng(1).normal(size=(CATALOGUE, len(NAMES))).round(3)


def _features(item: int) -> dict[str, Any]:
    return {**dict(zip(NAMES, _VALUES[item].tolist(), strict=True)), "style": STYLES[item % 4]}


def bodies(name: str, form: str, count: int = PEOPLE) -> list[bytes]:
    """Requests of `count` people to a surface."""
    rng = np.random.default_rng(2)
    made = []
    for i in range(count):
        rows = rng.choice(CATALOGUE, CANDIDATES, replace=False).tolist()
        each = [_features(row) for row in rows]
        ids = [f"item-{row}" for row in rows]
        candidates: Any = (
            [{"id": one, "features": features} for one, features in zip(ids, each, strict=True)]
            if form == FORMS[0]
            else {"ids": ids, "features": {key: [one[key] for one in each] for key in each[0]}}
        )
        context = {"device": ("ios", "web")[i % 2], "hour": i % 24}
        made.append(
            msgspec.json.encode({"surface": name, "unit": f"user-{i}", "candidates": candidates, "context": context})
        )
    return made


@contextlib.contextmanager
def scraped(url: str) -> Iterator[None]:
    """Somebody reads the metrics, as Prometheus would."""
    done = threading.Event()

    def scrape() -> None:
        with httpx.Client() as client:
            while not done.wait(SCRAPE_SECONDS):
                with contextlib.suppress(httpx.TransportError):
                    client.get(f"{url}/metrics", timeout=10.0)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _rows(report: Report, name: str, found: list[Load], p99: float | None) -> None:
    errors = sum(f.errors for f in found)
    report.add(name, statistics.median(f.rate for f in found), "decisions/s", note=f"{errors} errors" if errors else "")
    report.add("  p50", statistics.median(f.p50 for f in found), "ms")
    report.add("  p99", statistics.median(f.p99 for f in found), "ms", at_most=p99)
