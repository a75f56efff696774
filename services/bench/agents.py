"""A neural agent, constrained_actor_critic at its default network: training, publishing, deciding with a history.

train    transitions a second through `Trainer.train`: replay, RLlib's learner in this process, losses, Adam; every transition is read
         once on average. 100 candidates, 10 slots, 32 item features, 50 interactions, three objectives, in one thread
         (`policies.one_thread`), of CPU and of the wall clock; and with two learners on a Ray of two cores, the CPU of all
         processes counted
publish  weights to a stored bundle: arrays, probes through graph and reference, gate, files, pointer
decide   `Scoring.decide` from request bytes to answer bytes, spool written, the history in the request; beside `DecideFloor`,
         which reads none, in turns. Of 2,000 interactions all are read and logged, or what stands for them (`history_hashed`)
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from policies.algorithm import Algorithm, Problem
from policies.registry import ALGORITHMS
from policies.sequences import Transitions
from policies.training import Trainer
from services.bench.decide import CHUNK, scoring_of, timed
from services.bench.floors import CANDIDATES, CATALOGUE, SLOTS, DecideFloor
from services.bench.report import Report
from services.bench.requests import bodies, surface
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_bundles
from streaming.configuration import Configs, from_json
from streaming.publish import Publisher

SHORT, LONG = 50, 2_000  # interactions
FEW = {"newest": 192, "rows": 64}
ROWS = 4 * 512  # transitions of a round
PER_CORE, CORES = 10_000, 2  # transitions a second: the budget is 20,000 on two cores
AGENT: Algorithm = ALGORITHMS["constrained_actor_critic"]


def measure(report: Report, rounds: int = 8, chunks: int = 7) -> None:
    trained(report, rounds)
    if importlib.util.find_spec("ray"):
        together(report, rounds)
    decided(report, SHORT, 3.0, chunks)
    decided(report, LONG, 6.0, chunks)
    decided(report, LONG, 6.0, chunks, few=True)


def document(history: int) -> dict[str, Any]:
    """The benches' surface with three objectives, an agent live, and a history of that length."""
    made = surface()
    made["objectives"] = {
        "click": {"kind": "click", "aggregate": "max", "range": [0, 1]},
        "watch": {"kind": "watch", "range": [0, 60]},
        "hide": {"kind": "hide", "aggregate": "max", "better": "lower", "range": [0, 1]},
    }
    made["policies"]["bench-ts"] = {"algorithm": AGENT.name, "objective": "watch"}
    return made | {"history": history}


def trained(report: Report, rounds: int) -> None:
    """One learner, in this process: the best round, since neighbours on the machine make a round slower and none faster."""
    configs = Configs()
    compiled = configs.add(from_json(msgspec.json.encode(document(SHORT))))
    policy = compiled.policies["bench-ts"]
    assert AGENT.trainer is not None
    trainer = AGENT.trainer(policy.config, policy.problem)
    taken, walls = _rounds(trainer, policy.problem, rounds)
    report.add(
        "trained, constrained_actor_critic",
        ROWS / min(taken),
        "transitions/CPU s",
        at_least=PER_CORE,
        note=f"best of {rounds} rounds of {ROWS:,}, median {ROWS / statistics.median(taken):,.0f}; 10 of 100 candidates, "
        f"H = {SHORT}, 3 objectives; budget: 20,000/s on two cores",
    )
    report.add(
        "trained, constrained_actor_critic, by the wall clock",
        ROWS / min(walls),
        "transitions/s",
        at_least=CORES * PER_CORE,
        note=f"one trainer, which computes in one thread; best of {rounds} rounds, median {ROWS / statistics.median(walls):,.0f}",
    )
    arrays = trainer.arrays()
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
        publisher = Publisher(open_bundles(Settings.load(environ={}, data=Path(folder))), configs, 1)
        publisher.publish(policy, [arrays], {}, time.time())  # builds the graph
        took = [timed(lambda _: publisher.publish(policy, [arrays], {}, time.time()), 1) / 1e3 for _ in range(rounds)]
    report.add("published, constrained_actor_critic", statistics.median(took), "ms", at_most=100, note="to files")


def together(report: Report, rounds: int) -> None:
    """Two learners, actors on a Ray of this process's own, and the trainer that feeds them."""
    compiled = Configs().add(from_json(msgspec.json.encode(document(SHORT) | _learners(CORES))))
    policy = compiled.policies["bench-ts"]
    assert AGENT.trainer is not None
    with _cluster():
        trainer = AGENT.trainer(policy.config, policy.problem)
        taken, walls = _rounds(trainer, policy.problem, rounds)
        trainer.close()  # type: ignore[attr-defined]  # it has processes
    report.add(
        "trained by two learners on Ray, by the wall clock",
        ROWS / min(walls),
        "transitions/s",
        at_least=CORES * PER_CORE,
        note=f"best of {rounds} rounds, median {ROWS / statistics.median(walls):,.0f}",
    )
    report.add(
        "trained by two learners on Ray",
        ROWS / min(taken),
        "transitions/CPU s",
        note=f"of all processes: trainer, learners, Ray; best of {rounds} rounds, median {ROWS / statistics.median(taken):,.0f}",
    )


