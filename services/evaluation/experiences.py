"""Our own log as logged decisions: settled rows of Parquet files, or of the log of a data folder, settled once more in memory.

Features are those of the row: the context and the slate's items always, all candidates when the decision was sampled or brought
features with it. For the others the catalogue of the data folder says them, as long as no candidate was written since; what
the row says of the items shown must agree with it.

Set aside, and counted:

    no_slots            nothing was shown
    candidates_dropped  the record was too large to name them
    never_shown         prefetched, and nobody saw it
    features_unknown    a target that reads features, and candidates of which the log has only ids
    features_changed    the catalogue has been written since
    rules_unknown       rules acted on the draw, and only samples hold what they did
    and those of `decisions.sound`
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies.errors import Rejected
from policies.features import Encoder
from policies.reranking.within import Within
from policies.surface import Surface
from policies.types import F32, F64, I64, DrawSettings, Mask
from services.evaluation.decisions import Log, LoggedDecision, Placed, Rejections, no_features, no_rules, sound
from services.evaluation.known_items import KnownItems
from services.evaluation.other_rules import OtherRules, stateful
from streaming.events import Goal

Row = Mapping[str, Any]


@dataclass
class Columns:
    """Where the columns of a target's encoding stand in the encoding of a surface version: by name."""

    context: I64
    items: I64

    @classmethod
    def of(cls, wanted: Encoder, context: list[str], items: list[str]) -> "Columns":
        """Raises Rejected for a column that the log has not."""
        places = []
        for side, names, there in (("context", wanted.context_names, context), ("items", wanted.item_names, items)):
            at = {name: place for place, name in enumerate(there)}
            for name in names:
                if name not in at:
                    raise Rejected(
                        f"The log was encoded without the column {name!r}: a policy is evaluated on features it had then",
                        at=f"$.features.{side}.{name}",
                        code="unknown_feature",
                    )
            places.append(np.array([at[name] for name in names], np.int64))
        return cls(*places)


