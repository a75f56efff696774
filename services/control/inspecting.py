"""`GET /v1/decisions/{id}`: one decision as the log has it, what was known, drawn and heard.

An id of ours begins with its unit's hash, which names the partition; one that the caller made is looked for in all of them.
The log has no index by id, so it is read backwards from its end, and the answer says how far.
"""

import re
from typing import Any

import msgspec
import numpy as np

from policies.errors import Corrupt, Rejected
from policies.types import F64
from streaming.configuration import Compiled, Configs
from streaming.events import Decision, Feedback, decode, floats
from streaming.partition import partition_of
from streaming.ports import Log, Record

OURS = re.compile(r"([0-9a-f]{16})-")
PAGE = 2_000
SEARCHED = 200_000  # records of a partition: about two seconds on one core
LIKELY = 10  # candidates told of each slot, the likeliest first
LONGEST_ID = 512


def inspect(events: Log, configs: Configs, decision_id: str) -> dict[str, Any]:
    """The decision and its feedback, as people read them. Raises Rejected(404), Unavailable."""
    if not decision_id or len(decision_id) > LONGEST_ID:
        raise Rejected(f"Expected an id of 1 to {LONGEST_ID} characters", at="$.id")
    ours = OURS.match(decision_id)
    partitions = (
        [partition_of(ours[1].encode(), events.partitions)] if ours is not None else list(range(events.partitions))
    )
    searched = 0
    for partition in partitions:
        decision, heard, read = _search(events, partition, decision_id)
        searched += read
        if decision is not None:
            return {"searched": searched, "partition": partition, **_told(configs, decision, heard)}
    raise Rejected(
        f"No decision {decision_id!r} among the last {searched} records", at="$.id", code="unknown_decision", status=404
    )


def _search(
    events: Log, partition: int, decision_id: str
) -> tuple[tuple[Record, Decision] | None, list[tuple[Record, Feedback]], int]:
    """(decision, feedback in order, records read), reading backwards until a page after the one that has the decision."""
    first, (end, _) = events.first(partition), events.end(partition)
    needle = msgspec.json.encode(decision_id)
    found: tuple[Record, Decision] | None = None
    heard: list[tuple[Record, Feedback]] = []
    after, read, over = end, 0, False
    while after > first and read < SEARCHED and not over:
        over = found is not None  # feedback may come a little before its decision: by another spool
        start = max(first, after - PAGE)
        try:
            records = events.read(partition, start, after - start)
        except Corrupt:  # removed by retention while we looked
            break
        read += len(records)
        for record in reversed(records):
            if needle not in record.value:
                continue
            try:
                event = decode(record.value)
            except Corrupt:  # set aside by the shard
                continue
            if event.decision_id != decision_id:
                continue
            if isinstance(event, Decision):
                found = record, event  # the earliest: what is delivered twice counts once
            else:
                heard.append((record, event))
        after = start
    return found, heard[::-1], read


def _told(configs: Configs, found: tuple[Record, Decision], heard: list[tuple[Record, Feedback]]) -> dict[str, Any]:
    record, decision = found
    compiled = configs.get(decision.config) or configs.current(decision.surface)
    return {
        "offset": record.offset,
        "appended": record.appended,
        "decision": {
            name: getattr(decision, name)
            for name in (
                "decision_id", "unit", "at", "surface", "config", "policy", "bundle", "mode", "reason", "session", "tenant",
                "experiment", "epsilon", "temperature", "max_share", "head", "weight", "weights", "catalogue", "asked",
                "defer", "acted", "relaxed", "skipped", "history_items", "dropped",
            )
        },
        "context": _context(compiled, decision),
        "candidates": len(decision.candidates),
        "slots": [_slot(decision, index) for index in range(len(decision.slots))],
        "sampled": decision.sample is not None,
        "shadows": [
            {"policy": one.policy, "bundle": one.bundle, "propensities": one.propensities} for one in decision.shadows
        ],
        "feedback": [{"offset": r.offset, "appended": r.appended, **_feedback(f)} for r, f in heard],
    }  # fmt: skip


def _context(compiled: Compiled | None, decision: Decision) -> dict[str, Any]:
    """As it was sent where the surface logs that, else the encoded columns that are not 0."""
    if decision.raw_context is not None:
        return {"raw": decision.raw_context}
    values = floats(decision.context)
    if compiled is None or len(compiled.encoder.context_names) != len(values):
        return {"encoded": {str(i): float(v) for i, v in enumerate(values) if v}}
    return {"encoded": {n: float(v) for n, v in zip(compiled.encoder.context_names, values, strict=True) if v}}


def _slot(decision: Decision, index: int) -> dict[str, Any]:
    ids, greedy = decision.candidates, decision.greedy[index] if index < len(decision.greedy) else -1
    line: dict[str, Any] = {
        "slot": decision.slots[index],
        "item": decision.slate[index],
        "propensity": decision.propensities[index],
        "remaining": decision.remaining[index],
        "greedy": ids[greedy] if 0 <= greedy < len(ids) else None,
        "alpha": 1.0 if decision.alphas is None else decision.alphas[index],
        "pinned": decision.slots[index] in decision.pinned,
    }
    likely = _likely(decision, index)
    return line | ({"likely": likely} if likely is not None else {})


def _likely(decision: Decision, index: int) -> list[dict[str, Any]] | None:
    """The likeliest candidates of a slot under the distribution it was drawn from, with their boosts; None: not sampled."""
    sample, n = decision.sample, len(decision.candidates)
    if sample is None or not n:
        return None
    p: F64 = np.frombuffer(sample.distributions, "<f8")
    if p.size % n or index >= p.size // n:
        return None
    row = p.reshape(-1, n)[index]
    boosts = np.frombuffer(sample.boosts, "<f8") if sample.boosts else np.zeros(n)
    best = np.argsort(-row, kind="stable")[:LIKELY]
    return [
        {"item": decision.candidates[i], "p": float(row[i]), "boost": float(boosts[i]) if i < len(boosts) else 0.0}
        for i in best
        if row[i] > 0
    ]


def _feedback(one: Feedback) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(one)
    return {k: v for k, v in plain.items() if k not in ("type", "decision_id", "unit", "v", "generation", "tenant")}
