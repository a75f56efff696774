"""Eide's simulator: which strategy and which prior earn clicks, and what new items are worth at once.

    random | greedy | slate TS (one draw a slate) | in-slate TS (one draw a slot)  ×  flat | hierarchical prior  ×  linear | GRU state

All variants are `recurrent_slate` with its trainer and its publish: after every step the trainer gets the step's decisions, and
the next slates are drawn from the arrays it publishes. Only the draw is done for thousands of users at once: a slot of head
`draws` is the best remaining item of a draw taken at random, a slate of `one_draw` the best items of one such draw, which is
what `policies.slate.draw` does at floor 0 (tests hold one against the other). Slates of the first tenth of the steps are random.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from policies import item_draws
from policies.algorithm import Problem
from policies.algorithms import recurrent_slate
from policies.algorithms.recurrent_slate import model
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.bundle import item_inputs
from policies.features import Encoder
from policies.sequences import Transitions
from policies.surface import Category, FeatureSpec, Objective
from policies.types import F32, F64, I64, Arrays, item_hashes
from policies.worlds.slate_world import NONE, STEPS, SlateWorld
from services.studies.study import Study, interval, with_interval

Strategy = Literal["greedy", "slate TS", "in-slate TS"]
STRATEGIES: tuple[Strategy, ...] = ("greedy", "slate TS", "in-slate TS")
RANDOM = 0.1  # share of the steps with random slates
COLD = 10  # new items a group, shown for the first time after the last step
LAST = 5  # steps that say where learning has come to
RATE = 0.1  # found on seeds 1001 and 1002, as were the scales below
TIE = 1e-5  # of a score: what decides between equals


@dataclass(frozen=True, slots=True)
class Scale:
    """Users of a run; gradient steps after each of its steps, and decisions of each of those."""

    users: int
    steps: int
    batch: int


SCALES = {"linear": Scale(5_000, 20, 2_000), "gru": Scale(1_000, 12, 1_000)}
QUICK = Scale(400, 10, 400)


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table."""

    strategy: Strategy
    hierarchical: bool
    state: Literal["linear", "gru"]

    def __str__(self) -> str:
        return f"{self.strategy} · {'hierarchical' if self.hierarchical else 'flat'} · {self.state}"

    def config(self, scale: Scale, seed: int) -> RecurrentSlate:
        return RecurrentSlate(
            group="group" if self.hierarchical else None,
            state=self.state,
            size=2,
            hidden=8,
            floor=0.0,
            replay=scale.users * STEPS,
            steps=scale.steps,
            batch=scale.batch,
            learning_rate=RATE,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Lived:
    """Mean chance of a click by step (steps,), and of the first slate of new items alone."""

    steps: F64
    cold: float


class Player:
    """One variant in one world: histories of all users, the trainer, and what it last published."""

    def __init__(self, world: SlateWorld, variant: Variant, scale: Scale, seed: int) -> None:
        self.world, self.strategy = world, variant.strategy
        values = [f"group-{g}" for g in range(len(world.centres))]
        encoder = Encoder(FeatureSpec(items={"group": Category(values)}))
        click = {"click": Objective("click", range=(0, 1))}
        self.problem = Problem(encoder, click, {"click": 1.0}, world.slots, STEPS)
        self.config = variant.config(scale, seed)
        self.trainer = recurrent_slate.trainer(self.config, self.problem)
        self.past = np.full((len(world.state), STEPS), NONE)
        self.count = np.zeros(len(world.state), np.int64)
        self.rng = np.random.default_rng([seed, 5])
        self.meet()
        self._number = seed

    def meet(self) -> None:
        """Take in the items there are: `encoded` (n, d), `hashes` (n,)."""
        rows = [{"group": f"group-{g}"} for g in self.world.group.tolist()]
        self.encoded, self.hashes = self.problem.encoder.rows(rows, "$.items"), item_hashes(self.world.ids)

    def learn(self, slates: I64, position: I64) -> None:
        """The step's decisions go to the trainer, then the clicks into the histories."""
        self.trainer.train(self._transitions(slates, position))
        clicked = np.flatnonzero(position != NONE)
        self.past[clicked, self.count[clicked]] = slates[clicked, position[clicked]]
        self.count[clicked] += 1

    def _transitions(self, slates: I64, position: I64) -> Transitions:
        n, k = slates.shape
        d, one = self.encoded.shape[1], np.ones(n)
        lived = self.past != NONE
        longest = max(int(lived.sum(axis=1).max()), 1)
        lived = lived[:, :longest]
        rows = np.where(lived, self.past[:, :longest], 0)
        history = self.encoded[rows] * lived[:, :, None]
        nobody = np.zeros((n, 0))
        return Transitions(
            context=np.zeros((n, 0), np.float32),
            candidates=self.encoded[slates],
            items=self.hashes[slates],
            allowed=np.ones((n, k), bool),
            slate=np.tile(np.arange(k), (n, 1)),
            propensities=np.ones((n, k)),
            present=np.ones((n, k), bool),
            rewards=(np.arange(k) == position[:, None]).astype(float)[:, :, None],
            history=history.astype(np.float32),
            history_items=np.where(lived, self.hashes[rows], 0),
            lived=lived,
            next_context=np.zeros((n, 0), np.float32),
            next_history=np.zeros((n, 0, d), np.float32),
            next_history_items=nobody.astype(np.uint64),
            next_lived=nobody.astype(bool),
            terminal=one.astype(bool),
            elapsed=0 * one,
            units=np.arange(n, dtype=np.uint64) + np.uint64(1),
            sessions=np.zeros(n, np.uint64),
            times=0 * one,
            goals=np.full(n, -1),
            goal_propensities=one,
        )

    def publish(self) -> "Pool":
        self._number += 1
        config = self.config
        if self.strategy == "greedy":
            config = msgspec.structs.replace(config, spread=0.0, draws=1)
        made = recurrent_slate.publish(config, self.problem, self.trainer.arrays(), 0.0, self._number)
        return Pool(config, made.arrays, self.encoded, self.hashes)

    def slates(self, among: I64 | None = None) -> I64:
        """(users, k) of a fresh publish."""
        pool, users = self.publish(), len(self.past)
        columns = self.world.slots if self.strategy == "in-slate TS" else 1
        drawn = self.rng.integers(pool.config.draws, size=(users, columns))
        past = self.past[:, : int(self.count.max())]
        return pool.slates(past, drawn, self.world.slots, among, self.rng)


class Pool:
    """A bundle's draws of all items: vectors (m, n, size), and users' states under any of them."""

    def __init__(self, config: RecurrentSlate, arrays: Arrays, encoded: F32, hashes: NDArray[np.uint64]) -> None:
        self.config, self.arrays = config, arrays
        m, size = config.draws, config.size
        inputs = {name: np.asarray(value, np.int64) for name, value in item_inputs(arrays, encoded, hashes).items()}
        prior = np.where(inputs["group_rows"] < 0, -1, inputs["group_rows"] - len(arrays["group_columns"]) - 1)
        self.known = inputs["item_rows"] >= 0
        rows = np.where(self.known, inputs["item_rows"], prior)
        noise = item_draws.normals(inputs["item_keys"], np.asarray(arrays["turn"], np.int64), m, size).reshape(
            -1, m, size
        )
        means, scales = (np.asarray(arrays[name], float)[rows][:, None] for name in ("means", "scales"))
        self.vectors = np.ascontiguousarray((means + scales * noise).transpose(1, 0, 2))  # (m, n, size)
        squares = (self.vectors**2).sum(axis=2, keepdims=True)
        # 2zᵀv − ‖v‖²: ‖z‖² ranks nothing
        self.scoring = np.concatenate([2 * self.vectors, -squares], axis=2).astype(np.float32)
        self.starts = np.asarray(arrays["starts"], float)

    def states(self, past: I64, drawn: I64) -> F64:
        """(U, size) after clicks past (U, h), NONE behind, of users under one draw each (U,)."""
        if self.config.state == "linear":
            gamma = np.asarray(self.arrays["gammas"], float)[drawn][:, None]
            state = self.starts[drawn]
            for rows in past.T:
                moved = gamma * state + (1 - gamma) * self.vectors[drawn, rows]
                state = np.where((rows != NONE)[:, None] & self.known[rows][:, None], moved, state)
            return state
        weights = recurrent_slate.unordered(self.arrays)
        state = model.gru_step(weights, self.starts[drawn], np.zeros((len(past), self.config.size)))
        for rows in past.T:
            moved = model.gru_step(weights, state, self.vectors[drawn, rows])
            state = np.where((rows != NONE)[:, None] & self.known[rows][:, None], moved, state)
        return model.gru_read(weights, state)

    def slates(self, past: I64, drawn: I64, k: int, among: I64 | None, rng: np.random.Generator) -> I64:
        """(U, k): for each column of drawn (U, k) the best remaining item; of one column (U, 1) its k best. Ties by chance."""
        among = np.arange(self.vectors.shape[1]) if among is None else among
        scoring = self.scoring[:, among].transpose(0, 2, 1)
        each, made = np.arange(len(past)), np.empty((len(past), k), np.int64)
        scores = np.empty((len(past), len(among)), np.float32)
        for t in range(k):
            if t < drawn.shape[1]:
                order = np.argsort(drawn[:, t], kind="stable")
                state = self.states(past[order], drawn[order, t])
                asked = np.append(state, np.ones((len(state), 1)), axis=1).astype(np.float32)
                edges = np.searchsorted(drawn[order, t], np.arange(len(scoring) + 1))
                for z, (start, end) in enumerate(pairwise(edges.tolist())):
                    np.matmul(asked[start:end], scoring[z], out=scores[start:end])
                if len(among) < self.vectors.shape[1]:  # items nobody saw are all alike to a flat prior at its mean
                    scores += TIE * rng.random(scores.shape, dtype=np.float32)
            for before in range(t):
                scores[each, made[order, before]] = -np.inf
            made[order, t] = scores.argmax(axis=1)
        return among[made]


def lived(world: SlateWorld, strategy: str, player: Player | None, seed: int) -> Lived:
    """A run of 20 steps and a slate of new items. Users' luck is the same for all strategies."""
    luck, random = np.random.default_rng([seed, 6]), np.random.default_rng([seed, 7])
    users, values = len(world.state), []
    for step in range(STEPS):
        if strategy == "oracle":
            slates = world.best()
        elif player is None or step < RANDOM * STEPS:
            slates = world.random_slates(users, random)
        else:
            slates = player.slates()
        values.append(float(world.chances(slates).sum(axis=1).mean()))
        position = world.click(slates, luck.random(users))
        if player is not None:
            player.learn(slates, position)
    new = world.add(COLD)
    if player is not None:
        player.meet()
        slates = player.slates(new)
    else:
        slates = world.best(among=new) if strategy == "oracle" else world.random_slates(users, random, new)
    return Lived(np.array(values), float(world.chances(slates).sum(axis=1).mean()))


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """Ten seeds, the same for every row."""
    count = seeds or (2 if quick else 10)
    scales = dict.fromkeys(SCALES, QUICK) if quick else SCALES
    rows = [
        Variant(strategy, prior, state)
        for state in ("linear", "gru")
        for strategy in STRATEGIES
        for prior in (False, True)
    ]
    found: dict[str, list[Lived]] = {}

    def play(name: str, strategy: str, scale: Scale, variant: Variant | None = None) -> None:
        for seed in range(count):
            world = SlateWorld(seed, users=scale.users)
            player = Player(world, variant, scale, seed) if variant else None
            found.setdefault(name, []).append(lived(world, strategy, player, seed))

    for floor in ("random", "oracle"):
        play(floor, floor, scales["linear"])
    for row in rows:
        play(str(row), row.strategy, scales[row.state], row)
    beside = Variant("in-slate TS", True, "linear")
    small = f"{beside}, {scales['gru'].users:,} users"
    play(small, beside.strategy, scales["gru"], beside)
    return reported(found, rows, small, scales, count)


def reported(
    found: dict[str, list[Lived]], rows: list[Variant], small: str, scales: dict[str, Scale], count: int
) -> Study:
    first = int(np.ceil(RANDOM * STEPS))
    earned = {name: np.array([run.steps[first:].mean() for run in runs]) for name, runs in found.items()}
    last = {name: np.array([run.steps[-LAST:].mean() for run in runs]) for name, runs in found.items()}
    cold = {name: np.array([run.cold for run in runs]) for name, runs in found.items()}
    regret = {name: earned["oracle"] - value for name, value in earned.items()}
    study = Study("Eide's simulator: greedy and Thompson slates, flat and hierarchical priors")
    order = ["random", *(str(row) for row in rows if row.state == "linear"), small]
    order += [*(str(row) for row in rows if row.state == "gru"), "oracle"]
    columns = ["policy", f"steps {first + 1}-{STEPS}", f"last {LAST} steps", "behind the oracle", "cold items"]
    study.table(
        f"Chance of a click on a slate of 5, mean over users; 95% intervals over {count} seeds",
        columns,
        [[name, *(with_interval(part[name]) for part in (earned, last, regret, cold))] for name in order],
    )
    claims: list[list[str | bool]] = []
    for row in rows:
        name, mine = str(row), earned[str(row)]
        over = interval(mine - earned["random"])
        claims.append([f"{name}: above random", f"{over[0]:+.4f} [{over[1]:+.4f}, {over[2]:+.4f}]", over[1] > 0])
        if row.strategy != "greedy":
            greedy = earned[str(Variant("greedy", row.hierarchical, row.state))]
            low = interval(mine - 0.99 * greedy, 0.90)[1]
            gain = interval((mine - greedy) / greedy)
            said = f"{gain[0]:+.1%} [{gain[1]:+.1%}, {gain[2]:+.1%}] of greedy"
            claims.append([f"{name}: not worse than greedy by more than 1% (one-sided 95%)", said, low > 0])
        if row.hierarchical:
            flat = cold[str(Variant(row.strategy, False, row.state))]
            ahead = interval(cold[name] - flat)
            said = f"{ahead[0]:+.4f} [{ahead[1]:+.4f}, {ahead[2]:+.4f}]"
            claims.append([f"{name}: ahead of flat on cold items", said, ahead[1] > 0])
    study.table("What had to be shown: paired differences by seed", ["claim", "difference", "shown"], claims)
    for state, scale in scales.items():
        study.note(
            f"{state}: {scale.users:,} users, 500 items in 10 groups, dimension 2, slates of 5, {STEPS} steps; after each step "
            f"{scale.steps} gradient steps of {scale.batch:,} decisions, Adam's rate {RATE}"
        )
    study.note(
        "GRU rows ran with fewer users than the paper's 5,000, for time; the linear row of as many users is beside them."
    )
    study.note(
        f"Cold items: after the last step {COLD} new items come into every group, and each user gets one slate of them alone, with no "
        "feedback on any: random and oracle say what there is to gain. Thompson explores among them, greedy does not."
    )
    study.note(
        "All rows are the algorithm recurrent_slate (its trainer, its publish), floor 0; greedy is the posterior mean, slate TS head "
        f"one_draw, in-slate TS head draws, both over pools of 256. Slates of the first {first} steps are random for all."
    )
    study.note(
        "Chosen on seeds 1001 and 1002, which are not reported: gradient steps, decisions a step, Adam's rate, the GRU's 8 hidden "
        "numbers, and where users start."
    )
    study.note(
        "Users start near one place. In a first version of the world each started at a random group, which a model with one start for "
        "all users cannot know before they click: on those seeds, with 2,000 users, in-slate TS then earned 0.154 and 0.137 where "
        "random earned 0.125 and 0.118 (oracle 0.75), and that version was given up. What is shown here is not shown for it."
    )
    study.note(
        "The oracle shows the k nearest items: the best slate for the state the user is in. The world's score is −‖h − v‖, the model's "
        "−‖z − v‖², so no row can be the truth."
    )
    return study
