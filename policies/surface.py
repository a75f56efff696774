"""What a data scientist writes: surfaces, their features, objectives and policies. The types are the schema.

A surface document is immutable and named by the hash of its content (`semantics.md` 17): a change is a new version, and
every decision is joined, rewarded and weighted for its whole life by the version it names.
"""

import hashlib
import re
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from policies.errors import Rejected

Aggregate = Literal["sum", "max", "min", "mean", "first", "last"]
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(duration: str | float, at: str = "$") -> float:
    """Seconds of a duration such as `30m`, `1.5h`, `200ms` or a plain number. Raises Rejected."""
    if isinstance(duration, int | float):
        return float(duration)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", duration)
    if not found:
        raise Rejected(f"Expected a duration such as 30m, 24h or 200ms, got {duration!r}", at=at)
    return float(found[1]) * SECONDS[found[2]]


class Number(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="number"):
    """A number; `min` and `max` are the range it is scaled from, values outside are clipped."""

    min: float = 0.0
    max: float = 1.0


class Category(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="category"):
    """One of `values`; anything else is the reserved category `unseen`."""

    values: list[str]


class Bool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="bool"):
    """True or false."""


class Vector(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="vector"):
    """`size` numbers, used as they are after clipping to [-clip, clip]."""

    size: int
    clip: float = 10.0


class Count(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="count"):
    """Counted by the service: the slots, of decisions made within `window`, about which feedback of `kind` was heard, or which
    were seen (`shown`). In a context those of the unit, of an item those of the item; `max` encodes as 1 (`policies.counted`)."""

    kind: str
    window: str | float
    max: float = 100.0


class Rate(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="rate"):
    """Counted by the service: n of `kind` for m of `per`, as `Count` counts them, smoothed: (a + n) / (a + b + m) of `prior` [a, b].

    max  a rate as large as there are: it encodes as 1, unless the prior's is more than half of it (`policies.counted`)
    """

    kind: str
    window: str | float
    prior: tuple[float, float]
    per: str = "shown"
    max: float = 1.0


Counted = Count | Rate
Feature = Number | Category | Bool | Vector | Count | Rate


class FeatureSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Named, typed features of the context and the items, and the products of the two that models see."""

    context: dict[str, Feature] = {}
    items: dict[str, Feature] = {}
    cross: list[tuple[str, str]] = []  # (context feature, item feature)


class Objective(Struct, frozen=True, forbid_unknown_fields=True):
    """Feedback of one kind inside the horizon, made one number a slot.

    scale    multiplies the number when objectives are weighed against each other; the log and the sums hold it unscaled
    default  the reward of silence
    range    (low, high): values outside are clipped and counted; required where an interval or a gate uses the objective
    """

    kind: str
    aggregate: Aggregate = "sum"
    scale: float = 1.0
    default: float = 0.0
    better: Literal["higher", "lower"] = "higher"
    range: tuple[float, float] | None = None


class PolicySpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A named policy of a surface. `options` are the algorithm's own, checked against its Config.

    on_drift  what the evidence from before counts once the policy's residuals have drifted: 0.1, a tenth; UNSET: as much as ever
    """

    algorithm: str
    objective: str | None = None  # exactly one of objective, objectives; neither: the surface's first objective
    objectives: dict[str, float] | None = None
    options: dict[str, Any] = {}  # every further key of the YAML mapping lands here, see `streaming.configuration`
    on_drift: float | UnsetType = UNSET


class Segment(Struct, frozen=True, forbid_unknown_fields=True):
    """Requests whose context meets a condition, such as `country == 'de'`, and their exploration cap; `lend_up_to` as there."""

    when: str
    max_share: float
    lend_up_to: float | UnsetType = UNSET


class Exploration(Struct, frozen=True, forbid_unknown_fields=True):
    """The surface's exploration cap: expected non-greedy share of every slot. The first segment that is met has its own.

    lend_up_to  what of the cap slots left unused lets others explore up to this share (`reranking.exploration_budget`), by
                segment; UNSET: nothing is lent, the cap holds slot by slot
    """

    max_share: float = 1.0
    segments: list[Segment] = []
    lend_up_to: float | UnsetType = UNSET

    @property
    def least_share(self) -> float:
        """The smallest cap that any request meets."""
        return min([self.max_share, *(segment.max_share for segment in self.segments)])

    @property
    def lending(self) -> dict[str, tuple[float, float]]:
        """Segment, empty outside of all → (max_share, lend_up_to), of those that lend."""
        every = [("", self.max_share, self.lend_up_to), *((s.when, s.max_share, s.lend_up_to) for s in self.segments)]
        found: dict[str, tuple[float, float]] = {}
        for segment, cap, up_to in every:
            if not isinstance(up_to, UnsetType):
                found.setdefault(segment, (cap, up_to))
        return found


