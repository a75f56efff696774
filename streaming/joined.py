"""What is kept of a decision while feedback may still change it, and the rules that turn what was heard into evidence.

A `Join` is a decision as drawn, the versions heard of each feedback id, and what learners have been taught of it so far.
The functions here are pure: evidence depends on the set of what was heard, never on its order.

    in force   of the versions of a feedback id the greatest (at, revision, content hash) among those dated inside the
               horizon, else among all; none once the id was taken back. A later-dated correction so neither changes the
               reward nor undoes the one before it (`semantics.md` 3, 7)
    presence   with `shown` in force: the slots it names (several add up) and those with feedback of their own;
               without: every slot, or with `defer` only those with feedback; pins only with `learn_pins`
    rewards    the surface version's rule over what is in force and inside the horizon; 0 where absent
"""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt
from policies.examination import relative, taught
from policies.rewards import Heard
from policies.types import F64, Changes
from streaming.configuration import Compiled, CompiledPolicy
from streaming.counted import NOTHING, Asked, Said, asked
from streaming.events import VERSION, Exposed, Feedback, Strayed
from streaming.shown import item_windows

SHOWN = "shown"
WHOLE = -1
REMEMBERED = 10_000  # rewards of a single feedback, some 3 MB for a surface version


class Drawn(Struct, frozen=True, gc=False, tag_field="type", tag="decision", kw_only=True):
    """What learning needs of a `Decision`: decoded without its candidates, which are most of the record."""

    decision_id: str
    unit: str
    at: float
    surface: str
    config: str
    policy: str
    bundle: str
    mode: str
    slate: tuple[str, ...]
    slots: tuple[int, ...]
    propensities: tuple[float, ...]
    context: bytes
    shown: bytes
    pinned: tuple[int, ...] = ()
    weight: float = 1.0
    defer: bool = False
    exposed: Exposed | None = None
    strayed: Strayed | None = None
    tenant: str = "default"
    v: int = 1


class Version(Struct, frozen=True, array_like=True, gc=False):
    """One content of a feedback id. `positions` index the filled slots: one, those seen (`shown`), or none: the whole slate."""

    at: float
    revision: int
    kind: str
    value: float
    positions: tuple[int, ...]


class Early(Struct, frozen=True, array_like=True, gc=False):
    """A feedback that came before its decision: its record, to be judged when the decision comes."""

    offset: int
    appended: float
    key: bytes
    value: bytes


class Join(Struct, gc=False):
    """One row. `heard`: feedback id → versions, empty once taken back. `present` and `rewards`: taught so far, b"" = nothing."""

    row: int
    key: str
    drawn: Drawn | None  # None: it has not come, or it has closed and is not read again
    offset: int  # of the decision's record in the log, −1 where it has not come
    at: float = 0.0  # of the decision
    until: float = 0.0  # at + correctable: from then on nothing changes it
    heard: dict[str, tuple[Version, ...]] = {}
    early: tuple[Early, ...] = ()
    present: bytes = b""  # k bytes of 0 or 1
    rewards: bytes = b""  # float64 (k, o)
    due: bool = True  # False: `wait` surface, horizon not passed

    def answers(self, clock: float) -> bool:
        """Whether the row speaks for its id: twice `correctable`, so that what is too late is told from what is early."""
        return 2.0 * self.until - self.at >= clock if self.offset >= 0 else bool(self.early)


Stored = tuple[str, int, float, float, dict[str, tuple[Version, ...]], tuple[Early, ...], bytes, bytes, bool]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Stored).decode
_event = msgspec.json.Decoder(Drawn | Feedback).decode


def pack(join: Join) -> bytes:
    """A row without its decision, which the log has."""
    stored: Stored = (
        join.key,
        join.offset,
        join.at,
        join.until,
        join.heard,
        join.early,
        join.present,
        join.rewards,
        join.due,
    )
    return _encode(stored)


def unpack(row: int, data: bytes) -> Join:
    """A row; its decision is still to be read from the log. Raises Corrupt('join_format'): of a build that keeps other fields."""
    try:
        key, offset, *rest = _decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt("join_format", f"row {row}: {error}") from None
    return Join(row, key, None, offset, *rest)


