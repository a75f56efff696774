"""The two records of the log, and their bytes.

A `Decision` holds every input of the draw and all that learning and evaluation need; a `Feedback` names its decision.
Both are keyed by the unit's hash, so what belongs together meets in one partition (`semantics.md` 5, 11, 21).
Vectors are base64 little-endian float32; a producer that is not ours may send arrays of numbers instead.
"""

import hashlib
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt
from policies.types import F32

VERSION = 1
MAX_RECORD_BYTES = 512_000
Floats = bytes | list[float]


class Inside(Struct, frozen=True, omit_defaults=True):
    """Constraints and diversity inside the slate as the draw read them (`policies.reranking.within.Within`), little-endian.

    names    of the L constraints, by priority
    ops int64 (L,), codes int64 (L, n), limits int64 (L, k), weights float64 (1 + P,), covers int64 (P, n), vectors float32 (v, n)
    """

    names: list[str]
    ops: bytes
    codes: bytes
    limits: bytes
    weights: bytes
    covers: bytes = b""
    vectors: bytes = b""


class Sample(Struct, frozen=True, omit_defaults=True):
    """Everything the draw read, logged for the sampled share of decisions.

    distributions  float64 (k', n) little-endian, full conditional distributions
    uniforms       float64 (k,), one for each slot asked for
    boosts         float64 (n,), absent when none acted
    masks          uint8 (k, n), absent when none acted
    pins           slot → candidate row
    within         constraints and diversity inside the slate, absent when none acted
    """

    rate: float
    distributions: bytes
    uniforms: bytes
    boosts: bytes | None = None
    masks: bytes | None = None
    pins: dict[int, int] = {}
    within: Inside | None = None


class Shadow(Struct, frozen=True, omit_defaults=True):
    """What a policy that was drawn beside the one that answered would have done, slot by slot, given the logged slots before.

    propensities  (k',) of the logged items;   bundle: of the policy, as it was then: it cannot have learned from this decision
    design        (k',) Σ_a π²/β over all candidates, of the policy's π against the logged β; None: π shows what β cannot
    overlap       mean over slots of Σ_a min(π, β): the largest share of draws that could be the same
    """

    policy: str
    bundle: str
    propensities: list[float]
    design: list[float | None]
    overlap: float = 0.0


class Goal(Struct, frozen=True, omit_defaults=True):
    """The goal a decision was drawn under, of g: claimed for a stretch of a session, and kept through swaps.

    id          −1: the neutral goal, for nobody could be asked
    propensity  of the goal, given the state it was drawn in
    bundle      whose manager drew it;   drawn_at_decision: the decision that did
    """

    id: int
    propensity: float
    bundle: str
    drawn_at_decision: str


class Interleaved(Struct, frozen=True, omit_defaults=True):
    """A slate that two policies filled by team draft (`policies.experiments.team_draft`), in the order of the experiment's arms.

    policies, bundles  of each
    settings  [head, floor, max_share, temperature] each was drawn under
    teams     (k',) whose each filled slot is: 0, 1, or −1 of a pin
    own       [k', k'] the chance that each policy gave to what was drawn, given the slots before
    second    what acted on the second's draw and its distributions, where the decision is sampled; `sample` is the first's, with the
              distributions of both together
    """

    policies: tuple[str, str]
    bundles: tuple[str, str]
    settings: list[tuple[str, float, float, float]]
    teams: list[int]
    own: list[list[float]]
    second: Sample | None = None


class Exposed(Struct, frozen=True, gc=False, array_like=True):
    """What groups of items got of a decision (`policies.reranking.exposure`): of G groups, in looks.

    delivered  expected under the distributions that were drawn from;   entitled  by the target;   drawn  by the slate itself
    of (k',)   place of each filled slot's group, −1 of none
    """

    groups: tuple[str, ...]
    delivered: tuple[float, ...]
    entitled: tuple[float, ...]
    drawn: tuple[float, ...]
    of: tuple[int, ...]


class Strayed(Struct, frozen=True, gc=False, array_like=True):
    """What a decision explored, on surfaces that lend what is left of it (`policies.reranking.exploration_budget`).

    segment      whose cap it was drawn under, empty of those in none
    shares (k',) of each filled slot, what was expected not to be the greedy item; above the cap only by a lease
    """

    segment: str
    shares: tuple[float, ...]


class Shortlisted(Struct, frozen=True, omit_defaults=True):
    """The candidates of a decision were a shortlist of a larger catalogue (`policies.shortlist`).

    eligible    items that might have been shown; each had a chance to be a candidate
    kept        so many candidates, the first, for certain
    drawn       so many others, each item that was eligible and not kept with chance drawn / (eligible − kept)
    inclusions  (k',) of the slate: chance to be a candidate, given that those in the slots before were
    """

    eligible: int
    kept: int
    drawn: int
    inclusions: list[float]


