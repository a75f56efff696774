"""Bytes that a decision, an event, a unit and an item cost: what sizing disks, topics and stores rests on (`docs/sizing.md`).

Counted, not timed: the same on every machine but for the memory of items, which is what the process grew by.
"""

import gc
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil

from services.bench import stream
from services.bench.decide import scoring_in
from services.bench.report import Report
from services.bench.requests import bodies, items
from services.scoring.catalogue import Catalogue
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Configs
from streaming.events import Feedback, encode
from streaming.ports import Versioned
from streaming.profiles import write_profile
from streaming.shard import Shard
from streaming.totals import Unit

ACTS = 20  # interactions kept of a unit by default
OBJECTIVES = 3
ITEMS = 50_000


def measure(report: Report, decisions: int = 10_000, items_held: int = ITEMS) -> None:
    """Every row; `decisions` are joined and learned for the checkpoint's."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        _records(report, Path(folder))
        _checkpoint(report, Path(folder), decisions)
    _unit(report)
    _item(report, items_held)


def _records(report: Report, folder: Path) -> None:
    scoring = scoring_in(folder / "scoring", Telemetry())
    asked = bodies(count=16)
    sizes = []
    for body in asked:
        before = scoring.spool.bytes
        scoring.decide(body)
        sizes.append(scoring.spool.bytes - before)
    size = statistics.median(sizes)  # one in a hundred is sampled, and ten times as large
    scoring.close()
    report.add(
        "decision in the spool and the log",
        size,
        "bytes",
        note="100 candidates by id, 10 slots × 32 features, nothing sampled",
    )
    unit = "0123456789abcdef"
    click = Feedback(
        decision_id=f"{unit}-0193a1b2c3d4e5f60001", unit=unit, at=1_800_000_000.5, feedback_id="f" * 24, kind="click", slot=3,
        accepted_at=1_800_000_000.5,
    )  # fmt: skip
    report.add("feedback in the log", float(len(encode(click))), "bytes")


def _checkpoint(report: Report, folder: Path, decisions: int) -> None:
    settings = replace(Settings(), data=folder / "learning", partitions=1)
    configs, now = Configs(), time.time()
    compiled, log = configs.add(stream.surface()), open_log(settings)
    grown: list[int] = []
    for _ in range(2):  # the second half's growth: tables and sums are not counted
        log.append(list(stream.records(compiled, decisions // 2, now, seed=len(grown))))
        shard = Shard(0, log, open_checkpoints(settings, 0), configs, open_dead_letters(settings), epoch=1)
        while shard.step().records:
            pass
        del shard
        gc.collect()  # closes the file, so that all of it is in it
        grown.append(settings.shard_path(0).stat().st_size)
    report.add(
        "decision open in a shard's checkpoint",
        (grown[1] - grown[0]) / (decisions // 2),
        "bytes",
        note="for twice `correctable`; 1 feedback each",
    )


def _unit(report: Report) -> None:
    acts = [(1_800_000_000.0 + i, f"item-{i * 37}", "click", 1.0, i) for i in range(ACTS)]
    report.add("profile of a unit", float(len(write_profile(acts))), "bytes", note=f"{ACTS} interactions, the default")
    sums = dict.fromkeys(("click", "watch", "like", "decisions"), 1.0)
    unit = Unit("treatment", 0, 1.8e9, 1.8e9, 1.8e9, sums, sums)
    report.add(
        "unit of an experiment",
        float(len(msgspec.msgpack.encode(unit))),
        "bytes",
        note=f"{OBJECTIVES} objectives, with the window before",
    )


def _item(report: Report, count: int) -> None:
    encoded = [msgspec.json.encode(item) for item in items(count)]
    entries = [Versioned(i + 1, "item", f"item-{i}", value) for i, value in enumerate(encoded)]
    report.add("item in the record", sum(map(len, encoded)) / count, "bytes", note="32 features as JSON")
    catalogue, process = Catalogue(), psutil.Process()
    before = process.memory_info().rss
    catalogue.apply(catalogue.prepare(entries), time.time())
    report.add(
        "item in a scoring worker's memory",
        (process.memory_info().rss - before) / count,
        "bytes",
        note="before its encoded features: 4 bytes a column and surface version",
    )
