"""A logged decision as another configuration of its surface would have ruled it: what would it earn with two of a creator, or less diversity?

The target draws from the scores that it has, under the rules, diversity, prefix shares and exploration cap of another document.
What acts by what was shown before stays as the log holds it, so a value is of one step at the logged counters:

    seen, frequency                   the lines that the draw met; the document must have the rules that were in force
    exposure, impression variance     the boosts that the draw met, in units of the logged scores; likewise
    pins                              of rules and requests alike, where they were logged

Refused as a whole (`begin`), for the log cannot answer: a rule of those that never yield is missing (its items are no candidates of the
log), a pin or a part that remembers differs, `available` is new (what was available then is not known), or a segment is.
Set aside, and counted:

    attributes_unknown   candidates are not in the catalogue of the data folder, or came with features that differ from it
    attributes_changed   the catalogue has been written since
    rules_unknown        which of several rules that remember the logged lines are of cannot be told
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from msgspec import structs

from policies.counted import counted
from policies.errors import Rejected
from policies.features import Encoder
from policies.reranking.rules import REMEMBER, SCREENS, Key, Named, named
from policies.reranking.within import MASK, Lines
from policies.surface import Rule, Surface
from policies.types import F32, F64, I64, Mask
from services.evaluation.decisions import LoggedDecision
from services.evaluation.known_items import KnownItems
from services.evaluation.targets import Law, Positions, Target, Traits, Uniform, unknown
from services.scoring.decide import capped
from services.scoring.ruling import NOTHING_GIVEN, Ruler
from services.scoring.wire import DecisionRequest

NOBODY = DecisionRequest(surface="", unit="")  # nobody's own weights of diversity, and no segment


@dataclass
class OtherRules:
    """What `surface` has before the draw. `begin` first, then `of` each decision."""

    surface: Surface
    _items: KnownItems | None = None
    _encoder: Encoder | None = None
    _told: I64 = field(default_factory=lambda: np.empty(0, np.int64))  # columns that a request may bring
    _rulers: dict[str, tuple[Ruler, Surface]] = field(default_factory=dict)

    def begin(self, logged: Mapping[str, Surface], items: KnownItems | None, encoder: Encoder | None) -> None:
        """`logged`: documents of the versions of the log by hash; `encoder`: what the log was encoded by. Raises Rejected."""
        if items is None:
            raise _refused("Rules read the catalogue as it was: give the data folder with --data", "no_catalogue")
        over = self.surface.diversity.over if self.surface.diversity.mmr else None
        if over is not None and (encoder is None or over not in encoder.item_columns):
            raise _refused(f"Diversity is over {over!r}, which is no feature of the log's items", "unknown_feature")
        self._items, self._encoder = items, encoder
        if encoder is not None:
            items.catalogue.attach(encoder)
            counts = [encoder.item_columns[name] for name in counted(encoder.spec.items)]
            self._told = np.setdiff1d(np.arange(encoder.item_size), np.r_[tuple(counts)] if counts else [])
        for version, document in logged.items():
            narrower = structs.replace(self.surface, rules=_still_to_ask(document, self.surface))
            self._rulers[version] = Ruler(narrower), document

    def of(self, law: Law, *, capped_too: bool = True) -> Law:
        """What a policy that draws by `law` would have drawn by. Raises Rejected, whose code is the reason."""
        one, items = law.decision, self._items
        assert items is not None  # see `begin`
        ruler, logged = self._rulers[one.config]
        ids, slots = list(one.candidates), one.asked or int(one.slots[-1]) + 1
        rows = items.rows(ids, one.catalogue)
        if rows is None:
            raise unknown("attributes_changed", "The catalogue has been written since")
        matrix = np.zeros((len(ids), 0), np.float32) if one.matrix is None else one.matrix
        if (rows < 0).any() or not self._as_known(matrix, rows, items):
            raise unknown("attributes_unknown", "Candidates are not as the catalogue knows them")
        columns = {} if self._encoder is None else self._encoder.item_columns
        keep, narrowed = ruler.narrow(ids, rows, NOTHING_GIVEN, items.catalogue, None, False)
        ruled = ruler.ruled(
            NOBODY, ids, rows, matrix, columns, NOTHING_GIVEN, slots, items.catalogue, None, narrowed, (), {}
        )
        acting = ruled.on(law.scores)
        lines = _in_order(ruler, acting.constraints, one)
        within = structs.replace(acting, constraints=lines).ready(len(ids), slots).within
        settings = capped(law.settings, self._cap(logged, one)) if capped_too else law.settings
        return Law(law.scores, settings, replace(one, within=within, masks=_both(one.masks, keep, slots)), others=True)

    def _cap(self, logged: Surface, one: LoggedDecision) -> float:
        """Of exploration: that of the decision where nothing about it changed, so its segment's."""
        if one.settings is not None and self.surface.exploration == logged.exploration:
            return one.settings.max_share
        return self.surface.exploration.max_share

    def _as_known(self, matrix: F32, rows: I64, items: KnownItems) -> bool:
        """Whether features that came with a request, if any did, are those of the catalogue: rules may have read them. What the
        service counts is not in the catalogue, and no rule reads it."""
        if self._encoder is None or not matrix.shape[1]:
            return True
        known = items.catalogue.matrix(self._encoder.schema)[rows]
        return np.array_equal(known[:, self._told], matrix[:, self._told])


