"""Slates that two policies fill by team draft, for experiments of kind `interleaving`: exact propensities, as of any slate.

Everything that acts on a draw acts on each policy's own distribution (`policies.experiments.team_draft`). The pair answers under the
name of both, `first+second`, which no policy can have, and without a bundle of its own: the record names both (`Interleaved`).
"""

from dataclasses import replace

from policies.experiments.team_draft import PURPOSE, Drafted, Side, drafted
from policies.reranking.acting import NOTHING_ACTS, Acting
from policies.slate import uniforms
from policies.types import DrawSettings
from services.scoring.admission import Recent
from services.scoring.decide import Drawn, Served, capped, inputs_of, relaxed_of, sample_of
from services.scoring.query import Query
from streaming.events import Interleaved, Sample


def pair_of(first: Served, second: Served) -> Served:
    """Both as one, to be answered with. A slot's example weighs what the more cautious of the two says."""
    weighing = first if first.weights is not None else second
    one, other = first.settings, second.settings
    return replace(
        first,
        policy=f"{first.policy}+{second.policy}",
        bundle="",
        settings=DrawSettings(one.head, min(one.floor, other.floor), max(one.max_share, other.max_share)),
        weights=weighing.weights,
        signs=weighing.signs,
        slot_weight=min(first.slot_weight, second.slot_weight),
        created_at=0.0,
        recent=Recent(),
        pair=(first, second),
    )


def drawn_together(served: Served, query: Query, decision_id: str, key: bytes, rate: float) -> Drawn:
    """As `decide.drawn_from`, of a pair. Raises Rejected, Corrupt."""
    assert served.pair is not None  # made by `pair_of`
    u = uniforms(key, decision_id, "slate", query.slots)
    coins = uniforms(key, decision_id, PURPOSE, (query.slots + 1) // 2)
    sampled = rate > 0.0 and float(uniforms(key, decision_id, "sample", 1)[0]) < rate
    sides, actings = zip(*(_side(one, query) for one in served.pair), strict=True)
    found = drafted((sides[0], sides[1]), query.slots, u, coins, query.pins)
    acting: Acting = actings[0]
    made = Drawn(
        served,
        sides[0].scores,
        found.slate,
        u,
        sampled,
        served.settings,
        None,
        acting,
        sides[0].ready,
        relaxed_of(found.slate, acting),
    )
    second = replace(made, acting=actings[1], ready=sides[1].ready)
    return replace(
        made, interleaved=_said(served.pair, sides, found, sample_of(second, query, rate) if sampled else None)
    )


def _side(served: Served, query: Query) -> tuple[Side, Acting]:
    scores, settings, ruled = served.scores(inputs_of(served, query)), served.settings, query.ruled
    if ruled is None:
        return Side(scores, settings), NOTHING_ACTS
    if ruled.max_share is not None:
        settings = capped(settings, ruled.max_share)
    acting = ruled.on(scores)
    return Side(scores, settings, acting.ready(len(query.ids), query.slots)), acting


def _said(pair: tuple[Served, Served], sides: tuple[Side, ...], found: Drafted, second: Sample | None) -> Interleaved:
    settings: list[tuple[str, float, float, float]] = [
        (s.settings.head, s.settings.floor, s.settings.max_share, s.settings.temperature) for s in sides
    ]
    return Interleaved(
        policies=(pair[0].policy, pair[1].policy),
        bundles=(pair[0].bundle, pair[1].bundle),
        settings=settings,
        teams=found.teams,
        own=found.own.tolist(),
        second=second,
    )
