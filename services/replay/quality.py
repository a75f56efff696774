"""Learning quality on one-slot streams: us and our peers on the same shuffles, with intervals, wins and losses alike.

A seed shuffles the rounds; every player of a seed sees that order (common random numbers). The mean reward of all rounds
of a seed is one observation. Non-inferior within 2%: the lower 95% bound of the paired difference to 0.98 × the best
peer (best by its mean over the seeds, so chosen in its favour) is not below zero; Student's t over seeds.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from rich.table import Table

from policies.types import F64
from services.bench.report import provenance
from services.replay.ours import Slatewise
from services.replay.peers import PEERS, Player, play
from services.replay.streams import Stream

OURS = "linear_thompson"
MARGIN = 0.02
# two-sided 95% quantiles of Student's t by degrees of freedom: scipy is no dependency for ten numbers
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Result:
    """means (seeds,) of a player on a stream; microseconds a round, learning included."""

    stream: str
    player: str
    means: F64
    rounds: int
    micros: float

    @property
    def mean(self) -> float:
        return float(self.means.mean())

    @property
    def half_width(self) -> float:
        return half_width(self.means)


@dataclass(frozen=True)
class Verdict:
    """Ours against the best peer of a stream: relative difference in %, with its 95% interval."""

    stream: str
    best: str
    difference: float
    low: float
    high: float
    non_inferior: bool


def half_width(values: F64) -> float:
    """Half of the 95% interval of the mean of a few independent values."""
    n = len(values)
    if n < 2:
        return float("inf")
    t = STUDENT[n - 2] if n - 2 < len(STUDENT) else 2.0
    return float(t * values.std(ddof=1) / np.sqrt(n))


def measure(
    stream: Stream,
    seeds: Iterable[int],
    players: Iterable[str],
    *,
    every: int = 10,
    rounds: int | None = None,
    heard: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Every player over every seed."""
    made: dict[str, Callable[[Stream, int], Player]] = {OURS: partial(Slatewise, every=every), **PEERS}
    results = []
    seeds = list(seeds)
    for name in players:
        means, counted, spent = [], 0, 0.0
        for seed in seeds:
            shuffled = stream.shuffled(seed, rounds)
            start = time.perf_counter()
            earned = play(shuffled, made[name](shuffled, seed))
            spent += time.perf_counter() - start
            means.append(float(np.mean(earned)))
            counted += len(earned)
        results.append(Result(stream.name, name, np.array(means), counted, 1e6 * spent / (len(seeds) * len(shuffled))))
        heard(f"{stream.name}: {name} {results[-1].mean:.4f} ± {results[-1].half_width:.4f}")
    return results


def verdict(results: list[Result]) -> Verdict:
    """Ours against the best peer, seed by seed."""
    ours = next(r for r in results if r.player == OURS)
    peers = [r for r in results if r.player not in (OURS, "uniform")]
    best = max(peers, key=lambda r: r.mean)
    allowed = ours.means - (1 - MARGIN) * best.means
    lower = float(allowed.mean()) - half_width(allowed)
    scale = 100.0 / best.mean
    difference = ours.means - best.means
    middle, half = float(difference.mean()) * scale, half_width(difference) * scale
    return Verdict(ours.stream, best.player, middle, middle - half, middle + half, lower >= 0.0)


def table(results: list[Result]) -> Table:
    shown = Table(title="One-slot streams: mean reward of all rounds, 95% intervals over seeds")
    for column in ("stream", "player", "mean reward", "±", "µs a round"):
        shown.add_column(column, justify="left" if column in ("stream", "player") else "right")
    for r in results:
        shown.add_row(r.stream, r.player, f"{r.mean:.4f}", f"{r.half_width:.4f}", f"{r.micros:.0f}")
    return shown


def markdown(results: list[Result], verdicts: list[Verdict], command: str, settings: str) -> str:
    where = provenance()
    lines = [
        "# Learning on one-slot streams, beside Vowpal Wabbit and MABWiser",
        "",
        f"`{command}` · {where['date']} · commit {where['commit']} · {where['machine']}",
        "",
        settings,
        "",
        "| stream | best peer | ours − best, % | 95% interval | non-inferior within 2% |",
        "|---|---|---:|---|---|",
        *(
            f"| {v.stream} | {v.best} | {v.difference:+.2f} | [{v.low:+.2f}, {v.high:+.2f}] | {'yes' if v.non_inferior else 'NO'} |"
            for v in verdicts
        ),
        "",
        "| stream | player | mean reward | ± 95% | rounds that counted | µs a round |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {r.stream} | {r.player} | {r.mean:.4f} | {r.half_width:.4f} | {r.rounds} | {r.micros:.0f} |"
            for r in results
        ),
    ]
    return "\n".join(lines) + "\n"


def document(results: list[Result], verdicts: list[Verdict], command: str, settings: str) -> bytes:
    content: dict[str, Any] = {
        "command": command,
        **provenance(),
        "settings": settings,
        "verdicts": verdicts,
        "results": [
            {"stream": r.stream, "player": r.player, "means": r.means.tolist(), "rounds": r.rounds, "micros": r.micros}
            for r in results
        ],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1)
