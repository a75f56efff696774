"""The last decisions of the log with what was heard about them: what `/ops` shows of traffic and reward.

A view, not the record: it starts a little before the end of the log, keeps the newest decisions in memory, and forgets.
The reward of uniform slates is estimated from the same decisions by their logged propensities:

    V_t = Σ w r_t / Σ w,  w = (1/∣R_t∣) / p_t,   V = Σ_t V_t        (self-normalised, first order)

and that of greedy slates likewise, w = 1[the greedy candidate was shown] / p_t.

First order: a slot is judged given the slots before it as they were shown. The spread is the standard error of the
ratio estimator, slots taken as independent. Source: Swaminathan and Joachims, NeurIPS 2015 (SNIPS).

Of a decision it keeps what these numbers are made of, and neither candidates nor vectors: 2.2 kB of a slate of 10, so `KEPT`
of them are 18 MB, and no more than `HEARD_EACH` feedback ids.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from policies.rewards import WHOLE_SLATE, Heard
from policies.types import F64
from streaming.configuration import Compiled, CompiledPolicy, Configs
from streaming.events import VERSION, Feedback
from streaming.ports import Log
from streaming.verdicts import HEARD_EACH

KEPT = 8_000  # decisions; at 500 a second the last 16 s, at 10 a second the last 13 minutes
BACK = 4_000  # records before the end of a partition to start from
READ = 2_000
SERIES = 60  # points of the drawn line
ANSWERED = 20  # bundles of a policy to choose from


class _Shown(Struct, frozen=True, gc=False, tag_field="type", tag="decision"):
    """As much of a `Decision` as the page asks for; the rest of the record is passed over."""

    decision_id: str
    at: float
    surface: str
    config: str
    policy: str
    bundle: str
    mode: str
    slate: tuple[str, ...]
    slots: tuple[int, ...]
    rows: tuple[int, ...]
    propensities: tuple[float, ...]
    remaining: tuple[int, ...]
    greedy: tuple[int, ...]
    v: int = VERSION


_decode = msgspec.json.Decoder(_Shown | Feedback).decode


@dataclass(slots=True)
class _Seen:
    appended: float
    decision: _Shown
    heard: dict[str, Heard | None] = field(default_factory=dict)  # feedback id → heard, None once retracted


class Window:
    """Follows the log from near its end. `follow` and `report` may run in different threads."""

    def __init__(self, events: Log, configs: Configs) -> None:
        self._events, self._configs = events, configs
        self._offsets = [max(events.first(p), events.end(p)[0] - BACK) for p in range(events.partitions)]
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def follow(self) -> int:
        """Read what is new; the number of records."""
        count = 0
        for partition, offset in enumerate(self._offsets):
            records = self._events.read(partition, offset, READ)
            with self._lock:
                for record in records:
                    try:
                        event = _decode(record.value)
                    except (msgspec.MsgspecError, UnicodeDecodeError):  # the shard sets it aside and counts it
                        continue
                    if event.v == VERSION:
                        self._take(record.appended, event)
            self._offsets[partition] = offset + len(records)
            count += len(records)
        return count

    def report(self, surface: str) -> dict[str, Any]:
        """Traffic, reward a slate, and the estimate for uniform slates, of the kept decisions of a surface."""
        compiled = self._configs.current(surface)
        with self._lock:
            found = [one for one in self._seen.values() if one.decision.surface == surface]
        seen = sorted(found, key=_appended)  # partitions are read in turns
        if compiled is None or not seen:
            return {"decisions": 0}
        rewards = [self._rewards(compiled, one) for one in seen]
        values = np.array([reward.sum() for reward in rewards])
        times = np.array([one.appended for one in seen])
        decisions = [one.decision for one in seen]
        uniform, spread = _estimated(decisions, rewards, _to_uniform)
        greedy, greedy_spread = _estimated(decisions, rewards, _to_greedy)
        span = max(float(times[-1] - times[0]), 1e-9)
        return {
            "decisions": len(seen),
            "from": float(times[0]),
            "to": float(times[-1]),
            "per_second": len(seen) / span if len(seen) > 1 else 0.0,
            "modes": _count(one.decision.mode for one in seen),
            "policies": _count(one.decision.policy for one in seen),
            "reward": float(values.mean()),
            "reward_error": float(values.std() / np.sqrt(len(values))),
            "uniform": uniform,
            "uniform_error": spread,
            "greedy": greedy,
            "greedy_error": greedy_spread,
            "greedy_share": _greedy(decisions),
            "answered": _answered(seen),
            "series": _series(times, values),
        }

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The newest kept decisions, the newest first."""
        with self._lock:
            newest = sorted(self._seen.values(), key=_appended)[-limit:]
        return [
            {
                "decision_id": one.decision.decision_id,
                "at": one.decision.at,
                "surface": one.decision.surface,
                "policy": one.decision.policy,
                "mode": one.decision.mode,
                "slate": one.decision.slate,
                "feedback": sum(h is not None for h in one.heard.values()),
            }
            for one in newest[::-1]
        ]

    def _take(self, appended: float, event: _Shown | Feedback) -> None:
        if isinstance(event, _Shown):
            if event.decision_id in self._seen:  # delivered twice
                return
            self._seen[event.decision_id] = _Seen(appended, event)
            if len(self._seen) > KEPT:
                self._seen.popitem(last=False)
            return
        one = self._seen.get(event.decision_id)
        if one is None:
            return
        name = event.feedback_id if event.retracts is None else event.retracts
        if len(one.heard) >= HEARD_EACH and name not in one.heard:  # the shard sets it aside
            return
        if event.retracts is not None:
            one.heard[name] = None
        elif event.kind != "shown" and one.heard.get(name, event) is not None:
            position = _position(one.decision, event)
            if position is not None:
                one.heard[name] = Heard(position, event.kind, event.value, event.at)

    def _rewards(self, compiled: Compiled, one: _Seen) -> F64:
        """(k',) weighed reward of each slot, by the surface's own version and the objective of the live policy."""
        version = self._configs.get(one.decision.config) or compiled
        horizon = one.decision.at + version.surface.horizon_seconds
        heard = [h for h in one.heard.values() if h is not None and one.decision.at <= h.at <= horizon]
        rewards, _ = version.rewards(len(one.decision.slots), heard)
        return np.asarray(rewards @ _weights(version, self._configs.live(version)), np.float64)