@dataclass
class Reader:
    """Rows to decisions of one surface. `encoder`: the target's; None: that of the surface version."""

    versions: Any
    rejected: Rejections
    encoder: Encoder | None
    needs_features: bool
    needs_rules: Callable[[Surface], bool]
    items: KnownItems | None = None
    without_features: int = 0
    modes: dict[str, int] = field(default_factory=dict)
    placed: list[Placed] = field(default_factory=list)
    _columns: dict[str, Columns] = field(default_factory=dict)
    _encoders: dict[str, Encoder] = field(default_factory=dict)

    def read(self, row: Row) -> LoggedDecision | None:
        where = f"decision {row['decision_id']}"
        one = self._decision(row, where)
        reason = one if isinstance(one, str) else sound(one)
        self.placed.append(_placed(row, reason, self.versions.of(row).surface.session_timeout_seconds))
        if reason:
            self.rejected.add(reason, where)
            return None
        assert isinstance(one, LoggedDecision)
        self.modes[row["mode"]] = self.modes.get(row["mode"], 0) + 1
        return one

    def _decision(self, row: Row, where: str) -> LoggedDecision | str:
        if not row["slate"]:
            return "no_slots"
        if row["dropped"] or not row["candidates"]:
            return "candidates_dropped"
        if row["deferred"] and not any(row["viewed"]):
            return "never_shown"
        rows, pinned = np.array(row["candidate_rows"], np.int64), np.array(row["pinned"], bool)
        n = len(row["candidates"])
        if len(rows) != len(row["slate"]) or rows.min(initial=0) < 0 or rows.max(initial=0) >= n:
            return "bad_slate"
        acted = bool(row["acted"]) or not _explained(row["remaining"], n, pinned)
        if acted and row["sample_rate"] is None and self.needs_rules(self.versions.of(row).surface):
            return "rules_unknown"
        known = self._features(row)
        if self.needs_features and isinstance(known, str):
            self.without_features += known == "features_unknown"
            return known
        context, items = (None, None) if isinstance(known, str) else known
        version = self.versions.of(row)
        names = list(version.surface.objectives)
        k = len(row["slate"])
        full = row["distributions"]
        if full is None and row["policy"] == "uniform" and not acted:
            full = uniform_over(rows, n, pinned)
        return LoggedDecision(
            decision_id=row["decision_id"],
            unit=row["unit"],
            at=row["decided_at"].timestamp(),
            candidates=row["candidates"],
            slots=np.array(row["slots"], np.int64),
            rows=rows,
            propensities=np.array(row["propensities"], float),
            rewards=np.column_stack([row["rewards"][name] for name in names]) if names else np.zeros((k, 0)),
            pinned=pinned,
            present=np.array(row["present"], bool),
            context=context,
            items=items,
            distributions=None if full is None else np.array(full, float).reshape(k, n),
            greedy=np.array(row["greedy"], np.int64),
            settings=DrawSettings(row["head"], row["epsilon"], row["max_share"], row["temperature"]),
            boosts=_array(row["boosts"], np.float64),
            masks=_array(row["masks"], np.bool_),
            within=_within(row["within"], n, row["asked"]),
            asked=row["asked"],
            weights=row["weights"],
            history=row["history_items"],
            past=None if isinstance(known, str) else self._past(row),
            slot_weight=row["weight"],
            policy=row["policy"],
            bundle=row["bundle"],
            config=row["config"],
            goal=None if row["goal"] is None else Goal(**row["goal"]),
            remaining=np.array(row["remaining"], np.int64),
            place=(row["log_partition"], row["log_offset"]),
            catalogue=row["catalogue"],
        )

    def _past(self, row: Row) -> F32 | None:
        """(h, d) of the unit's interactions, in the target's columns."""
        columns, own = self._columns[row["config"]], self._encoders[row["config"]]
        if row["history"] is None or not len(columns.items):
            return None
        return np.array(row["history"], np.float32).reshape(-1, own.item_size)[:, columns.items]

    def _features(self, row: Row) -> tuple[F32, F32 | Callable[[], F32]] | str:
        version = self.versions.of(row)
        config = row["config"]
        if config not in self._columns:
            own = self._encoders[config] = Encoder(version.surface.features)
            if self.encoder is None:
                self.encoder = own
            self._columns[config] = Columns.of(self.encoder, list(version.context), list(version.items))
        columns, own = self._columns[config], self._encoders[config]
        assert self.encoder is not None  # set above
        context = np.array(row["context"], np.float32)
        if len(context) != own.context_size:
            return "features_unknown"
        context = context[columns.context]
        n = len(row["candidates"])
        if not len(columns.items):
            return context, np.zeros((n, 0), np.float32)
        if row["candidate_features"] is not None:
            items = np.array(row["candidate_features"], np.float32).reshape(n, -1)
            return (context, items[:, columns.items]) if items.shape[1] == own.item_size else "features_unknown"
        if self.items is None or not len(self.items):
            return "features_unknown"
        places = self.items.rows(row["candidates"], row["catalogue"])
        if places is None:
            return "features_changed"
        for encoder in (self.encoder, own):
            self.items.catalogue.attach(encoder)
        matrix = self.items.catalogue.matrix
        shown = matrix(own.schema)[places[row["candidate_rows"]]]
        if not np.array_equal(shown, np.array(row["features"], np.float32).reshape(shown.shape)):
            return "features_changed"
        return context, lambda: matrix(self.encoder.schema)[places]


