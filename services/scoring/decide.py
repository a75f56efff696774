"""Query and policy to slate, answer and record: pure and synchronous. The time, the key and the policy are arguments.

Everything that acts on the distribution acts in `policies.slate.draw`; nothing touches the slate afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
import numpy as np

from policies.bundle import item_inputs, item_rows
from policies.errors import Rejected
from policies.experiments.assignment import Choice
from policies.reranking.acting import NOTHING_ACTS, Acting, Ready
from policies.reranking.exposure import Fair, sampled
from policies.reranking.within import ACTED, PASSED_OVER, Within
from policies.slate import draw, uniforms
from policies.types import F32, F64, I64, Arrays, DrawSettings, Mask, Slate
from services.scoring.admission import Recent
from services.scoring.query import Query
from services.scoring.ruling import Ruled
from services.scoring.shortlisting import shortlisted
from services.scoring.wire import DecisionAnswer, DecisionRequest, SlotAnswer
from streaming.events import (
    MAX_RECORD_BYTES,
    Decision,
    Exposed,
    Goal,
    Inside,
    Interleaved,
    Sample,
    Shadow,
    Strayed,
    encode,
)
from streaming.evidence import ItemHashes

_item_hashes = ItemHashes()
MATRIX_BYTES = 32_768  # of candidates that every decision of a trained surface logs: 100 of 80 features
TEAM_DRAFT = "team_draft"  # the head that a record of two policies names
SUPPORT_ROWS = 64  # … and so many of them where that is more


NOTHING_LENT: "Mapping[str, Lends]" = {}


class Lends(Protocol):
    """What a segment's exploration cap may be raised by."""

    def on(self, settings: DrawSettings, slots: int) -> DrawSettings:
        """Settings of a slate of so many slots that are drawn."""

    def took(self, slate: Slate, cap: float) -> None:
        """A slate was drawn that might have had more than the cap."""


class Scores(Protocol):
    """The reader of a policy: inputs by name → scores (n, m). Raises Corrupt."""

    def __call__(self, inputs: Mapping[str, Any]) -> F32: ...