def read_event(value: bytes) -> Drawn | Feedback:
    """What a record says. Raises Corrupt('undecodable' | 'version' | 'bad_vector')."""
    try:
        event: Drawn | Feedback = _event(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        event = _foreign(value, error)
    if event.v != VERSION:
        raise Corrupt("version", f"v {event.v}, this build reads {VERSION}")
    return event


def _foreign(value: bytes, error: Exception) -> Drawn | Feedback:
    """A decision of a producer that sends its vectors as arrays of numbers; for all else the error stands."""
    try:
        raw = msgspec.json.decode(value, type=dict[str, Any])
        for name in ("context", "shown"):
            if isinstance(raw.get(name), list):
                numbers = msgspec.convert(raw[name], list[float])
                with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is refused as such
                    raw[name] = np.array(numbers, "<f4").tobytes()
            elif isinstance(raw.get(name), str):
                raw[name] = base64.b64decode(raw[name], validate=True)
        return msgspec.convert(raw, Drawn)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, OverflowError):
        raise Corrupt("undecodable", str(error)) from None


def read_drawn(value: bytes) -> Drawn:
    """The decision in a record that was joined before. Raises Corrupt."""
    event = read_event(value)
    if not isinstance(event, Drawn):
        raise Corrupt("join_missing", "the log has feedback where a decision was joined")
    return event


@dataclass(frozen=True, slots=True)
class Terms:
    """A surface version as the joiner reads it: everything a record is checked and rewarded by, looked up once."""

    compiled: Compiled
    surface: str
    slots: int
    natural: dict[int, tuple[int, ...]]  # k → slots of a slate without gaps
    horizon: float
    correctable: float
    kinds: frozenset[str]
    context_bytes: int
    item_bytes: int
    objectives: int
    wait: bool
    corrected: bool
    learn_pins: bool
    learners: tuple[CompiledPolicy, ...]  # every learning policy of the version, but for `Surface.untaught`
    examined: F64 | None = None  # (slots,) relative to the first, see `policies.examination`
    counted: Asked | None = None  # what features want counted;   windows: over which items' impressions are, in seconds
    windows: tuple[int, ...] = ()
    single: dict[tuple[int, int, str, float], tuple[bytes, int]] = field(default_factory=dict)  # see `_rewards`

    def taught(self, changes: Changes) -> Changes:
        """Changes as this version's learners take them."""
        if self.examined is None:
            return changes
        return taught(changes, self.examined, self.compiled.rewards.silence)

    @classmethod
    def of(cls, compiled: Compiled) -> "Terms":
        surface, encoder = compiled.surface, compiled.encoder
        examined = surface.slot_examination
        return cls(
            compiled=compiled,
            surface=surface.surface,
            slots=surface.slots,
            natural={k: tuple(range(k)) for k in range(min(surface.slots, 64) + 1)},
            horizon=surface.horizon_seconds,
            correctable=surface.correctable_seconds,
            kinds=surface.feedback_kinds,
            context_bytes=4 * encoder.context_size,
            item_bytes=4 * encoder.item_size,
            objectives=len(surface.objectives),
            wait=surface.silence == "wait",
            corrected=surface.silence == "corrected",
            learn_pins=surface.learn_pins,
            learners=tuple(
                p
                for p in compiled.policies.values()
                if p.algorithm.learner is not None and p.name not in surface.untaught
            ),
            examined=None if examined is None else relative(np.array(examined)),
            counted=asked(surface),
            windows=item_windows(surface),
        )


def content_order(version: Version) -> tuple[float, int, bytes]:
    """What decides between versions of one feedback id."""
    return version.at, version.revision, hashlib.blake2b(_encode(version), digest_size=16).digest()


def in_force(versions: tuple[Version, ...], until: float) -> Version | None:
    """The version of one feedback id that counts; None once taken back."""
    if len(versions) < 2:
        return versions[0] if versions else None
    return max([v for v in versions if v.at <= until] or versions, key=content_order)


