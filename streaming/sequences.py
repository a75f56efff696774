"""Settled decisions of units, in the order they were made, become transitions: each once, whatever the batches.

    transition   a decision, what came of it, and the state of the unit's next one. Complete when that one has settled, or when
                 the session is over: another session of the unit has begun (abandonment), or the log's time has passed the
                 decision's settling by `session_timeout` (timeout)
    state        context and history as they were logged with the decision; nothing is looked up
    out of order a decision that settles after a later one of its unit goes before the one that is still open: its own
                 transition is whole, its predecessor's has skipped it. Counted `late`
    set aside    decisions whose candidates the record does not tell, or which showed nothing, are the next state of others and
                 no transition of their own. Counted `no_candidates`, `empty`, `bad_vector`

A `Sequencer` is one partition's, of one surface under one feature schema: a function of the settled decisions in their
numbered order and of the times passed in. Its open ends are part of the trainer's checkpoint.
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt
from policies.sequences import U64, Transitions
from policies.types import F32, Arrays, Mask
from streaming.events import Floats, floats
from streaming.evidence import ItemHashes
from streaming.experiences import Experience
from streaming.index import id_hash

MOST_OPEN = 50_000  # units whose last decision waits, a partition; the one that would end first is ended for a new one
_OURS = re.compile("[0-9a-f]{16}")
_hashes = ItemHashes()


class Lane(NamedTuple):
    """What sequences have in common: their arrays fit together."""

    surface: str
    schema: str
    objectives: tuple[str, ...]


class Moment(Struct, frozen=True, array_like=True, gc=False):
    """A settled decision with the state it was made in; n candidates, k slots, h interactions, o objectives.

    until        on the log's clock: after it no decision of the same session settles any more
    timeout      seconds after `at` in which the next decision still belongs to the session
    candidates   float32 (n, d);   items: uint64 (n,);   allowed: n bytes;   slate: rows of them, by slot
    propensities float64 (k,);   present: k bytes;   rewards: float64 (k, o)
    history      float32 (h, d);   past: uint64 (h,)
    """

    unit: int
    session: int
    at: float
    until: float
    timeout: float
    context: bytes
    candidates: bytes
    items: bytes
    allowed: bytes
    slate: tuple[int, ...]
    propensities: bytes
    present: bytes
    rewards: bytes
    history: bytes
    past: bytes
    goal: int = -1
    goal_propensity: float = 1.0


class Lived(NamedTuple):
    """A moment and the one after it; None: the session ended there."""

    now: Moment
    then: Moment | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, Moment]]).decode


class Sequencer:
    """Open ends of one partition and lane. `counts`: outcome → decisions, since they were taken last."""

    def __init__(self, most_open: int = MOST_OPEN) -> None:
        self._most_open = most_open
        self._open: dict[int, tuple[int, Moment]] = {}  # unit → (arrival, its last decision)
        self._ends: list[tuple[float, int, int]] = []  # heap of (until, arrival, unit); those that are gone are skipped
        self._arrived = 0
        self.counts: Counter[str] = Counter()

    def take(self, moment: Moment, due: float) -> list[Lived]:
        """The next decision in the order of numbers, settled at `due`: what is complete now, in order."""
        lived = self.advance(due)
        held = self._open.get(moment.unit)
        if held is not None:
            last = held[1]
            if moment.at < last.at:
                self.counts["late"] += 1
                return [*lived, self._follow(moment, last)]
            lived.append(self._follow(last, moment))
        elif len(self._open) >= self._most_open:
            self.counts["forced"] += 1
            lived.append(Lived(self._pop(), None))
        self._open[moment.unit] = self._arrived, moment
        heapq.heappush(self._ends, (moment.until, self._arrived, moment.unit))
        self._arrived += 1
        return lived

    def advance(self, clock: float) -> list[Lived]:
        """All that is due before `clock` was taken: sessions that have timed out by then."""
        lived = []
        while self.next_end < clock:
            self.counts["timeout"] += 1
            lived.append(Lived(self._pop(), None))
        return lived

    def forget(self, units: Iterable[tuple[str, float]]) -> int:
        """Open ends of these units, (hash, since when), that were made before go, and teach nobody; how many there were."""
        gone = 0
        for unit, since in units:
            held = self._open.get(_unit(unit))
            if held is not None and held[1].at < since:
                del self._open[_unit(unit)]
                gone += 1
        return gone

    @property
    def next_end(self) -> float:
        """When the next session times out; infinity when none is open."""
        ends = self._ends
        while ends and self._open.get(ends[0][2], (-1,))[0] != ends[0][1]:
            heapq.heappop(ends)
        return ends[0][0] if ends else np.inf

    def arrays(self) -> Arrays:
        """What a checkpoint holds of it."""
        packed = _encode(sorted(self._open.values(), key=lambda held: held[0]))
        return {"open": np.frombuffer(packed, np.uint8), "arrived": np.array([self._arrived])}

    def load(self, arrays: Arrays) -> None:
        held = _decode(arrays["open"].tobytes())
        self._open = {moment.unit: (arrival, moment) for arrival, moment in held}
        self._ends = [(moment.until, arrival, moment.unit) for arrival, moment in held]
        heapq.heapify(self._ends)
        self._arrived = int(arrays["arrived"][0])

    def _pop(self) -> Moment:
        _ = self.next_end  # drops what is gone
        return self._open.pop(heapq.heappop(self._ends)[2])[1]

    def _follow(self, one: Moment, other: Moment) -> Lived:
        """`one` and what came after it, `other` being the unit's next known decision."""
        if one.session != other.session:
            self.counts["abandoned"] += 1
            return Lived(one, None)
        if other.at - one.at > one.timeout:
            self.counts["timeout"] += 1
            return Lived(one, None)
        return Lived(one, other)


