"""Stories: what people did with a few decisions, and how badly the log was fed with it. The oracle reads the log as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from policies.types import Arrays
from streaming.configuration import Compiled
from streaming.events import Decision, Feedback, content_id, decode, encode, floats
from streaming.ports import Record
from tests.streaming.joining import CORRECTABLE, EPOCH0, HORIZON, SLOTS, UNIT, TallyConfigs, decision, feedback, surface

CONFIGS = TallyConfigs()
PLAIN = CONFIGS.add(surface())
WAIT = CONFIGS.add(surface(silence="wait"))
PINS = CONFIGS.add(surface(learn_pins=True, credit="clicked"))
CORRECTED = CONFIGS.add(surface(silence="corrected"))
USUAL, LATE = (PLAIN, PLAIN, PLAIN, WAIT, PINS), (PLAIN, PLAIN, WAIT, PINS, CORRECTED, CORRECTED)
VERSIONS = {version.hash: version for version in (PLAIN, WAIT, PINS, CORRECTED)}
END = EPOCH0 + 100_000.0  # every story ends here: what waits has stopped waiting by then
Heard = list[tuple[Feedback, Record]]
OFFSETS = [-10.0, 0.0, 1.0, 50.0, HORIZON, HORIZON + 1.0, 300.0]
DELAYS = [-61.0, 0.0, 0.0, 1.0, 59.0, 200.0, 900.0, CORRECTABLE - 1, CORRECTABLE + 400.0]


def planted(examples: int, *, again: bool = True) -> settings:
    """How a planted fault is looked for: until it is found once, nothing shrunk or kept; `again`: the same stories every time."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=again,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Story:
    """Deliveries by append time, when the shard steps, and at which operations of the ports it dies."""

    deliveries: list[tuple[float, bytes]]
    steps: list[bool]
    deaths: list[int]
    read_limit: int
    hot_limit: int


@st.composite
def stories(draw: st.DrawFn, messy: bool = True, versions: Sequence[Compiled] = USUAL) -> Story:
    deliveries: list[tuple[float, bytes]] = []

    def deliver(event: Decision | Feedback, delay: float) -> None:
        deliveries.append((max(event.at, EPOCH0) + delay, encode(event)))

    for i in range(draw(st.integers(1, 3))):
        at = EPOCH0 + draw(st.integers(0, 200))
        made = decision(
            draw(st.sampled_from(versions)),
            f"{UNIT}-{i}",
            at,
            k=draw(st.sampled_from([SLOTS, SLOTS, 2, 0])),
            defer=draw(st.booleans()),
            pinned=draw(st.sampled_from([[], [], [1]])),
        )
        deliver(made, draw(st.sampled_from(DELAYS)))
        for _ in range(draw(st.integers(0, 5))):
            deliver(draw(_feedbacks(made)), draw(st.sampled_from(DELAYS)))
        if draw(st.booleans()):
            deliver(msgspec.structs.replace(made, weight=0.25), draw(st.sampled_from(DELAYS)))  # same id, not the same
    for index in draw(st.lists(st.integers(0, len(deliveries) - 1), max_size=4)):
        when, value = deliveries[index]
        deliveries.append((when + draw(st.sampled_from([0.0, 10.0, 500.0])), value))
    broken = draw(st.lists(st.sampled_from([b"", b"{}", b'{"type":"feedback"}', b"\xff"]), max_size=1))
    deliveries += [(EPOCH0 + 100.0, value) for value in broken]
    deliveries.sort(key=lambda entry: entry[0])
    return Story(
        deliveries,
        draw(st.lists(st.booleans(), min_size=len(deliveries), max_size=len(deliveries))),
        draw(st.lists(st.integers(0, 12), max_size=4)) if messy else [],
        draw(st.sampled_from([1, 2, 3, 2000])),
        draw(st.sampled_from([0, 1, 1000])),
    )


@st.composite
def _feedbacks(draw: st.DrawFn, made: Decision) -> Feedback:
    at = made.at + draw(st.sampled_from(OFFSETS))
    name = draw(st.sampled_from(["f0", "f1", "f2", ""]))
    if draw(st.integers(0, 5)) == 0:
        return feedback(made.decision_id, at, kind="", retracts=name or "f0", feedback_id="r")
    kind = draw(st.sampled_from(["watch", "watch", "like", "shown", "seen_price", "unheard_of"]))
    return feedback(
        made.decision_id,
        at,
        feedback_id=name,
        kind=kind,
        value=draw(st.sampled_from([-1.0, 0.5, 1.0, 8.0])),
        slot=draw(st.sampled_from([None, 0, 1, 2])) if kind != "shown" else None,
        slots=draw(st.sampled_from([None, [0], [1], [0, 1], []])) if kind == "shown" else None,
        revision=draw(st.integers(0, 1)),
        unit=draw(st.sampled_from([UNIT] * 9 + ["00000000000000bb"])),
    )