def evidence(join: Join, terms: Terms) -> tuple[bytes, bytes, int]:
    """(present, rewards, clipped) of a join as it stands: what learners should have been taught of it."""
    drawn = join.drawn
    assert drawn is not None  # callers hold decisions; a join without one teaches nothing
    k = len(drawn.slate)
    if not join.due or not k:
        return b"", b"", 0
    until = drawn.at + terms.horizon
    if len(join.heard) == 1 and not drawn.defer and not drawn.pinned:  # as most are: the same answer, without the work
        [versions] = join.heard.values()
        if len(versions) == 1 and versions[0].kind != SHOWN and versions[0].at <= until:
            [said] = versions
            name = (k, said.positions[0] if said.positions else WHOLE, said.kind, said.value)
            known = terms.single.get(name)
            if known is not None:
                return b"\1" * k, *known
    force = [(v.at, name, v) for name, versions in join.heard.items() if (v := in_force(versions, until)) is not None]
    if len(force) > 1:
        force.sort(key=_said)
    named = drawn.defer or bool(drawn.pinned)
    heard = []
    for at, _, version in force:
        if version.kind == SHOWN:
            named = True
        elif at <= until:
            positions = version.positions
            heard.append(Heard(positions[0] if positions else WHOLE, version.kind, version.value, at))
    present = presence(drawn, terms, [version for _, _, version in force]) if named else b"\1" * k
    if not any(present):
        return b"", b"", 0
    rewards, clipped = _rewards(terms, k, heard)
    if not all(present):
        width, zero = 8 * terms.objectives, bytes(8 * terms.objectives)
        rewards = b"".join(rewards[i * width : (i + 1) * width] if on else zero for i, on in enumerate(present))
    return bytes(present), rewards, clipped


def _said(entry: tuple[float, str, Version]) -> tuple[float, str]:
    return entry[0], entry[1]


def _rewards(terms: Terms, k: int, heard: list[Heard]) -> tuple[bytes, int]:
    """The rule's answer; for silence and a single feedback, which most decisions have, it is remembered."""
    if len(heard) > 1:
        values, clipped = terms.compiled.rewards(k, heard)
        return values.tobytes(), clipped
    name = (k, *heard[0][:3]) if heard else (k, WHOLE, "", 0.0)
    known = terms.single.get(name)
    if known is None:
        values, clipped = terms.compiled.rewards(k, heard)
        if len(terms.single) >= REMEMBERED:
            terms.single.clear()
        known = terms.single[name] = values.tobytes(), clipped
    return known


def presence(drawn: Drawn, terms: Terms, force: list[Version]) -> bytearray:
    """1 for each filled slot that is an example for learning."""
    k = len(drawn.slate)
    present, named = bytearray(k), False
    for version in force:
        named = named or version.kind == SHOWN
        for position in version.positions:
            present[position] = 1
    if not named and not drawn.defer:
        present = bytearray(b"\1" * k)
    if drawn.pinned and not terms.learn_pins:
        for position, slot in enumerate(drawn.slots):
            if slot in drawn.pinned:
                present[position] = 0
    return present


def said_of(join: Join, terms: Terms, present: bytes) -> Said:
    """What a decision has heard that counts, of the kinds that features want counted and over the slots that are `present`."""
    drawn = join.drawn
    if terms.counted is None or drawn is None or not join.heard or not any(present):
        return NOTHING
    until, kinds, found = drawn.at + terms.horizon, terms.counted.kinds, set[tuple[str, int]]()
    for versions in join.heard.values():
        said = in_force(versions, until)
        if said is None or said.kind == SHOWN or said.kind not in kinds or said.at > until or said.value <= 0.0:
            continue
        position = said.positions[0] if said.positions else WHOLE
        if position == WHOLE or present[position]:
            found.add((said.kind, position))
    return frozenset(found)


def positions_of(drawn: Drawn, feedback: Feedback) -> tuple[int, ...] | None:
    """Which of the filled slots a feedback is about; None when it names a slot or an item that the slate does not have."""
    if feedback.kind == SHOWN and feedback.slot is None and feedback.item is None:
        if feedback.slots is None:
            return tuple(range(len(drawn.slots)))
        if not set(feedback.slots) <= set(drawn.slots):
            return None
        return tuple(sorted({drawn.slots.index(slot) for slot in feedback.slots}))
    if feedback.slot is not None:
        if feedback.slot not in drawn.slots:
            return None
        position = drawn.slots.index(feedback.slot)
        return (position,) if feedback.item is None or drawn.slate[position] == feedback.item else None
    if feedback.item is not None:
        return (drawn.slate.index(feedback.item),) if feedback.item in drawn.slate else None
    return ()
