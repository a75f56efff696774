"""What a decision over a whole catalogue costs in process: candidates omitted, of 10⁵ and of 10⁶ items, beside 2,000.

Items have 21 encoded features, two of them crossed with the context. CPU time of all threads of the process, the median of decisions, so that what
else the machine does is left out; the median on the clock stands beside it.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.shortlist import WHOLE
from services.bench.decide import settings_in, started
from services.bench.report import Report
from services.scoring.service import Scoring
from streaming.ports import Versioned

SIZES = ((WHOLE, None), (100_000, 5.0), (1_000_000, 50.0))  # items, ms that a decision may take
CHUNK = 20_000  # items put at a time
SLOTS = 10
HALF = {"where": {"shelf": "a"}}  # half of the items, every second
SURFACE: dict[str, Any] = {
    "surface": "bench",
    "slots": SLOTS,
    "features": {
        "context": {"hour": {"type": "number", "min": 0, "max": 23}},
        "items": {
            "price": {"type": "number", "min": 0, "max": 10},
            "style": {"type": "category", "values": ["a", "b", "c", "d"]},
            "look": {"type": "vector", "size": 16},
        },
        "cross": [["hour", "style"]],
    },
    "objectives": {"click": {"kind": "click", "aggregate": "max", "default": 0, "range": [0, 1]}},
    "policies": {"bench-ts": {"algorithm": "linear_thompson", "objective": "click", "draws": 256, "floor": 0.02}},
    "live": "bench-ts",
    "logging": {"sample": 0},
}


def measure(report: Report, decisions: int = 41, most: int = 1_000_000) -> None:
    """Milliseconds a decision, everything eligible and half of it; `most` items at most."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        scoring = started(settings_in(Path(folder)), [SURFACE], [])
        try:
            held = 0
            for size, budget in SIZES:
                if held >= most:
                    break
                items = min(size, most)
                for change in _items(held, items):
                    scoring.catalogue.apply(scoring.catalogue.prepare(change), 0.0)
                held = items
                for said, more in (("all eligible", {}), ("half eligible by `where`", HALF)):
                    cpu, clock = _times(scoring, decisions, more)
                    report.add(
                        f"decide in process, candidates omitted, {items:,} items, {said}, {SLOTS} slots",
                        cpu,
                        "ms of CPU",
                        at_most=budget if not more else None,
                        note=f"{clock:.3g} ms on the clock",
                    )
        finally:
            scoring.close()


def _items(first: int, end: int) -> Iterator[list[Versioned]]:
    rng = np.random.default_rng(1)
    encode: Callable[[Any], bytes] = msgspec.json.encode
    for start in range(first, end, CHUNK):
        looks = rng.uniform(-1, 1, (CHUNK, 16)).round(3).tolist()
        yield [
            Versioned(
                i + 1,
                "item",
                f"item-{i}",
                encode(
                    {
                        "id": f"item-{i}",
                        "features": {"price": i % 10, "style": "abcd"[i % 4], "look": looks[i - start]},
                        "attributes": {"shelf": "ab"[i % 2]},
                    }
                ),
            )
            for i in range(start, min(start + CHUNK, end))
        ]


def _times(scoring: Scoring, decisions: int, more: dict[str, Any]) -> tuple[float, float]:
    """Median milliseconds of CPU and on the clock; the first decision, which makes the filter, is not counted."""
    cpu, clock = [], []
    for i in range(decisions + 1):
        body = msgspec.json.encode({"surface": "bench", "unit": f"u{i}", "context": {"hour": i % 24}, **more})
        began, started = time.process_time(), time.perf_counter()
        scoring.decide(body)
        cpu.append(1e3 * (time.process_time() - began))
        clock.append(1e3 * (time.perf_counter() - started))
        scoring.tick()
    return statistics.median(cpu[1:]), statistics.median(clock[1:])
