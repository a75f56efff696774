"""Training from files: a policy's trainer over settled decisions in the order they are given, without log, order or checkpoint.

Batches are of one size, so that what comes out follows from the decisions and their order alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from policies.errors import Corrupt, Rejected
from policies.types import F32, Arrays
from streaming.configuration import CompiledPolicy
from streaming.experiences import Experience
from streaming.looking_up import looked_up
from streaming.sequences import Lived, Sequencer, moment_of, teaches, transitions, why_not
from streaming.trainer import ROWS


@dataclass
class Pretraining:
    """One policy's. `metrics` are the trainer's of its last call, `outcomes` as in `streaming.trainer` and `looked_up`, `newest` the
    latest due time. `items`: features of candidates that the files only name, see `streaming.looking_up`."""

    policy: CompiledPolicy
    timeout: float
    items: Mapping[str, F32] = field(default_factory=dict)
    transitions: int = 0
    newest: float = -np.inf
    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.policy.algorithm.trainer is None:
            raise Rejected(f"{self.policy.algorithm.name} has no trainer", at="--policy", code="no_trainer")
        self._trainer = self.policy.algorithm.trainer(self.policy.config, self.policy.problem)
        self._waiting: list[Lived] = []

    @property
    def arrays(self) -> Arrays:
        return self._trainer.arrays()

    def epoch(self, experiences: Iterable[Experience]) -> None:
        """All of them once; sessions that are open at the end are ended there."""
        surface, schema = self.policy.key.split("/")[1], self.policy.problem.encoder.schema
        objectives = tuple(self.policy.problem.objectives)
        sequencers: dict[int, Sequencer] = {}
        for one in experiences:
            if one.decision.surface != surface:
                continue
            if (one.row.schema, one.row.objectives) != (schema, objectives):
                self.outcomes["other_version"] += 1
                continue
            told = looked_up(one, self.items)
            if told is not one:
                self.outcomes["looked_up"] += 1
            try:
                moment = moment_of(told, self.timeout, self.policy.problem.encoder.item_size)
            except Corrupt as error:
                self.outcomes[error.reason] += 1
                continue
            if not teaches(moment):
                self.outcomes[why_not(told)] += 1
            self.newest = max(self.newest, one.row.due)
            self._take(sequencers.setdefault(one.partition, Sequencer()).take(moment, one.row.due))
        for sequencer in sequencers.values():
            self._take(sequencer.advance(np.inf))
            self.outcomes.update(sequencer.counts)
        self._train(len(self._waiting))

    def _take(self, lived: Iterable[Lived]) -> None:
        self._waiting += [one for one in lived if teaches(one.now)]
        while len(self._waiting) >= ROWS:
            self._train(ROWS)

    def _train(self, count: int) -> None:
        part, self._waiting = self._waiting[:count], self._waiting[count:]
        if part:
            encoder, objectives = self.policy.problem.encoder, len(self.policy.problem.objectives)
            self.metrics = self._trainer.train(transitions(part, encoder.context_size, encoder.item_size, objectives))
            self.transitions += len(part)
