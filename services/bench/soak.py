"""`slatewise load --soak MINUTES`: the whole of `up` at half of its peak, and whether its memory stays where it is.

Horizon and `correctable` of the surface are short, and so is the log's retention: what is kept of decisions for a while is kept for
a shorter while, so that growth which stops by itself has stopped when the slope is taken. The slope is that of the resident memory of
all processes, of each half-minute's median from the end of the warm-up on; its interval is by Student's t over slopes of ten
pieces of the run, which are nearly independent of each other where single readings are not. Pages of mapped files (code, SQLite's
shared index of its write-ahead log, metrics) are counted in it and said beside it: the system takes them back when it wants them, what
a process has allocated it cannot.
"""

import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np
import psutil

from policies.types import F64
from services.bench.driving import Traffic, closed, paced
from services.bench.http import fill
from services.bench.requests import surface
from services.bench.serving import Running, running
from services.studies.study import Study, interval

HALF, CONNECTIONS, AT_PEAK = 0.5, 64, 32
WARM_SHARE = 0.25  # of the run, before slopes are taken: caches fill, joins reach `correctable`
PIECES, READ_SECONDS = 10, 1.0
FLAT_SHARE = 0.02  # of the memory an hour: flatter than that is flat
SHORT = {"horizon": "10s", "correctable": "60s"}
VARIABLES = {"SLATEWISE_RETENTION_SECONDS": "120"}


class Memory:
    """Resident megabytes of a service's processes, read once a second in a thread."""

    def __init__(self, pid: int) -> None:
        self._main, self._stop = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.times: list[float] = []
        self.total: list[float] = []
        self.mapped: list[float] = []  # of it pages of files
        self.of: dict[str, list[tuple[float, float, float]]] = defaultdict(list)  # process → (time, MB, MB of files)

    def __enter__(self) -> "Memory":
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(READ_SECONDS):
            now, total, mapped = time.perf_counter() - self._began, 0.0, 0.0
            for process in [self._main, *self._main.children(recursive=True)]:
                try:
                    held, words = process.memory_info(), process.cmdline()
                except psutil.Error:  # it has just ended
                    continue
                used, files = held.rss / 2**20, held.shared / 2**20
                total, mapped = total + used, mapped + files
                self.of[_name(words)].append((now, used, files))
            self.times.append(now)
            self.total.append(total)
            self.mapped.append(mapped)


def measure(study: Study, minutes: float) -> None:
    """Find the peak, then half of it for so long."""
    seconds = 60.0 * minutes
    document: dict[str, Any] = {**surface(), **SHORT}
    with running([document], variables=VARIABLES) as service:
        fill(service.url)
        traffic = Traffic()
        closed(service.url, traffic, AT_PEAK, min(3.0, seconds / 5))  # warm
        peak = closed(service.url, traffic, AT_PEAK, min(15.0, seconds / 2)).rate
        _soak(study, service, traffic, peak, seconds)


def _soak(study: Study, service: Running, traffic: Traffic, peak: float, seconds: float) -> None:
    with Memory(service.pid) as memory:
        found = paced(service.url, traffic, HALF * peak, CONNECTIONS, seconds)
    warm = WARM_SHARE * seconds
    times, total, mapped = np.array(memory.times), np.array(memory.total), np.array(memory.mapped)
    kept = times >= warm
    mean, low, high = slope(times[kept], total[kept])
    own, own_low, own_high = slope(times[kept], (total - mapped)[kept])
    level = float(np.median(total[kept])) if kept.any() else float("nan")
    flat = low <= 0 or mean <= FLAT_SHARE * level
    refused = sum(one.status >= 400 for one in found.answers)
    study.table(
        f"Soak: {seconds / 60:g} minutes at half of {peak:,.0f} requests/s",
        ("what", "value", "target", "met"),
        [
            ("asked, requests/s", found.asked / seconds, None, None),
            ("answered, requests/s", found.rate, None, None),
            ("refused or failed, of answered", refused / max(1, len(found.answers)), None, None),
            ("decision p99, ms", found.p99(), None, None),
            ("memory of all processes, median, MB", level, None, None),
            (
                "  of it pages of mapped files",
                float(np.median(mapped[kept])) if kept.any() else float("nan"),
                None,
                None,
            ),
            ("slope after the first quarter, MB/hour", mean, f"≤ {FLAT_SHARE:.0%} of it, or not above 0", flat),
            ("  its 95% interval", f"{low:.4g} … {high:.4g}", None, None),
            ("  slope without mapped files", own, None, None),
            ("  its 95% interval, without", f"{own_low:.4g} … {own_high:.4g}", None, None),
        ],
    )
    rows: list[tuple[str | float, ...]] = []
    for name, readings in sorted(memory.of.items()):
        at, used, files = np.array(readings).T
        here = at >= warm
        rows.append((name, float(used[0]), float(used[-1]), float(files[-1]), *slope(at[here], used[here])))
    columns = ("process", "MB at the beginning", "MB at the end", "of it mapped files", "MB/hour", "low", "high")
    study.table("Memory by process", columns, rows)
    study.note(
        f"Embedded `up`, one scoring worker, surface with horizon {SHORT['horizon']} and correctable {SHORT['correctable']}, retention "
        f"{VARIABLES['SLATEWISE_RETENTION_SECONDS']} s; the generator shares the machine and was at most {found.late:.2f} s behind"
    )
    if seconds < 1_000:
        study.note(
            "Shorter than the 30 minutes that are promised: it shows that the measurement works, not what it shows."
        )


def slope(times: F64, values: F64) -> tuple[float, float, float]:
    """(MB/hour, low, high) of a least-squares line through medians of pieces; the interval from how they lie around it."""
    pieces = [piece for piece in np.array_split(np.arange(len(times)), 3 * PIECES) if len(piece)]
    if len(pieces) < 4:
        return float("nan"), float("nan"), float("nan")
    x = np.array([times[piece].mean() for piece in pieces]) / 3600.0
    y = np.array([np.median(values[piece]) for piece in pieces])
    leave_out = []  # jackknife over tenths of the run: neighbours in time stay together
    for gone in np.array_split(np.arange(len(x)), min(PIECES, len(x) - 2)):
        stays = np.setdiff1d(np.arange(len(x)), gone)
        leave_out.append(float(np.polyfit(x[stays], y[stays], 1)[0]))
    whole, groups = float(np.polyfit(x, y, 1)[0]), len(leave_out)
    pseudo = groups * whole - (groups - 1) * np.array(leave_out)
    _, low, high = interval(pseudo)
    return whole, low, high


def _name(words: list[str]) -> str:
    """What a process is, from its command line: scoring, learning, forwarder …, or the supervisor."""
    known = ("scoring", "learning", "forwarder", "control", "settle")
    text = " ".join(words)
    return next((name for name in known if f" {name} " in f" {text} " or f"services.{name}" in text), "up")
