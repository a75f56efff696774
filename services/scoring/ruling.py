"""Rules, diversity and exploration segments of one surface version, asked of one request: what acts on its draw.

Rules that never yield take candidates out before anything is scored; all others become constraints inside the slate. A rule
that cannot be asked (a store that is away, a pinned item that is no candidate) is skipped, and the decision says so.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
from msgspec import Struct

from policies.compiling import plain
from policies.errors import Rejected
from policies.reranking.acting import NOTHING_ACTS, Acting, scaled
from policies.reranking.diversity import Diverse
from policies.reranking.exposure import EACH, SOURCE, Fair
from policies.reranking.expressions import Condition
from policies.reranking.impression_variance import SOURCE as VARIANCE
from policies.reranking.impression_variance import Lifts
from policies.reranking.rules import OF_KEY, REMEMBER, SCREENS, named
from policies.reranking.rules_fast import numbered
from policies.reranking.within import NO_VECTORS
from policies.surface import Exposure, Fairness, Surface
from policies.types import F32, F64, I64
from services.scoring.balances import shares_of
from services.scoring.catalogue import Catalogue
from services.scoring.constraining import Constraining, Narrowed, Screen
from services.scoring.exposures import Shown
from services.scoring.inline import Inline
from services.scoring.kinds import ABSENT, Given
from services.scoring.lifting import Lifting
from services.scoring.wire import Candidate, Columns, DecisionRequest

NO_CANDIDATE = "the pinned item is no candidate"
NOTHING_GIVEN: Given = {}
NOBODY = np.empty(0, np.int64)
NOT_DIVERSE, NOT_FAIR = Diverse(NO_VECTORS, NOBODY), Fair(NOBODY, (), np.empty(0), np.empty(0))


class Ruled(Struct, frozen=True, eq=False, gc=False):
    """What acts on the draw of one request, but for what depends on its scores.

    acted      rules that took candidates out before the draw, and pins that hold
    removed    rule → ids taken out, of a request that wants an explanation
    segment    the condition of the request's segment of exploration, and `max_share` its cap; empty and None of a request that
               is in none
    fair       groups and what they are owed, None of a surface without
    lifts      of who sees what, None where nothing was released yet
    """

    acting: Acting = NOTHING_ACTS
    diverse: Diverse | None = None
    acted: tuple[str, ...] = ()
    removed: Mapping[str, Sequence[str]] = {}
    segment: str = ""
    max_share: float | None = None
    fair: Fair | None = None
    lifts: Lifts | None = None

    def on(self, scores: F32) -> Acting:
        """Everything that acts on scores (n, m)."""
        if self.diverse is None and self.fair is None and self.lifts is None:
            return self.acting
        diverse, fair = self.diverse or NOT_DIVERSE, self.fair or NOT_FAIR
        items = diverse.items if diverse.mmr else NO_VECTORS
        unit, boosts, vectors = scaled(plain(scores), fair.codes, fair.boosts, plain(items), *diverse.columns)
        lifted: dict[str, F64] = {SOURCE: boosts} if unit and any(fair.boosts.tolist()) else {}
        if unit and self.lifts is not None and self.lifts.boosts.any():
            lifted[VARIANCE] = self.lifts.boosts * unit
        return Acting(
            lifted,
            constraints=self.acting.constraints,
            mmr=(diverse.mmr * unit, vectors) if diverse.mmr else None,
            coverage=((diverse.coverage * unit, diverse.codes),) if diverse.coverage else (),
            skipped=self.acting.skipped,
        )


class Ruler:
    """Built once for a surface version. `idle`: it has nothing to say, and is not asked unless a request brings weights."""

    def __init__(self, surface: Surface) -> None:
        self.rules = named(surface.rules)
        self._surface, self._diversity = surface, surface.diversity
        self._pins = [rule for rule in self.rules if rule.key == "pin"]
        soft = [rule for rule in self.rules if rule.key in OF_KEY]
        # those that ask what was shown before
        self.remembers = tuple(rule for rule in soft if rule.key in REMEMBER)
        self._segments = [(Condition(one.when), one.max_share) for one in surface.exploration.segments]
        self.exposure = surface.fairness.exposure
        diverse = self._diversity.mmr or self._diversity.coverage
        self.idle = not (self.rules or self._segments or diverse or surface.fairness != Fairness())
        self._constraining = Constraining(surface, soft)
        screen = Screen([rule for rule in self.rules if rule.key in SCREENS])
        self.narrow = screen.narrow
        self._names = screen.names | self._constraining.names

    @property
    def asks(self) -> bool:
        """Whether anything depends on what was shown before."""
        return bool(self.remembers) or self.exposure is not None

    @cached_property
    def pinned(self) -> tuple[str, ...]:
        """Items that rules pin: of a catalogue, however large, they must not be left out."""
        return tuple(rule.rule.pin for rule in self._pins if rule.rule.pin)

    def given(self, request: DecisionRequest, inline: bool) -> Given:
        """Features that came with the candidates of a request, where any rule might read them."""
        if not inline:
            return NOTHING_GIVEN
        candidates: object = request.candidates
        if isinstance(candidates, Inline | Columns):
            known = candidates.given if isinstance(candidates, Inline) else candidates.features
            return {name: known[name] for name in self._names if name in known}
        listed = cast("list[str | Candidate]", candidates)
        features = [one.features if isinstance(one, Candidate) else {} for one in listed]
        columns = {name: [one.get(name, ABSENT) for one in features] for name in self._names}
        return {name: values for name, values in columns.items() if any(value is not ABSENT for value in values)}

    def pins(
        self, wanted: dict[int, int] | None, ids: Sequence[str], slots: int
    ) -> tuple[dict[int, int] | None, list[str], dict[str, str]]:
        """(pins of request and rules by slot, rules that hold, rules that do not and why). The request's come first."""
        if not self._pins:
            return wanted, [], {}
        found = dict(wanted or {})
        hold: list[str] = []
        skipped: dict[str, str] = {}
        for rule in self._pins:
            slot, item = rule.rule.slot or 0, rule.rule.pin or ""
            if slot in found or slot >= slots:
                skipped[rule.name] = "the request pins its slot" if slot in found else "the request has fewer slots"
            elif item not in ids:
                skipped[rule.name] = NO_CANDIDATE
            elif ids.index(item) in found.values():
                skipped[rule.name] = "the request pins its item"
            else:
                found[slot] = ids.index(item)
                hold.append(rule.name)
        return found or None, hold, skipped

    def ruled(
        self,
        request: DecisionRequest,
        ids: Sequence[str],
        rows: I64,
        items: F32,
        columns: Mapping[str, slice],
        given: Given,
        slots: int,
        catalogue: Catalogue,
        shown: Shown | None,
        narrowed: Narrowed,
        held: Sequence[str],
        skipped: Mapping[str, str],
        lifting: Lifting | None = None,
    ) -> Ruled:
        """What acts on the draw: n candidates with catalogue rows (n,), encoded items (n, d). Raises Rejected."""
        away = dict(skipped)
        found = self._constraining.gather(ids, rows, given, slots, catalogue, shown, away)
        fair = None
        if self.exposure is not None:
            fair = self._fair(self.exposure, ids, found.groups, given, catalogue, shown, away)
        lifts = self._lifts(request, ids, lifting, away) if self._surface.fairness.impression_variance else None
        segment, share = "", None
        for condition, cap in self._segments:
            if condition(request.context.get):
                segment, share = condition.text, cap
                break
        return Ruled(
            Acting(constraints=found.lines, skipped=away),
            self._diverse(request, items, columns, found.covers),
            (*narrowed.acted, *held),
            narrowed.removed,
            segment,
            share,
            fair,
            lifts,
        )

    def _fair(
        self,
        exposure: Exposure,
        ids: Sequence[str],
        kinds: I64,
        given: Given,
        catalogue: Catalogue,
        shown: Shown | None,
        away: dict[str, str],
    ) -> Fair:
        each = exposure.by == EACH
        groups: Sequence[str]
        if each:
            codes, groups = np.arange(len(ids)), ids
        else:
            codes, numbers = numbered(kinds)
            groups = catalogue.kinds.called(exposure.by, numbers, kinds, given)
        balance = None if shown is None or shown.balance is None else shown.balance(groups)
        if balance is None:
            away[SOURCE] = "what was delivered before is not known"
            balance = np.zeros(len(groups)), shares_of(exposure, groups, None)
        return Fair(codes, groups, *balance, tuple(exposure.positions), each)

    def _lifts(
        self, request: DecisionRequest, ids: Sequence[str], lifting: Lifting | None, away: dict[str, str]
    ) -> Lifts | None:
        if lifting is None:
            away[VARIANCE] = "who sees what is not known"
            return None
        return Lifts(lifting.of(ids, request.context))

    def _diverse(
        self, request: DecisionRequest, items: F32, columns: Mapping[str, slice], covers: I64
    ) -> Diverse | None:
        mmr = request.diversity.get("mmr", self._diversity.mmr)
        coverage = request.diversity.get("coverage", self._diversity.coverage)
        by = self._diversity.by
        if coverage and by is None:
            raise Rejected(
                "The surface names no attribute to cover: set diversity.by",
                at="$.diversity.coverage",
                code="no_attribute",
            )
        if not mmr and not coverage:
            return None
        over = self._diversity.over
        alike = columns[over] if over is not None else slice(0, items.shape[1] if mmr else 0)
        return Diverse(items, covers, (alike.start, alike.stop) if mmr else (0, 0), mmr, coverage)
