"""Settled decisions as Open Bandit Pipeline's slate estimators want them: CSV, one line a slot.

    slate_id        decisions numbered as they come, from 0;   position   index in the slate, from 0
    reward          of one objective, raw; 0 for a slot nobody saw
    pscore          joint propensity of the whole slate, the same on every line of it
    pscore_cascade  product of the conditionals up to this slot

The marginal propensity of an item at a position (`pscore_item_position`) is not in a log of sequential draws; it takes
replayed slates. Behind the contract's columns come what joins it with everything else: action, item, slot, propensity,
decision_id, unit.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

HEADER = (
    "slate_id", "position", "reward", "pscore", "pscore_cascade",
    "action", "item", "slot", "propensity", "decision_id", "unit",
)  # fmt: skip


def lines(rows: Iterator[Mapping[str, Any]], reward: Callable[[Mapping[str, Any]], list[float]]) -> Iterator[bytes]:
    """The header, then every slot of every decision. Actions are numbered as items are first met in a list of candidates."""
    yield _line(HEADER)
    actions: dict[str, int] = {}
    slate_id = 0
    for row in rows:
        if not row["slate"]:
            continue
        for item in (*row["candidates"], *row["slate"]):
            actions.setdefault(item, len(actions))
        for position, (item, value) in enumerate(zip(row["slate"], reward(row), strict=True)):
            yield _line(
                (
                    slate_id,
                    position,
                    value,
                    row["propensity"],
                    row["prefix_propensities"][position],
                    actions[item],
                    item,
                    row["slots"][position],
                    row["propensities"][position],
                    row["decision_id"],
                    row["unit"],
                )
            )
        slate_id += 1


def _line(values: tuple[Any, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()
