"""What may be set of the novelty hierarchy, and which parts of a state its manager reads."""

from typing import Annotated

import numpy as np
from msgspec import Meta

from policies.algorithm import Config, Problem
from policies.errors import Rejected
from policies.types import F64, Head

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class NoveltyHierarchy(Config, frozen=True):
    """Options.

    goals         how many; goal g adds strength_g · novelty to every score, strengths evenly from `least` to `most`
    goal_steps    decisions a goal is kept for; 0: the session
    long_run      context features that say what a unit is like in the long run (profiles); the others are of the session
    managed       False: no goal is learned from or drawn by what was learned, the worker's own weight of novelty stands alone
    static, session   what of the state the manager reads: long-run preference; what this session has shown
    novel         False: novelty enters no score and no reward
    shaping       what a worker's accepted item earns more when it is entirely new, in units of the weighted reward
    discount      γ of the worker's critic, within a session
    manager_discount   of a session's return;   next_session: weight of the next session's return in the manager's reward
    return_seconds     after which a unit that has not come back counts as gone: a next session's return of 0
    waiting       decisions that wait for their session and the next one to end; beyond, the oldest are dropped and counted
    clip          largest ratio π/β that counts
    entropy       nats of the worker's entropy worth one standard deviation of advantage;  goal_entropy: of the manager's
    recent        share that every older interaction loses of its say in what the session has shown
    hidden        width of every layer;   minibatch, replay, replay_ratio: transitions an update reads, keeps, times each is read
    averaging     share of itself that the mean of weights, which is what is served, keeps at an update; 0: the last weights are served
    epochs        sessions' stretches kept for the manager
    """

    head: Head = "softmax"
    draws: Annotated[int, Meta(ge=1, le=1)] = 1
    goals: Annotated[int, Meta(ge=2, le=64)] = 8
    goal_steps: Annotated[int, Meta(ge=0)] = 0
    least: float = -3.0
    most: float = 4.0
    long_run: list[str] = []
    managed: bool = True
    static: bool = True
    session: bool = True
    novel: bool = True
    shaping: Annotated[float, Meta(ge=0)] = 0.3
    discount: Share = 0.8
    manager_discount: Share = 0.95
    next_session: Annotated[float, Meta(ge=0)] = 1.0
    return_seconds: Positive = 7 * 86_400.0
    waiting: Annotated[int, Meta(ge=1)] = 65_536
    clip: Positive = 2.0
    entropy: Annotated[float, Meta(ge=0)] = 0.01
    goal_entropy: Annotated[float, Meta(ge=0)] = 0.05
    recent: Annotated[float, Meta(ge=0, lt=1)] = 0.3
    learning_rate: Positive = 3e-3
    hidden: Annotated[int, Meta(ge=1, le=1024)] = 16
    minibatch: Annotated[int, Meta(ge=1)] = 512
    replay: Annotated[int, Meta(ge=1)] = 8_192
    replay_ratio: Positive = 1.0
    averaging: Annotated[float, Meta(ge=0, lt=1)] = 0.98
    epochs: Annotated[int, Meta(ge=1)] = 4_096
    seed: int = 0

    @property
    def strengths(self) -> F64:
        """(g,) what each goal adds; nothing where no goal is listened to."""
        return np.linspace(self.least, self.most, self.goals) * (self.managed and self.novel)


def read(config: NoveltyHierarchy, problem: Problem) -> F64:
    """(f,) 1 where the manager reads that part of `network.features`, 0 elsewhere. Raises Rejected naming the field."""
    encoder = problem.encoder
    if not encoder.item_size:
        raise Rejected("Expected item features: novelty is told by nothing else", at="$.features.items")
    if config.most < config.least:
        raise Rejected(f"Expected at least `least`, {config.least}, got {config.most}", at="$.most")
    for i, name in enumerate(config.long_run):
        if name not in encoder.spec.context:
            raise Rejected(f"Unknown context feature {name!r}", at=f"$.long_run[{i}]", code="unknown_feature")
    marks = tuple(f"{name}{mark}" for name in config.long_run for mark in "=!:[")  # what follows a name in its columns'
    lasting = np.array([c in config.long_run or c.startswith(marks) for c in encoder.context_names], bool)
    context = np.where(lasting, config.static, config.session)
    d = encoder.item_size
    return np.concatenate([context, np.full(d + 2, config.static), np.full(d + 1, config.session)]).astype(float)