class Seen(Struct, frozen=True, forbid_unknown_fields=True):
    """Items that the unit was shown within the window are left out."""

    window: str | float


class Frequency(Struct, frozen=True, forbid_unknown_fields=True):
    """At most `cap` impressions of an item in the window: to one unit, or to all of them (`per: item`)."""

    cap: int
    window: str | float
    per: Literal["unit", "item"] = "unit"


class Quota(Struct, frozen=True, forbid_unknown_fields=True):
    """At least `min` items of a slate whose attribute `by` is `value`."""

    min: int
    by: str
    value: bool | float | str


class Rule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One business rule; exactly one key says which (see `policies/reranking/rules.py`).

    by    attribute of the catalogue or item feature, with `cap` and `spacing`
    slot  with `pin`
    name  what metrics and explanations call it; default: its key and what it is by
    """

    pin: str | None = None
    exclude: list[str] | None = None
    available: bool | None = None
    filter: str | None = None
    seen: Seen | None = None
    frequency: Frequency | None = None
    cap: int | None = None
    quota: Quota | None = None
    spacing: int | None = None
    by: str | None = None
    slot: int | None = None
    name: str | None = None


class Diversity(Struct, frozen=True, forbid_unknown_fields=True):
    """What an item loses for being like what the slate shows before it, in interquartile ranges of the request's scores.

    mmr       weight of the largest cosine to an item shown before, over the vector feature `over` (default: all features)
    coverage  weight of an attribute `by` whose value was shown before
    """

    mmr: float = 0.0
    over: str | None = None
    coverage: float = 0.0
    by: str | None = None


class Exposure(Struct, frozen=True, forbid_unknown_fields=True):
    """What groups of items are owed over many requests, see `policies/reranking/exposure.py`.

    by         attribute of the catalogue or item feature whose values are the groups; `item`: every item by itself
    target     equal, merit, or group → share; groups that a mapping does not name are owed nothing
    objective  rewards that merit is measured in; default: the surface's first objective
    window     what is owed leaks over it
    gain       K · (looks per sync): what share of what is owed a boost makes up for in one sync, below 1
    most       largest boost, in interquartile ranges of a request's scores
    positions  looks of each slot, never rising; default: 1 / log₂(t + 2)
    """

    by: str
    target: Literal["equal", "merit"] | dict[str, float] = "equal"
    objective: str | None = None
    window: str | float = "1h"
    gain: float = 0.3
    most: float = 2.0
    positions: list[float] = []


class ImpressionVariance(Struct, frozen=True, forbid_unknown_fields=True):
    """Who sees an item against who could have, over an attribute of people that only an aggregator knows, see
    `policies/reranking/impression_variance.py`.

    attribute   of people, told to the aggregator alone; `values` are its groups
    summary     context category that is not sensitive: all people of a value get the same boosts
    window      counts are released once in it, with noise
    counts, release, total   C of a unit in a window, ε of one release, ε of a unit and day: the `Privacy`
    controller  log gain, its growth with log age in releases, log shrink; default: as learned in `ads_world` with two groups,
                where an interquartile range of scores is 0.64
    most        largest boost, in interquartile ranges of a request's scores
    """

    attribute: str
    values: list[str]
    summary: str
    window: str | float = "3h"
    counts: int = 6
    release: float = 0.5
    total: float = 4.0
    controller: tuple[float, float, float] = (1.71, 0.18, -0.72)
    most: float = 4.0


class Prefix(Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of groups in every prefix of a slate: at least ⌊min · t⌋ and at most ⌈max · t⌉ of the first t slots."""

    by: str
    min: dict[str, float] = {}
    max: dict[str, float] = {}