@dataclass(frozen=True, kw_only=True)
class UnderRules(Traits):
    """`base` under other rules. `logged` gives what a decision was drawn by, for a base that is the logged policy itself."""

    base: Target
    rules: OtherRules
    logged: Callable[[LoggedDecision], Law] | None = None
    follows: bool = True

    @classmethod
    def over(
        cls, base: Target, rules: OtherRules, logged: Callable[[LoggedDecision], Law] | None = None
    ) -> "UnderRules":
        """Raises Rejected for a target that draws no slates."""
        if isinstance(base, Positions):
            raise _refused(
                f"{base.name} says each position's distribution, and no rule could act on it", "positions_only"
            )
        return cls(
            name=f"{base.name} under other rules",
            encoder=base.encoder,
            remembers=base.remembers,
            base=base,
            rules=rules,
            logged=logged,
        )

    def conditionals(self, decision: LoggedDecision) -> F64:
        return self.law(decision, None).along()

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        if logged is None and self.logged is not None:
            logged = self.logged(decision)
        return self.rules.of(self.base.law(decision, logged), capped_too=not isinstance(self.base, Uniform))


def stateful(surface: Surface) -> list[str]:
    """Parts of a configuration that act by what was shown before: for these, a target is judged at the logged counters."""
    found = [rule.name for rule in named(surface.rules) if rule.key in REMEMBER]
    fairness = surface.fairness
    return [*found, *(name for name in ("exposure", "impression_variance") if getattr(fairness, name) is not None)]


def _still_to_ask(logged: Surface, wanted: Surface) -> list[Rule]:
    """Rules of `wanted` without those that have taken items out of the log's candidates already. Raises Rejected."""
    before, after = named(logged.rules), named(wanted.rules)
    for keys, what in ((("pin",), "pins"), (REMEMBER, "rules by what was shown before")):
        if _of(before, keys) != _of(after, keys):
            raise _refused(f"The {what} differ from those in force: the log cannot say what others would have done")
    for part in ("exposure", "impression_variance"):
        if getattr(logged.fairness, part) != getattr(wanted.fairness, part):
            raise _refused(f"fairness.{part} differs from what was in force: its boosts are those of the log")
    done, screens = _of(before, SCREENS), _of(after, SCREENS)
    for rule in done:
        if rule not in screens:
            said = named([rule])[0].name
            raise _refused(
                f"Rule {said!r} was in force and is gone: items that it took out are no candidates of the log"
            )
    if any(rule.available for rule in screens if rule not in done):
        raise _refused("Rule 'available' is new: what was available is known only where the rule was in force")
    if wanted.exploration.segments and wanted.exploration != logged.exploration:
        raise _refused("Segments of exploration differ: which one a request was in is not in the log")
    return [rule for rule in wanted.rules if rule not in done]


def _of(rules: Sequence[Named], keys: Sequence[Key]) -> list[Rule]:
    return [one.rule for one in rules if one.key in keys]


def _refused(message: str, code: str = "other_candidates") -> Rejected:
    return Rejected(message, at="--rules", code=code)


def _in_order(ruler: Ruler, lines: Lines, one: LoggedDecision) -> Lines:
    """Lines by priority, with those of the rules that remember as the draw met them, where their rules stand; what is no rule (prefix
    shares) last, as it was. Raises Rejected."""
    met = [] if one.within is None else np.flatnonzero(one.within.ops == MASK).tolist()
    if one.within is None or not met or not ruler.remembers:
        return lines
    if len(met) != len(ruler.remembers):
        said = f"{len(met)} lines of {len(ruler.remembers)} rules: which they are of is not in the log"
        raise unknown("rules_unknown", said)
    place = {rule.name: i for i, rule in enumerate(ruler.rules)}
    within, names = one.within, [rule.name for rule in ruler.remembers]
    found = [*zip(lines.names, lines.ops, lines.codes, lines.limits, strict=True)]
    found += zip(names, within.ops[met], within.codes[met], within.limits[met], strict=True)
    found.sort(key=lambda line: place.get(line[0], len(place)))  # stable
    several, ops, codes, limits = zip(*found, strict=True)
    return Lines(several, np.array(ops, np.int64), np.stack(codes), np.stack(limits))


def _both(masks: Mask | None, keep: Mask | None, slots: int) -> Mask | None:
    if keep is None:
        return masks
    return np.tile(keep, (slots, 1)) if masks is None else masks & keep
