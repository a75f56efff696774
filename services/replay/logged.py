"""Logged bandit data as the two records of the log: decisions with the propensities they were really drawn from, and feedback.

obd        one impression is a decision with one filled slot: the log keeps the slot's conditional propensity, not the slate;
           a click is a feedback dated one second later (the data has no click time)
hillstrom  one customer is a decision with one slot and three candidates at 1/3 each; visit, conversion and spend are feedback;
           the data has no times, so customers are a millisecond apart in file order

Times are shifted so that the data ends now, unless kept (`semantics.md` 2); `correctable` is as long as the data needs.
"""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from policies.types import F32, F64, I64
from streaming.events import Decision, Feedback

CLICK_DELAY_SECONDS = 1.0
HILLSTROM_ACTIONS = ("No E-Mail", "Mens E-Mail", "Womens E-Mail")
HILLSTROM_OUTCOMES = ("visit", "conversion", "spend")


@dataclass(frozen=True)
class Logged:
    """A logged data set, row by row.

    surface   surface document (YAML's content)
    times (N,) epoch seconds; units: N hashes; items: catalogue ids; item_features: one mapping an item
    chosen (N,) item shown; slot (N,); propensity (N,)
    context   N raw contexts; inline: N raw features of the shown item that only this request knows (or empty)
    outcomes  kind → (N,) values; zero is silence
    """

    name: str
    surface: dict[str, Any]
    policy: str
    times: F64
    units: list[str]
    items: list[str]
    item_features: list[dict[str, Any]]
    chosen: I64
    slot: I64
    propensity: F64
    context: list[dict[str, Any]]
    inline: list[dict[str, Any]]
    outcomes: dict[str, F64]

    def __len__(self) -> int:
        return len(self.times)

    def decision_id(self, row: int) -> str:
        return f"{self.units[row]}-{self.name}{row:08x}"


@dataclass(frozen=True)
class HillstromRows:
    """raw rows; numbers (n, 11) float32 in [0, 1]; action (n,) index in HILLSTROM_ACTIONS; outcomes (n,)."""

    rows: list[dict[str, str]]
    numbers: F32
    action: I64
    visit: F64
    conversion: F64
    spend: F64


def hillstrom_rows(file: Path) -> HillstromRows:
    with file.open(newline="") as opened:
        return hillstrom_rows_of(list(csv.DictReader(opened)))


def hillstrom_rows_of(rows: list[dict[str, str]]) -> HillstromRows:
    """Of rows that were read. Raises KeyError, ValueError for a row that is none."""
    zips, channels = ("Rural", "Surburban", "Urban"), ("Multichannel", "Phone", "Web")  # spelled as in the data
    numbers = np.array(
        [
            [
                float(r["recency"]) / 12.0,
                min(float(r["history"]), 1000.0) / 1000.0,
                float(r["mens"]),
                float(r["womens"]),
                float(r["newbie"]),
                *(float(r["zip_code"] == z) for z in zips),
                *(float(r["channel"] == c) for c in channels),
            ]
            for r in rows
        ],
        np.float32,
    )
    outcomes = {kind: np.array([float(r[kind]) for r in rows]) for kind in HILLSTROM_OUTCOMES}
    action = np.array([HILLSTROM_ACTIONS.index(r["segment"]) for r in rows], np.int64)
    return HillstromRows(rows, numbers, action, **outcomes)


def hillstrom(file: Path) -> Logged:
    """The whole campaign as one-slot decisions."""
    return hillstrom_of(hillstrom_rows(file))


def hillstrom_of(read: HillstromRows) -> Logged:
    n = len(read.rows)
    surface = {
        "surface": "hillstrom",
        "slots": 1,
        "features": {
            "context": {
                "recency": {"type": "number", "min": 0, "max": 12},
                "history": {"type": "number", "min": 0, "max": 1000},
                "mens": {"type": "bool"},
                "womens": {"type": "bool"},
                "newbie": {"type": "bool"},
                "zip_code": {"type": "category", "values": ["Rural", "Surburban", "Urban"]},
                "channel": {"type": "category", "values": ["Multichannel", "Phone", "Web"]},
            },
            "items": {"action": {"type": "category", "values": list(HILLSTROM_ACTIONS)}},
            "cross": [["mens", "action"], ["womens", "action"], ["recency", "action"]],
        },
        "objectives": {
            "visit": {"kind": "visit", "aggregate": "max", "range": [0, 1]},
            "conversion": {"kind": "conversion", "aggregate": "max", "range": [0, 1]},
            "spend": {"kind": "spend", "aggregate": "sum", "range": [0, 500]},
        },
        "policies": {"ridge": {"algorithm": "linear_thompson", "objective": "visit"}},
        "live": "ridge",
    }
    context = [
        {
            "recency": float(r["recency"]),
            "history": float(r["history"]),
            "mens": r["mens"] == "1",
            "womens": r["womens"] == "1",
            "newbie": r["newbie"] == "1",
            "zip_code": r["zip_code"],
            "channel": r["channel"],
        }
        for r in read.rows
    ]
    return Logged(
        name="h",
        surface=surface,
        policy="uniform",
        times=np.arange(n) / 1000.0,
        units=[_hash(f"customer-{i}") for i in range(n)],
        items=list(HILLSTROM_ACTIONS),
        item_features=[{"action": a} for a in HILLSTROM_ACTIONS],
        chosen=read.action,
        slot=np.zeros(n, np.int64),
        propensity=np.full(n, 1.0 / 3.0),
        context=context,
        inline=[],
        outcomes={"visit": read.visit, "conversion": read.conversion, "spend": read.spend},
    )