def judged(records: list[Record]) -> tuple[dict[str, tuple[Decision, Record]], dict[str, Heard], dict[int, str]]:
    """(decisions by id, what each of them heard, offset → reason of dead letters)."""
    dead: dict[int, str] = {}
    made: dict[str, tuple[Decision, Record]] = {}
    said: list[tuple[Feedback, Record]] = []
    for record in records:
        try:
            event = decode(record.value)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is set aside under one name
            dead[record.offset] = "undecodable"
            continue
        if isinstance(event, Feedback):
            said.append((event, record))
        elif event.at < record.appended - CORRECTABLE:
            dead[record.offset] = "too_late"
        elif event.at > record.appended + 60:
            dead[record.offset] = "bad_time"
        elif event.decision_id not in made:
            made[event.decision_id] = event, record
        elif event != made[event.decision_id][0]:
            dead[record.offset] = "conflict"
    heard: dict[str, Heard] = {name: [] for name in made}
    for event, record in said:
        reason = _verdict(event, record, made)
        if reason:
            dead[record.offset] = reason
        else:
            heard[event.decision_id].append((event, record))
    return made, heard, dead


def oracle(records: list[Record]) -> tuple[Arrays, dict[int, str], int]:
    """(sums, offset → reason of dead letters, examples) of a log that ended long ago, judged from the rules' words."""
    made, heard, dead = judged(records)
    examples, sums = 0, nothing(PLAIN)
    for name, (drawn, _) in made.items():
        version = VERSIONS[drawn.config]
        present, rewards = evidence_of(drawn, version, heard[name])
        for p in range(len(drawn.slate)):
            if not present[p]:
                continue
            examples += 1
            x = np.hstack(
                [1.0, floats(drawn.context), floats(drawn.shown, version.encoder.item_size)[p], drawn.slots[p]]
            )
            x = x.astype(np.float64)
            sums["n"] += 1
            sums["S"] += drawn.weight * np.outer(x, x)
            sums["B"] += drawn.weight * np.outer(x, rewards[p])
            sums["Y"] += drawn.weight * np.outer(rewards[p], rewards[p])
            sums["T"] += drawn.at - EPOCH0
    return sums, dead, examples


