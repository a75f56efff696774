"""Settled decisions out of Parquet files again, as trainers take them: what `streaming.parquet` wrote, but for the feedback itself."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from streaming.events import Decision, Goal
from streaming.experiences import Experience, Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEEDED = (
    *("log_partition", "number", "log_offset", "decision_id", "tenant", "surface", "unit", "session", "decided_at"),
    *(
        "settled_at",
        "config",
        "feature_schema",
        "policy",
        "bundle",
        "mode",
        "context",
        "slate",
        "slots",
        "candidate_rows",
    ),
    *("features", "propensities", "remaining", "greedy", "pinned", "viewed", "present", "rewards", "candidates"),
    *("candidate_features", "support_rows", "support", "history_items", "history", "goal"),
)


def experiences_of(table: pa.Table) -> Iterator[Experience]:
    """One a row, in order. Columns that files of an older build lack are empty. `row.told` is empty."""
    for row in table.select([name for name in _NEEDED if name in table.column_names]).to_pylist():
        slots = row["slots"]
        decision = Decision(
            decision_id=row["decision_id"],
            unit=row["unit"],
            at=_seconds(row["decided_at"]),
            surface=row["surface"],
            config=row["config"],
            policy=row["policy"],
            bundle=row["bundle"],
            mode=row["mode"],
            slate=row["slate"],
            slots=slots,
            rows=row["candidate_rows"],
            propensities=row["propensities"],
            remaining=row["remaining"],
            greedy=row["greedy"],
            context=np.array(row["context"], "<f4").tobytes(),
            shown=_packed(row["features"]),
            pinned=[slot for slot, pinned in zip(slots, row["pinned"], strict=True) if pinned],
            candidates=row["candidates"],
            matrix=None if row["candidate_features"] is None else _packed(row["candidate_features"]),
            support=None if row.get("support") is None else _packed(row["support"]),
            support_rows=row.get("support_rows") or [],
            history=None if row.get("history") is None else _packed(row["history"]),
            history_items=row.get("history_items") or [],
            goal=None if row.get("goal") is None else Goal(**row["goal"]),
            session=row["session"],
            tenant=row["tenant"],
        )
        rewards = dict(row["rewards"])
        told = Row(
            due=_seconds(row["settled_at"]),
            offset=row["log_offset"],
            objectives=tuple(rewards),
            schema=row["feature_schema"],
            viewed=bytes(row["viewed"]),
            present=bytes(row["present"]),
            rewards=np.array([*rewards.values()], float).reshape(len(rewards), len(slots)).T.tobytes(),
            told=(),
        )
        yield Experience(row["log_partition"], row["number"], told, decision)


def _packed(rows: list[list[float]]) -> bytes:
    return np.array([number for row in rows for number in row], "<f4").tobytes()


def _seconds(time: datetime) -> float:
    return (time - _EPOCH) // timedelta(microseconds=1) / 1e6
