"""`GET /v1/policies/{surface}/{policy}/coefficients`: what a linear policy's bundle believes, column by column.

Of every column of φ (`policies.linear_graph`) the mean over the bundle's posterior draws and their standard deviation, of the
weighed reward. `importance` is the root mean square of a draw's coefficient: large where the effect is, or may be, large. Columns
are 0 or 1, or scaled to about [-1, 1], so the numbers compare.
"""

from typing import Any

import numpy as np

from policies.errors import Rejected
from policies.linear_graph import folded
from policies.types import F64
from services.releases import Releases
from streaming.configuration import Compiled

MOST = 60  # columns told, the most important first


def coefficients(releases: Releases, compiled: Compiled, policy: str) -> dict[str, Any]:
    """Of the bundle that a policy points to. Raises Rejected(404) without one, Rejected for one that is not linear, Corrupt."""
    pointer = f"{compiled.surface.surface}/{policy}"
    if pointer not in releases.bundles.pointers():
        raise Rejected(f"{pointer} has no bundle", at="$.policy", code="unknown_bundle", status=404)
    bundle = releases.read(pointer)
    manifest, encoder = bundle.manifest, compiled.encoder
    names = {
        "base": ["1", *encoder.context_names],
        "pool": list(encoder.item_names),
        "crosses": list(encoder.cross_names),
    }
    if manifest.schema != encoder.schema:
        raise Rejected(f"{pointer} was learned with other features", at="$.policy", code="other_schema", status=409)
    weights = np.array(list(manifest.weights.values()), np.float64)
    found: list[tuple[str, F64]] = []
    for part, columns in names.items():
        array = bundle.arrays.get(part)
        if array is None:
            continue
        draws = np.asarray(array, np.float64)
        if draws.ndim == (4 if part == "crosses" else 3):  # of each objective, weighed by the graph
            draws = np.tensordot(weights, draws, 1)
        if part == "crosses":
            draws = draws[tuple(folded(encoder).place.T)]
        if draws.ndim != 2 or len(draws) != len(columns):
            raise _not_linear(pointer)
        found.extend(zip(columns, draws, strict=True))
    if not found:
        raise _not_linear(pointer)
    lines: list[dict[str, Any]] = [
        {
            "column": name,
            "mean": float(draws.mean()),
            "sd": float(draws.std()) if len(draws) > 1 else None,
            "importance": float(np.sqrt(np.square(draws).mean())),
        }
        for name, draws in found
    ]
    lines.sort(key=lambda line: -line["importance"])
    return {"policy": pointer, "bundle": manifest.bundle, "columns": len(lines), "coefficients": lines[:MOST]}


def _not_linear(pointer: str) -> Rejected:
    return Rejected(f"{pointer} is no linear model of the features", at="$.policy", code="not_linear")
