"""Sessions of people who watch, like, hate, grow bored, leave and sometimes come back: guardrails in conflict with watching.

A slate of k of n candidates is shown; in every slot t, for a person of type y with boredom b_g of genre g,

    appeal  a = taste[y, g] − 1.6 b_g
    watch   seconds ~ 40 · sigmoid(a + 1.1 lure) · examined(t) · Gamma(2, ½), at most 60
    like    ~ Bernoulli(examined(t) · sigmoid(−1.6 + 0.8 a + 1.4 depth − 1.2 lure))
    hate    ~ Bernoulli(examined(t) · sigmoid(−3.6 − 0.5 a + 2.2 lure))
    b_g ← 0.75 b_g + 0.35 · (share of the slate's slots that were of genre g)
    leaves  ~ Bernoulli(sigmoid(−2.6 + 2.0 mean b of what was shown + 0.9 hates − 0.4 likes))
    returns after leaving ~ Bernoulli(sigmoid(1.6 + 0.5 likes − 0.6 hates of the session)), else gone for good

so lure (clickbait) is watched, hated and not liked; it drives people away, but slower than it gains seconds: whoever maximises
watching alone pays with likes and hates. A return comes after a gap, with a quarter of the boredom left.

Types     4, uniform; each loves two genres of six (+1.2), minds two (−1.2). The context names a `segment`, which is the type
          with probability 0.7, another one else; the history tells the rest
Items     60, genres in turn; lure ~ U(−1, 1), depth = −0.3 lure + U(−0.7, 0.7)
Examined  1 / (1 + 0.15 t)
Exact     expected responses of every candidate are known (`Glance`); values of a policy come from simulating it. All luck is
          drawn beforehand for (person, step, candidate), so two policies meet the same people with the same luck (common
          random numbers) until their slates part
Switches  seconds are those of a person's clock, a step has 60 of them. Drift walks the types' tastes and turnover replaces items by
          new ones of the same genre, with every step that people live: whoever compares policies under these two makes a
          world for each. Delay, loss and duplicates are of responses on their way to whoever learns (`People.heard`); `simulate` and
          `transitions` give what is known of them `horizon` seconds after each decision. Values are what people did
Reference greedy on the expected main reward less a price of being left, the price chosen on seeds of its own: strong, not
          proven optimal
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.features import Encoder
from policies.sequences import U64, Transitions
from policies.surface import Category, FeatureSpec, Number, Objective
from policies.types import F32, F64, I64, Mask, item_hashes
from policies.worlds.actions import slate_of
from policies.worlds.switches import Heard, Switches, drifted, heard, replaced, settled

TYPES, GENRES, ITEMS, CANDIDATES, SLOTS = 4, 6, 60, 20, 4
NAMES = ("news", "music", "sport", "games", "food", "travel")
SEGMENTS = ("a", "b", "c", "d")
TELLS = 0.7  # how often a segment is the type
HISTORY = 20  # interactions a state remembers
STEP_SECONDS, GAP_SECONDS = 60.0, 86_400.0
SPEC = FeatureSpec(
    context={"segment": Category(values=list(SEGMENTS)), "depth": Number(min=0, max=20)},
    items={"genre": Category(values=list(NAMES)), "lure": Number(min=-1, max=1), "depth": Number(min=-1, max=1)},
    cross=[("segment", "genre")],
)
OBJECTIVES = {
    "watch": Objective(kind="play_seconds", scale=0.05, range=(0, 60)),
    "like": Objective(kind="like", aggregate="max", range=(0, 1)),
    "hate": Objective(kind="hate", aggregate="max", better="lower", range=(0, 1)),
}
NAMED = tuple(OBJECTIVES)


@dataclass(frozen=True, slots=True)
class Glance:
    """U people before their next slate: what a policy may see, and what only the world knows.

    context (U, c), items (U, n, d), history (U, H, d), history_items, lived (U, H)   encoded, as scoring has them
    rows, hashes (U, n)   catalogue rows of the candidates, and `item_hashes` of what lies there now
    expected (U, n, 3)   expected watch, like, hate of each candidate in slot 0
    bored (U, n)     boredom of each candidate's genre
    """

    context: F32
    items: F32
    history: F32
    history_items: U64
    lived: Mask
    rows: I64
    hashes: U64
    expected: F64
    bored: F64


@dataclass(frozen=True, slots=True)
class Value:
    """What a policy is worth, of simulated people: totals over everything they lived through.

    decisions (U,)   slates each person saw
    rewards (U, 3)   watch, like, hate summed over slots and decisions
    sessions (U,)    sessions begun
    """

    decisions: I64
    rewards: F64
    sessions: I64

    @property
    def per_decision(self) -> F64:
        """(3,) mean rewards of a slate."""
        return np.asarray(self.rewards.sum(axis=0) / self.decisions.sum(), np.float64)

    @property
    def per_person(self) -> F64:
        """(3,) mean rewards of a person's whole life in the simulation."""
        return np.asarray(self.rewards.mean(axis=0), np.float64)