def moment_of(experience: Experience, timeout: float, width: int) -> Moment:
    """A settled decision as a sequence has it. `width` of an encoded item. Raises Corrupt('bad_vector')."""
    decision, row = experience.decision, experience.row
    matrix, rows = _candidates(experience, width)
    n = len(rows)
    slate: tuple[int, ...] = ()
    ids: Sequence[str] = ()
    if n == len(decision.candidates) > 0:  # all of them, in their order: the usual case, told at once
        slate, ids = tuple(decision.rows), decision.candidates
    elif n:
        places = {candidate: place for place, candidate in enumerate(rows)}
        slate, ids = tuple(map(places.__getitem__, decision.rows)), [decision.candidates[row] for row in rows]
    allowed = bytearray(b"\1" * n)
    for place, slot in zip(slate, decision.slots, strict=False):
        if slot in decision.pinned:
            allowed[place] = 0
    history = _rows(decision.history or b"", len(decision.history_items), width)
    return Moment(
        unit=_unit(decision.unit),
        session=id_hash(decision.session) if decision.session else 0,
        at=decision.at,
        until=row.due + timeout,
        timeout=timeout,
        context=floats(decision.context).astype("<f4").tobytes(),
        candidates=matrix.tobytes(),
        items=_hashed(ids).tobytes(),
        allowed=bytes(allowed),
        slate=slate,
        propensities=np.array(decision.propensities).tobytes(),
        present=row.present,
        rewards=row.rewards,
        history=history.tobytes(),
        past=_hashed(decision.history_items).tobytes(),
        goal=decision.goal.id if decision.goal else -1,
        goal_propensity=decision.goal.propensity if decision.goal else 1.0,
    )


def teaches(moment: Moment) -> bool:
    """Whether there is a transition to learn from; else it is only what came after another."""
    return bool(moment.slate)


def why_not(experience: Experience) -> str:
    """The outcome under which a decision that teaches nothing is counted."""
    return "no_candidates" if experience.decision.slate else "empty"