def young(records: list[Record]) -> dict[int, Arrays]:
    """Of the corrected version: the sums of decisions and delays by the 32nd of a horizon they were made in; −1: of them all."""
    made, heard, _ = judged(records)
    found: dict[int, Arrays] = {}
    for name, (drawn, _) in made.items():
        if drawn.config != CORRECTED.hash:
            continue
        present, rewards = evidence_of(drawn, CORRECTED, heard[name])
        mass, count = _delays_of(drawn, heard[name], np.array(present, np.bool_))
        part = int(drawn.at // (HORIZON / 32))
        for place in (part, -1):
            sums = found.setdefault(
                place, {"n": np.zeros(1), "B": np.zeros(2), "mass": np.zeros((2, 64)), "count": np.zeros(2)}
            )
            sums["n"] += sum(present)
            sums["B"] += drawn.weight * rewards[present].sum(axis=0)
            sums["mass"] += mass
            sums["count"] += count
    return found


def _delays_of(drawn: Decision, heard: Heard, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mass (2, 64), count (2,)): by how much the reward moved with what was said until each moment, by when that was."""
    counts = [e for e in force_of(drawn, heard) if e.at <= drawn.at + HORIZON and e.kind != "shown"]
    k, mass = len(drawn.slate), np.zeros((2, 64))
    before = _rewards(k, [], CORRECTED)
    buckets = {id(e): next(j for j in range(64) if e.at - drawn.at <= HORIZON * 2 ** ((j - 63) / 4)) for e in counts}
    for bucket in sorted(set(buckets.values())):
        after = _rewards(k, [e for e in counts if buckets[id(e)] <= bucket], CORRECTED)
        mass[:, bucket] = np.abs(after - before)[present].sum(axis=0)
        before = after
    return mass, (mass > 0).any(axis=1)


def nothing(version: Compiled) -> Arrays:
    width = 2 + version.encoder.context_size + version.encoder.item_size
    return {
        "n": np.zeros(1),
        "S": np.zeros((width, width)),
        "B": np.zeros((width, 2)),
        "Y": np.zeros((2, 2)),
        "T": np.zeros(1),
    }


def _verdict(event: Feedback, record: Record, made: dict[str, tuple[Decision, Record]]) -> str | None:
    if event.at > record.appended + 60:
        return "bad_time"
    if event.decision_id not in made:
        return "no_decision"
    drawn, came = made[event.decision_id]
    if record.appended < came.appended - CORRECTABLE or record.appended > drawn.at + 2 * CORRECTABLE:
        return "no_decision"
    if drawn.at < record.appended - CORRECTABLE:
        return "too_late"
    if event.unit != drawn.unit:
        return "wrong_unit"
    if event.at < record.appended - CORRECTABLE:
        return "bad_time"
    if event.retracts is not None:
        return None
    if event.kind not in VERSIONS[drawn.config].surface.feedback_kinds:
        return "unknown_kind"
    named = ([event.slot] if event.slot is not None else []) + (event.slots or [])
    return None if set(named) <= set(drawn.slots) else "bad_slot"


def force_of(drawn: Decision, heard: Heard) -> list[Feedback]:
    """Of each feedback id the version that counts."""
    taken_back = {event.retracts for event, _ in heard if event.retracts is not None}
    by_name: dict[str, list[Feedback]] = {}
    for event, record in heard:
        name = event.feedback_id or content_id(msgspec.Raw(record.value))
        if event.retracts is None and name not in taken_back:
            by_name.setdefault(name, []).append(event)
    until = drawn.at + HORIZON
    return [
        max([e for e in events if e.at <= until] or events, key=lambda e: (e.at, e.revision, _content(e, drawn)))
        for events in by_name.values()
    ]


def evidence_of(drawn: Decision, version: Compiled, heard: Heard) -> tuple[list[bool], np.ndarray]:
    """(present, rewards) of each slot."""
    force, k, until = force_of(drawn, heard), len(drawn.slate), drawn.at + HORIZON
    seen = {p for e in force if e.kind == "shown" for p in (range(k) if e.slots is None else e.slots)}
    own = {e.slot for e in force if e.kind != "shown" and e.slot is not None}
    if any(e.kind == "shown" for e in force):
        present = [p in seen | own for p in range(k)]
    else:
        present = [p in own or not drawn.defer for p in range(k)]
    if not version.surface.learn_pins:
        present = [on and p not in drawn.pinned for p, on in enumerate(present)]
    return present, _rewards(k, [e for e in force if e.at <= until and e.kind != "shown"], version)


def _rewards(k: int, counts: list[Feedback], version: Compiled) -> np.ndarray:
    """`watch` sums with default 0.25, `like` is the largest, clipped to [0, 4]; whole-slate feedback is shared."""
    clicked = {e.slot for e in counts if e.slot is not None and e.value > 0}
    share = clicked if version.surface.credit == "clicked" and clicked else set(range(k))
    rewards = np.tile([0.0, 0.25], (k, 1))
    for column, (kind, aggregate, low, high) in enumerate([("like", max, 0.0, 4.0), ("watch", sum, -1e9, 1e9)]):
        whole = [e.value for e in counts if e.kind == kind and e.slot is None]
        for p in range(k):
            own = [e.value for e in counts if e.kind == kind and e.slot == p]
            parts = ([aggregate(own)] if own else []) + (
                [aggregate(whole) / len(share)] if whole and p in share else []
            )
            if parts:
                rewards[p, column] = min(max(sum(parts), low), high)
    return rewards


def _content(event: Feedback, drawn: Decision) -> bytes:
    """The content hash of the joiner's own version: an arbitrary but fixed order, so the oracle has to share it."""
    from streaming.joined import Version, content_order, positions_of

    positions = positions_of(_Slotted(drawn), event)  # type: ignore[arg-type]
    assert positions is not None
    return content_order(Version(event.at, event.revision, event.kind, event.value, positions))[2]


class _Slotted:
    def __init__(self, drawn: Decision) -> None:
        self.slots, self.slate = tuple(drawn.slots), tuple(drawn.slate)