class Decision(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="decision", kw_only=True):
    """One answered request.

    at           decision time, epoch seconds, the scoring service's clock; it only places the event
    config       content hash of the surface version it was made under
    slate, slots, propensities, remaining, alphas, greedy, pinned   see `policies.types.Slate`; `greedy` holds candidate rows
    rows         the slate as candidate rows, so replay needs no search
    epsilon, head, max_share, temperature   the draw's settings
    candidates   ids in the order the draw saw them (after exclusion); `catalogue` is the version their features came from
    shortlist    how the candidates came out of a catalogue too large to be drawn from whole; propensities are conditional on it
    context      float32 (c,), encoded;   shown: float32 (k', d), encoded items of the slate
    matrix       float32 (n, d), encoded items of all candidates: when sampled, or when any came with inline features
    history      float32 (h, d), encoded items of the unit's last interactions, oldest first, as policies read them; `history_items`
                 are their ids; of a long one on a surface with `history_hashed` those that stand for it
    goal         what it was drawn under, of policies that have goals; slot propensities are conditional on it
    support      float32 (r, d), encoded items of the candidates `support_rows`, ascending: those of the slate and others drawn
                 evenly by hash, for trainers, where all of them (`matrix`) would be too much for every record
    weights      objective → weight × scale, signed, as the policy's graph read them: when the request named its own
    weight       intra-slate weight of each slot's example, 1/(1+(k−1)ρ̂) of the bundle
    defer        not learned from until shown
    own_id       the decision id was the caller's
    shadows      policies drawn beside the one that answered, at the rate of a release
    acted        rules and other sources that changed the distribution, by name
    relaxed      rule → slots for which it was passed over, or in which a quota was due and not reached
    skipped      rule → why it could not be asked
    interleaved  who filled which slot, of slates that two policies filled: `policy` names both, `bundle` is empty, `propensities` are
                 of both together, exact as of any slate
    exposed      what groups of items were delivered and entitled to, on surfaces with a fairness of exposure
    strayed      what of the exploration cap was used, on surfaces that lend what is not; `max_share` is then what it was raised to
    dropped      unshown candidates left out to keep the record under its size limit
    """

    decision_id: str
    unit: str
    at: float
    surface: str
    config: str
    policy: str
    bundle: str
    mode: str
    slate: list[str]
    slots: list[int]
    rows: list[int]
    propensities: list[float]
    remaining: list[int]
    greedy: list[int]
    context: Floats
    shown: Floats
    epsilon: float = 0.0
    head: str = "draws"
    max_share: float = 1.0
    temperature: float = 1.0
    alphas: list[float] | None = None  # None: all 1
    pinned: list[int] = []
    candidates: list[str] = []
    asked: int = 0  # slots asked for
    catalogue: int = 0
    shortlist: Shortlisted | None = None
    matrix: Floats | None = None
    history: Floats | None = None
    history_items: list[str] = []
    goal: Goal | None = None
    support: Floats | None = None
    support_rows: list[int] = []
    weights: dict[str, float] | None = None
    weight: float = 1.0
    defer: bool = False
    own_id: bool = False
    reason: str | None = None
    session: str | None = None
    raw_context: dict[str, Any] | None = None
    experiment: dict[str, str] | None = None
    sample: Sample | None = None
    shadows: list[Shadow] = []
    acted: list[str] = []
    relaxed: dict[str, list[int]] = {}
    skipped: dict[str, str] = {}
    interleaved: Interleaved | None = None
    exposed: Exposed | None = None
    strayed: Strayed | None = None
    dropped: int = 0
    tenant: str = "default"
    generation: int = 1
    v: int = VERSION


class Feedback(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="feedback", kw_only=True):
    """What a person did with a decision, or `shown`, or the retraction of an earlier feedback.

    at           epoch seconds; when the caller gave none, the time HTTP accepted it
    unit         the unit's hash: the record's key
    feedback_id  scoped to the decision; when the caller gave none, `content_id` of the object as sent
    slot, item   one of them, or neither: the whole slate
    slots        only with kind `shown`: the slots that were seen; None = all
    retracts     feedback_id to take back; then kind is empty
    revision     tie-break between versions of one feedback_id after `at`
    accepted_at  epoch seconds at which HTTP accepted it; freshness is measured from here
    """

    decision_id: str
    unit: str
    at: float
    feedback_id: str = ""
    kind: str = ""
    value: float = 1.0
    slot: int | None = None
    item: str | None = None
    slots: list[int] | None = None
    retracts: str | None = None
    revision: int = 0
    accepted_at: float | None = None
    tenant: str = "default"
    generation: int = 1
    v: int = VERSION


Event = Decision | Feedback

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


def decode(value: bytes) -> Event:
    """The event in a record's bytes. Raises Corrupt('undecodable' | 'version')."""
    try:
        event: Event = _decode(value)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Corrupt("undecodable", str(error)) from None
    if event.v != VERSION:
        raise Corrupt("version", f"v {event.v}, this build reads {VERSION}")
    return event


def unit_hash(unit: str, salt: bytes) -> str:
    """16 hex digits: BLAKE2b-64 of a raw unit id keyed with the tenant's salt. The raw id goes no further."""
    return hashlib.blake2b(unit.encode(), digest_size=8, key=salt).hexdigest()


def content_id(sent: Any) -> str:
    """Default feedback id: the hash of the object as sent, before anything is filled in."""
    return hashlib.blake2b(msgspec.json.encode(sent, order="sorted"), digest_size=12).hexdigest()


def floats(vector: Floats, width: int | None = None) -> F32:
    """float32 array of a vector field, reshaped to (-1, width) when a width is given. Raises Corrupt('bad_vector')."""
    if isinstance(vector, bytes):
        if len(vector) % 4:
            raise Corrupt("bad_vector", f"{len(vector)} bytes are not float32")
        array = np.frombuffer(vector, "<f4")
    else:
        array = np.asarray(vector, np.float32)
    if width is None:
        return array
    if width <= 0 or array.size % width:
        raise Corrupt("bad_vector", f"{array.size} numbers are not rows of {width}")
    return array.reshape(-1, width)
