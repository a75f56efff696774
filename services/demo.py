"""`slatewise demo`: a service of its own, simulated visitors over HTTP, live progress, and numbers at the end.

The visitors live in `policies.worlds.taste_world`, whose model of clicks is written down there; what random slates and
the best slates would earn from the very same visitors is computed beside, exactly, not simulated.
"""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from policies.bundle import read_manifest
from policies.errors import SlatewiseError, Unavailable
from policies.worlds.taste_world import TasteWorld, Visit
from services.client import Decision, Slatewise, reward
from services.exposition import Exposition
from services.lifetime import stopping
from services.settings import Settings, address
from services.wiring import open_bundles
from streaming.ports import Bundles

SURFACE = "home"
START_SECONDS = 90.0  # after which a service that has not answered is given up
STOP_SECONDS = 60.0
FEEDBACK_SECONDS = 0.05  # a backend sends what its visitors did in groups
REFRESH_SECONDS, LINE_SECONDS = 0.5, 5.0  # on a terminal, in a file
WINDOW = 2_000  # visits the live numbers look back on


@dataclass
class Tally:
    """What happened: one entry a visit."""

    clicks: list[int] = field(default_factory=list)
    random: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    feedback: int = 0
    refused: int = 0
    first_from: dict[str, float] = field(default_factory=dict)  # bundle → time of the first answer drawn from it
    freshness: list[float] = field(default_factory=list)  # seconds, feedback accepted to first answer that knows it

    def add(self, decision: Decision, clicks: int, random: float, best: float, seconds: float) -> None:
        self.clicks.append(clicks)
        self.random.append(random)
        self.best.append(best)
        self.milliseconds.append(1_000 * seconds)
        self.modes[decision.mode] = self.modes.get(decision.mode, 0) + 1
        if decision.bundle:
            self.first_from.setdefault(decision.bundle, time.time())

    def against_random(self, last: int) -> float:
        """Clicks of the last visits over the expected clicks of random slates shown to them."""
        return sum(self.clicks[-last:]) / max(sum(self.random[-last:]), 1e-9)

    def share_of_best(self, last: int) -> float:
        return sum(self.clicks[-last:]) / max(sum(self.best[-last:]), 1e-9)

    def latency(self, percent: float, last: int) -> float:
        return float(np.percentile(self.milliseconds[-last:], percent)) if self.milliseconds else 0.0


def run(settings: Settings, *, seconds: float, rate: float, seed: int, keep: bool) -> None:
    """Start, show for `seconds` (0: until interrupted), stop. The data folder is a new temporary one unless `keep`.

    Raises Unavailable when the service does not start or goes away.
    """
    console, stop = Console(), stopping()
    with contextlib.ExitStack() as stack:
        if not keep:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slatewise-demo-"))
            settings = replace(settings, data=Path(folder))
        settings = replace(settings, http=_free(settings.http), control_http=_free(settings.control_http))
        started = time.monotonic()
        stack.enter_context(_up(settings))
        slatewise = stack.enter_context(
            Slatewise(f"http://{settings.http}", key=settings.api_key or settings.admin_key, timeout=10.0)
        )
        world = TasteWorld(seed)
        first = _first_decision(slatewise, world, started, stop)
        if first is None:
            return
        console.print(f"first decision after {first:.1f} s · watch it live: http://{settings.control_http}/ops")
        tally = _visits(console, slatewise, world, stop, seconds=seconds, rate=rate, seed=seed)
        _fresh(tally, open_bundles(settings))
        _summary(console, tally, _scrape(slatewise), first)


@contextlib.contextmanager
def _up(settings: Settings) -> Iterator[None]:
    settings.data.mkdir(parents=True, exist_ok=True)
    with (settings.data / "up.log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up"],
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends the service in order
        )
    try:
        yield
    except Unavailable:
        click.echo((settings.data / "up.log").read_text()[-4_000:], err=True)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _first_decision(slatewise: Slatewise, world: TasteWorld, started: float, stop: threading.Event) -> float | None:
    """Seconds from the start of the service to its first answer; the catalogue is written first, as a backend would."""
    while not stop.is_set():
        try:
            slatewise.put_items(world.catalogue)
            slatewise.decide(SURFACE, "first")
            return time.monotonic() - started
        except SlatewiseError as error:  # not listening yet, or the surface is not there yet
            if time.monotonic() - started > START_SECONDS:
                raise Unavailable(f"No decision in {START_SECONDS:.0f} s: {error}") from error
            time.sleep(0.05)
    return None


