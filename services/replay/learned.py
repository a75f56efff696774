"""Logged data into a log of its own, learned from by shards, and held against the data itself.

Nothing of a running service is touched: the log, the shards and the dead letters lie in a folder of their own. What is
checked: every record arrives and joins; the learner's sums equal sums computed from the raw rows by other code (1e-9 of
the largest); means and inverse-propensity values of the logged data, as a floor for later evaluations.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.errors import Rejected, Unavailable
from policies.features import Encoder
from policies.registry import algorithm as by_name
from policies.ridge import columns
from policies.types import F64, Arrays
from services.epochs import take_epoch
from services.learning.shards import open_shards
from services.replay.logged import Logged, records, shifted
from services.settings import Settings
from services.wiring import open_dead_letters, open_log, open_state
from streaming.configuration import Compiled, CompiledPolicy, Configs, from_json, publish_surface
from streaming.events import encode
from streaming.publish import merged

BLOCK = 2_000


@dataclass(frozen=True)
class Replayed:
    """What went in and what came out. `off`: largest difference of sums, relative to the largest sum, by name."""

    decisions: int
    feedback: int
    joined_decisions: int
    joined_feedback: int
    outcomes: dict[str, int]
    dead: dict[str, int]
    examples: float
    off: dict[str, float]
    seconds: float
    values: dict[str, float]


def replay(
    logged: Logged, out: Path, now: float, keep_time: bool = False, algorithm: str = "linear_thompson"
) -> Replayed:
    """Append every record to the log in `out`, learn all of it: a service that starts on this folder starts from there.

    Raises Unavailable when `out` holds a log already, Rejected for an algorithm that does not learn like this.
    """
    settings = Settings.load(environ={}, data=out)
    if settings.log_path.exists():
        raise Unavailable(f"{settings.log_path} exists: a replay wants a log of its own")
    times, document = shifted(logged, now, keep_time)
    state, log = open_state(settings), open_log(settings)
    surface = from_json(msgspec.json.encode(taught(document, algorithm)))
    publish_surface(state, surface)
    state.put(
        [
            ("item", item, msgspec.json.encode({"id": item, "features": known}))
            for item, known in zip(logged.items, logged.item_features, strict=True)
        ]
    )
    configs = Configs(settings.tenant)
    configs.follow(state)
    compiled = configs.current(surface.surface)
    if compiled is None:
        raise Unavailable(f"the surface {surface.surface} was not stored")
    start = time.perf_counter()
    told = {"decision": 0, "feedback": 0}
    pairs = _bytes(logged, times, compiled, told)
    while block := list(islice(pairs, BLOCK)):
        log.append(block)
    shards = open_shards(settings, state, configs, take_epoch(state), range(log.partitions))
    outcomes: dict[str, int] = {}
    decisions = heard = 0
    for shard in shards:
        while (report := shard.step()).records:
            decisions += report.decisions
            heard += report.feedback
            for (_, outcome), n in report.outcomes.items():
                outcomes[outcome] = outcomes.get(outcome, 0) + n
    seconds = time.perf_counter() - start
    policy = compiled.policies[surface.live or ""]
    sums = [arrays[policy.key] for s in shards if policy.key in (arrays := s.statistics().arrays)]
    learned = merged(policy, sums)
    return Replayed(
        decisions=told["decision"],
        feedback=told["feedback"],
        joined_decisions=decisions,
        joined_feedback=heard,
        outcomes=outcomes,
        dead=open_dead_letters(settings).count(),
        examples=float(np.sum(learned["n"])),
        off=differences(learned, direct(logged, compiled)) if _in_raw_units(policy, learned) else {},
        seconds=seconds,
        values=values(logged),
    )


def taught(document: dict[str, Any], algorithm: str) -> dict[str, Any]:
    """The surface document with this algorithm, at its defaults, in the place of the live policy's. Raises Rejected."""
    if by_name(algorithm, "$.algorithm").learner is None:
        raise Rejected(f"{algorithm} has nothing that learns example by example from a log", at="$.algorithm")
    live = document["live"]
    return {**document, "policies": {live: {**document["policies"][live], "algorithm": algorithm}}}


def _in_raw_units(policy: CompiledPolicy, learned: Arrays) -> bool:
    """Whether the learned sums are ridge regression's of rewards as they were logged: only those can be computed beside."""
    return {"S", "B", "Y"} <= learned.keys() and "epochs" not in policy.algorithm.traits


