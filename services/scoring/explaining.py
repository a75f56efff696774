"""Why a slate is what it is: every candidate's score, what was added and taken, which rules let it through, and its chances.

The probabilities of the steps are those of the same draw with the later steps left out, not a reconstruction; those of the
slots are the ones that were drawn from.
"""

from dataclasses import replace

import numpy as np

from policies.reranking.acting import Ready
from policies.reranking.within import Prefix, Within
from policies.slate import draw
from policies.types import F64, I64, Mask
from services.scoring.decide import Drawn, acted
from services.scoring.query import Query
from services.scoring.wire import Explanation, ExplorationExplained, RulesExplained


def explanation_of(drawn: Drawn, query: Query) -> list[Explanation]:
    """Of every candidate that was scored, in their order."""
    n, k, acting = len(query.ids), query.slots, drawn.acting
    means, spreads = drawn.scores.mean(axis=1).tolist(), drawn.scores.std(axis=1).tolist()
    pins = query.pins or {}
    whole = draw(drawn.scores, k, drawn.u, drawn.settings, pins=pins, full=True, **drawn.ready.arguments).distributions
    assert whole is not None  # it was asked for
    masked, penalties = _inside(drawn, pins, n, k)
    for name, mask in acting.masks.items():
        masked.append((name, ~np.broadcast_to(mask, (k, n))))
    steps = _steps(drawn, query)
    found = []
    for row, item in enumerate(query.ids):
        let = {name: np.flatnonzero(away[:, row]).tolist() for name, away in masked if away[:, row].any()}
        boosts = {source: float(boost[row]) for source, boost in acting.boosts.items() if boost[row]}
        found.append(
            Explanation(
                item,
                means[row],
                spreads[row],
                sum(boosts.values()),
                ["pinned"] * (row in pins.values()) + list(let),
                boosts,
                let,
                penalties[:, row].tolist() if penalties.any() else [],
                {name: float(p[row]) for name, p in steps.items()},
                whole[:, row].tolist(),
            )
        )
    return found


def rules_explained(drawn: Drawn, query: Query) -> RulesExplained | None:
    """What rules did to the request; None where there are none."""
    ruled = query.ruled
    if ruled is None:
        return None
    removed = {name: list(ids) for name, ids in ruled.removed.items()}
    return RulesExplained(acted(drawn, ruled), dict(drawn.relaxed), dict(drawn.acting.skipped), removed)


def exploration_explained(drawn: Drawn) -> ExplorationExplained:
    """The exploration cap of the request, and what of it was used."""
    slate, cap = drawn.slate, drawn.settings.max_share
    lent = 0.0 if drawn.cap is None else cap - drawn.cap
    return ExplorationExplained(cap, drawn.segment, slate.explored.tolist(), slate.alphas.tolist(), lent)


def _inside(drawn: Drawn, pins: dict[int, int], n: int, k: int) -> tuple[list[tuple[str, Mask]], F64]:
    """(constraint, (k, n) not let through) of each constraint; penalties (k', n) before each filled slot."""
    within, slate = drawn.ready.within, drawn.slate
    if within is None:
        return [], np.zeros((len(slate.slots), n))
    pinned: I64 = np.full(k, -1)
    for slot, row in pins.items():
        pinned[slot] = row
    prefix = Prefix(within, pinned, n)
    masked = [(name, np.zeros((k, n), bool)) for name in drawn.acting.constraints.names]
    penalties = np.zeros((len(slate.slots), n))
    free = np.ones(n, bool)
    free[list(pins.values())] = False
    masks = drawn.ready.masks
    for i, (t, row) in enumerate(zip(slate.slots.tolist(), slate.items.tolist(), strict=True)):
        penalties[i] = prefix.penalties(t)
        if t in pins:
            continue
        for line, gone in prefix.narrowing(t, np.flatnonzero(free if masks is None else free & masks[t])):
            masked[line][1][t, gone] = True
        prefix.shown[t] = row
        free[row] = False
    return masked, penalties


def _steps(drawn: Drawn, query: Query) -> dict[str, F64]:
    """Distribution (n,) of the first slot that was drawn, after each step. Slots before it are pins."""
    drawn_slots = drawn.slate.slots[~drawn.slate.pinned]
    if not len(drawn_slots):
        return {}
    n, first, ready = len(query.ids), int(drawn_slots[0]), drawn.ready
    bare = replace(drawn.settings, floor=0.0, max_share=1.0)
    inside = ready.within
    undiverse = None if inside is None else Within(inside.ops, inside.codes, inside.limits)
    steps = {
        "model": (bare, Ready(), {}),
        "rules": (bare, Ready(None, ready.masks, undiverse), query.pins),
        "boosts": (bare, Ready(ready.boosts, ready.masks, undiverse), query.pins),
        "diversity": (bare, ready, query.pins),
        "floor": (replace(bare, floor=drawn.settings.floor), ready, query.pins),
        "cap": (drawn.settings, ready, query.pins),
    }
    found: dict[str, F64] = {}
    for name, (settings, acting, pins) in steps.items():
        slate = draw(drawn.scores, query.slots, drawn.u, settings, pins=pins, full=True, **acting.arguments)
        assert slate.distributions is not None  # it was asked for
        at = np.flatnonzero(slate.slots == first) if pins else np.array([0])
        found[name] = slate.distributions[at[0]] if len(at) else np.zeros(n)
    return found