def _appended(one: _Seen) -> float:
    return one.appended


def _weights(compiled: Compiled, name: str | None) -> F64:
    live: CompiledPolicy = compiled.policies[name or compiled.surface.fallback]
    return np.array([live.problem.weights.get(name, 0.0) for name in compiled.surface.objective_names], np.float64)


def _position(decision: _Shown, feedback: Feedback) -> int | None:
    """Index into the slate; None when the feedback names what was not shown."""
    if feedback.slot is not None:
        return decision.slots.index(feedback.slot) if feedback.slot in decision.slots else None
    if feedback.item is not None:
        return decision.slate.index(feedback.item) if feedback.item in decision.slate else None
    return WHOLE_SLATE


def _to_uniform(decision: _Shown, index: int) -> float:
    return 1 / (decision.remaining[index] * decision.propensities[index])


def _to_greedy(decision: _Shown, index: int) -> float:
    return (decision.rows[index] == decision.greedy[index]) / decision.propensities[index]


def _estimated(
    decisions: list[_Shown], rewards: list[F64], weight: Callable[[_Shown, int], float]
) -> tuple[float | None, float | None]:
    """(value, standard error) of slates drawn as `weight`, target over logged propensity, says; None where nothing is known."""
    weights: dict[int, list[float]] = defaultdict(list)
    earned: dict[int, list[float]] = defaultdict(list)
    for decision, reward in zip(decisions, rewards, strict=True):
        for index, (p, left) in enumerate(zip(decision.propensities, decision.remaining, strict=True)):
            if p > 0 and left > 0:
                weights[index].append(weight(decision, index))
                earned[index].append(float(reward[index]))
    if not weights:
        return None, None
    value = variance = 0.0
    for index, found in weights.items():
        w, r = np.array(found), np.array(earned[index])
        if not w.any():  # never shown, so nothing is known of it
            return None, None
        mean = float(w @ r / w.sum())
        value += mean
        variance += float(np.square(w * (r - mean)).sum() / w.sum() ** 2)
    return value, float(np.sqrt(variance))


def _greedy(decisions: list[_Shown]) -> float:
    """Share of slots that showed the candidate with the largest mean score."""
    same = total = 0
    for decision in decisions:
        same += sum(row == greedy for row, greedy in zip(decision.rows, decision.greedy, strict=True))
        total += len(decision.rows)
    return same / max(total, 1)


def _series(times: F64, values: F64) -> list[dict[str, float]]:
    """At most SERIES points: mean time, mean reward, decisions."""
    return [
        {"at": float(t.mean()), "reward": float(v.mean()), "decisions": len(v)}
        for t, v in zip(np.array_split(times, SERIES), np.array_split(values, SERIES), strict=True)
        if len(v)
    ]


def _answered(seen: list[_Seen]) -> dict[str, list[dict[str, Any]]]:
    """Policy → bundles that answered, the latest first: what a rollback may go back to."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in seen:
        key = one.decision.policy, one.decision.bundle
        if one.decision.bundle:
            line = found.setdefault(key, {"bundle": key[1], "decisions": 0, "from": one.appended})
            line["decisions"] += 1
            line["to"] = one.appended
    answered: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (policy, _), line in sorted(found.items(), key=lambda item: -item[1]["to"]):
        if len(answered[policy]) < ANSWERED:
            answered[policy].append(line)
    return dict(answered)


def _count(names: Any) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(counts)
