"""Millions of open decisions in one partition: memory, the time of a commit, the time to come back.

The log is made as it is read (small records: one slot, one feature), so what is measured is the shard's own state.
"""

import gc
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from policies.errors import Unavailable
from policies.surface import FeatureSpec, Number, Objective, PolicySpec, Surface
from services.bench.report import Report
from services.settings import Settings
from services.wiring import open_checkpoints, open_dead_letters
from streaming.configuration import Configs
from streaming.events import Decision, encode
from streaming.ports import Position, Record
from streaming.shard import Shard

READ_LIMIT = 4_000
LAST = 50  # steps that the time of a step is the mean of


class MadeLog:
    """A log of one partition that makes each record when it is asked for it: decisions that nobody ever answered."""

    identity = "made"
    partitions = 1

    def __init__(self, template: Decision, name: str, decisions: int) -> None:
        self._parts = encode(template).split(name.encode())
        self._decisions, self._now = decisions, template.at

    def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
        raise Unavailable("this log is made as it is read")

    def first(self, partition: int) -> int:
        return 0

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        last = min(offset + limit, self._decisions)
        made = range(offset, last)
        return [Record(i, self._now, b"%016x" % i, (b"%016x" % i).join(self._parts)) for i in made]

    def end(self, partition: int) -> tuple[int, float]:
        return self._decisions, self._now

    def position(self, spool: str) -> Position | None:
        return None


def measure(report: Report, decisions: int) -> None:
    """Rows: memory a decision and in all, the last steps with their commits, a restart, the checkpoint on disk."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        settings = replace(Settings(), data=Path(folder), partitions=1)
        configs = Configs()
        compiled = configs.add(_surface())
        log = MadeLog(_decision(compiled.hash), "u" * 16, decisions)
        checkpoints, letters = open_checkpoints(settings, 0), open_dead_letters(settings)

        def opened() -> Shard:
            return Shard(0, log, checkpoints, configs, letters, epoch=1, read_limit=READ_LIMIT)

        shard = opened()
        shard.step()
        before, times = _resident(), []
        while True:
            started = time.perf_counter()
            if not shard.step().records:
                break
            times.append(time.perf_counter() - started)
        after = _resident()
        held = shard.statistics().examples
        del shard
        gc.collect()
        started = time.perf_counter()
        again = opened()
        again.step(log.end(0)[1])
        restart = time.perf_counter() - started
        assert again.statistics().examples == held
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    note = f"{decisions:,} open decisions"
    report.add("memory of open decisions", (after - before) / 2**20, "MiB", note=note)
    late = times[-LAST:] or [0.0]
    report.add(
        "a step with its commit, at the end", 1e3 * sum(late) / len(late), "ms", note=f"{READ_LIMIT:,} decisions"
    )
    report.add("restart", restart, "s", note=note)
    report.add("checkpoint on disk", size / 2**20, "MiB", note=note)


def _resident() -> int:
    gc.collect()
    found: int = psutil.Process(os.getpid()).memory_info().rss
    return found


def _surface() -> Surface:
    return Surface(
        surface="bench",
        slots=1,
        features=FeatureSpec(items={"price": Number(0, 1)}),
        objectives={"click": Objective(kind="click", aggregate="max")},
        policies={"bench-ts": PolicySpec(algorithm="linear_thompson", objective="click")},
        live="bench-ts",
    )


def _decision(config: str) -> Decision:
    return Decision(
        decision_id="u" * 16 + "-" + "0" * 22,
        unit="u" * 16,
        at=1.7e9,
        surface="bench",
        config=config,
        policy="bench-ts",
        bundle="0" * 16,
        mode="live",
        slate=["item-1"],
        slots=[0],
        rows=[0],
        propensities=[0.5],
        remaining=[2],
        greedy=[0],
        context=b"",
        shown=bytes(4),
        candidates=["item-1", "item-2"],
        asked=1,
    )