def obd(log_file: Path, items_file: Path, behaviour: str, campaign: str) -> Logged:
    """One of the six logs of 10,000 impressions. A unit is a profile (the four hashed user features): the data has no user id."""
    with log_file.open(newline="") as opened:
        return obd_of(list(csv.DictReader(opened)), obd_items(items_file), behaviour, campaign)


def obd_items(items_file: Path) -> list[dict[str, str]]:
    """Rows of `item_context.csv`, in the order of their ids."""
    with items_file.open(newline="") as opened:
        return sorted(csv.DictReader(opened), key=lambda r: int(r["item_id"]))


def obd_of(rows: list[dict[str, str]], catalogue: list[dict[str, str]], behaviour: str, campaign: str) -> Logged:
    """The log of rows that were read. Raises KeyError, ValueError, IndexError for a row that is none."""
    numbers = [float(r["item_feature_0"]) for r in catalogue]
    users = [f"user_feature_{i}" for i in range(4)]
    item_categories = [f"item_feature_{i}" for i in (1, 2, 3)]
    surface = {
        "surface": f"obd-{behaviour}-{campaign}",
        "slots": 3,
        "features": {
            "context": {u: {"type": "category", "values": sorted({r[u] for r in rows})} for u in users},
            "items": {
                "item_feature_0": {"type": "number", "min": min(numbers), "max": max(numbers)},
                **{c: {"type": "category", "values": sorted({r[c] for r in catalogue})} for c in item_categories},
                "affinity": {"type": "number", "min": 0, "max": 10},
            },
            "cross": [["user_feature_0", "item_feature_0"]],
        },
        "objectives": {"click": {"kind": "click", "aggregate": "max", "range": [0, 1]}},
        "policies": {"ridge": {"algorithm": "linear_thompson", "objective": "click"}},
        "live": "ridge",
    }
    chosen = np.array([int(r["item_id"]) for r in rows], np.int64)
    return Logged(
        name="o",
        surface=surface,
        policy="uniform" if behaviour == "random" else "bernoulli_thompson",
        times=np.array([datetime.fromisoformat(r["timestamp"]).timestamp() for r in rows]),
        units=[_hash("|".join(r[u] for u in users)) for r in rows],
        items=[f"item-{i['item_id']}" for i in catalogue],
        item_features=[
            {"item_feature_0": float(i["item_feature_0"]), **{c: i[c] for c in item_categories}} for i in catalogue
        ],
        chosen=chosen,
        slot=np.array([int(r["position"]) - 1 for r in rows], np.int64),
        propensity=np.array([float(r["propensity_score"]) for r in rows]),
        context=[{u: r[u] for u in users} for r in rows],
        inline=[{"affinity": float(r[f"user-item_affinity_{c}"])} for r, c in zip(rows, chosen, strict=True)],
        outcomes={"click": np.array([float(r["click"]) for r in rows])},
    )


def shifted(logged: Logged, now: float, keep_time: bool = False) -> tuple[F64, dict[str, Any]]:
    """(times of decisions, surface document with a `correctable` that still accepts the oldest of them at `now`).

    A file need not be in order of time, so the newest of all ends at `now` less the delay of its feedback.
    """
    times = logged.times if keep_time else logged.times + (now - CLICK_DELAY_SECONDS - logged.times.max())
    age_days = int((now - times.min()) // 86400) + 2  # and a day to run it in
    return times, {**logged.surface, "correctable": f"{age_days}d"}


def records(logged: Logged, times: F64, config: str, encoder: Any) -> Iterator[tuple[Decision, list[Feedback]]]:
    """Every row as its decision and the feedback on it. `encoder`: policies.features.Encoder of the surface's features."""
    matrix = encoder.rows(logged.item_features, "$.items")
    n = len(logged.items)
    candidates = logged.items
    for row in range(len(logged)):
        item, slot, at = int(logged.chosen[row]), int(logged.slot[row]), float(times[row])
        inline = logged.inline[row] if logged.inline else None
        shown = encoder.item({**logged.item_features[item], **inline}) if inline else matrix[item]
        name, unit = logged.decision_id(row), logged.units[row]
        decision = Decision(
            decision_id=name,
            unit=unit,
            at=at,
            surface=str(logged.surface["surface"]),
            config=config,
            policy=logged.policy,
            bundle="logged",
            mode="live",
            slate=[logged.items[item]],
            slots=[slot],
            rows=[item],
            propensities=[float(logged.propensity[row])],
            remaining=[n],
            greedy=[item],
            context=encoder.context(logged.context[row]).astype("<f4").tobytes(),
            shown=shown.astype("<f4").tobytes(),
            candidates=candidates,
            asked=int(logged.surface["slots"]),
        )
        feedback = [
            Feedback(
                decision_id=name,
                unit=unit,
                at=at + CLICK_DELAY_SECONDS,
                feedback_id=f"{kind}-{row}",
                kind=kind,
                value=float(values[row]),
                slot=slot,
            )
            for kind, values in logged.outcomes.items()
            if values[row]
        ]
        yield decision, feedback


def _hash(unit: str) -> str:
    """A unit's hash as the service makes it; the data is public and already anonymous, so the salt is a constant."""
    return hashlib.blake2b(unit.encode(), digest_size=8, key=b"public data").hexdigest()