def _visits(
    console: Console,
    slatewise: Slatewise,
    world: TasteWorld,
    stop: threading.Event,
    *,
    seconds: float,
    rate: float,
    seed: int,
) -> Tally:
    generator, tally = np.random.default_rng([seed, 1]), Tally()
    rows = {name: row for row, name in enumerate(world.ids)}
    begin = time.monotonic()
    next_visit = next_feedback = next_show = begin
    waiting: list[dict[str, object]] = []
    with Live(console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext() as screen:
        while (now := time.monotonic()) < begin + (seconds or math.inf) and not stop.is_set():
            if now < next_visit:
                time.sleep(next_visit - now)
            next_visit = max(next_visit + 1 / rate, now - 1.0)  # a stall is made up for, at most a second of it
            waiting += _visit(slatewise, world, world.visit(generator), rows, generator, tally)
            if now >= next_feedback and waiting:
                accepted = slatewise.feedback_batch(waiting)
                tally.feedback += accepted.accepted
                tally.refused += len(accepted.rejected)
                waiting, next_feedback = [], now + FEEDBACK_SECONDS
            if now >= next_show:
                next_show = now + (REFRESH_SECONDS if screen else LINE_SECONDS)
                table = _progress(tally, _scrape(slatewise), now - begin)
                if screen:
                    screen.update(table)
                else:
                    console.print(_line(tally, now - begin))
        if waiting:
            tally.feedback += slatewise.feedback_batch(waiting).accepted
    return tally


def _visit(
    slatewise: Slatewise,
    world: TasteWorld,
    visit: Visit,
    rows: dict[str, int],
    generator: np.random.Generator,
    tally: Tally,
) -> list[dict[str, object]]:
    """One visitor: asks, looks, clicks or not; the feedback to send."""
    asked = time.perf_counter()
    decision = slatewise.decide(SURFACE, visit.unit, context=visit.context)
    took = time.perf_counter() - asked
    shown = np.array([rows[item] for item in decision.items], np.int64)
    clicked = np.flatnonzero(generator.random(len(shown)) < world.chances(visit, shown))
    tally.add(decision, len(clicked), world.random_value(visit), world.best_value(visit), took)
    return [reward(decision, "click", slot=decision.slate[position].slot) for position in clicked.tolist()]


def _fresh(tally: Tally, bundles: Bundles) -> None:
    """Freshness from outside: a manifest lists when feedback that is new in it was accepted."""
    for bundle, answered in tally.first_from.items():
        with contextlib.suppress(SlatewiseError):  # no number is better than a wrong one
            tally.freshness += [answered - accepted for accepted in read_manifest(bundle, bundles.get).fresh]


def _scrape(slatewise: Slatewise) -> Exposition:
    return Exposition.parse(slatewise.metrics())


def _facts(tally: Tally, metrics: Exposition, last: int) -> list[tuple[str, str]]:
    fresh = [f"{1_000 * np.percentile(tally.freshness, p):.0f}" for p in (50, 95) if tally.freshness]
    freshness = [("freshness p50 / p95", " / ".join(fresh) + " ms, feedback accepted to drawn from")] if fresh else []
    return [
        ("decisions", f"{len(tally.clicks):,}  {', '.join(f'{n} {mode}' for mode, n in sorted(tally.modes.items()))}"),
        ("feedback", f"{tally.feedback:,} accepted, {tally.refused} refused"),
        ("clicks a slate", f"{np.mean(tally.clicks[-last:] or [0]):.2f}"),
        ("… random slates", f"{np.mean(tally.random[-last:] or [0]):.2f} (exact)"),
        ("… best slates", f"{np.mean(tally.best[-last:] or [0]):.2f} (exact)"),
        ("reward vs random", f"{tally.against_random(last):.2f} ×, {tally.share_of_best(last):.0%} of the best"),
        (
            "latency p50 / p99",
            f"{tally.latency(50, last):.1f} / {tally.latency(99, last):.1f} ms, as the caller sees it",
        ),
        *freshness,
        ("bundles published", f"{metrics.total('publish_total', outcome='published'):,.0f}"),
    ]


def _progress(tally: Tally, metrics: Exposition, elapsed: float) -> Table:
    table = Table(title=f"slatewise learns · {elapsed:.0f} s", show_header=False, min_width=60)
    for name, value in _facts(tally, metrics, WINDOW):
        table.add_row(name, value)
    return table


def _line(tally: Tally, elapsed: float) -> str:
    return (
        f"{elapsed:5.0f} s  {len(tally.clicks):7,} decisions  {tally.against_random(WINDOW):5.2f} × random"
        f"  {tally.share_of_best(WINDOW):4.0%} of the best  p50 {tally.latency(50, WINDOW):.1f} ms"
    )


def _summary(console: Console, tally: Tally, metrics: Exposition, first: float) -> None:
    last = max(len(tally.clicks) // 3, 1)
    table = Table(title="slatewise demo", show_header=False, min_width=60)
    table.add_row("first decision", f"after {first:.1f} s")
    for name, value in _facts(tally, metrics, last):
        table.add_row(name, value)
    console.print(table)
    console.print("rewards and latency over the last third of the visits")


def _free(wanted: str) -> str:
    """The address, or one with a free port where another program already listens there."""
    host, port = address(wanted, "$")
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) != 0:
            return wanted
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"
