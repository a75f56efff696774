"""From a request to the arrays a policy scores: candidates resolved, filtered, encoded; everything of the request checked.

What a request may ask is decided here, before anything is drawn or written; later stages trust what they get.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import cast

import numpy as np
from msgspec import UnsetType

from policies.counted import counted
from policies.errors import Rejected
from policies.features import Encoder
from policies.shortlist import WHOLE, Shortlist
from policies.surface import FeatureSpec, Surface
from policies.types import F32, I64, Features, Mask
from services.scoring import histories
from services.scoring.catalogue import Catalogue
from services.scoring.countings import Told, UnitCounts, given_in
from services.scoring.exposures import Shown
from services.scoring.inline import Inline, InlineReader
from services.scoring.lifting import Lifting
from services.scoring.ruling import Ruled, Ruler
from services.scoring.shortlisting import Cut, Names
from services.scoring.wire import Candidate, Columns, DecisionRequest


@dataclass(frozen=True, slots=True)
class Query:
    """A checked request: n candidates that may be shown.

    ids (n,)      in the order given, or of the catalogue
    items (n, d)  encoded;   context (c,)   encoded
    inline        whether any features came with the request, or were counted, so that the log must carry them
    pins          slot → row, None without any
    weights       objective → weight of the request, None when it names none
    ruled         what acts on the draw besides the scores, None of a surface without rules
    shortlist     how the candidates came out of more than `WHOLE` items, None: they are all that were eligible
    history       items of the unit's last interactions, oldest first; `past` (h, d) encoded. None of a surface that reads none
    """

    ids: Sequence[str]
    items: F32
    context: F32
    slots: int
    inline: bool
    pins: dict[int, int] | None
    weights: dict[str, float] | None
    history: Sequence[str] = ()
    past: F32 | None = None
    ruled: Ruled | None = None
    shortlist: Shortlist | None = None


class Reader:
    """Makes queries for one surface version. Built once for each; `read` is the hot path.

    inline         reads requests whose candidates come with features
    reads_history  some policy of the version reads what the unit did before
    trains         some policy of it has a trainer, which wants the candidates in the log
    """

    def __init__(
        self, surface: Surface, encoder: Encoder, *, reads_history: bool = False, trains: bool = False
    ) -> None:
        self._surface, self.encoder = surface, encoder
        self.ruler = Ruler(surface)
        self.inline = InlineReader(surface.surface, encoder)
        self.reads_history, self.trains = reads_history, trains
        self.counts_units, self.counts_items = UnitCounts(surface), tuple(counted(surface.features.items))
        self.counts = bool(self.counts_units or self.counts_items)
        self._columns = {
            name: _columns_of(encoder, name) for name in encoder.spec.items
        }  # where each feature stands in an encoded item
        self._counted = [encoder.item_columns[name].start for name in self.counts_items]

    def read(
        self,
        request: DecisionRequest,
        catalogue: Catalogue,
        known: Sequence[str] = (),
        shown: Shown | None = None,
        cut: Cut | None = None,
        lifting: Lifting | None = None,
        told: Told | None = None,
    ) -> Query:
        """`known`: items of the unit's history, where the request brings none; `shown`: what was shown before; `cut`: makes a
        shortlist of a large catalogue, which is refused without; `lifting`: what was released of who sees what; `told`: what was
        counted of the unit and of items.

        Raises Rejected with the path of what is wrong.
        """
        context = self.encoder.context(request.context if told is None else told.context(request.context))
        weights = self._weights(request.objectives) if request.objectives else None
        candidates = cast("list[str | Candidate] | Columns | Inline | None", request.candidates)
        inline: F32 | None = None
        if candidates is None:
            rows = catalogue.eligible(request.where)
            ids: Sequence[str] = Names(catalogue, rows)
            if len(rows) <= WHOLE:
                ids = list(ids)
            keep: Mask | None = None
        else:
            if isinstance(candidates, Inline | Columns):
                ids = candidates.ids
                path = "$.candidates" if isinstance(candidates, Inline) and candidates.listed else "$.candidates.ids"
            else:
                ids, path = cast("list[str]", candidates), "$.candidates"
            try:
                distinct = len(set(ids))
            except TypeError:  # some are objects, which do not hash
                ids = [c.id if isinstance(c, Candidate) else c for c in cast("list[str | Candidate]", candidates)]
                distinct = len(set(ids))
                inline = self._mixed(cast("list[str | Candidate]", candidates), catalogue)
            if distinct != len(ids):
                raise _duplicate(ids, path)
            rows = catalogue.rows(ids)
            if isinstance(candidates, Inline):
                inline = self._over(candidates.items, candidates.given, rows, catalogue)
            elif isinstance(candidates, Columns) and candidates.features:
                encoded = self.encoder.columns(candidates.features, len(ids), "$.candidates.features")
                inline = self._over(encoded, candidates.features, rows, catalogue)
            if inline is not None and told is not None:
                inline = inline.copy()  # the request may be asked again
                told.onto(inline, ids, given_in(candidates, self.counts_items))
            keep = None if catalogue.passes_all(request.where) else catalogue.passing(rows, request.where)
            if keep is not None and keep.all():
                keep = None
        if request.exclude:
            keep = _without(ids, request.exclude, keep)
        rules = not self.ruler.idle or bool(request.diversity)
        if rules:
            given = self.ruler.given(request, inline is not None)
            keep, narrowed = self.ruler.narrow(ids, rows, given, catalogue, keep, request.explain)
        if keep is not None:
            rows = rows[keep]
            if type(ids) is Names:
                ids = Names(catalogue, rows)
            else:
                stays = keep.tolist()
                ids = [*compress(ids, stays)]
                if rules and given:
                    given = {name: [*compress(values, stays)] for name, values in given.items()}
            inline = None if inline is None else inline[keep]
        if not ids:
            raise Rejected(
                "No candidate is left to show: none given, or none available that passes `where`, `exclude` and the surface's rules",
                at="$.candidates",
                code="no_candidates",
            )
        slots = request.slots or self._surface.slots
        short: Shortlist | None = None
        if type(ids) is Names:
            if len(ids) > WHOLE:
                short = self._shortlist(request, catalogue, known, ids, context, weights, slots, cut)
                rows = rows[short.positions]
            ids = [catalogue.id_of(row) for row in rows.tolist()]
        items = catalogue.matrix(self.encoder.schema).take(rows, axis=0) if inline is None else inline
        if inline is None and told is not None:
            told.onto(items, ids)
        pins = _pins(request.pins, ids, slots) if request.pins else None
        ruled = None
        if rules:
            pins, held, skipped = self.ruler.pins(pins, ids, slots)
            columns = self.encoder.item_columns
            ruled = self.ruler.ruled(
                request, ids, rows, items, columns, given, slots, catalogue, shown, narrowed, held, skipped, lifting
            )
        history, past = self._past(request, catalogue, known, ids, items)
        return Query(
            ids,
            items,
            context,
            slots,
            inline is not None or bool(self.counts_items),
            pins,
            weights,
            history,
            past,
            ruled,
            short,
        )

    def _shortlist(
        self,
        request: DecisionRequest,
        catalogue: Catalogue,
        known: Sequence[str],
        names: Names,
        context: F32,
        weights: dict[str, float] | None,
        slots: int,
        cut: Cut | None,
    ) -> Shortlist:
        """Of more than `WHOLE` eligible items. Raises Rejected."""
        if cut is None:
            raise Rejected(
                f"{len(names)} items are eligible, at most {WHOLE} can be ranked: narrow `where`, or send candidates",
                at="$.where",
                code="too_many_candidates",
            )
        matrix = catalogue.matrix(self.encoder.schema)
        history, past = self._past(request, catalogue, known, (), matrix[:0])
        score = cut.score

        def scores(items: F32) -> F32:
            assert score is not None  # asked for only then
            return score(Query((), items, context, slots, False, None, weights, history, past))

        forced = names.places([*request.pins.values(), *self.ruler.pinned])
        return cut.made(names.rows, matrix, slots, scores if score else None, forced)

    def _past(
        self, request: DecisionRequest, catalogue: Catalogue, known: Sequence[str], ids: Sequence[str], items: F32
    ) -> tuple[Sequence[str], F32 | None]:
        """(items, (h, d) encoded) of what the unit did before."""
        history: Sequence[str] = known
        if request.history is not None:
            history, rows = histories.given(request.history, self._surface, catalogue, ids)
        elif self.reads_history:
            rows = catalogue.rows(known)
        else:
            return (), None
        past = histories.encoded(history, rows, catalogue, self.encoder.schema, ids, items)
        if self.counts_items:  # a history says what items are, not how they are doing
            past[:, self._counted] = 0.0
        hashed = self._surface.history_hashed
        return (history, past) if isinstance(hashed, UnsetType) else histories.thinned(history, past, hashed)

    def _weights(self, wanted: Mapping[str, float]) -> dict[str, float]:
        known = self._surface.objectives
        for name in wanted:
            if name not in known:
                raise Rejected(
                    f"Unknown objective, expected one of: {', '.join(known) or 'none'}",
                    at=f"$.objectives.{name[:64]}",
                    code="unknown_objective",
                )
        if not any(wanted.values()):
            raise Rejected("Expected a weight other than 0", at="$.objectives")
        return dict(wanted)

    def _mixed(self, candidates: Sequence[str | Candidate], catalogue: Catalogue) -> F32 | None:
        """(n, d) of candidates of which some are objects; None when none of those brings features."""
        if not any(isinstance(c, Candidate) and c.features for c in candidates):
            return None
        given: list[Features] = [c.features if isinstance(c, Candidate) else {} for c in candidates]
        encoded = self.encoder.rows(given, "$.candidates")
        known = catalogue.rows([c.id if isinstance(c, Candidate) else c for c in candidates])
        stored = catalogue.matrix(self.encoder.schema)
        everything = len(self._columns)
        for place, (features, row) in enumerate(zip(given, known.tolist(), strict=True)):
            if row >= 0 and len(features) < everything:
                mine = stored[row].copy()
                for name in features:
                    mine[self._columns[name]] = encoded[place, self._columns[name]]
                encoded[place] = mine
        return encoded

    def _over(self, encoded: F32, given: Collection[str], rows: I64, catalogue: Catalogue) -> F32:
        """(n, d): features of the request over what the catalogue knows."""
        if len(given) < len(self._columns) and (rows >= 0).any():
            stored = catalogue.matrix(self.encoder.schema)[rows]
            for name in given:
                stored[:, self._columns[name]] = encoded[:, self._columns[name]]
            return stored
        return encoded


def _columns_of(encoder: Encoder, name: str) -> I64:
    alone = Encoder(FeatureSpec(items={name: encoder.spec.items[name]})).item_names
    places = {column: place for place, column in enumerate(encoder.item_names)}
    return np.array([places[column] for column in alone], np.int64)


def _without(ids: Sequence[str], exclude: Sequence[str], keep: Mask | None) -> Mask | None:
    """Excluded ids that are no candidates are no mistake: callers send what was seen lately."""
    if type(ids) is Names:
        return ids.without(exclude) if keep is None else keep & ids.without(exclude)
    gone = set(exclude)
    if gone.isdisjoint(ids):
        return keep
    stays: Mask = np.array([item not in gone for item in ids], bool)
    return stays if keep is None else keep & stays


def _pins(pins: Mapping[int, str], ids: Sequence[str], slots: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for slot, item in pins.items():
        at = f"$.pins.{slot}"
        if slot >= slots:
            raise Rejected(f"Expected a slot below {slots}", at=at, code="unknown_slot")
        try:
            row = ids.index(item)
        except ValueError:
            raise Rejected(
                "Pinned item is not among the candidates that may be shown", at=at, code="unknown_candidate"
            ) from None
        if row in found.values():
            raise Rejected("Item is pinned to two slots", at=at, code="duplicate_pin")
        found[slot] = row
    return found


def _duplicate(ids: Sequence[str], path: str) -> Rejected:
    seen: set[str] = set()
    for place, item in enumerate(ids):
        if item in seen:
            return Rejected(
                f"Candidate {item[:64]!r} is given twice", at=f"{path}[{place}]", code="duplicate_candidate"
            )
        seen.add(item)
    raise AssertionError("called with distinct ids")
