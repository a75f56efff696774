"""Settled decisions as Vowpal Wabbit's dsjson: a slate is a conditional contextual bandit (`--ccb_explore_adf --dsjson`).

Timestamp Version c{Context, _multi, _slots} _outcomes[{_label_cost, _id, _a, _p, _o}] VWState     in this order, as its
own service writes them

_multi    every candidate in the order the draw saw them; features where the record has them: of all candidates when the
          decision was sampled or its features came inline, else of those shown
_inc      of a slot that was pinned: the one candidate it could show
_a, _p    the candidate drawn and its conditional propensity; behind it the other candidates with theirs, when sampled
cost      minus the reward of one objective (plus, where less is better), not scaled; 0 for a slot nobody saw
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any

import msgspec

Columns = tuple[Sequence[str], Sequence[str]]  # names of the encoded context's and of an item's columns
Row = Mapping[str, Any]


def lines(
    rows: Iterator[Row], columns: Callable[[Row], Columns], cost: Callable[[Row], list[float]]
) -> Iterator[bytes]:
    """One line a decision of at least one slot. `cost`: k costs of a decision."""
    for row in rows:
        if row["slate"]:
            yield msgspec.json.encode(_event(row, columns(row), cost(row))) + b"\n"


def _event(row: Row, columns: Columns, costs: Sequence[float]) -> dict[str, Any]:
    context, items = columns
    candidates = row["candidates"] or row["slate"]
    place = {item: i for i, item in enumerate(candidates)}
    known = row["candidate_features"]
    features = dict(zip(candidates, known, strict=True)) if known else {}
    features.update(zip(row["slate"], row["features"], strict=False))  # (0, 0) where the surface has no item features
    names = [f"{row['decision_id']}-{slot}" for slot in row["slots"]]
    decided = row["decided_at"].astimezone(UTC)
    return {
        "Timestamp": f"{decided:%Y-%m-%dT%H:%M:%S}.{decided.microsecond:06d}0Z",
        "Version": "1",
        "c": {
            "Context": _named(context, row["context"]),
            "_multi": [{"Item": {"id": item, **_named(items, features.get(item, ()))}} for item in candidates],
            "_slots": [
                {"_id": name, "_inc": [place[item]]} if pinned else {"_id": name}
                for name, item, pinned in zip(names, row["slate"], row["pinned"], strict=True)
            ],
        },
        "_outcomes": [
            {"_label_cost": value, "_id": name, "_a": drawn, "_p": shares, "_o": []}
            for name, value, (drawn, shares) in zip(names, costs, _draws(row, place), strict=True)
        ],
        "VWState": {"m": row["bundle"] or "N/A"},
    }


def _draws(row: Row, place: Mapping[str, int]) -> Iterator[tuple[list[int], list[float]]]:
    """(candidates, conditional probabilities) slot by slot, the one drawn first."""
    full = row["distributions"] or [()] * len(row["slate"])
    for item, propensity, shares in zip(row["slate"], row["propensities"], full, strict=True):
        drawn = place[item]
        others = [i for i, share in enumerate(shares) if share > 0.0 and i != drawn]
        yield [drawn, *others], [propensity, *(shares[i] for i in others)]


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Features that are not zero; a key that starts with `_` would be an instruction to Vowpal Wabbit."""
    return {f"x{name}" if name[:1] == "_" else name: value for name, value in zip(names, values, strict=False) if value}
