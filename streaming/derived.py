"""Counters and profiles: what a partition's joined decisions and feedback come to, beside what is learned from them.

    counters  tenant/surface/all/exposures            slots that people saw (as learning counts them: `presence`)
              tenant/surface/all/reward/watch         the objective's rewards of those slots, summed
              tenant/surface/item/<id>/…              the same of one item
              tenant/surface/policy/<name>/…          the same of the slates that one policy drew
              tenant/surface/group/genre/jazz/…       the same of the items with a category's value
    counters  tenant/surface/exposure/<by>/<group>/…    looks that a group of items was delivered, entitled to and drawn, and what it is
                                                    worth, Σ r/p (`streaming.exposed`)
    counters  tenant/surface/exploration/<segment>/<window>/…   what of the exploration cap was left, and used beyond it (`streaming.strayed`)
    profiles  a unit's last interactions: (at, item, kind, value), oldest first, as feedback in force says

and what people were shown, where rules ask for it (`streaming.shown`), and what features have counted (`streaming.counted`).

Both follow corrections and retractions: a counter moves by what a decision's evidence moves, a profile holds what a
decision's feedback says now. Memory is bounded: of counters and of units the least recently touched is forgotten, and of a
unit all but its last interactions, which a retraction does not bring back.

Counters are committed with the offset they are of, so each decision counts once; when the derivation was switched off for
a while they begin again at 0, and so do the counts of units. Profiles can be read again from the joins that are still open
(`semantics.md` 13); of a lost disk so are the counts of units, which then know nothing of decisions before.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from urllib.parse import quote

import numpy as np

from policies.surface import Category
from policies.types import F64, Arrays
from streaming import exposed, strayed
from streaming.applied import Touched
from streaming.counted import KEPT_WINDOWS, SUFFIX, counts_key, moves, with_moves
from streaming.index import id_hash
from streaming.joined import SHOWN, WHOLE, Terms, in_force
from streaming.ledger import Ledger
from streaming.profiles import read_acts, write_profile
from streaming.shown import remembers_units, shown_key, window_name, with_decision

PREFIX = "derived/"  # of the keys in a commit's statistics; no learner key begins so
HEAD, COUNTERS, PROFILES = PREFIX + "head", PREFIX + "counters/", PREFIX + "profiles/"
EXPOSURES = "exposures"
HISTORY = 20  # interactions kept of a unit where no surface reads more


_quoted = lru_cache(100_000)(quote)


def counter_name(*parts: str) -> str:
    """`default/home/item/a%2Fb/exposures`: parts may hold anything."""
    return "/".join([_quoted(part, "") for part in parts])


class Derived:
    """One partition's counters and profiles, in memory; a pure function of the joins it is shown, and their order.

    history   interactions kept of a unit, some 60 bytes each; asked each time where surfaces may change it
    units     units kept of the partition;   names   counters kept of it
    """

    def __init__(
        self, *, history: int | Callable[[], int] = HISTORY, units: int = 20_000, names: int = 200_000
    ) -> None:
        self._history = history if callable(history) else lambda: history
        self.counters: Ledger[float] = Ledger(COUNTERS, float, limit=names, piece=256)
        self.profiles: Ledger[bytes] = Ledger(PROFILES, bytes, limit=units, piece=16)
        self._groups: dict[str, list[tuple[str, int]]] = {}  # encoder schema → (name, item column)

    def restore(self, statistics: Mapping[str, Arrays], offset: int) -> bool:
        """Go on from a commit's arrays; False when they are of another offset: counters then begin at 0, for half a count
        would be taken for a whole one. Profiles keep what they know, but for counts of units."""
        whole = HEAD in statistics and int(statistics[HEAD]["offset"][0]) == offset
        counters = {key: piece for key, piece in statistics.items() if key.startswith(COUNTERS)}
        self.counters.restore(counters, keep=whole)
        self.profiles.restore({key: piece for key, piece in statistics.items() if key.startswith(PROFILES)})
        for name in [] if whole else [name for name in self.profiles.values() if name.endswith(SUFFIX)]:
            self.profiles.take(name)
        return whole

    def take(self, touched: Sequence[Touched], *, counting: bool = True) -> None:
        """What a batch has touched. Without `counting` it was counted before, and its joins are only read again."""
        if counting:
            groups: dict[str, list[Touched]] = defaultdict(list)
            for one in touched:
                if one.present != one.present_before or one.rewards != one.rewards_before:
                    assert one.join.drawn is not None  # only decisions are touched
                    groups[one.join.drawn.config + one.join.drawn.tenant].append(one)
            for group in groups.values():
                self._count(group[0].terms, group)
        for one in touched:
            if one.join.heard:
                self._remember(one)
            if counting and one.join.drawn is not None and one.join.drawn.exposed is not None:
                for kind, by in exposed.moved(one).items():
                    name = counter_name(one.join.drawn.tenant, one.terms.surface, *kind)
                    self._add(name, exposed.MEASURES, by)
            if counting and one.join.drawn is not None and one.join.drawn.strayed is not None:
                place = one.join.drawn.tenant, one.terms.surface
                for window, by in strayed.moved(one).items():
                    self._add(counter_name(*place, *window), strayed.MEASURES, by)
                    for measure in strayed.MEASURES:
                        self.counters.take(counter_name(*place, *strayed.gone(window), measure))
            asked = one.terms.compiled.surface.rules or one.terms.windows
            if asked and (one.present != one.present_before or not counting):
                self._expose(one, counting)
            if one.terms.counted is not None:
                self._count_lately(one, counting)

    def forget(self, units: Iterable[str]) -> None:
        """Take away units' profiles, what they were shown, and their counts. Counters know no units and stay."""
        for unit in units:
            for name in (unit, shown_key(unit), counts_key(unit)):
                self.profiles.take(name)

    def pieces(self, offset: int) -> dict[str, Arrays]:
        """For the commit that reaches `offset`: what has changed since the last one."""
        return self._head(offset) | self.counters.pieces() | self.profiles.pieces()

    def committed(self) -> None:
        self.counters.committed()
        self.profiles.committed()

    def sums(self) -> list[str]:
        """Keys of all that an upload holds: counters, for profiles are read again from the joins."""
        return [HEAD, *self.counters.keys()]

    def sum(self, key: str, offset: int) -> Arrays:
        """What an upload that stands at `offset` holds under a key."""
        return self._head(offset)[HEAD] if key == HEAD else self.counters.piece(key)

    def _head(self, offset: int) -> dict[str, Arrays]:
        return {HEAD: {"offset": np.array([offset])}}

    def _count(self, terms: Terms, group: Sequence[Touched]) -> None:
        """Exposures and rewards of one surface version, moved by what changed."""
        drawn = [one.join.drawn for one in group if one.join.drawn is not None]
        slates = [one.slate for one in drawn]
        filled = [len(slate) for slate in slates]
        moved = np.zeros((sum(filled), 1 + terms.objectives))
        moved[:, 0] += _present([one.present for one in group], filled)
        moved[:, 0] -= _present([one.present_before for one in group], filled)
        moved[:, 1:] += _rewards([one.rewards for one in group], filled, terms.objectives)
        moved[:, 1:] -= _rewards([one.rewards_before for one in group], filled, terms.objectives)
        surface = counter_name(drawn[0].tenant, terms.surface)
        measures = [EXPOSURES, *(f"reward/{_quoted(name, '')}" for name in terms.compiled.surface.objective_names)]
        self._add(f"{surface}/all", measures, moved.sum(axis=0).tolist())
        policies = chain.from_iterable([one.policy] * k for one, k in zip(drawn, filled, strict=True))
        for kind, labels in (("item", list(chain.from_iterable(slates))), ("policy", list(policies))):
            places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
            sums = np.zeros((len(places), len(measures)))
            np.add.at(sums, list(map(places.__getitem__, labels)), moved)
            for label, row in zip(places, sums.tolist(), strict=True):
                self._add(f"{surface}/{kind}/{_quoted(label, '')}", measures, row)
        categories = self._categories(terms)
        if categories:
            items = np.frombuffer(b"".join(one.shown for one in drawn), "<f4").reshape(len(moved), -1)
            sums = items[:, [column for _, column in categories]].T.astype(np.float64) @ moved
            for (name, _), row in zip(categories, sums.tolist(), strict=True):
                self._add(f"{surface}/group/{name}", measures, row)

    def _add(self, name: str, measures: Sequence[str], moved: Sequence[float]) -> None:
        for measure, by in zip(measures, moved, strict=True):
            if by:
                full = f"{name}/{measure}"
                now = (self.counters.get(full) or 0.0) + by
                if now:
                    self.counters.put(full, now)
                else:
                    self.counters.take(full)

    def _categories(self, terms: Terms) -> list[tuple[str, int]]:
        """(feature/value, item column) of the surface version's item categories; a column is 1 where an item has the value."""
        encoder = terms.compiled.encoder
        if encoder.schema not in self._groups:
            self._groups[encoder.schema] = [
                (counter_name(name, encoder.item_names[column][len(name) :].removeprefix("=")), column)
                for name, feature in encoder.spec.items.items()
                if isinstance(feature, Category)
                for column in range(encoder.item_columns[name].start, encoder.item_columns[name].stop)
            ]
        return self._groups[encoder.schema]

    def _remember(self, one: Touched) -> None:
        """A decision's feedback as it is now, among the unit's last interactions."""
        join, drawn = one.join, one.join.drawn
        assert drawn is not None  # only decisions are touched
        decision, until = id_hash(join.key), drawn.at + one.terms.horizon
        before = self.profiles.get(drawn.unit)
        kept = [act for act in read_acts(before) if act[4] != decision] if before else []
        for versions in join.heard.values():
            said = in_force(versions, until)
            if said is not None and said.kind != SHOWN and len(said.positions) == 1:
                kept.append((said.at, drawn.slate[said.positions[0]], said.kind, said.value, decision))
        if kept:
            profile = write_profile(sorted(kept)[-self._history() :] if len(kept) > 1 else kept)
            if profile != before:
                self.profiles.put(drawn.unit, profile)
        else:
            self.profiles.take(drawn.unit)

    def _expose(self, one: Touched, counting: bool) -> None:
        """What the unit was shown of a decision, and its items' impressions, where rules ask for them."""
        drawn, surface = one.join.drawn, one.terms.compiled.surface
        assert drawn is not None  # only decisions are touched
        present = one.present or bytes(len(drawn.slate))
        if remembers_units(surface):
            name = shown_key(drawn.unit)
            before = self.profiles.get(name)
            seen = [id_hash(item) for item, here in zip(drawn.slate, present, strict=True) if here]
            shown = with_decision(before, id_hash(one.join.key), drawn.at, seen)
            if shown and shown != before:
                self.profiles.put(name, shown)
            elif not shown:
                self.profiles.take(name)
        before_by_slot = one.present_before or bytes(len(drawn.slate))
        for window in one.terms.windows if counting else ():
            for item, now, was in zip(drawn.slate, present, before_by_slot, strict=True):
                self._add_lately(one, item, window, EXPOSURES, now - was)

    def _count_lately(self, one: Touched, counting: bool) -> None:
        """What was said of a decision, in the windows in which features count it of items and of the unit."""
        drawn, asked = one.join.drawn, one.terms.counted
        assert drawn is not None  # only decisions are touched
        assert asked is not None  # asked before
        moved = moves(len(drawn.slate), (one.present_before, one.present), (one.said_before, one.said))
        if not moved:
            return
        heard = [each for each in moved if each.kind != SHOWN and each.position != WHOLE]  # impressions: see `_expose`
        for kind, window in asked.items if counting else ():
            for each in heard:
                if each.kind == kind:
                    self._add_lately(one, drawn.slate[each.position], window, f"kind/{kind}", each.by)
        if asked.units:
            name = counts_key(drawn.unit)
            before = self.profiles.get(name)
            after = with_moves(before, one.terms.surface, asked.units, drawn.at, moved)
            if after and after != before:
                self.profiles.put(name, after)

    def _add_lately(self, one: Touched, item: str, window: int, measure: str, by: int) -> None:
        """To an item's count in the fixed window of a decision. A window that nothing slides over any more makes room."""
        drawn = one.join.drawn
        if not by or drawn is None:
            return
        prefix, number = counter_name(drawn.tenant, one.terms.surface), int(drawn.at // window)
        self._add(f"{prefix}/{window_name(_quoted(item, ''), window, number)}", [measure], [by])
        self.counters.take(f"{prefix}/{window_name(_quoted(item, ''), window, number - KEPT_WINDOWS)}/{measure}")


def derived_of(statistics: dict[str, Arrays]) -> dict[str, Arrays]:
    """Take what is derived out of a commit's statistics, and give it."""
    return {key: statistics.pop(key) for key in list(statistics) if key.startswith(PREFIX)}


def _present(packed: Sequence[bytes], filled: Sequence[int]) -> F64:
    """(N,) of 0 and 1."""
    if not any(packed):
        return np.zeros(sum(filled))
    whole = b"".join([some or bytes(k) for some, k in zip(packed, filled, strict=True)])
    return np.frombuffer(whole, np.uint8).astype(np.float64)


def _rewards(packed: Sequence[bytes], filled: Sequence[int], objectives: int) -> F64:
    """(N, o)."""
    if not any(packed):
        return np.zeros((sum(filled), objectives))
    whole = b"".join([some or bytes(8 * k * objectives) for some, k in zip(packed, filled, strict=True)])
    return np.frombuffer(whole, np.float64).reshape(sum(filled), objectives)
