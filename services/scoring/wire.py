"""What callers send and get: msgspec types that are the schema, and errors that name a path.

Limits stand here and nowhere else: they are in the OpenAPI document because the types carry them.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from policies.errors import Rejected
from policies.reranking import diversity
from policies.types import Value

MAX_CANDIDATES = 5_000  # in a request: above it a slate takes more than 20 ms
MAX_SLOTS = 100
MAX_HISTORY = 2_000
MAX_BATCH = 256
MAX_FEEDBACK = 1_000
MAX_ITEMS = 10_000  # of one PUT
MAX_VALUE = 1e9  # a reward enters sums squared: above it float64 loses everybody else's
MAX_WEIGHT = 1e6
MAX_DIVERSITY = diversity.MAX_WEIGHT
DECISION_BYTES, BATCH_BYTES, FEEDBACK_BYTES, ITEMS_BYTES = 2 << 20, 8 << 20, 2 << 20, 8 << 20
LARGE_BODY_BYTES = 64 << 10  # above it the event loop is yielded before and after decoding

Id = Annotated[str, Meta(min_length=1, max_length=256)]
OwnId = Annotated[
    str, Meta(min_length=1, max_length=128, description="The caller's own id: makes the request repeatable")
]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Time = Annotated[
    float | Annotated[str, Meta(min_length=1, max_length=64, extra_json_schema={"format": "date-time"})],
    Meta(description="RFC 3339 with an offset, or epoch seconds"),
]
Scalar = bool | float | str
Weight = Annotated[float, Meta(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
Slot = Annotated[int, Meta(ge=0, lt=MAX_SLOTS)]
FeatureMap = dict[str, Value]


class _Strict(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Unknown fields are refused, by path."""


class Candidate(_Strict):
    """An item by id, with features that win over the catalogue's."""

    id: Id
    features: FeatureMap = {}


class Columns(_Strict):
    """Candidates as columns: every feature a list as long as `ids`."""

    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    features: dict[str, list[Value]] = {}


class Interaction(_Strict):
    """One thing the unit did before, as the caller knows it."""

    item: Id
    kind: Name


class Interactions(_Strict):
    """The same as columns, several times faster to read: `kinds` as long as `items`, or one kind that all have."""

    items: Annotated[list[Id], Meta(max_length=MAX_HISTORY)]
    kinds: Annotated[list[Name], Meta(max_length=MAX_HISTORY)] | Name


class DecisionRequest(_Strict):
    """Ask for a slate. `history`, oldest first, stands for what the service knows of the unit; none: that is read."""

    surface: Id
    unit: Id
    session: Id | None = None
    decision_id: OwnId | None = None
    context: FeatureMap = {}
    history: Annotated[list[Interaction], Meta(max_length=MAX_HISTORY)] | Interactions | None = None
    candidates: Annotated[list[Id | Candidate], Meta(min_length=1, max_length=MAX_CANDIDATES)] | Columns | None = None
    where: dict[str, Scalar | list[Scalar]] = {}
    slots: Annotated[int, Meta(ge=1, le=MAX_SLOTS)] | None = None
    exclude: Annotated[list[Id], Meta(max_length=MAX_CANDIDATES)] = []
    pins: Annotated[dict[Slot, Id], Meta(max_length=MAX_SLOTS)] = {}
    objectives: dict[str, Weight] = {}
    diversity: dict[Literal["mmr", "coverage"], Annotated[float, Meta(ge=0, le=MAX_DIVERSITY)]] = {}
    deadline_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None
    explain: bool = False
    defer: bool = False


class SlotAnswer(Struct):
    """One filled slot; `propensity` is conditional on the slots before it."""

    slot: int
    id: str
    propensity: float


class Explanation(Struct, omit_defaults=True):
    """Why a candidate stood where it stood.

    score, spread   mean and standard deviation of its posterior scores
    boost, boosts   what was added to its scores, and by source
    rules           rules that acted on it: `pinned`, and those that did not let it through in some slot
    masked          rule → slots in which it did not let the candidate through
    penalties       what diversity took from its scores before each filled slot
    steps           probability in the first slot that was drawn after each step: model, rules, boosts, diversity, floor, cap
    probabilities   in each filled slot, given the slots before: as it was drawn
    """

    id: str
    score: float
    spread: float
    boost: float = 0.0
    rules: list[str] = []
    boosts: dict[str, float] = {}
    masked: dict[str, list[int]] = {}
    penalties: list[float] = []
    steps: dict[str, float] = {}
    probabilities: list[float] = []


class RulesExplained(Struct, omit_defaults=True):
    """What rules did to the request as a whole.

    acted    rules that changed who could be drawn
    relaxed  rule → slots for which it was passed over, or in which a quota that was due was not reached
    skipped  rule → why it could not be asked
    removed  rule → candidates it took out before anything was scored
    """

    acted: list[str] = []
    relaxed: dict[str, list[int]] = {}
    skipped: dict[str, str] = {}
    removed: dict[str, list[str]] = {}