class Fairness(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fairness between groups of items, and towards people, before the draw. It yields to rules."""

    exposure: Exposure | None = None
    prefix: Prefix | None = None
    impression_variance: ImpressionVariance | None = None


class Logging(Struct, frozen=True, forbid_unknown_fields=True):
    """Share of decisions logged with everything the draw read and its full distributions."""

    sample: float = 0.01


class Hashed(Struct, frozen=True, forbid_unknown_fields=True):
    """A long history in few rows: the `newest` interactions, and of those before one of each of `rows` groups of alike items
    (`policies.hashed`). Up to `newest` + `rows` interactions all are kept."""

    newest: int = 192
    rows: int = 64


class Surface(Struct, frozen=True, forbid_unknown_fields=True):
    """One place where slates are shown.

    silence          what a decision teaches before its horizon has passed: `eager`: the reward it has so far; `wait`: nothing;
                     `corrected`: that reward, by the share of feedback that has come at its age (`policies.corrected`)
    session_timeout  a unit's sequence of decisions ends when the log's time has passed this long without another one
    history          most of a unit's last interactions that policies read; 0: none
    history_kinds    kinds of feedback that are interactions; none named: all
    history_hashed   how a long history is read and recorded, in few rows; UNSET: every interaction is a row
    untaught         policies that do not learn from decisions of this version: those of an experiment's other arms
    examination      how often slots are looked at (`policies.examination`): none (not asked), estimated, or of each slot
    examined         what was estimated, of each slot relative to the first: recorded beside the document (`streaming.adjusting`)
    resets           policy → what each reset so far left of the evidence before it: recorded likewise

    What may be UNSET is then left out of the version's hash, which so is what it was before there was such a field.
    """

    surface: str
    slots: int = 10
    horizon: str | float = "30m"
    correctable: str | float = "24h"
    session_timeout: str | float = "30m"
    history: int = 50
    history_kinds: list[str] = []
    silence: Literal["eager", "wait", "corrected"] = "eager"
    credit: Literal["equal", "clicked"] = "equal"
    features: FeatureSpec = FeatureSpec()
    objectives: dict[str, Objective] = {}
    kinds: list[str] = []  # feedback kinds accepted besides the objectives' own
    policies: dict[str, PolicySpec] = {}
    live: str | None = None
    fallback: Literal["given_order", "popular", "uniform"] = "given_order"
    rules: list[Rule] = []
    diversity: Diversity = Diversity()
    fairness: Fairness = Fairness()
    exploration: Exploration = Exploration()
    logging: Logging = Logging()
    learn_pins: bool = False
    untaught: list[str] = []
    examination: Literal["none", "estimated"] | list[float] | UnsetType = UNSET
    examined: list[float] | UnsetType = UNSET
    history_hashed: Hashed | UnsetType = UNSET
    resets: dict[str, list[float]] | UnsetType = UNSET

    @property
    def horizon_seconds(self) -> float:
        return seconds(self.horizon, "$.horizon")

    @property
    def correctable_seconds(self) -> float:
        return seconds(self.correctable, "$.correctable")

    @property
    def session_timeout_seconds(self) -> float:
        return seconds(self.session_timeout, "$.session_timeout")

    @property
    def history_rows(self) -> int:
        """Most rows that policies read of a history."""
        hashed = self.history_hashed
        return self.history if isinstance(hashed, UnsetType) else min(self.history, hashed.newest + hashed.rows)

    @property
    def feedback_kinds(self) -> frozenset[str]:
        """Kinds a feedback on this surface may have; `shown` is reserved and always there."""
        return frozenset({o.kind for o in self.objectives.values()} | set(self.kinds) | {"shown"})

    @property
    def slot_examination(self) -> list[float] | None:
        """How often each slot is looked at, as learners are taught by it; None: by no such thing."""
        given = self.examined if self.examination == "estimated" else self.examination
        return given[: self.slots] if isinstance(given, list) and given else None

    def resets_of(self, policy: str) -> tuple[float, ...]:
        """What each reset of a policy left of the evidence before it."""
        return () if isinstance(self.resets, UnsetType) else tuple(self.resets.get(policy, ()))

    @property
    def objective_names(self) -> tuple[str, ...]:
        """The order of objectives in every array."""
        return tuple(self.objectives)


def content_hash(document: Any) -> str:
    """16 hex digits of BLAKE2b over the canonical JSON (sorted keys) of a document."""
    return hashlib.blake2b(msgspec.json.encode(document, order="sorted"), digest_size=8).hexdigest()