Policy = Callable[[Glance, F64], tuple[I64, F64]]  # people and uniforms (U, k) → slate rows (U, k), propensities (U, k)


class SessionWorld:
    """Catalogue and tastes of one seed. `items` (60, d) encoded; `encoder`; `people` starts a population."""

    def __init__(
        self, seed: int, slots: int = SLOTS, candidates: int = CANDIDATES, switches: Switches | None = None
    ) -> None:
        rng = np.random.default_rng([seed, 1])
        self.slots, self.candidates, self.encoder = slots, candidates, Encoder(SPEC)
        self.switches, self._passing = switches or Switches(), np.random.default_rng([seed, 4])
        self.genres: I64 = np.arange(ITEMS) % GENRES
        self.lure, self.depth = made_of(ITEMS, rng)
        self.ids = [f"{NAMES[genre]}-{row:02d}" for row, genre in enumerate(self.genres)]
        self._made = ITEMS
        self.taste: F64 = np.zeros((TYPES, GENRES))
        for y in range(TYPES):
            order = rng.permutation(GENRES)
            self.taste[y, order[:2]], self.taste[y, order[2:4]] = 1.2, -1.2
        self.examined: F64 = 1 / (1 + 0.15 * np.arange(slots))
        self._name()
        self.contexts = np.stack(
            [self.encoder.context({"segment": s, "depth": float(t)}) for s in SEGMENTS for t in range(21)]
        ).reshape(TYPES, 21, -1)

    def _name(self) -> None:
        self.items = self.encoder.rows([item["features"] for item in self.catalogue], "$.items")
        self.hashes: U64 = item_hashes(self.ids)

    @property
    def catalogue(self) -> list[dict[str, Any]]:
        """Items as `PUT /v1/items` takes them."""
        return [
            {"id": name, "features": {"genre": NAMES[g], "lure": float(lure), "depth": float(depth)}}
            for name, g, lure, depth in zip(self.ids, self.genres, self.lure, self.depth, strict=True)
        ]

    def people(self, count: int, seed: int) -> "People":
        return People(self, count, seed)

    def pass_time(self, seconds: float) -> I64:
        """What drift and turnover do meanwhile; rows that hold another item now."""
        self.taste = drifted(self.switches, self.taste, seconds, self._passing)
        rows = replaced(self.switches, ITEMS, seconds, self._passing)
        if len(rows):
            self.lure, self.depth = self.lure.copy(), self.depth.copy()
            self.lure[rows], self.depth[rows] = made_of(len(rows), self._passing)
            for row in rows.tolist():
                self.ids[row] = f"{NAMES[self.genres[row]]}-{self._made:02d}"
                self._made += 1
            self._name()
        return rows

    def simulate(
        self, policy: Policy, count: int, steps: int, seed: int, horizon: float = np.inf
    ) -> tuple[Value, Transitions]:
        """Let `count` new people live `steps` slates at most under a policy: its value, and what it can be learned from.

        Transitions are those whose next state came within `steps`, in order of time; units are numbered by seed.
        """
        people = self.people(count, seed)
        parts = [people.step(policy) for _ in range(steps)]
        return people.value, people.transitions(parts, horizon)

    def reference_value(self, count: int, steps: int, seed: int) -> Value:
        """Value of the best price of being left, the price chosen on other people than those it is reported on."""
        grid = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
        found = [self.simulate(self.careful(price), 400, steps, seed + 10_000)[0].per_person[0] for price in grid]
        return self.simulate(self.careful(grid[int(np.argmax(found))]), count, steps, seed)[0]

    def careful(self, price: float) -> Policy:
        """Greedy on expected seconds less `price` seconds for what drives people away, with the truth before its eyes."""

        def policy(seen: Glance, u: F64) -> tuple[I64, F64]:
            watch, like, hate = np.moveaxis(seen.expected, 2, 0)
            # log odds a slot adds; boredom counts once more for what comes
            left = seen.bored / 2 + 0.9 * hate - 0.4 * like
            order = np.argsort(-(watch - price * left), axis=1, kind="stable")[:, : self.slots]
            return order, np.ones(order.shape)

        return policy

    def uniform(self, seen: Glance, u: F64) -> tuple[I64, F64]:
        """The floor: every slate equally likely."""
        return drawn(np.zeros(seen.rows.shape), u, floor=1.0)