def direct(logged: Logged, compiled: Compiled) -> Arrays:
    """S, B, Y and n straight from the rows: no log, no join, no learner; φ built column by column by name."""
    encoder = compiled.encoder
    problem = next(iter(compiled.policies.values())).problem
    context = np.array([encoder.context(c) for c in logged.context], float)
    inline = logged.inline or [{}] * len(logged)
    shown = [{**logged.item_features[i], **more} for i, more in zip(logged.chosen, inline, strict=True)]
    item = np.array([encoder.item(features) for features in shown], float)
    x = np.column_stack([_column(name, encoder, context, item, logged) for name in columns(problem)])
    r = np.column_stack([_clipped(logged, compiled, name) for name in compiled.surface.objectives])
    return {"S": x.T @ x, "B": x.T @ r, "Y": r.T @ r, "n": np.array([float(len(logged))])}


def differences(learned: Arrays, wanted: Arrays) -> dict[str, float]:
    """By name: largest absolute difference over the largest absolute entry wanted."""
    return {
        name: float(np.abs(np.asarray(learned[name], float) - sums).max() / max(float(np.abs(sums).max()), 1e-300))
        for name, sums in wanted.items()
    }


def values(logged: Logged) -> dict[str, float]:
    """Means of the logged data; by inverse propensity what uniform choice would have earned; E[1/p] (should be n items)."""
    n = len(logged.items)
    told = {"mean 1/p": float(np.mean(1.0 / logged.propensity)), "items": float(n)}
    weight = (1.0 / n) / logged.propensity
    for kind, outcome in logged.outcomes.items():
        told[f"{kind}: mean"] = float(outcome.mean())
        told[f"{kind}: uniform by IPS"] = float((weight * outcome).mean())
        told[f"{kind}: uniform by SNIPS"] = float((weight * outcome).sum() / weight.sum())
        if n <= 10:
            for i, item in enumerate(logged.items):
                hit = logged.chosen == i
                told[f"{kind}: always {item} by IPS"] = float((outcome * hit / logged.propensity).mean())
    return told


def _bytes(logged: Logged, times: F64, compiled: Compiled, told: dict[str, int]) -> Iterator[tuple[bytes, bytes]]:
    for decision, feedback in records(logged, times, compiled.hash, compiled.encoder):
        key = decision.unit.encode()
        told["decision"] += 1
        yield key, encode(decision)
        for heard in feedback:
            told["feedback"] += 1
            yield key, encode(heard)


def _column(name: str, encoder: Encoder, context: F64, item: F64, logged: Logged) -> F64:
    kind, _, rest = name.partition(".")
    if kind == "1":
        return np.ones(len(logged))
    if kind == "slot":
        return np.asarray(logged.slot == int(rest), np.float64)
    if kind == "context":
        return context[:, encoder.context_names.index(rest)]
    if kind == "item":
        return item[:, encoder.item_names.index(rest)]
    at = encoder.cross_names.index(rest)
    crossed: F64 = context[:, encoder.cross[0][at]] * item[:, encoder.cross[1][at]]
    return crossed


def _clipped(logged: Logged, compiled: Compiled, objective: str) -> F64:
    rule = compiled.surface.objectives[objective]
    low, high = rule.range or (-np.inf, np.inf)
    clipped: F64 = np.clip(logged.outcomes[rule.kind], low, high)
    return clipped


def lines(title: str, done: Replayed) -> list[str]:
    """Markdown of one replay."""
    return [
        f"## {title}",
        "",
        "| | |",
        "|---|---:|",
        f"| decisions in / joined | {done.decisions} / {done.joined_decisions} |",
        f"| feedback in / joined | {done.feedback} / {done.joined_feedback} |",
        f"| outcomes | {_counts(done.outcomes)} |",
        f"| dead letters | {_counts(done.dead)} |",
        f"| examples learned | {done.examples:g} |",
        f"| seconds, append to learned | {done.seconds:.1f} |",
        *(f"| {name}: off from a direct computation, relative | {off:.1e} |" for name, off in done.off.items()),
        *(f"| {name} | {value:.6g} |" for name, value in done.values.items()),
        "",
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "none"


def plain(done: Replayed) -> Any:
    return msgspec.to_builtins(done)
