"""Vowpal Wabbit's decision service JSON as logged decisions: contextual bandits, conditional contextual bandits and slates.

cb      one slot. Actions count from 1: `_label_Action` drawn with `_label_probability` at cost `_label_cost`; `a` and `p` are all
        actions, the drawn one first, with their probabilities
ccb     `_outcomes`, one a slot, with a cost each. Actions count from 0: `_a` the drawn one first, `_p` theirs, given the slots
        before; what was drawn before is gone, `_inc` of a slot names the only actions it may show
slates  `_outcomes` without costs and one `_label_cost` of all. Every action says its `_slot_id`; `_a` counts from 0 among those of
        its slot. The reward is put on the last slot, whose weight is that of the whole slate

reward  −cost; one objective, called `reward`
item    its `id` (of any namespace) where it has one, else its number
unit    the hash in front of our own decision ids, else every event is its own unit: intervals then take them as independent

Features are found by name, of any namespace: raw as the policy's surface declares them, or as our own export writes encoded
columns. Zeros are not written, so a column that is missing is 0.

Set aside, by reason: broken_line (no JSON, or a field of another type), not_a_decision (no `c`), never_shown (`_skipLearn`), no_label,
duplicate (an event id for the second time), bad_feature, bad_slate, bad_propensity, bad_distribution, bad_reward. A log that was thinned by its rewards (`pdrop`) is refused.

Source   Vowpal Wabbit wiki, DSJSON and Slates; `services/experiences/dsjson.py` writes what this reads
"""

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from msgspec import Struct, field

from policies.errors import Rejected
from policies.features import Encoder
from policies.surface import FeatureSpec
from policies.types import F32, F64, Mask
from services.evaluation.decisions import Log, LoggedDecision, Rejections, no_features, sound

OBJECTIVE = "reward"
OURS = re.compile(r"([0-9a-f]{16})-.+")
FLOAT32 = 1e-4  # how far probabilities written as float32 may sum from 1
Number = int | float


class Outcome(Struct):
    """One slot of ccb or slates. A single action or probability may stand without its list."""

    cost: Number | None = field(default=None, name="_label_cost")
    id: str = field(default="", name="_id")
    actions: int | list[int] = field(default=-1, name="_a")
    shares: Number | list[Number] = field(default=0.0, name="_p")


class Event(Struct):
    """A line, as far as it is read."""

    c: dict[str, Any] | None = None
    cost: Number | None = field(default=None, name="_label_cost")
    probability: Number | None = field(default=None, name="_label_probability")
    action: int | None = field(default=None, name="_label_Action")
    outcomes: list[Outcome] | None = field(default=None, name="_outcomes")
    a: list[int] = []
    p: list[Number] = []
    timestamp: str = field(default="", name="Timestamp")
    event_id: str = field(default="", name="EventId")
    skip: bool = field(default=False, name="_skipLearn")
    pdrop: Number = 0.0


_event = msgspec.json.Decoder(Event, strict=True).decode


class WrongLineError(Exception):
    """A line that is no decision; its message is the reason it is counted under."""


def read_dsjson(file: Path, encoder: Encoder | None = None, *, sampled: bool = False) -> Log:
    """`sampled`: only events with the probabilities of all actions.

    Raises Rejected for no such file, a thinned log, a feature of the encoder that is nowhere in it, and candidates without any.
    """
    if not file.is_file():
        raise Rejected(f"There is no {file.name}", at="$.log", code="no_log")
    rejected, decisions, seen, ids = Rejections(), [], set[str](), set[str]()
    at, partial, whole = 0.0, 0, False
    for number, line in _lines(file):
        where = f"line {number}"
        try:
            event = _event(line)
            if event.pdrop:
                raise Rejected(
                    f"{where}: pdrop {event.pdrop:g}: this log was thinned by its rewards, and its mean is not its policy's",
                    at="$.pdrop",
                    code="thinned_log",
                )
            at = _seconds(event.timestamp, at)
            one = _decision(event, at, number, encoder, seen)
            reason = "duplicate" if one.decision_id in ids else sound(one)
            ids.add(one.decision_id)
        except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
            reason = "broken_line"
        except WrongLineError as wrong:
            reason = str(wrong)
        if reason:
            rejected.add(reason, where)
        elif sampled and one.distributions is None:
            partial += 1
        elif encoder is not None and one.items is None:
            rejected.add("features_unknown", where)
        else:
            decisions.append(one)
            whole |= event.outcomes is not None and event.cost is not None
    if encoder is not None and (rejected.counts["features_unknown"] or decisions):
        _all_there(encoder, seen)
    if rejected.counts["features_unknown"]:
        raise no_features(rejected.counts["features_unknown"], len(decisions) + rejected.total)
    decisions.sort(key=lambda one: one.at)
    notes = [f"{partial} events without the probabilities of all actions left out, by --sampled"] if partial else []
    return Log("dsjson", file.name, decisions, rejected, (OBJECTIVE,), {}, encoder if decisions else None, notes, whole)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    opened: IO[bytes]
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:  # type: ignore[assignment]  # both give bytes
        for number, line in enumerate(opened, 1):
            if line.strip():
                yield number, line


