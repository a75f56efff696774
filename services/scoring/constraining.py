"""Rules of one surface version as columns of a catalogue's table of kinds: which candidates stay, and what constrains the slate.

Where its lines stand is looked up once; a request then is one pass over its candidates' columns (`policies.reranking.rules_fast`).
Only what came with the request itself, features and excluded ids, is looked at one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.reranking.exposure import EACH, prefix_limits, prefixes
from policies.reranking.rules import OF_KEY, Named, limits_of
from policies.reranking.rules_fast import gathered, screened
from policies.reranking.within import OPS, Lines, Op
from policies.surface import Surface
from policies.types import I64, Mask
from services.scoring.catalogue import Catalogue
from services.scoring.exposures import NEVER, Shown
from services.scoring.kinds import Called, Given, Is, Kinds, Test
from services.scoring.shortlisting import Names

NOTHING_OWN, NOBODY, ALL_KNOWN = np.empty((0, 0), np.int64), np.empty(0, bool), np.empty(0, np.uint64)
NO_UNITS = np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
UNTOLD = "what was shown before is not known"
MAX_SHAPES = 1_024  # sets of constraints that had something to say, remembered by number of slots


@dataclass(slots=True)
class Narrowed:
    """What the rules that never yield did: rule → ids taken out, kept only for those who want to read it."""

    acted: list[str] = field(default_factory=list)
    removed: dict[str, list[str]] = field(default_factory=dict)


class _Lookup:
    """Attributes and conditions (None: neither, −1) by their places in a catalogue's table."""

    def __init__(self, asked: Sequence[str | Test | None]) -> None:
        self._asked = asked
        self._names = [() if one is None else (one,) if isinstance(one, str) else one.names for one in asked]
        self._known: tuple[Kinds | None, int] = None, 0
        self._places = np.empty(0, np.int64)

    @property
    def names(self) -> frozenset[str]:
        """Of all attributes that are read."""
        return frozenset(name for names in self._names for name in names)

    def places(self, kinds: Kinds) -> I64:
        """(L,), to be copied before it is changed."""
        if self._known[0] is not kinds or self._known[1] != kinds.revision:
            kinds.tidy()
            self._known = kinds, kinds.revision
            self._places = np.array([-1 if one is None else kinds.column(one) for one in self._asked], np.int64)
        return self._places

    def of(self, kinds: Kinds, rows: I64, given: Given) -> tuple[I64, list[I64]]:
        """(lines (L,), what this request brings itself: rows of `own`)."""
        lines, own = self.places(kinds), []
        if given:
            lines = lines.copy()
            known: dict[str | Test, int] = {}
            for place, (one, names) in enumerate(zip(self._asked, self._names, strict=True)):
                if one is not None and not given.keys().isdisjoint(names):
                    if one not in known:
                        own.append(
                            kinds.of(one, rows, given) if isinstance(one, str) else kinds.holding(one, rows, given)
                        )
                        known[one] = -1 - len(own)
                    lines[place] = known[one]
        return lines, own


class Screen:
    """The rules that never yield and take candidates out: exclude, available, filter."""

    def __init__(self, rules: Sequence[Named]) -> None:
        self._rules = rules
        self._lookup = _Lookup([rule.condition if rule.key == "filter" else None for rule in rules])
        self._excluded = [
            (i, frozenset(rule.rule.exclude or ())) for i, rule in enumerate(rules) if rule.key == "exclude"
        ]
        self.names = self._lookup.names

    def narrow(
        self, ids: Sequence[str], rows: I64, given: Given, catalogue: Catalogue, keep: Mask | None, explain: bool
    ) -> tuple[Mask | None, Narrowed]:
        """(which candidates (n,) stay, None: all; what did it)."""
        found = Narrowed()
        if not self._rules:
            return keep, found
        lines, own = self._lookup.of(catalogue.kinds, rows, given)
        if self._excluded:
            lines = lines.copy()
            for place, items in self._excluded:
                own.append(_without(ids, items))
                lines[place] = -1 - len(own)
        stacked = np.stack(own) if own else NOTHING_OWN
        before = NOBODY if keep is None else keep
        stays, counts, by = screened(catalogue.kinds.table, lines, stacked, catalogue.allowed, rows, before)
        for place, count in enumerate(counts.tolist()):
            if count:
                name = self._rules[place].name
                found.acted.append(name)
                if explain:
                    found.removed[name] = [item for item, of in zip(ids, by.tolist(), strict=True) if of == place]
        return (stays if found.acted else keep), found


def _without(ids: Sequence[str], items: frozenset[str]) -> I64:
    if type(ids) is Names:
        return np.where(ids.without(list(items)), 0, -1)
    if items.isdisjoint(ids):
        return np.zeros(len(ids), np.int64)
    return np.array([-1 if item in items else 0 for item in ids], np.int64)