class ExplorationExplained(Struct, omit_defaults=True):
    """What the exploration cap made of the request.

    max_share  largest share of a slot that may be expected not to be greedy
    segment    condition of the segment whose cap it is
    explored   of each filled slot, the share that was; where the cap acted it is `max_share`
    alphas     of each filled slot, what the cap left of the policy's own exploration: below 1 where it acted
    lent       what of `max_share` is above the cap of the segment, by a lease of what other requests left
    """

    max_share: float
    segment: str = ""
    explored: list[float] = []
    alphas: list[float] = []
    lent: float = 0.0


class ExperimentArm(Struct):
    name: str
    arm: str


class DecisionAnswer(Struct, omit_defaults=True, kw_only=True):
    """The slate. `bundle` is empty when none was needed; `logged` is absent, and true, except when the spool is full.

    inclusions  of each filled slot, where candidates were a shortlist of a large catalogue, on which propensities are
                conditional: the chance that its item was on it, given those before
    """

    decision_id: str
    key: str
    surface: str
    mode: str
    slate: list[SlotAnswer]
    propensity: float
    policy: str
    bundle: str
    reason: str | None = None
    experiment: ExperimentArm | None = None
    explain: list[Explanation] | None = None
    rules: RulesExplained | None = None
    exploration: ExplorationExplained | None = None
    inclusions: list[float] | None = None
    retry_unchecked: bool = False
    logged: bool = True


class BatchRequest(_Strict):
    """Up to 256 decisions; each is checked on its own and answered in order."""

    requests: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_BATCH)]


class FeedbackRequest(_Strict):
    """What a person did with a decision, or with `retracts` the taking back of an earlier feedback."""

    decision_id: Annotated[str, Meta(min_length=1, max_length=128)]
    kind: Name | None = None
    value: Annotated[float, Meta(ge=-MAX_VALUE, le=MAX_VALUE)] = 1.0
    slot: Slot | None = None
    item: Id | None = None
    at: Time | None = None
    feedback_id: Id | None = None
    retracts: Id | None = None
    revision: Annotated[int, Meta(ge=0, le=2**53)] = 0
    unit: Id | None = None
    key: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] | None = None


class ShownRequest(_Strict):
    """Which slots were seen; all when left out."""

    slots: Annotated[list[Slot], Meta(min_length=1, max_length=MAX_SLOTS)] | None = None
    at: Time | None = None
    unit: Id | None = None
    key: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] | None = None


class Item(_Strict):
    """An item of the catalogue. `attributes` are what `where` filters by; `features` are what policies see."""

    id: Id
    features: FeatureMap = {}
    attributes: dict[str, Scalar | list[Scalar]] = {}
    available: bool = True
    expires_at: Time | None = None


class ErrorDetail(Struct):
    code: str
    message: str
    at: str


class ErrorBody(Struct):
    error: ErrorDetail


class RejectedFeedback(Struct):
    index: int
    error: ErrorDetail


class FeedbackAnswer(Struct):
    accepted: int
    rejected: list[RejectedFeedback] = []


class VersionAnswer(Struct):
    version: int


T = TypeVar("T")
_LOCATED = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(?P<field>[^`]*)`")


def reader(kind: type[T]) -> Callable[[bytes, str], T]:
    """A decoder of `kind` that raises Rejected: 400 what is not JSON, 422 what is JSON and not `kind`."""
    decode = msgspec.json.Decoder(kind).decode

    def read(body: bytes, at: str = "$") -> T:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise invalid(error, at) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(_plain(str(error)), at=at, code="undecodable", status=400) from None

    return read


def invalid(error: msgspec.ValidationError, at: str = "$") -> Rejected:
    """msgspec's message with the path apart, the field named in it; `at` is where the decoded part stands."""
    found = _LOCATED.match(str(error))
    what, path = (found["what"], found["path"] or "$") if found else (str(error), "$")
    field = _FIELD.match(what)
    if field:
        path = f"{path}.{field['field'][:64]}"
    return Rejected(_plain(what), at=at + path[1:])


def error_body(error: Rejected) -> ErrorBody:
    return ErrorBody(error_detail(error))


def error_detail(error: Rejected) -> ErrorDetail:
    return ErrorDetail(error.code, error.message, error.at)


def epoch_seconds(time: float | str, at: str) -> float:
    """Epoch seconds of RFC 3339 text or a number. Raises Rejected."""
    if not isinstance(time, str):
        return float(time)
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        raise Rejected(f"Expected RFC 3339 or epoch seconds, got {time[:64]!r}", at=at) from None
    if found.tzinfo is None:
        raise Rejected("Expected a time with an offset, such as 2026-11-23T10:00:00Z", at=at)
    return found.timestamp()


def _plain(message: str) -> str:
    """msgspec's message as the contract has it: no code marks, and nothing about null, which is the same as absent."""
    return message.replace("`", "").replace(" | null", "")[:500]


read_decision = reader(DecisionRequest)
read_batch = reader(BatchRequest)
read_one_feedback = reader(FeedbackRequest)
read_many_feedback = reader(list[msgspec.Raw])
read_shown = reader(ShownRequest)
read_items = reader(list[msgspec.Raw])
read_item = reader(Item)
encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
