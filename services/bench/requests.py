"""What every HTTP and in-process measurement asks: one surface of 32 item features, slates of 10 out of 100 candidates.

The same bytes go to the service and to its floor when candidates are named by id.
"""

from typing import Any

import msgspec
import numpy as np

from services.bench.floors import CANDIDATES, CATALOGUE, FEATURES, SLOTS

NAMES = [f"f{i:02d}" for i in range(FEATURES)]
FORMS = ("by id", "inline rows", "inline columns")


def surface() -> dict[str, Any]:
    """256 draws, floor 0.02: as the floor draws; nothing sampled beyond the default share."""
    return {
        "surface": "home",
        "slots": SLOTS,
        "features": {
            "context": {
                "device": {"type": "category", "values": ["android", "ios", "web"]},
                "hour": {"type": "number", "min": 0, "max": 23},
            },
            "items": {name: {"type": "number", "min": -4, "max": 4} for name in NAMES},
        },
        "objectives": {"click": {"kind": "click", "aggregate": "max", "default": 0, "range": [0, 1]}},
        "policies": {"bench-ts": {"algorithm": "linear_thompson", "objective": "click", "draws": 256, "floor": 0.02}},
        "live": "bench-ts",
    }


def items(count: int = CATALOGUE) -> list[dict[str, Any]]:
    """The catalogue: standard normal features, three decimals."""
    values = np.random.default_rng(1).normal(size=(count, FEATURES)).round(3)
    return [
        {"id": f"item-{i}", "features": dict(zip(NAMES, row, strict=True))} for i, row in enumerate(values.tolist())
    ]


def bodies(form: str = "by id", count: int = 16) -> list[bytes]:
    """Requests of several units and candidate sets."""
    rng = np.random.default_rng(2)
    values = np.random.default_rng(1).normal(size=(CATALOGUE, FEATURES)).round(3)
    made = []
    for i in range(count):
        rows = rng.choice(CATALOGUE, CANDIDATES, replace=False).tolist()
        ids = [f"item-{row}" for row in rows]
        features = [dict(zip(NAMES, values[row].tolist(), strict=True)) for row in rows]
        candidates: Any = {
            "by id": ids,
            "inline rows": [{"id": name, "features": known} for name, known in zip(ids, features, strict=True)],
            "inline columns": {"ids": ids, "features": {n: values[rows, c].tolist() for c, n in enumerate(NAMES)}},
        }[form]
        context = {"device": "ios", "hour": i % 24}
        request = {"surface": "home", "unit": f"user-{i}", "candidates": candidates, "slots": SLOTS, "context": context}
        made.append(msgspec.json.encode(request))
    return made
