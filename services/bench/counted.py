"""What counted features cost: a decision in process on the surface of `decide`, bare and with counts, in turns; and reading them.

Of units: a count and a rate, remembered from a read a moment ago; a read from a store on this disk stands by itself. Of items too:
a count and a rate of each of 100 candidates, whose encoded features are then logged. CPU time of the thread; garbage of the
start is frozen, as the service does.
"""

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.counted import SHOWN
from services.bench.decide import settings_in, started
from services.bench.report import Report
from services.bench.requests import bodies, items, surface
from services.keys import Keys
from services.scoring.countings import Countings
from services.scoring.histories import Histories
from services.scoring.service import Scoring
from services.wiring import open_derived
from streaming.counted import Moved, counts_key, with_moves
from streaming.derived import EXPOSURES
from streaming.events import unit_hash
from streaming.partition import partition_of
from streaming.ports import Mark
from streaming.shown import window_name

CHUNK, HOUR, DAY = 40, 3_600, 86_400
OF_UNITS = {
    "clicks": {"type": "count", "kind": "click", "window": "1h"},
    "eager": {"type": "rate", "kind": "click", "window": "1d", "prior": [1, 19]},
}
OF_ITEMS = {
    "lately": {"type": "count", "kind": "click", "window": "1h"},
    "rate": {"type": "rate", "kind": "click", "window": "1d", "prior": [1, 19], "max": 0.5},
}
SURFACES = {"home": (False, False), "units": (True, False), "both": (True, True)}  # (of units, of items)


def measure(report: Report, chunks: int = 15) -> None:
    """Microseconds of CPU a decision with nothing counted, with counts of units, and with those of items too."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        scoring = _scoring_in(Path(folder))
        try:
            gc.collect()
            gc.freeze()
            asked = {name: _bodies(name) for name in SURFACES}
            taken: dict[str, list[float]] = {name: [] for name in SURFACES}
            for _ in range(chunks):
                for name, given in asked.items():
                    taken[name] += _times(scoring, given)
                scoring.tick()
            bare, units, both = (statistics.median(taken[name]) for name in SURFACES)
            report.add("decide in process, 100 candidates, nothing counted", bare, "µs of CPU")
            for what, value in (("a count and a rate of the unit", units), ("… and of each candidate", both)):
                report.add(f"decide in process, {what}", value, "µs of CPU", floor=bare, note="floor: nothing counted")
            assert scoring.before.countings is not None  # both are wired below
            assert scoring.before.histories is not None
            found = scoring.live.surfaces["units"]
            unit, taken_by = unit_hash("user-0", scoring.keys.salt("default")), list[float]()
            for i in range(CHUNK):
                config = f"{found.config}{i}"  # of a version that has not asked yet: it is read
                started = time.thread_time()
                _, _, outcome = scoring.before.histories.of(unit, found.surface, config, counts=True, acts=False)
                taken_by.append(1e6 * (time.thread_time() - started))
                assert outcome == "read"
            report.add("reading what was counted of a unit", statistics.median(taken_by), "µs of CPU", note="SQLite")
            started = time.thread_time()
            scoring.before.countings.refresh(scoring.clock(), at_once=True)
            spent = time.thread_time() - started
            known = len(scoring.catalogue)
            report.add(
                "reading a count and a rate of an item", 1e6 * spent / known, "µs of CPU", note=f"{known:,} items"
            )
        finally:
            gc.unfreeze()
            scoring.close()


def _surface(name: str) -> dict[str, Any]:
    units, of_items = SURFACES[name]
    document = {**surface(), "surface": name}
    features = document["features"]
    features["context"] |= OF_UNITS if units else {}
    features["items"] |= OF_ITEMS if of_items else {}
    return document


def _bodies(name: str) -> list[bytes]:
    return [msgspec.json.encode({**msgspec.json.decode(body), "surface": name}) for body in bodies()]


def _scoring_in(data: Path) -> Scoring:
    """The scoring service without HTTP on a fresh folder, warm; every unit and item has been clicked."""
    settings, now = settings_in(data), time.time()
    keys, catalogue = Keys.load(settings.data), items()
    counters, profiles = open_derived(settings, settings.partitions)
    units: dict[int, dict[str, bytes]] = {}
    wanted = (("click", HOUR), ("click", DAY), (SHOWN, DAY))
    for unit in [unit_hash(msgspec.json.decode(body)["unit"], keys.salt("default")) for body in bodies()]:
        data_of = b""
        for name in ("units", "both"):
            data_of = with_moves(data_of, name, wanted, now, [Moved("click", 0, 3), Moved(SHOWN, 0, 20)])
        units.setdefault(partition_of(unit.encode(), settings.partitions), {})[counts_key(unit)] = data_of
    for place, found in units.items():
        profiles.write(place, Mark(1, 1), found, None)
    rng, counts = np.random.default_rng(3), dict[str, float]()
    for one, clicks in zip(catalogue, rng.integers(1, 9, len(catalogue)).tolist(), strict=True):
        for measure_, window, by in (("kind/click", HOUR, 1), ("kind/click", DAY, 1), (EXPOSURES, DAY, 20)):
            place_of = window_name(str(one["id"]), window, int(now // window))
            counts[f"default/both/{place_of}/{measure_}"] = float(clicks * by)
    counters.write(0, Mark(1, 1), counts, None)
    return started(
        settings,
        [_surface(name) for name in SURFACES],
        catalogue,
        histories=Histories(lambda: open_derived(settings, settings.partitions)[1], lambda: 0.0),  # nothing gets old
        countings=Countings(lambda: open_derived(settings, settings.partitions)[0]),
    )


def _times(scoring: Scoring, given: list[bytes]) -> list[float]:
    """Microseconds of this thread's CPU, decision by decision: where much else runs, a mean is that of its interruptions."""
    taken = []
    for i in range(CHUNK):
        start = time.thread_time()
        scoring.decide(given[i % len(given)])
        taken.append(1e6 * (time.thread_time() - start))
    return taken
