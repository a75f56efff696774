"""How long a publish takes: merge, draw 256 parameters, score the probes, pass the gate, write the files, move the pointer."""

import tempfile
import time
from pathlib import Path

import numpy as np

from services.bench import stream
from services.bench.report import Report
from services.settings import Settings
from services.wiring import open_bundles, open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Configs
from streaming.publish import Publisher
from streaming.shard import Shard

BUDGET_MS = 50.0


def measure(report: Report, decisions: int = 5_000, publishes: int = 30) -> None:
    """Publishes of the bench surface's linear model over two partitions' committed sums; the first builds the graph."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        settings = Settings.load(environ={}, data=Path(folder), partitions=2)
        configs = Configs()
        compiled = configs.add(stream.surface())
        log = open_log(settings)
        stream.make_log(log, compiled, decisions, time.time())
        dead = open_dead_letters(settings)
        shards = [Shard(p, log, open_checkpoints(settings, p), configs, dead, epoch=1) for p in range(log.partitions)]
        for shard in shards:
            while shard.step().records:
                pass
        policy = compiled.policies[compiled.surface.live or ""]
        publisher = Publisher(open_bundles(settings), configs, 1)
        took = []
        for _ in range(publishes + 1):
            start = time.perf_counter()
            sums = [s.statistics() for s in shards]
            outcome = publisher.publish(
                policy, [s.arrays[policy.key] for s in sums], {s.partition: s.offset for s in sums}, time.time()
            )
            took.append(1e3 * (time.perf_counter() - start))
            if outcome.result != "published":
                raise RuntimeError(f"publish: {outcome.result} {outcome.detail}")
    width = len(sums[0].arrays[policy.key]["columns"])
    report.add("publish, first of a process", took[0], "ms", note="builds the graph and its session")
    report.add(
        "publish, median", float(np.median(took[1:])), "ms", at_most=BUDGET_MS, note=f"{width} columns, 256 draws"
    )
    report.add("publish, p95", float(np.percentile(took[1:], 95)), "ms")
