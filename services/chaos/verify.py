"""Was anything lost or counted twice? The log, the sums and what the callers were told, held against each other.

answered   every answered decision is in the log, first with the slate and propensities that were answered
accepted   every accepted feedback is in the log
sums       what the shards have committed equals an undisturbed replay of the log, to 1e-9 of the largest
trained    what trainers have come to is a replay of their recorded order, to the last bit
counted    popular's sums per item equal what the callers know: slots of the decisions in force, values accepted
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies.types import item_hashes
from services.chaos.traffic import CANDIDATES, Told
from services.epochs import take_epoch
from services.learning.retracing import retraced, trained
from services.learning.shards import open_shards
from services.settings import Settings
from services.wiring import in_memory, open_log, open_state, open_training
from streaming.configuration import Configs
from streaming.events import Decision, Feedback, decode
from streaming.ports import DeadLetter, Log, Moves, Record
from streaming.shard import Shard, Statistics

READ = 5_000  # records at a time


@dataclass
class Verdict:
    """Every number of mistakes is 0, and `off` at most 1e-9, when the promises were kept."""

    decisions: int = 0  # in the log, each once
    feedback: int = 0
    repeated: int = 0  # records that are there again
    lost_decisions: int = 0
    changed_decisions: int = 0  # in the log with another slate than was answered, first
    lost_feedback: int = 0
    off: float = 0.0  # committed sums against the replay, relative to the largest
    counted_off: float = 0.0  # popular's sums against what the callers know, relative
    dead: dict[str, int] = field(default_factory=dict)
    trained: int = 0  # entries of the trainers' order
    untrue: list[str] = field(default_factory=list)  # arrays of trainers that a replay of their order makes otherwise

    @property
    def kept(self) -> bool:
        """Whether nothing was lost, nothing was doubled and the sums are those of the replay."""
        mistakes = self.lost_decisions + self.changed_decisions + self.lost_feedback
        return mistakes == 0 and max(self.off, self.counted_off) <= 1e-9 and not self.untrue


def verify(settings: Settings, told: Told) -> Verdict:
    """Reads the whole log and steps the shards to its end. For a service that has stopped. Raises Unavailable, Corrupt."""
    log, state, configs = open_log(settings), open_state(settings), Configs(settings.tenant)
    configs.follow(state)
    verdict = Verdict()
    partitions = range(log.partitions)
    first: dict[str, Decision] = {}
    heard: dict[tuple[str, str], Feedback] = {}
    for partition in partitions:
        for record in records(log, partition):
            event = decode(record.value)
            if isinstance(event, Decision):
                verdict.repeated += event.decision_id in first
                first.setdefault(event.decision_id, event)
            else:
                name = (event.decision_id, event.feedback_id or "")
                verdict.repeated += name in heard
                heard.setdefault(name, event)
    verdict.decisions, verdict.feedback = len(first), len(heard)
    _held_against(told, first, heard, verdict)
    shards = open_shards(settings, state, configs, take_epoch(state), partitions)
    stores = [in_memory() for _ in partitions]
    lying = AsItLies(log) if isinstance(log, Moves) else log
    again = [Shard(p, lying, checkpoints, configs, letters, epoch=1) for p, (checkpoints, letters) in enumerate(stores)]
    for shard in (*shards, *again):
        while shard.step().records:
            pass
    committed, replayed = ([shard.statistics() for shard in group] for group in (shards, again))
    verdict.off = difference(committed, replayed)
    verdict.counted_off = _counted(committed, first, told)
    if any(one.trains for one in configs.answering()):
        order, outboxes = open_training(settings)
        found = trained(order.load())
        verdict.trained, verdict.untrue = found.entries, retraced(order, outboxes, log, configs, found)
    verdict.dead = dict(sum((Counter(letters.count()) for _, letters in stores), Counter[str]()))
    return verdict


class AsItLies:
    """A log for a replay beside the shards that own it: strangers' records that they have moved are not moved once more."""

    def __init__(self, log: Log) -> None:
        assert isinstance(log, Moves)  # who has nothing to move needs no wrapper
        self._log, self._moves = log, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reroute(
        self, partition: int, records: Sequence[Record], *, again: bool = True
    ) -> tuple[list[Record], list[DeadLetter]]:
        return self._moves.reroute(partition, records, again=False)


def records(log: Log, partition: int) -> list[Record]:
    """All of a partition."""
    found: list[Record] = []
    while block := log.read(partition, len(found), READ):
        found += block
    return found


def _held_against(
    told: Told, first: dict[str, Decision], heard: dict[tuple[str, str], Feedback], verdict: Verdict
) -> None:
    for name, answered in told.answers.items():
        if not answered.logged:
            continue
        logged = first.get(name)
        if logged is None:
            verdict.lost_decisions += 1
        elif not answered.unchecked and (tuple(logged.slate), tuple(logged.propensities)) != (
            answered.items,
            answered.propensities,
        ):
            verdict.changed_decisions += 1  # an unchecked retry says that it may have been drawn afresh
    verdict.lost_feedback = sum(name not in heard for name in told.accepted)


def difference(committed: list[Statistics], replayed: list[Statistics]) -> float:
    """Largest difference of sums, relative to the largest sum of its array; infinite where something is missing."""
    off = 0.0
    for mine, theirs in zip(committed, replayed, strict=True):
        if (mine.offset, mine.examples, set(mine.arrays)) != (theirs.offset, theirs.examples, set(theirs.arrays)):
            return float("inf")
        for key, arrays in theirs.arrays.items():
            for name, array in arrays.items():
                off = max(off, gap(mine.arrays[key][name], array))
    return off


def gap(found: Any, wanted: Any) -> float:
    """Of numbers, relative to the largest; of names, all or nothing. Infinities (half-lives) are where they should be."""
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(found, wanted) else float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(found[~finite], wanted[~finite]):
        return float("inf")
    if not finite.any():
        return 0.0
    off = np.abs(found[finite] - wanted[finite]).max()
    return float(off) / max(float(np.abs(wanted[finite]).max()), 1.0)


def _counted(committed: list[Statistics], first: dict[str, Decision], told: Told) -> float:
    """Popular's Σ 1 and Σ value per item against the decisions in the log and the values accepted, relative."""
    ids = [str(item["id"]) for item in CANDIDATES]
    names = dict(zip((int(one) for one in item_hashes(ids)), ids, strict=True))
    shown, earned = defaultdict[str, float](float), defaultdict[str, float](float)
    for one in committed:
        for key, arrays in one.arrays.items():
            if key.split("/")[2] != "shown":
                continue
            for digest, n, value in zip(arrays["item_hashes"], arrays["n"], arrays["B"][:, 0], strict=True):
                shown[names[int(digest)]] += float(n)
                earned[names[int(digest)]] += float(value)
    slots, values = defaultdict[str, float](float), defaultdict[str, float](float)
    for decision in first.values():  # an answer that no caller saw may be in the log: nobody was told that it is not
        for item in decision.slate:
            slots[item] += decision.weight  # of its slate, which the bundle it was drawn from says
    for (decision_id, _), (item, value) in told.accepted.items():
        if item in first[decision_id].slate:  # after an unchecked retry the slate in force may be the other one
            values[item] += value * first[decision_id].weight
    pairs = [(shown[one], slots[one]) for one in ids] + [(earned[one], values[one]) for one in ids]
    return max(abs(found - wanted) / max(wanted, 1.0) for found, wanted in pairs)
