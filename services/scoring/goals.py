"""The goal a stretch of a session is drawn under: by a bundle's manager, claimed once, kept through swaps.

    p = (1 − ε) softmax(goal_logits) + ε/g      u = BLAKE2b(server key, session and epoch, "goal")

A stretch, or epoch, is `goal_steps` decisions of a session as this replica counts them; 0: the whole session. Whoever comes to
an epoch first claims its goal in the claims' store, with its propensity and bundle, for an hour; everyone else draws under that
one, whatever bundle serves by then. On several replicas an epoch may so be longer than `goal_steps`, and one that starts
again goes on with the first; each decision's record says what it was drawn under. A decision without a session belongs to
one of its unit's.

Store away: the neutral goal, −1 with propensity 1, in mode `fallback` with reason `goal_unclaimed`; a breaker sees to it that
nobody waits for the store.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Protocol

import msgspec
import numpy as np

from policies.errors import Unavailable
from policies.slate import uniforms
from policies.types import F32, F64
from streaming.breaker import Admission, Breaker
from streaming.events import Goal
from streaming.ports import Claims

NEUTRAL = -1
UNCLAIMED = "goal_unclaimed"
REMEMBERED = 100_000  # sessions, some 50 MB
SLOW_SECONDS, COOL_SECONDS = 0.25, 1.0  # as for histories: the event loop waits meanwhile

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Goal).decode


class Manager(Protocol):
    """The second graph of a bundle: inputs by name → goal logits (g,)."""

    def __call__(self, inputs: Mapping[str, Any]) -> F32: ...


class Goals:
    """Of one replica; belongs to the event loop. `tenant` and `key` as everywhere in scoring."""

    def __init__(self, claims: Claims, tenant: str, key: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._claims, self._tenant, self._key = claims, tenant, key
        self._breaker = Breaker(clock, failures=2, slow_seconds=SLOW_SECONDS, cool_seconds=COOL_SECONDS)
        # session → (decisions, this epoch's goal)
        self._steps: OrderedDict[str, tuple[int, Goal | None]] = OrderedDict()

    def of(
        self,
        session: str,
        decision_id: str,
        bundle: str,
        manager: Manager,
        inputs: Mapping[str, Any],
        *,
        steps: int,
        floor: float,
        now: float,
    ) -> Goal:
        """The goal of a session's next decision. `session` names surface, unit and session."""
        taken, held = self._steps.get(session, (0, None))
        epoch, begins = (taken // steps, taken % steps == 0) if steps else (0, taken == 0)
        if begins or held is None:
            p = propensities(manager(inputs), floor)
            u = uniforms(self._key, f"{session}\0{epoch}", "goal", 1)[0]
            drawn = min(int(np.searchsorted(np.cumsum(p), u, side="right")), len(p) - 1)
            held = self._claimed(f"goal\0{session}\0{epoch}", Goal(drawn, float(p[drawn]), bundle, decision_id), now)
        self._steps[session] = taken + 1, held
        self._steps.move_to_end(session)
        while len(self._steps) > REMEMBERED:
            self._steps.popitem(last=False)
        return held or Goal(NEUTRAL, 1.0, bundle, decision_id)

    def _claimed(self, name: str, goal: Goal, now: float) -> Goal | None:
        """The goal, or that of whoever claimed before; None when nobody can be asked."""
        admission = self._breaker.admit()
        if admission is Admission.REFUSE:
            return None
        began = perf_counter()
        try:
            held = self._claims.claim(self._tenant, name, _encode(goal), now)
        except Unavailable:
            self._breaker.ended(False, perf_counter() - began, admission)
            return None
        self._breaker.ended(True, perf_counter() - began, admission)
        return goal if held is None else _decode(held)


def propensities(logits: F32, floor: float) -> F64:
    """(g,) of which goal is drawn."""
    away: F64 = np.exp(logits.astype(np.float64) - float(logits.max()))
    p: F64 = (1.0 - floor) * away / away.sum() + floor / len(away)
    return p


def chances(manager: Manager | None, inputs: Mapping[str, Any], floor: float) -> dict[int, float]:
    """Goal → its chance, were it drawn now. Without a manager it is always the neutral one."""
    if manager is None:
        return {NEUTRAL: 1.0}
    return dict(enumerate(propensities(manager(inputs), floor).tolist()))


def one_hot(goal: int, size: int) -> F32:
    """The graph input `goal` (g,); all 0 is the neutral goal, and one that this bundle does not have."""
    made: F32 = np.zeros(size, np.float32)
    if 0 <= goal < size:
        made[goal] = 1.0
    return made
