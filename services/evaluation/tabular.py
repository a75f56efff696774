"""Public data sets as logged decisions: the Open Bandit Dataset's layout and Hillstrom's campaign, read by `services.replay.logged`.

obd        FOLDER/<campaign>.csv beside item_context.csv; the folder above says the behaviour (random, bts). One impression is one
           decision with the one slot whose item, propensity and click the data has: what stood in the other two slots of
           the same page is not known, so a target is asked for that position alone
hillstrom  one customer is one decision, three actions at 1/3 each

A line that is no row of its file is counted by reason with its number, and set aside.
"""

import csv
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.errors import Rejected
from policies.features import Encoder
from policies.surface import FeatureSpec, Objective
from policies.types import F32, F64
from services.evaluation.decisions import Log, LoggedDecision, Rejections, sound
from services.replay import logged as replay

Row = dict[str, str]
LAST_POSITION = 3  # the data's positions are 1, 2, 3


def read_obd(folder: Path, encoder: Encoder | None = None) -> Log:
    """Raises Rejected where this is no folder of the layout, or its catalogue cannot be read."""
    file, items_file = folder / f"{folder.name}.csv", folder / "item_context.csv"
    for needed in (file, items_file):
        if not needed.is_file():
            raise Rejected(
                f"Open Bandit Dataset: there is no {needed.name} in {folder.name}", at="$.log", code="no_log"
            )
    try:
        catalogue = replay.obd_items(items_file)
    except (KeyError, ValueError) as error:
        raise Rejected(f"item_context.csv: {error!r}", at="$.log", code="bad_catalogue") from None
    rejected = Rejections()
    behaviour, campaign = folder.parent.name, folder.name
    n = len(catalogue)

    def check(row: Row) -> str:
        if not 0 <= int(row["item_id"]) < n:
            return "unknown_item"
        if not 1 <= int(row["position"]) <= LAST_POSITION:
            return "bad_position"
        datetime.fromisoformat(row["timestamp"])
        for name in ("click", "propensity_score", f"user-item_affinity_{int(row['item_id'])}"):
            float(row[name])
        return ""

    rows = _rows(file, check, rejected)
    found = replay.obd_of(rows, catalogue, behaviour, campaign)
    affinity: Callable[[int], dict[str, list[float]]] | None = None
    if encoder is not None and "affinity" in encoder.spec.items:
        names = [f"user-item_affinity_{item}" for item in range(n)]

        def affinity(row: int) -> dict[str, list[float]]:
            return {"affinity": [float(rows[row][name]) for name in names]}

    return _log("obd", f"{behaviour}/{campaign}", found, encoder, rejected, affinity)


def read_hillstrom(file: Path, encoder: Encoder | None = None) -> Log:
    """Raises Rejected where there is no such file."""
    if not file.is_file():
        raise Rejected(f"Hillstrom: there is no {file.name}", at="$.log", code="no_log")
    rejected = Rejections()

    def check(row: Row) -> str:
        replay.hillstrom_rows_of([row])
        return ""

    found = replay.hillstrom_of(replay.hillstrom_rows_of(_rows(file, check, rejected)))
    return _log("hillstrom", file.name, found, encoder, rejected, None)


def _rows(file: Path, check: Callable[[Row], str], rejected: Rejections) -> list[Row]:
    """Rows that `check` lets through; it names a reason, or raises what reading a wrong row raises."""
    kept = []
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        reader = csv.DictReader(opened)
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row or None in row.values():
                rejected.add("broken_line", where)
                continue
            try:
                reason = check(row)
            except (KeyError, ValueError, TypeError, IndexError):
                reason = "broken_line"
            if reason:
                rejected.add(reason, where)
            else:
                kept.append(row)
    return kept


def _log(
    kind: str,
    name: str,
    found: replay.Logged,
    encoder: Encoder | None,
    rejected: Rejections,
    inline: Callable[[int], dict[str, list[float]]] | None,
) -> Log:
    """Every row as a decision. `inline`: what only the request of a row knew about all candidates, by feature."""
    if encoder is None:  # its own, without what only a request knows: for models of the reward
        spec = msgspec.convert(found.surface["features"], FeatureSpec)
        items = {feature: said for feature, said in spec.items.items() if feature != "affinity"}
        encoder = Encoder(msgspec.structs.replace(spec, items=items))
    n = len(found.items)
    known = _known(encoder, found.context[:1], found.item_features, inline is not None)
    columns = {name: [features[name] for features in found.item_features] for name in known.items}
    shared = encoder.columns(columns, n, "$.items")
    full = np.full((1, n), 1.0 / n) if found.policy == "uniform" else None
    objectives = {name: msgspec.convert(said, Objective) for name, said in found.surface["objectives"].items()}
    rewards = np.column_stack([_reward(found.outcomes[said.kind], said) for said in objectives.values()])
    decisions, left = [], np.array([n])
    for row in np.argsort(found.times, kind="stable").tolist():
        items_of: F32 | Callable[[], F32] = shared
        if inline is not None:
            items_of = _Inline(encoder, columns, n, inline, row)
        context = {name: found.context[row][name] for name in known.context}
        one = LoggedDecision(
            decision_id=found.decision_id(row),
            unit=found.units[row],
            at=float(found.times[row]),
            candidates=found.items,
            slots=found.slot[row : row + 1],
            rows=found.chosen[row : row + 1],
            propensities=found.propensity[row : row + 1],
            rewards=rewards[row : row + 1],
            pinned=np.zeros(1, bool),
            present=np.ones(1, bool),
            context=encoder.context(context),
            items=items_of,
            distributions=full,
            policy=found.policy,
            remaining=left,
        )
        reason = sound(one)
        if reason:
            rejected.add(reason, f"row {row + 1}")
        else:
            decisions.append(one)
    ranges = {name: said.range for name, said in objectives.items() if said.range is not None}
    return Log(kind, name, decisions, rejected, tuple(objectives), ranges, encoder)


def _reward(values: F64, objective: Objective) -> F64:
    return values if objective.range is None else np.clip(values, *objective.range)


class _Inline:
    """The candidates of one row, encoded when asked for: all rows at once would be gigabytes."""

    __slots__ = ("_columns", "_encoder", "_inline", "_n", "_row")

    def __init__(self, encoder: Encoder, columns: dict[str, list[Any]], n: int, inline: Callable[[int], Any], row: int):
        self._encoder, self._columns, self._n, self._inline, self._row = encoder, columns, n, inline, row

    def __call__(self) -> F32:
        return self._encoder.columns(self._columns | self._inline(self._row), self._n, "$.items")


def _known(
    encoder: Encoder, contexts: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]], inline: bool
) -> FeatureSpec:
    """The encoder's features, all of which the data must have. Raises Rejected for one that it has not."""
    spec = encoder.spec
    sides = (
        ("context", spec.context, set(contexts[0]) if contexts else set(spec.context)),
        (
            "items",
            {name: said for name, said in spec.items.items() if not (inline and name == "affinity")},
            set(items[0]),
        ),
    )
    for side, wanted, there in sides:
        for name in wanted.keys() - there:
            raise Rejected(
                f"The log has no feature {name!r}; it has {', '.join(sorted(there))}",
                at=f"$.features.{side}.{name}",
                code="unknown_feature",
            )
    return FeatureSpec(dict(sides[0][1]), dict(sides[1][1]))