def read_experiences(
    rows: Iterator[Row],
    versions: Any,
    *,
    name: str,
    encoder: Encoder | None = None,
    needs_features: bool = False,
    needs_rules: bool = False,
    needs_history: bool = False,
    items: KnownItems | None = None,
    sampled: bool = False,
    rules: OtherRules | None = None,
    reader: str = "this target",
) -> Log:
    """Rows of one surface. `needs_features`: the target reads them; `needs_rules`: it follows what acted on the logged draw;
    `needs_history`: it reads what units did before; `sampled`: only decisions logged with all the draw read; `rules`: others that
    the target draws under; `reader`: who reads features, for the message where there are none.

    Raises Rejected for rows of several surfaces, of objectives that differ, where a target meets decisions that lack what it
    needs, and for other rules that this log cannot answer for.
    """
    rejected, seen = Rejections(), 0

    def needing(surface: Surface) -> bool:
        return needs_rules and (rules is None or bool(stateful(surface)))

    reading = Reader(versions, rejected, encoder, needs_features, needing, items)
    surface = objectives = None
    decisions = []
    ranges: dict[str, tuple[float, float]] = {}
    unsampled, remembered = 0, False
    documents: dict[str, Surface] = {}
    for row in rows:
        seen += 1
        if surface is not None and row["surface"] != surface:
            raise Rejected(
                f"The log has decisions of {surface} and of {row['surface']}", at="--surface", code="several_surfaces"
            )
        surface = row["surface"]
        if sampled and row["sample_rate"] is None:
            unsampled += 1
            continue
        documents[row["config"]] = versions.of(row).surface
        said = documents[row["config"]].objectives
        if objectives is not None and tuple(said) != objectives:
            raise Rejected(
                f"The objectives changed from {', '.join(objectives)} to {', '.join(said)}",
                at="--since",
                code="objectives_changed",
            )
        objectives = tuple(said)
        ranges |= {name: one.range for name, one in said.items() if one.range is not None}
        one = reading.read(row)
        if one is not None:
            decisions.append(one)
            remembered |= bool(one.history)
    if rejected.counts["rules_unknown"]:
        raise no_rules(rejected.counts["rules_unknown"], seen)
    if reading.without_features:
        raise no_features(reading.without_features, seen, reader)
    if needs_history and decisions and not remembered:
        raise Rejected(
            "The target reads what units did before, and no decision of the log holds a history: its surface had no policy that "
            "reads them, or nobody had done anything yet",
            at="--policy",
            code="no_history",
        )
    decisions.sort(key=lambda one: one.at)
    notes = [f"{n} decisions of mode {mode}" for mode, n in sorted(reading.modes.items())]
    if unsampled:
        notes.append(f"{unsampled} decisions that were not sampled left out: a random part, by --sampled")
    if rules is not None:
        rules.begin(documents, items, reading.encoder)
    parts = sorted({part for document in documents.values() for part in stateful(document)})
    if parts:
        notes.append(
            f"Before the draw acted what was shown before ({', '.join(parts)}): every value is of one step at the logged counters; what a "
            "target would have made of them is not in the log"
        )
    return Log(
        "experiences",
        surface or name,
        decisions,
        rejected,
        objectives or (),
        ranges,
        reading.encoder,
        notes,
        placed=reading.placed,
    )


def _placed(row: Row, reason: str, timeout: float) -> Placed:
    return Placed(
        row["decision_id"],
        row["unit"],
        row["session"] or "",
        row["decided_at"].timestamp(),
        row["settled_at"].timestamp(),
        timeout,
        row["log_partition"],
        row["number"],
        reason,
    )


def uniform_over(rows: I64, n: int, pinned: Mask) -> F64:
    """(k, n): every candidate that is left and pinned nowhere equally likely; a pin certain."""
    out = np.zeros((len(rows), n))
    free = np.ones(n, bool)
    free[rows[pinned]] = False
    for t, row in enumerate(rows.tolist()):
        if pinned[t]:
            out[t, row] = 1.0
        else:
            out[t, free] = 1.0 / max(1, int(free.sum()))
            free[row] = False
    return out


def _explained(remaining: list[int], n: int, pinned: Mask) -> bool:
    """Whether as many candidates were left at every slot as without masks."""
    left = n - int(pinned.sum())
    for count, pin in zip(remaining, pinned.tolist(), strict=True):
        if pin:
            continue
        if count != left:
            return False
        left -= 1
    return True


def _within(said: Mapping[str, Any] | None, n: int, k: int) -> Within | None:
    if said is None:
        return None
    codes = {
        name: np.array(said[name], np.int64).reshape(-1, width)
        for name, width in (("codes", n), ("limits", k), ("covers", n))
    }
    vectors = np.array(said["vectors"], np.float32).reshape(-1, n)
    return Within(
        np.array(said["ops"], np.int64),
        codes["codes"],
        codes["limits"],
        np.array(said["weights"], float),
        codes["covers"],
        vectors,
    )


def _array(values: Any, kind: type[np.generic]) -> Any:
    return None if values is None else np.array(values, kind)
