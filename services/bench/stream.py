"""Decisions joined and learned a second with the durable commit, and the time to come back with a long log.

The stream: every decision shows 10 of 100 candidates by id, 32 item features, 4 of context, and gets one feedback,
`after` decisions later. Learners are those of a real surface: the linear model and, as on every surface, `popular`.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from policies.surface import Category, FeatureSpec, Number, Objective, PolicySpec, Surface, Vector
from services.bench import floors
from services.settings import Settings
from services.wiring import open_checkpoints, open_dead_letters, open_log
from streaming.configuration import Compiled, Configs
from streaming.events import Decision, Feedback, encode
from streaming.ports import Log
from streaming.shard import Shard

FEATURES, SLOTS, CANDIDATES, CATALOGUE = 32, 10, 100, 10_000
BLOCK = 5_000  # records appended in one transaction


def surface() -> Surface:
    """32 item features, 4 columns of context, 10 slots."""
    return Surface(
        surface="bench",
        slots=SLOTS,
        features=FeatureSpec(
            context={"device": Category(["ios", "web"]), "hour": Number(0, 23)},
            items={"embedding": Vector(FEATURES)},
        ),
        objectives={"click": Objective(kind="click", aggregate="max")},
        policies={"bench-ts": PolicySpec(algorithm="linear_thompson", objective="click")},
        live="bench-ts",
    )


def records(
    compiled: Compiled, decisions: int, now: float, *, after: int = 0, seed: int = 0
) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a fixed stream dated `now`: what scoring would have logged, clicks following position and item."""
    rng = np.random.default_rng(seed)
    catalogue = np.clip(rng.normal(size=(CATALOGUE, compiled.encoder.item_size)), -3, 3).astype("<f4")
    contexts = rng.normal(size=(16, compiled.encoder.context_size)).astype("<f4")
    candidates = [[f"item-{j}" for j in rng.permutation(CATALOGUE)[:CANDIDATES]] for _ in range(64)]
    waiting: list[tuple[bytes, bytes]] = []
    for i in range(decisions):
        unit = f"{int(rng.integers(1 << 63)):016x}"
        name = f"{unit}-{int(now * 1000):012x}{0:04x}{i & 0xFFFFFF:06x}"
        ids = candidates[i % 64]
        rows = rng.choice(CANDIDATES, SLOTS, replace=False).tolist()
        slate = [ids[row] for row in rows]
        decision = Decision(
            decision_id=name,
            unit=unit,
            at=now,
            surface=compiled.surface.surface,
            config=compiled.hash,
            policy="bench-ts",
            bundle="0" * 16,
            mode="live",
            slate=slate,
            slots=list(range(SLOTS)),
            rows=rows,
            propensities=rng.uniform(0.02, 0.6, SLOTS).tolist(),
            remaining=list(range(CANDIDATES, CANDIDATES - SLOTS, -1)),
            greedy=rows,
            context=contexts[i % 16].tobytes(),
            shown=catalogue[[int(item[5:]) for item in slate]].tobytes(),
            epsilon=0.02,
            candidates=ids,
            asked=SLOTS,
            weight=0.5,
        )
        key = unit.encode()
        yield key, encode(decision)
        clicked = int(rng.integers(SLOTS))
        waiting.append((key, encode(_click(name, unit, now, clicked, i))))
        if len(waiting) > after:
            yield waiting.pop(0)
    yield from waiting


def _click(name: str, unit: str, now: float, slot: int, i: int) -> Feedback:
    return Feedback(
        decision_id=name, unit=unit, at=now, feedback_id=f"{i:024x}", kind="click", slot=slot, accepted_at=now
    )


def make_log(log: Log, compiled: Compiled, decisions: int, now: float, *, after: int = 0) -> None:
    """Append the fixed stream."""
    stream = records(compiled, decisions, now, after=after)
    while block := list(itertools.islice(stream, BLOCK)):
        log.append(block)


def measure(
    decisions: int = 50_000, *, after: int = 0, read_limit: int = 2_000, restart_events: int = 0
) -> dict[str, float]:
    """Joined and learned decisions a second beside the floor of the same minute; the seconds of a restart.

    after           decisions between a decision and its feedback
    restart_events  events in the log when the shard is opened again; 0: those of the measurement
    """
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        settings = replace(Settings(), data=Path(folder), partitions=1)
        configs = Configs()
        compiled = configs.add(surface())
        log = open_log(settings)
        make_log(log, compiled, decisions, time.time(), after=after)
        shard = _open(settings, log, configs, read_limit)
        floor_before = floors.learn()
        started = time.perf_counter()
        _drain(shard)
        rate = decisions / (time.perf_counter() - started)
        floor = (floor_before + floors.learn()) / 2
        made = decisions
        while 2 * made < restart_events:
            make_log(log, compiled, min(decisions, restart_events // 2 - made), time.time(), after=after)
            made += decisions
            _drain(shard)
        started = time.perf_counter()
        again = _open(settings, log, configs, read_limit)
        again.step(time.time())
        restart = time.perf_counter() - started
        examples = sum(again.statistics().examples.values())
    return {
        "joined_and_learned_per_second": rate,
        "floor_per_second": floor,
        "ratio": rate / floor,
        "restart_seconds": restart,
        "restart_events": 2.0 * made,
        "examples": float(examples),
    }


def _open(settings: Settings, log: Log, configs: Configs, read_limit: int) -> Shard:
    checkpoints, letters = open_checkpoints(settings, 0), open_dead_letters(settings)
    return Shard(0, log, checkpoints, configs, letters, epoch=1, read_limit=read_limit)


def _drain(shard: Shard) -> None:
    while shard.step().records:
        pass
