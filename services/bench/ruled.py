"""What rules, diversity and fairness cost a decision in process: everything a surface may have beside nothing, in turns.

With: availability and a filter over the catalogue, a pin, seen items and an impression cap, a cap, a quota and a spacing by
attribute, MMR over 16 numbers and coverage, shares of a prefix, exposure owed to four groups, an exploration cap by segment.
Without: the same surface bare. CPU time of the thread, so that what else the machine does is left out; garbage of the start
is frozen, as the service does.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from services.bench.decide import settings_in, started
from services.bench.report import Report
from services.keys import Keys
from services.scoring.exposures import Exposures
from services.scoring.service import Scoring
from services.wiring import open_derived
from streaming.events import unit_hash
from streaming.index import id_hash
from streaming.partition import partition_of
from streaming.ports import Mark
from streaming.shown import shown_key, with_decision

BUDGET, CHUNK, CATALOGUE, UNITS = 2.0, 40, 2_000, 16
SIZES = ((100, 10), (1_000, 50))  # candidates, slots; the budget is for the first
EVERYTHING: dict[str, Any] = {
    "rules": [
        {"available": True},
        {"filter": "price < 9 and style in ['a', 'b', 'c']"},
        {"pin": "item-1", "slot": 2},
        {"seen": {"window": "1d"}},
        {"frequency": {"cap": 1_000, "per": "item", "window": "1d"}},
        {"cap": 2, "by": "creator"},
        {"quota": {"min": 2, "by": "style", "value": "b"}},
        {"spacing": 2, "by": "creator"},
    ],
    "diversity": {"mmr": 0.3, "over": "look", "coverage": 0.2, "by": "style"},
    "fairness": {
        "exposure": {"by": "label", "target": "equal", "window": "10m"},
        "prefix": {"by": "label", "min": {"l3": 0.2}, "max": {"l0": 0.6}},
    },
    "exploration": {"max_share": 0.5, "segments": [{"when": "hour < 6", "max_share": 0.2}]},
}


def measure(report: Report, chunks: int = 15) -> None:
    """Microseconds of CPU a decision with everything and with nothing, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        scoring = _scoring_in(Path(folder))
        try:
            gc.collect()
            gc.freeze()
            for candidates, slots in SIZES:
                asked = {name: _bodies(name, candidates, slots) for name in ("bare", "ruled")}
                taken: dict[str, list[float]] = {name: [] for name in asked}
                for _ in range(chunks):
                    for name, bodies in asked.items():
                        taken[name].append(_time(scoring, bodies))
                    scoring.tick()
                    scoring.refresh()
                bare, ruled = (statistics.median(taken[name]) for name in ("bare", "ruled"))
                what = f"decide in process, {candidates:,} candidates and {slots} slots"
                report.add(f"{what}, no rules", bare, "µs of CPU")
                report.add(
                    f"{what}, all rules, diversity and fairness",
                    ruled,
                    "µs of CPU",
                    floor=bare,
                    at_most=BUDGET if candidates == SIZES[0][0] else None,
                    of_floor=True,
                    note="floor: the same without",
                )
        finally:
            gc.unfreeze()
            scoring.close()


def _surface(name: str) -> dict[str, Any]:
    return {
        "surface": name,
        "features": {
            "context": {"hour": {"type": "number", "min": 0, "max": 23}},
            "items": {
                "price": {"type": "number", "min": 0, "max": 10},
                "style": {"type": "category", "values": ["a", "b", "c", "d"]},
                "look": {"type": "vector", "size": 16},
            },
        },
        "objectives": {"click": {"kind": "click", "aggregate": "max", "default": 0, "range": [0, 1]}},
        "policies": {"bench-ts": {"algorithm": "linear_thompson", "objective": "click", "draws": 256, "floor": 0.02}},
        "live": "bench-ts",
        **(EVERYTHING if name == "ruled" else {}),
    }


def _items() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    looks = rng.normal(size=(CATALOGUE, 16)).round(3).tolist()
    return [
        {
            "id": f"item-{i}",
            "features": {"price": i % 10, "style": "abcd"[i % 4], "look": looks[i]},
            "attributes": {"creator": f"c{i % 40}", "label": f"l{i * 7 % 11 % 4}"},
        }
        for i in range(CATALOGUE)
    ]


def _scoring_in(data: Path) -> Scoring:
    """The scoring service without HTTP on a fresh folder, warm; half of the units have seen twenty items, groups are owed looks."""
    settings = settings_in(data)
    keys = Keys.load(settings.data)
    counters, profiles = open_derived(settings, settings.partitions)
    units: dict[int, dict[str, bytes]] = {}
    for i in range(0, UNITS, 2):
        unit = unit_hash(f"user-{i}", keys.salt("default"))
        seen = with_decision(None, i, time.time(), [id_hash(f"item-{j}") for j in range(20 * i, 20 * i + 20)])
        units.setdefault(partition_of(unit.encode(), settings.partitions), {})[shown_key(unit)] = seen
    for place, found in units.items():
        profiles.write(place, Mark(1, 1), found, None)
    exposures = Exposures(lambda: open_derived(settings, settings.partitions))
    scoring = started(settings, [_surface("bare"), _surface("ruled")], _items(), exposures=exposures)
    for turn in range(2):  # what is owed is what moves between two readings
        delivered = {f"default/ruled/exposure/label/l{j}/delivered": 100.0 * turn * (j + 1) for j in range(4)}
        entitled = {f"default/ruled/exposure/label/l{j}/entitled": 250.0 * turn for j in range(4)}
        counters.write(0, Mark(1, 2 + turn), delivered | entitled, None)
        scoring.refresh(["item-0"])
    return scoring


def _bodies(surface: str, candidates: int, slots: int) -> list[bytes]:
    rng = np.random.default_rng(2)
    made = []
    for i in range(UNITS):
        ids = [f"item-{row}" for row in [1, *(2 + rng.choice(CATALOGUE - 2, candidates - 1, replace=False)).tolist()]]
        request = {"surface": surface, "unit": f"user-{i}", "candidates": ids, "slots": slots, "context": {"hour": i}}
        made.append(msgspec.json.encode(request))
    return made


def _time(scoring: Scoring, bodies: Sequence[bytes]) -> float:
    """Microseconds of this thread's CPU a decision."""
    start = time.thread_time()
    for i in range(CHUNK):
        scoring.decide(bodies[i % len(bodies)])
    return 1e6 * (time.thread_time() - start) / CHUNK
