"""`slatewise load --overload`: three times what the service can do, what it sheds, and how soon it is itself again (`semantics.md` 25).

half   half of peak: what is normal             peak    closed loop, as many connections as a worker admits
over   three times peak, open loop              after   half of peak again: recovered with the first whole second in which
                                                every decision is live and their p99 is at most twice the normal one
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from services.bench.driving import BATCH, DECISION, EXPLAINED, FEEDBACK, Answered, Run, Traffic, closed, paced
from services.bench.http import SPOOL_BYTES, fill
from services.bench.requests import surface
from services.bench.serving import Running, running
from services.studies.study import Cell, Study

TIMES, HALF = 3.0, 0.5
CONNECTIONS, AT_PEAK = 256, 64
RECOVERED_SECONDS, WINDOW_SECONDS, P99_TIMES = 5.0, 0.5, 2.0
ERRORS = 4.0  # standard errors by which one share must exceed another to be out of order


def measure(study: Study, seconds: float) -> None:
    """`seconds` of each of the four phases."""
    with running([surface()], variables={"SLATEWISE_SPOOL_BYTES": SPOOL_BYTES}) as service:
        fill(service.url)
        _phases(study, service, seconds)


def _phases(study: Study, service: Running, seconds: float) -> None:
    traffic = Traffic()
    closed(service.url, traffic, AT_PEAK, min(3.0, seconds))  # warm
    at_peak = closed(service.url, traffic, AT_PEAK, seconds)
    peak = at_peak.rate
    half = paced(service.url, traffic, HALF * peak, AT_PEAK, seconds)
    over = paced(service.url, traffic, TIMES * peak, CONNECTIONS, seconds)
    after = paced(service.url, traffic, HALF * peak, AT_PEAK, max(seconds, 2 * RECOVERED_SECONDS))
    rows = [_row(name, run) for name, run in (("half", half), ("peak", at_peak), ("over", over), ("after", after))]
    study.table(
        f"Phases; peak {peak:,.0f} requests/s",
        (
            "phase",
            "asked/s",
            "answered/s",
            "accepted/s",
            "p50 ms",
            "p99 ms",
            "generator behind, s",
            "connections broken",
        ),
        rows,
    )
    shares = shed(over)
    study.table(
        "What was shed at three times peak, in the order in which it should be",
        ("what", "asked", "shed", "share"),
        [(name, n, gone, gone / max(1, n)) for name, (gone, n) in shares.items()],
    )
    recovered = recovery(after, half.p99())
    p99 = over.p99() / at_peak.p99()
    study.table(
        "Targets",
        ("what", "value", "target", "met"),
        [
            (
                "sheds in the stated order",
                " ≥ ".join(shares),
                "no share above that of what goes before",
                in_order(list(shares.values())),
            ),
            ("p99 of accepted decisions, over / peak", p99, f"≤ {P99_TIMES:g}", p99 <= P99_TIMES),
            ("recovered after, s", recovered, f"≤ {RECOVERED_SECONDS:g}", recovered <= RECOVERED_SECONDS),
            (
                "offered, times peak",
                over.asked / seconds / peak,
                f"{TIMES:g}",
                over.asked / seconds / peak >= 0.9 * TIMES,
            ),
        ],
    )
    study.note(
        "Embedded `up`, one scoring worker. A share counts what was refused (429, 503) or, of explanations, left out, and of decisions,"
        " answered by the fallback. Latency of what was accepted, from when it was written; the generator shares the machine's cores."
    )


def _row(name: str, run: Run) -> Sequence[Cell]:
    accepted = [one for one in run.of(DECISION, EXPLAINED) if one.status == 200]
    p50 = float(np.percentile([one.took for one in accepted], 50)) * 1e3 if accepted else float("nan")
    taken = sum(one.status < 300 for one in run.answers) / run.seconds
    return (name, (run.asked or len(run.answers)) / run.seconds, run.rate, taken, p50, run.p99(), run.late, run.broken)


def shed(run: Run) -> dict[str, tuple[int, int]]:
    """(shed, asked) of each kind of work, in the order in which work is to be shed."""

    def count(found: list[Answered], gone: int) -> tuple[int, int]:
        return gone, len(found)

    explained, batches, decisions, feedback = (run.of(kind) for kind in (EXPLAINED, BATCH, DECISION, FEEDBACK))
    return {
        "explanations": count(explained, sum(not one.full for one in explained)),
        "batches": count(batches, sum(one.status >= 400 for one in batches)),
        "live decisions": count(decisions, sum(not one.full for one in decisions)),
        "decisions": count(decisions, sum(one.status >= 400 for one in decisions)),
        "feedback": count(feedback, sum(one.status >= 400 for one in feedback)),
    }


def in_order(shares: list[tuple[int, int]]) -> bool:
    """Whether no kind is shed more than the one before it, beyond chance."""
    for (gone, n), (more, m) in pairwise(shares):
        if not n or not m:
            continue
        first, second = gone / n, more / m
        pooled = (gone + more) / (n + m)
        if second - first > ERRORS * np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m)):
            return False
    return True


def recovery(run: Run, normal_p99: float) -> float:
    """Seconds until the first whole second in which every decision was live and their p99 was normal; infinite if there was none."""
    windows: list[list[Answered]] = [[] for _ in range(int(run.seconds / WINDOW_SECONDS))]
    for one in run.of(DECISION):
        if int(one.at / WINDOW_SECONDS) < len(windows):
            windows[int(one.at / WINDOW_SECONDS)].append(one)
    most = P99_TIMES * normal_p99 / 1e3
    calm = [
        bool(here) and all(one.full for one in here) and np.percentile([one.took for one in here], 99) <= most
        for here in windows
    ]
    a_second = round(1.0 / WINDOW_SECONDS)
    for first in range(len(calm) - a_second + 1):
        if all(calm[first : first + a_second]):
            return first * WINDOW_SECONDS
    return float("inf")
