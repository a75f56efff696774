"""How fast decisions settle: joined a second time, put into the outbox when their horizon has passed, written as Parquet.

One partition on one core, the stream of `services.bench.stream`. Memory holds fewer joins than wait, so most of them are
read again from checkpoint and log when they fall due, as with a horizon of half an hour.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.bench import stream
from services.bench.report import Report
from services.settings import Settings
from services.wiring import open_experiences, open_log, open_settlements
from streaming.configuration import Configs
from streaming.experiences import Experiences
from streaming.settle import Settler, SettleReport
from streaming.windows import Windows

HOT = 2_000


def measure(report: Report, decisions: int = 30_000) -> None:
    """Each stage by itself, then all of them together."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        settings = Settings.load({}, data=Path(folder), experiences=f"file://{folder}/experiences", partitions=1)
        configs, log, outbox = Configs(), open_log(settings), open_settlements(settings, 0)
        compiled, now = configs.add(stream.surface()), time.time()
        stream.make_log(log, compiled, decisions, now)
        settler = Settler(0, log, outbox, configs, epoch=1, hot_limit=HOT)
        reading, _ = _timed(lambda: _until_still(settler, None))
        settling, last = _timed(lambda: _until_still(settler, now + 2 * compiled.surface.horizon_seconds))
        windows = Windows(Experiences(0, outbox, log), open_experiences(settings), configs)
        number, files = 0, list[str]()

        def write() -> int:
            nonlocal number
            number, made = windows.write(number, last.frontier)
            files.extend(made)
            return len(made)

        start = time.perf_counter()
        while write():
            pass
        writing = time.perf_counter() - start
        if number != decisions:
            raise RuntimeError(f"{number} of {decisions} decisions were settled and written")
        size = sum((Path(folder) / "experiences" / name).stat().st_size for name in files) / decisions
    each = f"{decisions} decisions with 1 feedback each, 10 slots × 32 features, one partition"
    report.add("settling: read and joined", decisions / reading, "decisions/s", note=each)
    report.add("settling: due, into the outbox", decisions / settling, "decisions/s", note="most of them cold")
    report.add("settling: written as Parquet", decisions / writing, "decisions/s", note=f"{len(files)} files")
    report.add("settling in all", decisions / (reading + settling + writing), "decisions/s", note="one core")
    report.add(
        "a settled decision in Parquet", size, "bytes", note="100 candidate ids, 10 × 32 features of random numbers"
    )


def _until_still(settler: Settler, now: float | None) -> SettleReport:
    while True:
        report = settler.step(now)
        if not report.records and not report.settled:
            return report


def _timed(work: Callable[[], SettleReport]) -> tuple[float, SettleReport]:
    start = time.perf_counter()
    report = work()
    return time.perf_counter() - start, report
