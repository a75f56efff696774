"""Eide's simulator: which strategy and which prior earn clicks, and what new items are worth at once.

    random | greedy | slate TS (one draw a slate) | in-slate TS (one draw a slot)  ×  flat | hierarchical prior  ×  linear | GRU state

All variants are `recurrent_slate` with its trainer and its publish: after every step the trainer gets the step's decisions, and
the next slates are drawn from the arrays it publishes. Only the draw is done for thousands of users at once: a slot of head
`draws` is the best remaining item of a draw taken at random, a slate of `one_draw` the best items of one such draw, which is
what `policies.slate.draw` does at floor 0 (tests hold one against the other). Slates of the first tenth of the steps are random.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from policies import item_draws
from policies.algorithm import Problem
from policies.algorithms import recurrent_slate
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.features import Encoder
from policies.sequences import Transitions
from policies.surface import Category, FeatureSpec, Objective
from policies.types import F32, F64, I64, Arrays, item_hashes
from policies.worlds.slate_world import NONE, STEPS, SlateWorld

Strategy = Literal["greedy", "slate TS", "in-slate TS"]
STRATEGIES: tuple[Strategy, ...] = ("greedy", "slate TS", "in-slate TS")
RANDOM = 0.1  # share of the steps with random slates
COLD = 10  # new items a group, shown for the first time after the last step
LAST = 5  # steps that say where learning has come to
BATCH, RATE = 2_000, 0.1  # found on seeds 1001 and 1002, as was their number of gradient steps
TIE = 1e-5  # of a score: what decides between equals


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table. `options` are the algorithm's."""

    strategy: Strategy
    hierarchical: bool
    state: Literal["linear", "gru"]

    def __str__(self) -> str:
        prior = "hierarchical" if self.hierarchical else "flat"
        return f"{self.strategy} · {prior} · {self.state}"

    def config(self, steps: int, seed: int) -> RecurrentSlate:
        return RecurrentSlate(
            group="group" if self.hierarchical else None,
            state=self.state,
            size=2,
            floor=0.0,
            replay=100_000,
            batch=BATCH,
            learning_rate=RATE,
            steps=steps,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Lived:
    """Mean chance of a click by step (steps,), and of the first slate of new items alone."""

    steps: F64
    cold: float


class Player:
    """One variant in one world: histories of all users, the trainer, and what it last published."""

    def __init__(self, world: SlateWorld, variant: Variant, steps: int, seed: int) -> None:
        self.world, self.strategy = world, variant.strategy
        values = [f"group-{g}" for g in range(len(world.centres))]
        encoder = Encoder(FeatureSpec(items={"group": Category(values)}))
        click = {"click": Objective("click", range=(0, 1))}
        self.problem = Problem(encoder, click, {"click": 1.0}, world.slots, STEPS)
        self.config = variant.config(steps, seed)
        self.trainer = recurrent_slate.trainer(self.config, self.problem)
        self.past = np.full((len(world.state), STEPS), NONE)
        self.count = np.zeros(len(world.state), np.int64)
        self.rng = np.random.default_rng([seed, 5])
        self.encoded = self._encoded()
        self.hashes = item_hashes(world.ids)
        self._number = seed

    def _encoded(self) -> F32:
        rows = [{"group": f"group-{g}"} for g in self.world.group.tolist()]
        return self.problem.encoder.rows(rows, "$.items")

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
            config = RecurrentSlate(
                **{**{f: getattr(config, f) for f in config.__struct_fields__}, "spread": 0.0, "draws": 1}
            )
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

    def __init__(self, config: RecurrentSlate, arrays: Arrays, encoded: F32, hashes: np.ndarray) -> None:
        self.config, self.arrays = config, arrays
        m, size = config.draws, config.size
        inputs = bundle_inputs(arrays, encoded, hashes)
        prior = np.where(inputs["group_rows"] < 0, -1, inputs["group_rows"] - len(arrays["group_columns"]) - 1)
        self.known = inputs["item_rows"] >= 0
        rows = np.where(self.known, inputs["item_rows"], prior)
        noise = item_draws.normals(inputs["item_keys"], np.asarray(arrays["turn"], np.int64), m, size).reshape(
            -1, m, size
        )
        means, scales = (np.asarray(arrays[name], float)[rows][:, None] for name in ("means", "scales"))
        self.vectors = np.ascontiguousarray((means + scales * noise).transpose(1, 0, 2))  # (m, n, size)
        squares = (self.vectors**2).sum(axis=2, keepdims=True)
        self.scoring = np.concatenate([2 * self.vectors, -squares], axis=2).astype(
            np.float32
        )  # 2zᵀv − ‖v‖²: ‖z‖² ranks nothing
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
        state = self._gru(weights, self.starts[drawn], np.zeros((len(past), self.config.size)))
        for rows in past.T:
            moved = self._gru(weights, state, self.vectors[drawn, rows])
            state = np.where((rows != NONE)[:, None] & self.known[rows][:, None], moved, state)
        return np.asarray(state @ np.asarray(weights["out"], float) + np.asarray(weights["out_b"], float))

    @staticmethod
    def _gru(weights: Arrays, state: F64, x: F64) -> F64:
        r_x, u_x, n_x = np.split(x @ np.asarray(weights["gru_W"], float).T + weights["gru_b"], 3, axis=1)
        r_h, u_h, n_h = np.split(state @ np.asarray(weights["gru_R"], float).T + weights["gru_c"], 3, axis=1)
        update = 1 / (1 + np.exp(-(u_x + u_h)))
        return np.asarray((1 - update) * np.tanh(n_x + 1 / (1 + np.exp(-(r_x + r_h))) * n_h) + update * state)

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


def bundle_inputs(arrays: Arrays, encoded: F32, hashes: np.ndarray) -> dict[str, I64]:
    from policies.bundle import item_inputs

    return {name: np.asarray(value, np.int64) for name, value in item_inputs(arrays, encoded, hashes).items()}


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
        player.encoded, player.hashes = player._encoded(), item_hashes(world.ids)
        slates = player.slates(new)
    else:
        slates = world.best(among=new) if strategy == "oracle" else world.random_slates(users, random, new)
    return Lived(np.array(values), float(world.chances(slates).sum(axis=1).mean()))