@dataclass(frozen=True, slots=True)
class _Line:
    """A constraint: which attribute or condition its codes are (None: of what was shown before), and whether it says something
    even where it concerns no candidate."""

    name: str
    op: Op
    of: str | Test | None
    rule: Named | None = None
    share: float = 0.0

    def limits(self, k: int) -> I64:
        return prefix_limits(self.share, k, self.op) if self.rule is None else limits_of(self.rule, k)

    @property
    def always(self) -> bool:
        return self.rule is not None and self.rule.key == "quota"  # it is missed then, which is said


class Gathered(Struct, frozen=True, eq=False, gc=False):
    """Of one request: constraints that have something to say, and codes (n,) of the attributes `covers` and `groups`."""

    lines: Lines
    covers: I64
    groups: I64


class Constraining:
    """The rules that may yield, then the shares of prefixes; beside them the attributes that diversity and exposure are by."""

    def __init__(self, surface: Surface, soft: Sequence[Named]) -> None:
        self._lines = [*map(_line, soft), *_prefix_lines(surface)]
        exposure = surface.fairness.exposure
        beside = [surface.diversity.by, exposure.by if exposure and exposure.by != EACH else None]
        self._lookup = _Lookup([*(line.of for line in self._lines), *beside])
        self.names = self._lookup.names
        self._always = np.array([*(line.always for line in self._lines), True, True], bool)
        remembering = [(place, line.rule) for place, line in enumerate(self._lines) if line.rule and line.of is None]
        self._of_items = [(place, rule) for place, rule in remembering if _per_item(rule)]
        self._of_units = [(place, rule) for place, rule in remembering if not _per_item(rule)]
        self._units = (
            np.array([place for place, _ in self._of_units], np.int64),
            np.array([rule.window_seconds for _, rule in self._of_units], np.float64),
            np.array([rule.rule.frequency.cap if rule.rule.frequency else 1 for _, rule in self._of_units], np.int64),
        )
        self._shapes: dict[tuple[int, bytes], Lines] = {}

    def gather(
        self,
        ids: Sequence[str],
        rows: I64,
        given: Given,
        slots: int,
        catalogue: Catalogue,
        shown: Shown | None,
        away: dict[str, str],
    ) -> Gathered:
        """What constrains a slate out of candidates. `away`: rule → why it cannot act, written to."""
        lines, own = self._lookup.of(catalogue.kinds, rows, given)
        if self._of_items:
            lines = self._counted(ids, shown, away, lines, own)
        units, looks, now = NO_UNITS, NEVER, 0.0
        if self._of_units:
            if shown is None or shown.unit is None:
                away.update((rule.name, UNTOLD) for _, rule in self._of_units)
            else:
                units, looks, now = self._units, shown.unit, shown.now
        stacked = own[0][None] if len(own) == 1 else np.stack(own) if own else NOTHING_OWN
        asked = catalogue.kinds.table, lines, self._always, stacked, rows, *units, now, *looks, catalogue.hashed
        codes, says, stranger = gathered(*asked, ALL_KNOWN)
        if stranger:  # seldom: the catalogue knows most candidates
            codes, says, _ = gathered(*asked, catalogue.hashes(ids, rows))
        key = slots, says.tobytes()
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shape(slots, says)
        return Gathered(Lines(shape.names, shape.ops, codes[:-2], shape.limits), codes[-2], codes[-1])

    def _counted(
        self, ids: Sequence[str], shown: Shown | None, away: dict[str, str], lines: I64, own: list[I64]
    ) -> I64:
        """Lines with those of the rules that count everybody's impressions, where any candidate has to rest."""
        for place, rule in self._of_items:
            resting = None if shown is None else shown.resting(rule, ids)
            if resting is None:
                away[rule.name] = UNTOLD
            elif resting and not resting.isdisjoint(ids):
                own.append(np.array([0 if item in resting else -1 for item in ids], np.int64))
                lines = lines.copy()
                lines[place] = -1 - len(own)
        return lines

    def _shape(self, slots: int, says: NDArray[np.uint8]) -> Lines:
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        some = [line for line, one in zip(self._lines, says.tolist(), strict=False) if one]  # without the two beside
        limits = np.array([line.limits(slots) for line in some], np.int64).reshape(len(some), slots)
        ops = np.array([OPS[line.op] for line in some], np.int64)
        shape = Lines(tuple(line.name for line in some), ops, NOTHING_OWN, limits)
        self._shapes[slots, says.tobytes()] = shape
        return shape


def _per_item(rule: Named) -> bool:
    return rule.rule.frequency is not None and rule.rule.frequency.per == "item"


def _line(rule: Named) -> _Line:
    of: str | Test | None = None
    if rule.rule.quota is not None:
        quota = rule.rule.quota
        of = Is(quota.by, quota.value, type(quota.value))
    elif rule.key in ("cap", "spacing"):
        of = rule.by
    return _Line(rule.name, OF_KEY[rule.key], of, rule)


def _prefix_lines(surface: Surface) -> Iterator[_Line]:
    prefix = surface.fairness.prefix
    if prefix is not None:
        for name, op, group, share in prefixes(prefix.by, prefix.min, prefix.max):
            yield _Line(name, op, Called(prefix.by, group), share=share)
