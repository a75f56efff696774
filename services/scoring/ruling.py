"""Rules, diversity and exploration segments of one surface version, asked of one request: what acts on its draw.

Rules that never yield take candidates out before anything is scored; all others become constraints inside the slate. A rule
that cannot be asked (a store that is away, a pinned item that is no candidate) is skipped, and the decision says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np

from policies.errors import Rejected
from policies.reranking.acting import NOTHING_ACTS, Acting
from policies.reranking.diversity import Diverse
from policies.reranking.exposure import SOURCE, Fair, prefix_constraints
from policies.reranking.expressions import Condition
from policies.reranking.impression_variance import SOURCE as VARIANCE
from policies.reranking.impression_variance import Lifts
from policies.reranking.rules import Named, inside, left_out, named
from policies.reranking.within import Constraint
from policies.surface import Exposure, Fairness, Surface
from policies.types import F32, I64, Features, Mask
from services.scoring.balances import shares_of
from services.scoring.catalogue import Catalogue
from services.scoring.exposures import Shown
from services.scoring.kinds import Given, Is
from services.scoring.lifting import Lifting
from services.scoring.shortlisting import Names
from services.scoring.wire import Candidate, Columns, DecisionRequest

NO_CANDIDATE = "the pinned item is no candidate"


@dataclass(slots=True)
class Narrowed:
    """What the rules that never yield did: rule → ids taken out, kept only for those who want to read it."""

    acted: list[str] = field(default_factory=list)
    removed: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ruled:
    """What acts on the draw of one request, but for what depends on its scores.

    acted      rules that took candidates out before the draw, and pins that hold
    removed    rule → ids taken out, of a request that wants an explanation
    max_share  exploration cap of the request's segment, None of a request that is in none
    fair       groups and what they are owed, None of a surface without
    lifts      of who sees what, None where nothing was released yet
    """

    acting: Acting = NOTHING_ACTS
    diverse: Diverse | None = None
    acted: tuple[str, ...] = ()
    removed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_share: float | None = None
    fair: Fair | None = None
    lifts: Lifts | None = None

    def on(self, scores: F32) -> Acting:
        """Everything that acts on scores (n, m)."""
        acting = self.acting if self.diverse is None else self.acting + self.diverse.acting(scores)
        acting = acting if self.fair is None else acting + self.fair.acting(scores)
        return acting if self.lifts is None else acting + self.lifts.acting(scores)


class Ruler:
    """Built once for a surface version. `idle`: it has nothing to say, and is not asked unless a request brings weights."""

    def __init__(self, surface: Surface) -> None:
        self.rules = named(surface.rules)
        self._surface, self._diversity = surface, surface.diversity
        self._pins = [rule for rule in self.rules if rule.key == "pin"]
        self._hard = [rule for rule in self.rules if rule.key in ("exclude", "available", "filter")]
        self._soft = [rule for rule in self.rules if rule.key in ("seen", "frequency", "cap", "quota", "spacing")]
        self._segments = [(Condition(one.when), one.max_share) for one in surface.exploration.segments]
        diverse = self._diversity.mmr or self._diversity.coverage
        self.exposure = surface.fairness.exposure
        fair = surface.fairness
        self.idle = not (self.rules or self._segments or diverse or fair != Fairness())

    @cached_property
    def remembers(self) -> tuple[Named, ...]:
        """Rules that ask what was shown before."""
        return tuple(rule for rule in self._soft if rule.key in ("seen", "frequency"))

    @property
    def asks(self) -> bool:
        """Whether anything depends on what was shown before."""
        return bool(self.remembers) or self.exposure is not None

    @cached_property
    def pinned(self) -> tuple[str, ...]:
        """Items that rules pin: of a catalogue, however large, they must not be left out."""
        return tuple(rule.rule.pin for rule in self._pins if rule.rule.pin)

    @property
    def asks_units(self) -> bool:
        """Whether any rule asks what the unit was shown before."""
        return any(rule.rule.frequency is None or rule.rule.frequency.per == "unit" for rule in self.remembers)

    def given(self, request: DecisionRequest, inline: bool) -> dict[int, Features]:
        """Place of a candidate in the request → features that came with it, where any rule might read them."""
        if not inline:
            return {}
        if isinstance(request.candidates, Columns):
            columns = request.candidates.features
            return {
                i: {name: values[i] for name, values in columns.items()} for i in range(len(request.candidates.ids))
            }
        listed = cast("list[str | Candidate]", request.candidates)
        return {i: one.features for i, one in enumerate(listed) if isinstance(one, Candidate) and one.features}

    def narrow(
        self, ids: Sequence[str], rows: I64, given: Given, catalogue: Catalogue, keep: Mask | None, explain: bool
    ) -> tuple[Mask | None, Narrowed]:
        """(which candidates (n,) stay, None: all; what did it) under the rules that never yield."""
        found = Narrowed()
        for rule in self._hard:
            passing = self._passing(rule, ids, rows, given, catalogue)
            if passing.all():
                continue
            gone = ~passing if keep is None else keep & ~passing
            if gone.any():
                found.acted.append(rule.name)
                if explain:
                    found.removed[rule.name] = [item for item, left in zip(ids, gone.tolist(), strict=True) if left]
                keep = passing if keep is None else keep & passing
        return keep, found

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
        constraints: list[Constraint] = []
        away = dict(skipped)
        for rule in self._soft:
            match rule.key:
                case "cap" | "spacing":
                    constraints.append(inside(rule, catalogue.kinds.of(rule.by, rows, given), slots))
                case "quota":
                    constraints.append(inside(rule, self._members(rule, rows, given, catalogue), slots))
                case _:
                    gone = None if shown is None else shown.gone(rule, ids)
                    if gone is None:
                        away[rule.name] = "what was shown before is not known"
                    elif gone.any():
                        constraints.append(left_out(rule, gone, slots))
        prefix = self._surface.fairness.prefix
        if prefix is not None:
            kinds, groups = catalogue.kinds.groups(prefix.by, rows, given)
            constraints += prefix_constraints(prefix.by, prefix.min, prefix.max, kinds, groups, slots)
        fair = None if self.exposure is None else self._fair(self.exposure, rows, given, catalogue, shown, away)
        lifts = self._lifts(request, ids, lifting, away) if self._surface.fairness.impression_variance else None
        share = next((share for condition, share in self._segments if condition(request.context.get)), None)
        return Ruled(
            Acting(constraints=tuple(constraints), skipped=away),
            self._diverse(request, rows, items, columns, given, catalogue),
            (*narrowed.acted, *held),
            narrowed.removed,
            share,
            fair,
            lifts,
        )

    def _fair(
        self,
        exposure: Exposure,
        rows: I64,
        given: Given,
        catalogue: Catalogue,
        shown: Shown | None,
        away: dict[str, str],
    ) -> Fair:
        codes, groups = catalogue.kinds.groups(exposure.by, rows, given)
        balance = None if shown is None or shown.balance is None else shown.balance(groups)
        if balance is None:
            away[SOURCE] = "what was delivered before is not known"
            balance = np.zeros(len(groups)), shares_of(exposure, groups, None)
        return Fair(codes, groups, *balance, tuple(exposure.positions))

    def _lifts(
        self, request: DecisionRequest, ids: Sequence[str], lifting: Lifting | None, away: dict[str, str]
    ) -> Lifts | None:
        if lifting is None:
            away[VARIANCE] = "who sees what is not known"
            return None
        return Lifts(lifting.of(ids, request.context))

    def _passing(self, rule: Named, ids: Sequence[str], rows: I64, given: Given, catalogue: Catalogue) -> Mask:
        match rule.key:
            case "exclude":
                if isinstance(ids, Names):
                    return ids.without(rule.rule.exclude or ())
                gone = set(rule.rule.exclude or ())
                return np.array([item not in gone for item in ids], bool)
            case "available":
                return catalogue.allowed[rows] & (rows >= 0)
        return catalogue.kinds.holding(rule.condition, rows, given)

    def _members(self, rule: Named, rows: I64, given: Given, catalogue: Catalogue) -> I64:
        quota = rule.rule.quota
        assert quota is not None  # its key says so
        members = catalogue.kinds.holding(Is(quota.by, quota.value, type(quota.value)), rows, given)
        return np.where(members, 0, -1)

    def _diverse(
        self,
        request: DecisionRequest,
        rows: I64,
        items: F32,
        columns: Mapping[str, slice],
        given: Given,
        catalogue: Catalogue,
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
        return Diverse(
            mmr,
            items if over is None else items[:, columns[over]],
            coverage,
            catalogue.kinds.of(by, rows, given) if by is not None and coverage else None,
        )