@contextmanager
def _cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20
    )
    try:
        yield
    finally:
        ray.shutdown()


def _learners(count: int) -> dict[str, Any]:
    policy = {"algorithm": AGENT.name, "objective": "watch", "learners": count}
    return {"policies": {"bench-ts": policy}}


def _rounds(trainer: Trainer, problem: Problem, rounds: int) -> tuple[list[float], list[float]]:
    """(seconds of CPU of this process and its children, seconds of the wall clock) of each round, after one to warm up."""
    given = [transitions(problem, ROWS, seed) for seed in range(2)]
    trainer.train(given[0])
    taken, walls = [], []
    for i in range(rounds):
        before, wall, start = _children(), time.perf_counter(), time.process_time()
        trainer.train(given[i % 2])
        spent = time.process_time() - start
        walls.append(time.perf_counter() - wall)
        taken.append(spent + sum(max(seconds - before.get(pid, 0.0), 0.0) for pid, seconds in _children().items()))
    return taken, walls


def _children() -> dict[int, float]:
    """pid → CPU seconds so far."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def decided(report: Report, history: int, most: float, chunks: int, few: bool = False) -> None:
    """`few`: read and logged in few rows, and as columns in the request."""
    rng = np.random.default_rng(4)
    asked = bodies()
    past = [{"item": f"item-{row}", "kind": "click"} for row in rng.integers(CATALOGUE, size=history).tolist()]
    columns = {"items": [one["item"] for one in past], "kinds": "click"}
    ours = [msgspec.json.encode(msgspec.json.decode(body) | {"history": columns if few else past}) for body in asked]
    made = document(history) | ({"history_hashed": FEW} if few else {})
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder, DecideFloor() as floor:
        scoring = scoring_of(Path(folder), Telemetry(), made)
        timed(lambda i: floor(asked[i % len(asked)]), CHUNK)  # compiles
        timed(lambda i: scoring.decide(ours[i % len(ours)]), CHUNK)
        base, taken, spent = [], [], []
        for _ in range(chunks):
            start = time.process_time()
            base.append(timed(lambda i: floor(asked[i % len(asked)]), CHUNK))
            middle = time.process_time()
            taken.append(timed(lambda i: scoring.decide(ours[i % len(ours)]), CHUNK))
            spent.append((time.process_time() - middle) / (middle - start))
            scoring.tick()
        scoring.close()
    read = "as columns in the request, read and logged in 256 rows" if few else "in the request"
    report.add(
        f"decide in process, constrained_actor_critic, H = {history:,}{', history_hashed' if few else ''}",
        statistics.median(taken),
        "µs",
        floor=statistics.median(base),
        at_most=most,
        of_floor=True,
        note=f"by id, history {read}; the floor is linear and reads none; by CPU time {statistics.median(spent):.2f} × floor",
    )


def transitions(problem: Problem, count: int, seed: int) -> Transitions:
    """Random slates of 10 of 100 candidates, histories of every length."""
    rng, encoder = np.random.default_rng(seed), problem.encoder
    c, d, h, o = encoder.context_size, encoder.item_size, problem.history, len(problem.objectives)

    def some(*shape: int) -> Any:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    lived = np.arange(h) >= rng.integers(h + 1, size=(2, count, 1))
    terminal = rng.random(count) < 0.1
    return Transitions(
        context=some(count, c),
        candidates=some(count, CANDIDATES, d),
        items=rng.integers(1, 2**63, (count, CANDIDATES)).astype(np.uint64),
        allowed=np.ones((count, CANDIDATES), bool),
        slate=np.argsort(rng.random((count, CANDIDATES)), axis=1)[:, :SLOTS],
        propensities=rng.uniform(0.01, 0.5, (count, SLOTS)),
        present=np.ones((count, SLOTS), bool),
        rewards=(rng.random((count, SLOTS, o)) < 0.1).astype(float),
        history=some(count, h, d) * lived[0, :, :, None],
        history_items=rng.integers(1, 2**63, (count, h)).astype(np.uint64) * lived[0],
        lived=lived[0],
        next_context=some(count, c),
        next_history=some(count, h, d) * lived[1, :, :, None],
        next_history_items=rng.integers(1, 2**63, (count, h)).astype(np.uint64) * lived[1],
        next_lived=lived[1],
        terminal=terminal,
        elapsed=np.where(terminal, 0, 60.0),
        units=np.arange(1, count + 1).astype(np.uint64),
        sessions=np.arange(1, count + 1).astype(np.uint64),
        times=np.arange(count, dtype=float),
        goals=np.full(count, -1),
        goal_propensities=np.ones(count),
    )