@dataclass(slots=True)
class Lived:
    """One step of everybody, the `step`th: rows of those who were shown something."""

    step: int
    who: I64
    seen: Glance
    slate: I64
    propensities: F64
    rewards: F64
    gone: Mask
    at: F64
    sessions: I64


class People:
    """U people between slates. All luck comes from (world, seed, step), whatever was shown before."""

    def __init__(self, world: SessionWorld, count: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self.world, self.seed, self.count, self.steps = world, seed, count, 0
        self.types: I64 = rng.integers(TYPES, size=count)
        told = (self.types + np.where(rng.random(count) < TELLS, 0, rng.integers(1, TYPES, count))) % TYPES
        self.segments: I64 = told
        self.boredom: F64 = np.zeros((count, GENRES))
        self.mood: F64 = np.zeros((count, 2))  # likes and hates of this session
        self.depth: I64 = np.zeros(count, np.int64)
        self.here: Mask = np.ones(count, bool)
        self.history: F32 = np.zeros((count, HISTORY, world.encoder.item_size), np.float32)
        self.lived: Mask = np.zeros((count, HISTORY), bool)
        self.history_items: U64 = np.zeros((count, HISTORY), np.uint64)
        self.clock: F64 = np.zeros(count)
        self.sessions: I64 = np.ones(count, np.int64)
        self.decisions: I64 = np.zeros(count, np.int64)
        self.rewards: F64 = np.zeros((count, len(NAMED)))

    @property
    def value(self) -> Value:
        return Value(self.decisions.copy(), self.rewards.copy(), self.sessions.copy())

    def glance(self, who: I64, rng: np.random.Generator) -> Glance:
        """What those people are about to be offered; `rng` draws their candidates (for all people: luck is the step's)."""
        world = self.world
        rows = np.argsort(rng.random((self.count, ITEMS)), axis=1)[who, : world.candidates]
        genre = world.genres[rows]
        bored = self.boredom[who[:, None], genre]
        appeal = world.taste[self.types[who][:, None], genre] - 1.6 * bored
        lure, depth = world.lure[rows], world.depth[rows]
        expected = np.stack(
            [
                40 * sigmoid(appeal + 1.1 * lure),
                sigmoid(-1.6 + 0.8 * appeal + 1.4 * depth - 1.2 * lure),
                sigmoid(-3.6 - 0.5 * appeal + 2.2 * lure),
            ],
            axis=2,
        )
        context = world.contexts[self.segments[who], np.minimum(self.depth[who], 20)]
        return Glance(
            context,
            world.items[rows],
            self.history[who],
            self.history_items[who],
            self.lived[who],
            rows,
            world.hashes[rows],
            expected,
            bored,
        )

    def step(self, policy: Policy) -> Lived:
        """Everybody who is here is shown one slate, answers, and may leave."""
        world, k = self.world, self.world.slots
        rng = np.random.default_rng([self.seed, 3, self.steps])
        who = np.flatnonzero(self.here)
        seen = self.glance(who, rng)
        luck = rng.random((3, self.count, k))[:, who]
        seconds = rng.gamma(2.0, 0.5, (self.count, k))[who]
        leaving, returning = rng.random((2, self.count))[:, who]
        slate, propensities = policy(seen, luck[2])

        expected = np.take_along_axis(seen.expected, slate[:, :, None], axis=1) * world.examined[None, :, None]
        rewards = np.stack(
            [
                np.minimum(expected[:, :, 0] * seconds, 60.0),
                (luck[0] < expected[:, :, 1]).astype(float),
                (luck[1] < expected[:, :, 2]).astype(float),
            ],
            axis=2,
        )
        totals = rewards.sum(axis=1)
        rows = np.take_along_axis(seen.rows, slate, axis=1)
        bored = np.take_along_axis(seen.bored, slate, axis=1).mean(axis=1)
        shares = np.stack([(world.genres[rows] == g).mean(axis=1) for g in range(GENRES)], axis=1)
        self.boredom[who] = 0.75 * self.boredom[who] + 0.35 * shares
        self.mood[who] += totals[:, 1:]
        self.decisions[who] += 1
        self.rewards[who] += totals
        self.depth[who] += 1
        self.history[who] = np.concatenate([self.history[who][:, k:], world.items[rows]], axis=1)
        self.lived[who] = np.concatenate([self.lived[who][:, k:], np.ones((len(who), k), bool)], axis=1)
        newest = world.hashes[rows]
        self.history_items[who] = np.concatenate([self.history_items[who][:, k:], newest], axis=1)
        at, sessions = self.clock[who].copy(), self.sessions[who].copy()

        left = leaving < sigmoid(-2.6 + 2.0 * bored + 0.9 * totals[:, 2] - 0.4 * totals[:, 1])
        back = returning < sigmoid(1.6 + 0.5 * self.mood[who, 0] - 0.6 * self.mood[who, 1])
        gone = left & ~back
        again = who[left & back]
        self.clock[who] += STEP_SECONDS
        self.clock[again] += GAP_SECONDS
        self.boredom[again] *= 0.25
        self.mood[again], self.depth[again] = 0.0, 0
        self.sessions[again] += 1
        self.here[who[gone]] = False
        self.steps += 1
        world.pass_time(STEP_SECONDS)
        return Lived(self.steps - 1, who, seen, slate, propensities, rewards, gone, at, sessions)

    def heard(self, lived: Lived) -> Heard:
        """What whoever learns hears of a step, `rows` being those of `lived`."""
        return heard(self.world.switches, lived.rewards, lived.at, self._way(lived))

    def _way(self, lived: Lived) -> np.random.Generator:
        return np.random.default_rng([self.seed, 5, lived.step])

    def transitions(self, parts: list[Lived], horizon: float = np.inf) -> Transitions:
        """Steps in a row as transitions: those of the last step, and of whoever lives on after it, wait for what comes.

        Rewards are those that were heard of within `horizon` seconds of the decision.
        """
        following = parts[1:]
        if not following:
            raise ValueError("two steps at least: the last one's next state is not known yet")
        made = []
        for now, later in zip(parts, following, strict=False):
            place = np.searchsorted(later.who, now.who)
            place[now.gone] = 0
            # those who left for good have no next state: zeros
            next_context = np.where(now.gone[:, None], 0, _rows(later.seen.context, place))
            next_history = np.where(now.gone[:, None, None], 0, _rows(later.seen.history, place))
            next_lived = ~now.gone[:, None] & _rows(later.seen.lived, place)
            elapsed = np.where(now.gone, 0, _rows(later.at, place) - now.at)
            n, k = len(now.who), now.slate.shape[1]
            made.append(
                {
                    "context": now.seen.context,
                    "candidates": now.seen.items,
                    "items": now.seen.hashes,
                    "allowed": np.ones(now.seen.rows.shape, bool),
                    "slate": now.slate,
                    "propensities": now.propensities,
                    "present": np.ones((n, k), bool),
                    "rewards": settled(self.world.switches, now.rewards, now.at, horizon, self._way(now)),
                    "history": now.seen.history,
                    "history_items": now.seen.history_items,
                    "lived": now.seen.lived,
                    "next_context": next_context.astype(np.float32),
                    "next_history": next_history.astype(np.float32),
                    "next_history_items": np.where(now.gone[:, None], 0, _rows(later.seen.history_items, place)).astype(
                        np.uint64
                    ),
                    "next_lived": next_lived,
                    "terminal": now.gone,
                    "elapsed": elapsed,
                    "units": (now.who + 1 + self.seed * 1_000_003).astype(np.uint64),
                    "sessions": now.sessions.astype(np.uint64),
                    "times": now.at,
                    "goals": np.full(n, -1),
                    "goal_propensities": np.ones(n),
                }
            )
        return Transitions(**{name: np.concatenate([part[name] for part in made]) for name in made[0]})


class SessionEnv:
    """One person after another with gymnasium's signatures; an action is a slate, k candidate numbers.

    An observation is {context, items, history}; the reward is the main objective's, `info["rewards"]` has all (k, 3).
    `spaces` needs gymnasium, nothing else does.
    """

    def __init__(self, world: SessionWorld, steps: int = 100) -> None:
        self.world, self.steps = world, steps
        self._people = world.people(1, 0)
        self._next: Glance | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, F32], dict[str, Any]]:
        self._people = self.world.people(1, self._people.seed + 1 if seed is None else seed)
        return self._observation(), {}

    def step(self, action: I64) -> tuple[dict[str, F32], float, bool, bool, dict[str, Any]]:
        slate = slate_of(action, self.world.slots, self.world.candidates)
        if not self._people.here[0]:
            raise ValueError("the person has gone: reset first")
        lived = self._people.step(lambda seen, u: (slate[None, :], np.ones((1, len(slate)))))
        gone, over = bool(lived.gone[0]), self._people.steps >= self.steps
        info = {"rewards": lived.rewards[0], "session": int(self._people.sessions[0])}
        return self._observation(), float(lived.rewards[0, :, 0].sum()), gone, over and not gone, info

    def spaces(self) -> tuple[Any, Any]:
        """(observation space, action space)."""
        from gymnasium import spaces

        c, d = self.world.encoder.context_size, self.world.encoder.item_size
        box = {"context": (c,), "items": (self.world.candidates, d), "history": (HISTORY, d)}
        observation = spaces.Dict({name: spaces.Box(-10, 10, shape, np.float32) for name, shape in box.items()})
        return observation, spaces.MultiDiscrete([self.world.candidates] * self.world.slots)

    def _observation(self) -> dict[str, F32]:
        people = self._people
        seen = people.glance(np.zeros(1, np.int64), np.random.default_rng([people.seed, 3, people.steps]))
        return {"context": seen.context[0], "items": seen.items[0], "history": seen.history[0]}