def _decision(event: Event, at: float, number: int, encoder: Encoder | None, seen: set[str]) -> LoggedDecision:
    if event.c is None or not isinstance(event.c.get("_multi"), list) or not event.c["_multi"]:
        raise WrongLineError("not_a_decision")
    if event.skip:
        raise WrongLineError("never_shown")
    multi = event.c["_multi"]
    if not all(isinstance(one, dict) for one in multi):
        raise WrongLineError("broken_line")
    n = len(multi)
    told = [_flat(one) for one in multi]
    candidates = [str(one.get("id", place)) for place, one in enumerate(told)]
    if len(set(candidates)) < n:
        candidates = [str(place) for place in range(n)]
    slots = np.arange(1)
    masks: Mask | None = None
    pinned: Mask | None = None
    if event.outcomes is None:
        rows, shares, rewards, full = _one(event, n)
    elif any("_slot_id" in one for one in multi):
        rows, shares, rewards, full, masks = _slates(event, multi)
    else:
        rows, shares, rewards, full, masks, pinned = _ccb(event, n)
    k = len(rows)
    pinned = np.zeros(k, bool) if pinned is None else pinned
    name = event.event_id
    if event.outcomes is not None:
        ids = [outcome.id.rpartition("-") for outcome in event.outcomes]
        numbers = [slot for _, _, slot in ids]
        ours = all(slot.isdigit() for slot in numbers) and len({name for name, _, _ in ids}) == 1
        slots = np.array([int(slot) for slot in numbers]) if ours else np.arange(k)
        if ours and masks is not None:  # they are by slot number
            placed = np.ones((int(slots.max(initial=0)) + 1, n), bool)
            placed[slots] = masks
            masks = placed
        name = name or (ids[0][0] if ours else "")
    name = name or f"line-{number}"
    unit = OURS.fullmatch(name)
    context: F32 | None = None
    items: F32 | None = None
    if encoder is not None:
        context, items = _encoded(encoder, _flat(event.c), told, seen)
    return LoggedDecision(
        decision_id=name,
        unit=unit[1] if unit else name,
        at=at,
        candidates=candidates,
        slots=slots.astype(np.int64),
        rows=np.array(rows, np.int64),
        propensities=np.array(shares, float),
        rewards=np.array(rewards, float)[:, None],
        pinned=pinned,
        present=~pinned,
        context=context,
        items=items,
        distributions=full,
        masks=masks,
    )


def _one(event: Event, n: int) -> tuple[list[int], list[float], list[float], F64 | None]:
    drawn = event.action if event.action is not None else (event.a[0] if event.a else None)
    if event.cost is None or drawn is None:
        raise WrongLineError("no_label")
    full = _full([(event.a, event.p)], n, 1)
    share = event.probability
    if share is None:
        if drawn not in event.a or len(event.p) != len(event.a):
            raise WrongLineError("bad_propensity")
        share = event.p[event.a.index(drawn)]
    return [drawn - 1], [float(share)], [-float(event.cost)], full


def _ccb(event: Event, n: int) -> tuple[list[int], list[float], list[float], F64 | None, Mask | None, Mask]:
    assert event.outcomes is not None
    assert event.c is not None
    actions = [_list(outcome.actions) for outcome in event.outcomes]
    shares = [_list(outcome.shares) for outcome in event.outcomes]
    if not all(actions) or not all(shares) or any(outcome.cost is None for outcome in event.outcomes):
        raise WrongLineError("no_label")
    slots = event.c.get("_slots", [])
    k = len(actions)
    if not isinstance(slots, list) or len(slots) != k:
        raise WrongLineError("bad_slate")
    masks, pinned = np.ones((k, n), bool), np.zeros(k, bool)
    for t, slot in enumerate(slots):
        only = slot.get("_inc") if isinstance(slot, dict) else None
        if only is None:
            continue
        if not isinstance(only, list) or not all(isinstance(i, int) and 0 <= i < n for i in only) or not only:
            raise WrongLineError("bad_slate")
        pinned[t] = len(only) == 1 and only[0] == actions[t][0]
        masks[t] = np.isin(np.arange(n), only)
    rewards = [-float(outcome.cost or 0.0) for outcome in event.outcomes]
    rows = [drawn[0] for drawn in actions]
    full = _full(list(zip(actions, shares, strict=True)), n, 0)
    free = ~pinned
    acting = None if masks[free].all() else masks
    return rows, [float(p[0]) for p in shares], rewards, full, acting, pinned


