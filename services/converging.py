"""Has a policy converged? How probable its bundle holds it that the item it thinks best is, and what it would lose by stopping.

Asked of real decisions, the newest of the log that hold all their candidates: the bundle's posterior draws score them now, and
each decision is a choice between its candidates. Before there are any, of the bundle's probe query. Rules are left aside.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.errors import Corrupt, Rejected
from policies.evaluation.convergence import convergence
from policies.types import F64
from services.releases import Releases
from streaming.configuration import Compiled
from streaming.events import Decision, decode, floats
from streaming.replay import scores_of

ASKED, SEARCHED = 64, 2_000  # decisions, and records looked at in each partition, from its end backwards


def converging(releases: Releases, compiled: Compiled, policy: str) -> dict[str, Any]:
    """Means over decisions. Raises Rejected(404) without a bundle, Rejected for one without posterior draws, Corrupt."""
    surface = compiled.surface.surface
    if policy not in compiled.policies:
        raise Rejected(f"No policy {policy!r} on {surface}", at="$.policy", code="unknown_policy", status=404)
    pointer = f"{surface}/{policy}"
    if pointer not in releases.bundles.pointers():
        raise Rejected(f"{pointer} has no bundle", at="$.policy", code="unknown_bundle", status=404)
    bundle = releases.read(pointer)
    if bundle.manifest.draws < 2:
        raise Rejected(f"{pointer} holds no posterior draws to ask", at="$.policy", code="no_posterior")
    found: list[F64] = []
    if bundle.manifest.schema == compiled.encoder.schema:
        for decision in _newest(releases, compiled):
            items = floats(decision.matrix or b"").reshape(len(decision.candidates), -1)
            try:
                found.append(_draws(scores_of(decision, bundle, items)))
            except (Corrupt, ValueError, KeyError):  # of another shape than the bundle reads now
                continue
            if len(found) == ASKED:
                break
    over = "decisions" if found else "probe"
    reports = [convergence(draws) for draws in found or [_draws(bundle.probes["scores"])]]
    return {
        "policy": pointer,
        "bundle": bundle.manifest.bundle,
        "over": over,
        "asked": len(found),
        "draws": bundle.manifest.draws,
        "probability": float(np.mean([one.probability for one in reports])),
        "least_probability": float(min(one.probability for one in reports)),
        "expected_loss": float(np.mean([one.expected_loss for one in reports])),
        "loss_95": float(np.mean([one.loss_95 for one in reports])),
        "unit": "the policy's score, for one slot",
    }


def _draws(scores: NDArray[Any]) -> F64:
    """(m, n) of scores (n, m)."""
    return np.asarray(scores.T, np.float64)


def _newest(releases: Releases, compiled: Compiled) -> Iterator[Decision]:
    """Decisions with a choice and all their candidates, the newest of each partition first."""
    events, width = releases.events, compiled.encoder.item_size
    for partition in range(events.partitions):
        first, end = events.first(partition), events.end(partition)[0]
        start = max(first, end - SEARCHED)
        for record in reversed(events.read(partition, start, end - start)):
            try:
                event = decode(record.value)
            except Corrupt:  # set aside by the shard; no concern of ours
                continue
            if not isinstance(event, Decision) or event.surface != compiled.surface.surface or event.matrix is None:
                continue
            n = len(event.candidates)
            if n > 1 and len(floats(event.matrix)) == n * width:
                yield event
