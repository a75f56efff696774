"""A log's decisions as episodes: what one unit lived through in one session, in the order and with the ends that trainers see.

Order and ends are those of `streaming.sequences.Sequencer`: another session of the unit, or the session's timeout. A decision that
showed nothing to anybody is no step. Left out whole, and counted:

    open       the session had not timed out when the log ended (`--unsettled` takes it as it stands)
    broken     a decision in it cannot be used, so what came of it cannot be weighed
    left_out   a decision in it was learned from, or is outside the part of the log that is judged
    late       (single decisions) settled after a later one of its unit: its episode goes on without it, as for trainers
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from policies.errors import Rejected
from services.evaluation.decisions import Log, LoggedDecision, Placed
from streaming.index import id_hash
from streaming.sequences import Lived, Moment, Sequencer

UNSEEN = frozenset({"no_slots", "never_shown"})  # nobody saw anything: the state went on as it was
Episode = list[LoggedDecision]


def episodes(
    log: Log, *, since: float = -np.inf, until: float = np.inf, unsettled: bool = False
) -> tuple[list[Episode], Counter[str]]:
    """(episodes that began from `since` and before `until`, in the order of their beginnings, how many were left out and why).

    Raises Rejected for logs that do not say whose decisions follow each other: 'no_sequences', 'no_unit'.
    """
    if log.kind != "experiences":
        raise Rejected(
            f"A log of kind {log.kind} does not say which decisions were one person's, session by session, and when they settled",
            at="$.log",
            code="no_sequences",
        )
    nameless = sum(not (one.unit and np.isfinite(one.at)) for one in log.placed)
    if nameless:
        raise Rejected(
            f"{nameless} of {len(log.placed)} decisions have no unit or no time: episodes are a unit's decisions in their order",
            at="$.unit",
            code="no_unit",
        )
    usable = {one.decision_id: one for one in log.decisions}
    found: list[Episode] = []
    counts: Counter[str] = Counter()
    for placed, is_open in _chains(log.placed, counts):
        if not since <= placed[0].at < until:
            continue
        steps = [one for one in placed if one.reason not in UNSEEN]
        missing = [one for one in steps if one.decision_id not in usable]
        if is_open and not unsettled:
            counts["open"] += 1
        elif missing:
            counts["broken" if any(one.reason for one in missing) else "left_out"] += 1
        elif steps:
            found.append([usable[one.decision_id] for one in steps])
    found.sort(key=lambda episode: episode[0].at)
    return found, counts


def _chains(placed: Sequence[Placed], counts: Counter[str]) -> Iterator[tuple[list[Placed], bool]]:
    """(a session's decisions in order, whether it may go on after the log) of every partition."""
    ordered = sorted(placed, key=lambda one: (one.partition, one.number))
    for _, group in groupby(ordered, key=lambda one: one.partition):
        part = list(group)
        moments = [_moment(one) for one in part]
        place = {id(moment): i for i, moment in enumerate(moments)}
        sequencer, lived, late = Sequencer(most_open=len(part)), list[Lived](), set[int]()
        for i, moment in enumerate(moments):
            before = sequencer.counts["late"]
            lived += sequencer.take(moment, part[i].due)
            if sequencer.counts["late"] > before:
                late.add(i)
        clock = part[-1].due
        ends = sequencer.advance(np.inf)
        going_on = {place[id(one.now)] for one in ends if one.now.until >= clock}
        follows = {place[id(one.now)]: place[id(one.then)] for one in lived if one.then is not None}
        heads = set(range(len(part))) - late - {then for now, then in follows.items() if now not in late}
        counts["late"] += len(late)
        for head in sorted(heads):
            chain = [head]
            while chain[-1] in follows:
                chain.append(follows[chain[-1]])
            yield [part[i] for i in chain], chain[-1] in going_on


def _moment(one: Placed) -> Moment:
    """What a sequencer looks at of a decision."""
    nothing = b""
    return Moment(
        unit=id_hash(one.unit),
        session=id_hash(one.session) if one.session else 0,
        at=one.at,
        until=one.due + one.timeout,
        timeout=one.timeout,
        context=nothing,
        candidates=nothing,
        items=nothing,
        allowed=nothing,
        slate=(),
        propensities=nothing,
        present=nothing,
        rewards=nothing,
        history=nothing,
        past=nothing,
    )