@dataclass(frozen=True, slots=True)
class Served:
    """A policy as it is drawn from: one bundle, one configuration.

    weights      default objective weights (o,) with scale and sign, None when the scorer reads none
    signs        objective → scale with its sign, in the order of `weights`: for weights that come with a request
    slot_weight  logged with every decision: what a slot's example counts
    known_items  arrays that say what the scorer knows of items by id, see `policies.bundle.item_inputs`; None when it reads none
    recent       how long this policy took lately
    manager      draws the goals that `scores` reads, `goals` of them, each kept for `goal_steps` decisions; None: it reads none
    pair         the two policies that fill its slates by turns, see `interleaving`; None: it is one policy
    """

    policy: str
    bundle: str
    scores: Scores
    settings: DrawSettings
    weights: F32 | None = None
    signs: dict[str, float] = field(default_factory=dict)
    known_items: Arrays | None = None
    slot_weight: float = 1.0
    created_at: float = 0.0
    recent: Recent = field(default_factory=Recent)
    manager: Scores | None = None
    goals: int = 0
    goal_steps: int = 0
    pair: "tuple[Served, Served] | None" = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A slate with what made it: `acting` by source, `ready` as the draw took it, under `settings`.

    relaxed  constraint → slots for which it was passed over
    segment  of the exploration caps, empty of a request that is in none
    cap      max_share before what a lease added to it (`settings` has it after); None where nothing is ever lent
    """

    served: Served
    scores: F32
    slate: Slate
    u: F64
    sampled: bool
    settings: DrawSettings
    goal: Goal | None = None
    acting: Acting = NOTHING_ACTS
    ready: Ready = field(default_factory=Ready)
    relaxed: Mapping[str, list[int]] = field(default_factory=dict)
    interleaved: Interleaved | None = None
    segment: str = ""
    cap: float | None = None


@dataclass(slots=True)
class Made:
    """An answer not yet given: with its record's bytes, and when its request's first byte came."""

    request: DecisionRequest
    answer: DecisionAnswer
    record: bytes
    first_byte: float
    drawn: Drawn


def inputs_of(served: Served, query: Query) -> Arrays:
    """What scorers may read of a query; each takes what its graph knows. Raises Rejected."""
    inputs: Arrays = {"context": query.context, "items": query.items}
    if served.known_items is not None:
        hashes = np.fromiter(map(_item_hashes.__getitem__, query.ids), np.uint64, len(query.ids))
        inputs |= item_inputs(served.known_items, query.items, hashes)
    inputs["history"] = query.items[:0] if query.past is None else query.past
    if served.known_items is not None:
        hashes = np.fromiter(map(_item_hashes.__getitem__, query.history), np.uint64, len(query.history))
        inputs["history_rows"] = item_rows(served.known_items, hashes)
    if served.weights is not None:
        named = weights_of(served, query)
        inputs["weights"] = served.weights if named is None else np.array(list(named.values()), np.float32)
    return inputs


def item_scores(served: Served) -> Callable[[Query], F32] | None:
    """Scores of a query by the features of its items; None where a policy reads more of an item, or a goal."""
    if served.known_items is not None or served.goals:
        return None
    return lambda query: served.scores(inputs_of(served, query))


def weights_of(served: Served, query: Query) -> dict[str, float] | None:
    """Weights as the scorer reads them (times scale, signed) when the request names its own. Raises Rejected."""
    named = query.weights
    if named is None or served.weights is None:
        return None
    weights = {name: named.get(name, 0.0) * sign for name, sign in served.signs.items()}
    if not any(weights.values()):
        raise Rejected(
            f"Policy {served.policy} weighs only: {', '.join(served.signs)}",
            at="$.objectives",
            code="unknown_objective",
        )
    return weights


def drawn_from(
    served: Served,
    query: Query,
    scores: F32,
    decision_id: str,
    key: bytes,
    rate: float,
    goal: Goal | None = None,
    full: bool = False,
    leases: Mapping[str, Lends] = NOTHING_LENT,
) -> Drawn:
    """Draw a slate. `rate` is the sampled share, decided by the decision's id before the draw. Raises Corrupt.

    leases  segment of the exploration caps → what its cap may be raised by, of those that lend
    """
    u = uniforms(key, decision_id, "slate", query.slots)
    sampled = rate > 0.0 and float(uniforms(key, decision_id, "sample", 1)[0]) < rate
    settings, ruled = served.settings, query.ruled
    if ruled is not None and ruled.max_share is not None:
        settings = capped(settings, ruled.max_share)
    cap, lease = settings.max_share, leases.get("" if ruled is None else ruled.segment)
    if lease is not None:
        settings = lease.on(settings, query.slots - len(query.pins or ()))
    if ruled is None:
        slate = draw(scores, query.slots, u, settings, pins=query.pins, full=sampled or full)
        drawn = Drawn(served, scores, slate, u, sampled, settings, goal)
    else:
        acting = ruled.on(scores)
        ready = acting.ready(len(query.ids), query.slots)
        full = full or sampled or ruled.fair is not None  # what groups were delivered is a sum over whole distributions
        slate = draw(scores, query.slots, u, settings, pins=query.pins, full=full, **ready.arguments)
        relaxed = relaxed_of(slate, acting)
        drawn = Drawn(served, scores, slate, u, sampled, settings, goal, acting, ready, relaxed, None, ruled.segment)
    if lease is None:
        return drawn
    lease.took(slate, cap)
    return replace(drawn, cap=cap)


@lru_cache(256)
def capped(settings: DrawSettings, max_share: float) -> DrawSettings:
    return replace(settings, max_share=max_share)


def relaxed_of(slate: Slate, acting: Acting) -> dict[str, list[int]]:
    acts = slate.acts
    if acts is None or bytes([PASSED_OVER]) not in acts.tobytes():
        return {}
    passed: Mask = acts == PASSED_OVER
    return {
        name: np.flatnonzero(slots).tolist()
        for name, slots in zip(acting.constraints.names, passed, strict=True)
        if slots.any()
    }


def answer_of(
    drawn: Drawn, query: Query, *, decision_id: str, unit: str, surface: str, mode: str, reason: str | None
) -> DecisionAnswer:
    ids = query.ids
    slate = drawn.slate
    slots, rows, propensities = slate.slots.tolist(), slate.items.tolist(), slate.propensities.tolist()
    return DecisionAnswer(
        decision_id=decision_id,
        key=unit,
        surface=surface,
        mode=mode,
        reason=reason,
        slate=[SlotAnswer(slot, ids[row], p) for slot, row, p in zip(slots, rows, propensities, strict=True)],
        propensity=slate.joint,
        policy=drawn.served.policy,
        bundle=drawn.served.bundle,
        inclusions=None if query.shortlist is None else query.shortlist.inclusions(slate.items).tolist(),
    )


def record_of(
    drawn: Drawn,
    query: Query,
    answer: DecisionAnswer,
    *,
    now: float,
    config: str,
    catalogue: int,
    rate: float,
    session: str | None,
    defer: bool,
    own_id: bool,
    tenant: str,
    trains: bool = False,
    experiment: dict[str, str] | None = None,
    shadows: Sequence[Shadow] = (),
) -> Decision:
    """The log's record of an answer: every input of the draw, and what learning and evaluation need.

    trains  whether a trainer wants the candidates: all of them where that is little, else a sample with the slate in it
    """
    slate, settings = drawn.slate, drawn.settings
    rows = slate.items
    whole = query.inline or drawn.sampled or (trains and query.items.nbytes <= MATRIX_BYTES)
    support = supported(answer.decision_id, len(query.ids), rows) if trains and not whole else None
    alphas = slate.alphas.tolist()
    return Decision(
        decision_id=answer.decision_id,
        unit=answer.key,
        at=now,
        surface=answer.surface,
        config=config,
        policy=answer.policy,
        bundle=answer.bundle,
        mode=answer.mode,
        reason=answer.reason,
        slate=[slot.id for slot in answer.slate],
        slots=slate.slots.tolist(),
        rows=rows.tolist(),
        propensities=slate.propensities.tolist(),
        remaining=slate.remaining.tolist(),
        greedy=slate.greedy.tolist(),
        alphas=alphas if min(alphas, default=1.0) < 1.0 else None,
        pinned=_pinned_slots(slate),
        context=query.context.tobytes(),
        shown=query.items[rows].tobytes(),
        epsilon=settings.floor,
        head=settings.head if drawn.interleaved is None else TEAM_DRAFT,
        max_share=settings.max_share,
        temperature=settings.temperature,
        candidates=list(query.ids),
        asked=query.slots,
        catalogue=catalogue,
        shortlist=None if query.shortlist is None else shortlisted(query.shortlist, rows),
        matrix=query.items.tobytes() if whole else None,
        history=query.past.tobytes() if query.past is not None and query.history else None,
        history_items=list(query.history),
        goal=drawn.goal,
        support=None if support is None else query.items[support].tobytes(),
        support_rows=[] if support is None else support.tolist(),
        weights=weights_of(drawn.served, query),
        weight=drawn.served.slot_weight,
        defer=defer,
        own_id=own_id,
        tenant=tenant,
        session=session,
        experiment=experiment,
        sample=sample_of(drawn, query, rate) if drawn.sampled else None,
        shadows=list(shadows),
        acted=[] if query.ruled is None else acted(drawn, query.ruled),
        relaxed=dict(drawn.relaxed),
        skipped=dict(drawn.acting.skipped),
        interleaved=drawn.interleaved,
        exposed=None
        if query.ruled is None or query.ruled.fair is None
        else _exposed(query.ruled.fair, slate, answer.decision_id),
        strayed=None if drawn.cap is None else Strayed(drawn.segment, tuple(slate.explored.tolist())),
    )


def _exposed(fair: Fair, slate: Slate, decision_id: str) -> Exposed | None:
    if not fair.groups:
        return None
    delivered, entitled, drawn, of = fair.delivered(slate)
    groups = fair.groups
    if fair.each:
        rows, weights = sampled(len(groups), decision_id, of)
        groups = [groups[row] for row in rows.tolist()]
        delivered, entitled, drawn = weights * delivered[rows], weights * entitled[rows], drawn[rows]
        of = np.searchsorted(rows, of)
    return Exposed(tuple(groups), *(tuple(x.tolist()) for x in (delivered, entitled, drawn, of)))


def acted(drawn: Drawn, ruled: Ruled) -> list[str]:
    """Names of everything that changed the distribution: rules, boosts, diversity."""
    acting, acts = drawn.acting, drawn.slate.acts
    found = [*ruled.acted, *acting.masks, *acting.boosts]
    if acts is not None:
        did, k = acts.tobytes(), acts.shape[1]
        found += [name for i, name in enumerate(acting.constraints.names) if ACTED in did[i * k : (i + 1) * k]]
    if acting.mmr is not None and acting.mmr[0]:
        found.append("mmr")
    if any(weight for weight, _ in acting.coverage):
        found.append("coverage")
    return found


def supported(decision_id: str, candidates: int, slate: I64) -> I64:
    """Rows (r,) of a sample of the candidates, ascending: the slate's, and others evenly by the hash of the decision's id."""
    seed = int.from_bytes(blake2b(decision_id.encode(), digest_size=8, person=b"support").digest(), "little")
    others = np.random.default_rng(seed).permutation(candidates)[:SUPPORT_ROWS]
    return np.union1d(others, slate)


def experiment_of(choice: Choice) -> dict[str, str]:
    """What the record says of an experiment; `allocation` counts in `Trial.allocations`."""
    said = {"name": choice.experiment, "arm": choice.arm, "allocation": str(choice.allocation)}
    return {**said, "override": "yes"} if choice.override else said


def encoded_record(record: Decision, candidates: int) -> bytes:
    """A record's bytes within the log's limit: what nobody saw is left out first, and counted."""
    encoded = encode(record)
    if len(encoded) <= MAX_RECORD_BYTES:
        return encoded
    unseen = candidates - len(record.slate)
    less = msgspec.structs.replace(
        record, candidates=[], matrix=None, support=None, support_rows=[], sample=None, dropped=unseen
    )
    if less.interleaved is not None:
        less = msgspec.structs.replace(less, interleaved=msgspec.structs.replace(less.interleaved, second=None))
    encoded = encode(less)
    if len(encoded) <= MAX_RECORD_BYTES:
        return encoded
    return encode(msgspec.structs.replace(less, history=None, history_items=[]))


def _pinned_slots(slate: Slate) -> list[int]:
    slots: I64 = slate.slots[slate.pinned]
    return slots.tolist() if len(slots) else []


def sample_of(drawn: Drawn, query: Query, rate: float) -> Sample | None:
    distributions = drawn.slate.distributions
    if distributions is None:
        return None
    ready = drawn.ready
    return Sample(
        rate=rate,
        distributions=distributions.tobytes(),
        uniforms=drawn.u.tobytes(),
        boosts=None if ready.boosts is None else ready.boosts.tobytes(),
        masks=None if ready.masks is None else ready.masks.astype(np.uint8).tobytes(),
        pins=dict(query.pins or {}),
        within=None if ready.within is None else _inside(ready.within, drawn.acting),
    )


def _inside(within: Within, acting: Acting) -> Inside:
    return Inside(list(acting.constraints.names), *(array.tobytes() for array in within.arrays))
