"""Every algorithm that learns: a decision in process, examples learned a second; and what a pool of draws does to later evaluations.

decide   `Scoring.decide` from request bytes to answer bytes, spool written, of the prior; the floor is `floors.DecideFloor`
learn    `Learner.learn` alone, nothing joined and nothing durable, in batches of 4,000 slots, 10 a slate. Both in the process's own
         CPU time: eight algorithms one after the other meet eight loads of the machine, and most share one learner
samples  decisions by id: slates of 10 out of 100 candidates, drawn under pools of other sizes of one posterior, evaluated for the
         policy whose pool is 4,096: (Σw)² / Σw² of 100 decisions, w the ratio of the two chances of the whole slate
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from policies.algorithm import draw_settings
from policies.evaluation.conditionals import conditionals
from policies.registry import ALGORITHMS
from policies.slate import draw
from policies.surface import PolicySpec
from policies.types import F32, F64, Changes, item_hashes
from services.bench import stream
from services.bench.decide import CHUNK, scoring_in
from services.bench.floors import DecideFloor
from services.bench.report import Report
from services.bench.requests import bodies
from services.telemetry import Telemetry
from streaming.configuration import CompiledPolicy, compile_surface, reads_history

LEARNING = tuple(name for name, found in ALGORITHMS.items() if found.learner is not None)
DECIDING = (  # trainers that read histories are in `services.bench.agents`
    *LEARNING,
    *(name for name, found in ALGORITHMS.items() if found.trainer is not None and not reads_history(found)),
)
BATCH = 4_000  # slots learned at once: what a shard reads in a step
POOLS, WHOLE = (64, 256, 1_024), 4_096


def measure(report: Report, chunks: int = 5, batches: int = 5, decisions: int = 1_000) -> None:
    _decide(report, chunks)
    for name in LEARNING:
        report.add(
            f"learned, {name}",
            learned(name, batches),
            "slots/CPU s",
            note="10 slots × 32 features and 5 of context, no log",
        )
    for pool, share in effective(decisions).items():
        report.add(
            f"effective sample size of a slate, pool of {pool:,}",
            100 * share,
            "of 100 decisions",
            note=f"linear_thompson, 10 slots of 100 candidates, evaluated for a pool of {WHOLE:,}; {decisions:,} decisions",
        )


def _decide(report: Report, chunks: int) -> None:
    asked = bodies()
    with DecideFloor() as floor:
        _cpu(lambda i: floor(asked[i % len(asked)]))  # compiles
        for name in DECIDING:
            with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder:
                scoring = scoring_in(Path(folder), Telemetry(), name)
                _cpu(lambda i, scoring=scoring: scoring.decide(asked[i % len(asked)]))  # type: ignore[misc]  # bound early
                ours, base = [], []
                for _ in range(chunks):
                    base.append(_cpu(lambda i: floor(asked[i % len(asked)])))
                    ours.append(_cpu(lambda i, scoring=scoring: scoring.decide(asked[i % len(asked)])))  # type: ignore[misc]  # bound early
                    scoring.tick()
                scoring.close()
            report.add(
                f"decide in process, {name}",
                statistics.median(ours),
                "µs CPU",
                floor=statistics.median(base),
                note="by id; the floor is linear, with 256 draws",
            )


def policy_of(name: str) -> CompiledPolicy:
    """An algorithm with its default options on the surface of `services.bench.stream`."""
    policies = {"bench": PolicySpec(algorithm=name, objective="click")}
    surface = msgspec.structs.replace(stream.surface(), policies=policies, live="bench")
    return compile_surface(surface).policies["bench"]


def learned(name: str, batches: int) -> float:
    """Slots a second; the first batch is not counted."""
    policy = policy_of(name)
    if policy.algorithm.learner is None:
        raise TypeError(f"{name} does not learn")
    learner, given = (
        policy.algorithm.learner(policy.config, policy.problem),
        [_changes(policy, i) for i in range(batches + 1)],
    )
    learner.learn(given[0])
    start = time.process_time()
    for changes in given[1:]:
        learner.learn(changes)
    return batches * BATCH / (time.process_time() - start)


def _cpu(work: Callable[[int], object]) -> float:
    """Microseconds of CPU a call."""
    start = time.process_time()
    for i in range(CHUNK):
        work(i)
    return 1e6 * (time.process_time() - start) / CHUNK


def _changes(policy: CompiledPolicy, number: int, rows: int = BATCH) -> Changes:
    """Slates of items that are clicked the more the larger their first feature is."""
    rng, encoder, k = np.random.default_rng(number), policy.problem.encoder, policy.problem.slots
    items = _items(rng, rows, encoder.item_size)
    clicked = rng.random(rows) < 0.1 + 0.1 * (items[:, 0] > 0)
    names = np.array(item_hashes([f"item-{i}" for i in range(stream.CATALOGUE)]))
    return Changes(
        context=np.repeat(rng.normal(size=(rows // k, encoder.context_size)).astype(np.float32), k, axis=0),
        items=items,
        slots=np.tile(np.arange(k), rows // k),
        slates=np.repeat(np.arange(rows // k), k),
        times=np.repeat(1_000.0 * number + np.arange(rows // k), k),
        weights=np.full(rows, 0.5),
        present_before=np.zeros(rows),
        present_after=np.ones(rows),
        rewards_before=np.zeros((rows, 1)),
        rewards_after=clicked[:, None].astype(np.float64),
        item_hashes=names[rng.integers(stream.CATALOGUE, size=rows)],
        propensities=np.full(rows, 0.1),
    )


def effective(decisions: int) -> dict[int, float]:
    """Pool → effective sample size of slates drawn under it, as a share of the decisions, for the posterior's own policy."""
    policy = policy_of("linear_thompson")
    algorithm, problem = policy.algorithm, policy.problem
    if algorithm.learner is None:
        raise TypeError("linear_thompson learns")
    learner = algorithm.learner(policy.config, problem)
    learner.learn(_changes(policy, 0))
    rng, k = np.random.default_rng(1), problem.slots
    configs = {pool: msgspec.structs.replace(policy.config, draws=pool) for pool in (*POOLS, WHOLE)}
    made = {
        pool: algorithm.publish(config, problem, learner.arrays(), 0.0, pool).arrays for pool, config in configs.items()
    }
    weights: dict[int, list[float]] = {pool: [] for pool in POOLS}
    settings = draw_settings(policy.config)
    for _ in range(decisions):
        inputs = {
            "context": rng.normal(size=problem.encoder.context_size).astype(np.float32),
            "items": _items(rng, stream.CANDIDATES, problem.encoder.item_size),
        }
        u = rng.random(k)
        scores = {pool: algorithm.reference(config, problem, made[pool], inputs) for pool, config in configs.items()}
        for pool in POOLS:
            slate = draw(scores[pool], k, u, settings)
            wanted = conditionals(scores[WHOLE], slate.slots.tolist(), slate.items.tolist(), settings)
            weights[pool].append(float(np.prod(wanted[np.arange(k), slate.items] / slate.propensities)))
    return {pool: share_of(np.array(found)) for pool, found in weights.items()}


def share_of(weights: F64) -> float:
    """(Σw)² / Σw², over how many there are."""
    return float(weights.sum() ** 2 / (weights @ weights) / len(weights))


def _items(rng: np.random.Generator, count: int, size: int) -> F32:
    return np.clip(rng.normal(size=(count, size)), -3, 3).astype(np.float32)