def transitions(lived: Sequence[Lived], context_size: int, width: int, objectives: int) -> Transitions:
    """N completed transitions as arrays, padded to the largest of them."""
    batch = len(lived)
    n = max((len(one.now.allowed) for one in lived), default=0)
    k = max((len(one.now.slate) for one in lived), default=0)
    h = max((len(moment.past) // 8 for one in lived for moment in one if moment is not None), default=0)
    made = Transitions(
        context=np.zeros((batch, context_size), np.float32),
        candidates=np.zeros((batch, n, width), np.float32),
        items=np.zeros((batch, n), np.uint64),
        allowed=np.zeros((batch, n), np.bool_),
        slate=np.full((batch, k), -1),
        propensities=np.ones((batch, k)),
        present=np.zeros((batch, k), np.bool_),
        rewards=np.zeros((batch, k, objectives)),
        history=np.zeros((batch, h, width), np.float32),
        history_items=np.zeros((batch, h), np.uint64),
        lived=np.zeros((batch, h), np.bool_),
        next_context=np.zeros((batch, context_size), np.float32),
        next_history=np.zeros((batch, h, width), np.float32),
        next_history_items=np.zeros((batch, h), np.uint64),
        next_lived=np.zeros((batch, h), np.bool_),
        terminal=np.array([one.then is None for one in lived], np.bool_),
        elapsed=np.array([one.then.at - one.now.at if one.then else 0.0 for one in lived]),
        units=np.array([one.now.unit for one in lived], np.uint64),
        sessions=np.array([one.now.session for one in lived], np.uint64),
        times=np.array([one.now.at for one in lived]),
        goals=np.array([one.now.goal for one in lived], np.int64),
        goal_propensities=np.array([one.now.goal_propensity for one in lived]),
    )
    for i, (now, then) in enumerate(lived):
        candidates, slots = len(now.allowed), len(now.slate)
        made.candidates[i, :candidates] = np.frombuffer(now.candidates, "<f4").reshape(-1, width)
        made.items[i, :candidates] = np.frombuffer(now.items, "<u8")
        made.allowed[i, :candidates] = np.frombuffer(now.allowed, np.bool_)
        made.slate[i, :slots] = now.slate
        made.propensities[i, :slots] = np.frombuffer(now.propensities, "<f8")
        made.present[i, :slots] = np.frombuffer(now.present, np.bool_)
        made.rewards[i, :slots] = np.frombuffer(now.rewards, "<f8").reshape(slots, objectives)
        _state(i, now, made.context, made.history, made.history_items, made.lived)
        if then is not None:
            _state(i, then, made.next_context, made.next_history, made.next_history_items, made.next_lived)
    return made


def _state(i: int, moment: Moment, context: F32, history: F32, items: U64, lived: Mask) -> None:
    context[i] = np.frombuffer(moment.context, "<f4")
    past = len(moment.past) // 8
    if past:
        history[i, -past:] = np.frombuffer(moment.history, "<f4").reshape(past, -1)
        items[i, -past:] = np.frombuffer(moment.past, "<u8")
        lived[i, -past:] = True


def _candidates(experience: Experience, width: int) -> tuple[F32, list[int]]:
    """(encoded candidates (n, d), their rows in the decision); none where the record does not tell them."""
    decision = experience.decision
    if not decision.slate or not decision.rows:
        return _rows(b"", 0, width), []
    if decision.matrix is not None:
        rows = list(range(len(decision.candidates)))
        vectors = _rows(decision.matrix, len(rows), width)
    elif decision.support is not None:
        rows = decision.support_rows
        vectors = _rows(decision.support, len(rows), width)
    elif set(decision.rows) == set(range(len(decision.candidates))):  # all of them were shown
        rows = sorted(decision.rows)
        vectors = _rows(decision.shown, len(rows), width)[np.argsort(decision.rows)]
    else:
        return _rows(b"", 0, width), []
    if not set(decision.rows) <= set(rows) or max(rows) >= len(decision.candidates):
        raise Corrupt("bad_vector", "candidates without the slate")
    return vectors, rows


def _rows(vector: Floats, rows: int, width: int) -> F32:
    """(rows, width). Raises Corrupt('bad_vector')."""
    found = floats(vector)
    if found.size != rows * width:
        raise Corrupt("bad_vector", f"{found.size} numbers are not {rows} rows of {width}")
    return found.reshape(rows, width).astype("<f4", copy=False)


def _hashed(items: Sequence[str]) -> U64:
    return np.fromiter(map(_hashes.__getitem__, items), "<u8", len(items))


def _unit(unit: str) -> int:
    """The unit's hash as a number; of one that another producer named its own way, the hash of that."""
    return int(unit, 16) if _OURS.fullmatch(unit) else id_hash(unit)
