"""Decisions joined and learned a second with the durable commit, and the time to come back with a long log.

The stream: every decision shows 10 of 100 candidates by id, 32 item features, 4 of context, and gets one feedback,
`after` decisions later. Learners are those of a real surface: the linear model and, as on every surface, `popular`.
"""

import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import msgspec
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
TURN = 5_000  # decisions between two measurements of the floor


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
    decisions: int = 50_000, *, after: int = 0, read_limit: int = 4_000, restart_events: int = 0
) -> dict[str, float]:
    """Joined and learned decisions a second beside the floor, taken in turns; then the seconds of a restart.

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
        _warm()
        ours, floor = _in_turns(shard)
        made = decisions
        while 2 * made < restart_events:
            more = min(decisions, restart_events // 2 - made)
            make_log(log, compiled, more, time.time(), after=after)
            made += more
            _drain(shard)
        started = time.perf_counter()
        again = _open(settings, log, configs, read_limit)
        again.step(time.time())
        restart = time.perf_counter() - started
        examples = again.statistics().examples
    return {
        "joined_and_learned_per_second": decisions / ours,
        "floor_per_second": floor,
        "ratio": decisions / ours / floor,
        "restart_seconds": restart,
        "restart_events": 2.0 * made,
        "examples": float(max(examples.values())),
    }


def side_by_side(decisions: int = 50_000, shards: int = 2, *, read_limit: int = 4_000) -> dict[str, float]:
    """Decisions a second of several shards at once, each a process with a partition of its own, as on Ray: one a core.

    The floor is still that of one core, measured just before and just after.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        log = open_log(replace(Settings(), data=Path(folder), partitions=shards))
        make_log(log, Configs().add(surface()), decisions, time.time())
        before = floors.learn()
        ready = context.Barrier(shards)
        spans: Queue[tuple[float, float]] = context.Queue()
        workers = [
            context.Process(target=_one_side, args=(folder, shards, partition, read_limit, ready, spans))
            for partition in range(shards)
        ]
        for worker in workers:
            worker.start()
        started, ended = zip(*[spans.get(timeout=600) for _ in workers], strict=True)
        for worker in workers:
            worker.join()
        floor = 2 / (1 / before + 1 / floors.learn())
    rate = decisions / (max(ended) - min(started))
    return {"joined_and_learned_per_second": rate, "floor_per_second": floor, "ratio": rate / floor, "shards": shards}


def _one_side(
    folder: str, shards: int, partition: int, read_limit: int, ready: Barrier, spans: "Queue[tuple[float, float]]"
) -> None:
    settings = replace(Settings(), data=Path(folder), partitions=shards)
    configs = Configs()
    configs.add(surface())
    shard = _open(settings, open_log(settings), configs, read_limit, partition)
    _warm()
    ready.wait(timeout=600)
    started = time.monotonic()
    _drain(shard)
    spans.put((started, time.monotonic()))


def by_surfaces(surfaces: Sequence[int], decisions: int, *, read_limit: int = 4_000) -> dict[int, float]:
    """Microseconds of CPU a decision when a shard's decisions are of so many surfaces in turn, two learning policies each."""
    _warm()
    found = {}
    for count in surfaces:
        with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
            settings = replace(Settings(), data=Path(folder), partitions=1)
            configs, log, now = Configs(), open_log(settings), time.time()
            first = configs.add(surface())
            others = [configs.add(msgspec.structs.replace(surface(), surface=f"bench-{i}")) for i in range(1, count)]
            stream = records(first, decisions, now)
            turns = zip(stream, stream, itertools.cycle([first, *others]))
            moved = itertools.chain.from_iterable((_moved(made, first, to), said) for made, said, to in turns)
            while block := list(itertools.islice(moved, BLOCK)):
                log.append(block)
            shard = _open(settings, log, configs, read_limit)
            started = time.process_time()
            _drain(shard)
            found[count] = 1e6 * (time.process_time() - started) / decisions
    return found


def _moved(record: tuple[bytes, bytes], here: Compiled, to: Compiled) -> tuple[bytes, bytes]:
    """A decision's record as another surface of the same shape would have logged it."""
    old, new = (f'"surface":"{one.surface.surface}","config":"{one.hash}"'.encode() for one in (here, to))
    return record[0], record[1].replace(old, new)


def _warm() -> None:
    """Compiled code is read or made before anything is timed, as in a service that has run for a second."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        settings = replace(Settings(), data=Path(folder), partitions=1)
        configs, log = Configs(), open_log(settings)
        make_log(log, configs.add(surface()), 2, time.time())
        _drain(_open(settings, log, configs, 2))


def _in_turns(shard: Shard) -> tuple[float, float]:
    """(seconds of all steps, decisions a second of the floor): a turn of steps, a turn of the floor, so that drift hits both."""
    ours, floors_seconds, turns = 0.0, 0.0, 0
    while True:
        started, decided = time.perf_counter(), 0
        while decided < TURN:
            report = shard.step()
            decided += report.decisions
            if not report.records:
                break
        ours += time.perf_counter() - started
        floors_seconds += 1.0 / floors.learn(rounds=2)
        turns += 1
        if not report.records:
            return ours, turns / floors_seconds


def _open(settings: Settings, log: Log, configs: Configs, read_limit: int, partition: int = 0) -> Shard:
    checkpoints, letters = open_checkpoints(settings, partition), open_dead_letters(settings)
    return Shard(partition, log, checkpoints, configs, letters, epoch=1, read_limit=read_limit)


def _drain(shard: Shard) -> None:
    while shard.step().records:
        pass