def drawn(scores: F64, u: F64, floor: float = 0.02, temperature: float = 1.0) -> tuple[I64, F64]:
    """Slates of many people at once: head `softmax` of `policies.slate.draw`, one row each.

    scores (U, n), u (U, k) → slate rows (U, k), conditional propensities (U, k)
    """
    people, n = scores.shape
    slate, propensities = np.empty(u.shape, np.int64), np.empty(u.shape)
    free, every = np.ones((people, n), bool), np.arange(people)
    for t in range(u.shape[1]):
        # the rest may have underflowed together: start again from the largest that is left
        left = np.where(free, scores, -np.inf)
        weights = np.exp((left - left.max(axis=1, keepdims=True)) / temperature)
        p = (1 - floor) * weights / weights.sum(axis=1, keepdims=True) + floor * free / (n - t)
        reached = np.cumsum(p, axis=1)
        reached /= reached[:, -1:]
        slate[:, t] = np.minimum((reached <= u[:, t, None]).sum(axis=1), n - 1)
        propensities[:, t] = p[every, slate[:, t]]
        free[every, slate[:, t]] = False
    return slate, propensities


def made_of(items: int, rng: np.random.Generator) -> tuple[F64, F64]:
    """lure and depth of new items."""
    lure = rng.uniform(-1, 1, items).round(3)
    return lure, (-0.3 * lure + rng.uniform(-0.7, 0.7, items)).round(3)


def sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-x)), np.float64)


def _rows(array: Any, place: I64) -> Any:
    """Rows of the next step; where nobody came, of zeros."""
    return array[place] if len(array) else np.zeros((len(place), *array.shape[1:]), array.dtype)
