"""Recompute a logged decision: the same scores, the same draw, bit for bit on the same build (`semantics.md` 21).

Nothing is looked up but the bundle: a sampled record carries everything the draw read.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from policies.bundle import Bundle, item_inputs, item_rows
from policies.errors import Corrupt
from policies.experiments.team_draft import Drafted, Side, drafted
from policies.registry import algorithm
from policies.reranking.acting import Ready
from policies.reranking.within import Within
from policies.slate import draw
from policies.types import F32, I64, DrawSettings, Slate, item_hashes
from streaming.events import Decision, Inside, Sample, floats
from streaming.scorer import score


def recompute(decision: Decision, bundle: Bundle | None) -> Slate:
    """The slate of a sampled decision with its full distributions. `bundle` is None for policies that need none.

    Raises Corrupt('not_sampled') when the record does not carry what the draw read, Corrupt('wrong_bundle'), and
    Corrupt('interleaved') for a slate of two policies (`recompute_interleaved`).
    """
    if decision.interleaved is not None:
        raise Corrupt("interleaved", f"{decision.decision_id} was drawn from {decision.policy}")
    sample = decision.sample
    if sample is None or decision.matrix is None:
        raise Corrupt("not_sampled", decision.decision_id)
    if (bundle.manifest.bundle if bundle else "") != decision.bundle:
        raise Corrupt("wrong_bundle", f"{decision.decision_id} was drawn from {decision.bundle or 'no bundle'}")
    n, k = len(decision.candidates), decision.asked
    items = floats(decision.matrix).reshape(n, -1)
    return draw(
        scores_of(decision, bundle, items),
        k,
        np.frombuffer(sample.uniforms),
        DrawSettings(decision.head, decision.epsilon, decision.max_share, decision.temperature),  # type: ignore[arg-type]  # str
        pins=sample.pins,
        full=True,
        **_ready(sample, n, k).arguments,
    )


def recompute_interleaved(decision: Decision, bundles: Sequence[Bundle | None]) -> Drafted:
    """As `recompute`, of a slate that two policies filled: from the bundles of both."""
    said, sample = decision.interleaved, decision.sample
    if said is None or said.second is None or sample is None or decision.matrix is None:
        raise Corrupt("not_sampled", decision.decision_id)
    held = tuple(bundle.manifest.bundle if bundle else "" for bundle in bundles)
    if held != tuple(said.bundles):
        raise Corrupt("wrong_bundle", f"{decision.decision_id} was drawn from {said.bundles}")
    n, k = len(decision.candidates), decision.asked
    items = floats(decision.matrix).reshape(n, -1)
    sides = []
    for policy, bundle, settings, read in zip(
        said.policies, bundles, said.settings, (sample, said.second), strict=True
    ):
        scores = scores_of(msgspec.structs.replace(decision, policy=policy), bundle, items)
        sides.append(Side(scores, DrawSettings(*settings), _ready(read, n, k)))  # type: ignore[arg-type]  # str
    return drafted((sides[0], sides[1]), k, np.frombuffer(sample.uniforms), said.teams, sample.pins)


def _ready(sample: Sample, n: int, k: int) -> Ready:
    """What acted on a draw. Raises Corrupt('bad_within')."""
    return Ready(
        None if sample.boosts is None else np.frombuffer(sample.boosts),
        None if sample.masks is None else np.frombuffer(sample.masks, np.uint8).reshape(k, n).astype(bool),
        None if sample.within is None else _within(sample.within, n, k),
    )


def _within(inside: Inside, n: int, k: int) -> Within:
    """Raises Corrupt('bad_within') for arrays that do not fit."""

    def codes(data: bytes, width: int) -> I64:
        return np.frombuffer(data, "<i8").reshape(-1, width)

    try:
        found = Within(
            np.frombuffer(inside.ops, "<i8"),
            codes(inside.codes, n),
            codes(inside.limits, k),
            np.frombuffer(inside.weights),
            codes(inside.covers, n),
            np.frombuffer(inside.vectors, "<f4").reshape(-1, n),
        )
        found.check(n, k)
    except ValueError as error:
        raise Corrupt("bad_within", str(error)) from None
    return found


def scores_of(decision: Decision, bundle: Bundle | None, items: F32) -> F32:
    """(n, m) of a bundle for a logged decision's candidates, encoded (n, d). Raises Corrupt."""
    inputs: dict[str, Any] = {
        "context": floats(decision.context),
        "items": items,
        "history": floats(decision.history or b"").reshape(len(decision.history_items), items.shape[1]),
    }
    if bundle is None:
        return algorithm(decision.policy).reference(None, None, {}, inputs)  # type: ignore[arg-type]  # they read only n
    wanted = bundle.manifest.inputs
    if "item_rows" in wanted:
        inputs |= item_inputs(bundle.arrays, items, item_hashes(decision.candidates))
    if "history_rows" in wanted:
        inputs["history_rows"] = item_rows(bundle.arrays, item_hashes(decision.history_items))
    if "goal" in wanted:
        made = np.zeros_like(bundle.probes["goal"])
        if decision.goal is not None and 0 <= decision.goal.id < len(made):
            made[decision.goal.id] = 1.0
        inputs["goal"] = made
    if "weights" in wanted:
        weights = decision.weights or bundle.manifest.weights
        inputs["weights"] = np.array([weights[name] for name in bundle.manifest.weights], np.float32)
    return score(bundle.graph, bundle.arrays, inputs)


def first_expected(decision: Decision, bundle: Bundle) -> float:
    """What a bundle's model expects of the item a decision showed first, in the first slot: the mean of its draws, under its
    default weights. Raises Corrupt('bad_vector')."""
    items = floats(decision.shown).reshape(len(decision.slate), -1)[:1]
    alone = msgspec.structs.replace(decision, candidates=decision.slate[:1], weights=None)
    return float(scores_of(alone, bundle, items).mean())