def _slates(
    event: Event, multi: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[float], list[float], F64 | None, Mask]:
    assert event.outcomes is not None
    n, k = len(multi), len(event.outcomes)
    of_slot = [[i for i, one in enumerate(multi) if one.get("_slot_id") == t] for t in range(k)]
    if sum(map(len, of_slot)) != n:
        raise WrongLineError("bad_slate")
    if event.cost is None:
        raise WrongLineError("no_label")
    actions, shares = [], []
    for mine, outcome in zip(of_slot, event.outcomes, strict=True):
        told = _list(outcome.actions)
        if not told or not all(0 <= i < len(mine) for i in told):
            raise WrongLineError("bad_slate")
        actions.append([mine[i] for i in told])
        shares.append(_list(outcome.shares))
    if not all(shares):
        raise WrongLineError("no_label")
    masks = np.zeros((k, n), bool)
    for t, mine in enumerate(of_slot):
        masks[t, mine] = True
    rewards = [0.0] * (k - 1) + [-float(event.cost)]
    full = _full(list(zip(actions, shares, strict=True)), n, 0)
    return [drawn[0] for drawn in actions], [float(p[0]) for p in shares], rewards, full, masks


def _full(said: Sequence[tuple[Sequence[int], Sequence[Number]]], n: int, first: int) -> F64 | None:
    """(k, n) where every slot's probabilities are all there; `first`: the number of the first action."""
    out = np.zeros((len(said), n))
    for t, (actions, shares) in enumerate(said):
        if len(actions) != len(shares) or not actions or len(set(actions)) < len(actions):
            return None
        if min(actions) < first or max(actions) >= n + first:
            raise WrongLineError("bad_slate")
        p = np.array(shares, float)
        if not np.isfinite(p).all() or (p < 0).any():
            raise WrongLineError("bad_propensity")
        if abs(p.sum() - 1.0) > FLOAT32:
            return None
        out[t, np.array(actions) - first] = p
    return out


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _flat(namespaces: Mapping[str, Any]) -> dict[str, Any]:
    """Features by name, whatever namespace they stand in; instructions to Vowpal Wabbit (`_…`) left out."""
    found: dict[str, Any] = {}
    for name, value in namespaces.items():
        if name[:1] == "_":
            continue
        if isinstance(value, dict):
            found |= _flat(value)
        else:
            found[name] = value
    return found


def _encoded(
    encoder: Encoder, context: Mapping[str, Any], items: Sequence[Mapping[str, Any]], seen: set[str]
) -> tuple[F32, F32 | None]:
    """(c,) and (n, d), None where a candidate comes with its id alone. Raw features by the encoder; over them columns that are already encoded. Raises WrongLineError for a value of another type."""
    spec = encoder.spec
    try:
        c = encoder.context({name: context[name] for name in spec.context if name in context})
        x = encoder.rows([{name: item[name] for name in spec.items if name in item} for item in items], "$.c._multi")
    except Rejected:
        raise WrongLineError("bad_feature") from None
    _columns(c, encoder.context_names, context, seen, "context")
    seen.update(f"context.{name}" for name in spec.context if name in context)
    complete = True
    for row, item in zip(x, items, strict=True):
        raw = [f"items.{name}" for name in spec.items if name in item]
        seen.update(raw)
        complete &= bool(_columns(row, encoder.item_names, item, seen, "items") or raw or not len(row))
    return c, x if complete else None


def _columns(row: F32, names: Sequence[str], told: Mapping[str, Any], seen: set[str], side: str) -> int:
    """Write columns that come encoded; how many there were."""
    count = 0
    for place, name in enumerate(names):
        value = told.get(name, told.get(f"x{name}") if name[:1] == "_" else None)  # as `_named` of the export
        if isinstance(value, int | float) and not isinstance(value, bool):
            row[place] = value
            seen.add(f"{side}.{name}")
            count += 1
    return count


def _all_there(encoder: Encoder, seen: set[str]) -> None:
    """Raises Rejected for a feature without a trace in the whole log: a policy cannot be judged without what it reads."""
    spec = encoder.spec
    alone = {
        f"context.{name}": Encoder(FeatureSpec(context={name: kind})).context_names
        for name, kind in spec.context.items()
    }
    alone |= {f"items.{name}": Encoder(FeatureSpec(items={name: kind})).item_names for name, kind in spec.items.items()}
    for name, columns in alone.items():
        side, _, feature = name.partition(".")
        if not seen & {name, *(f"{side}.{column}" for column in columns)}:
            raise Rejected(f"The log has no feature {feature!r}", at=f"$.features.{name}", code="unknown_feature")


def _seconds(timestamp: str, before: float) -> float:
    """Epoch seconds; what cannot be read is as late as the line before."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:?\d\d)?", timestamp)
    if not found:
        return before
    zone = "+00:00" if found[3] in (None, "Z") else found[3]
    try:
        return datetime.fromisoformat(f"{found[1]}{zone}").timestamp() + float(f"0{found[2] or '.0'}")
    except ValueError:
        return before
