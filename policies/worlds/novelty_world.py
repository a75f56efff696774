"""People who want something new, or the old: by nature and by the day's mood; what serves that brings them back.

A slate of k of n candidates is shown; for a person of taste τ, nature s ~ N(0, 1) and today's mood m ~ N(0, 1),

    novelty   of an item: 1 − its largest cosine to the last 10 items the person accepted, see `policies.novelty`
    wish      w = pays · 2.5 (s + m)
    accept    ~ Bernoulli(examined(t) · sigmoid(−1.2 + 3 τ·x + w (novelty − ½)))
    delight   d ← d + accepted · w (novelty − ½), of the session
    leaves    after a decision ~ Bernoulli(0.2)
    returns   after leaving ~ Bernoulli(sigmoid(0.6 + 0.6 pays · d)), else gone for good

The reward is the number of items accepted, never shaped. `pays` 0 is the world in which novelty does not matter.

Nature    the context's `explorer`, a profile of the long run: 0.4 s + N(0, 0.15²), cut to [−1, 1], one a person
Mood      the context's `mood` tells today's in the same way; a new one with every session
Weights   nature and mood weigh alike and are drawn from the same continuous law: who knows but one of them gets the sign of the wish
          wrong for one person in four. (Were they two-valued, the larger alone would tell the sign, or, equally large, either
          would: no policy that only orders items could gain by knowing the other.)
Items     60 unit vectors near one of 12 topics; taste is a unit vector, the history tells it
Luck      all drawn beforehand for (person, step, candidate): policies meet the same people (common random numbers)
Switches  seconds are those of a person's clock, a step has 60 of them. Drift walks everybody's taste over the sphere; turnover replaces
          items by new ones of the same topic with every step that people live: whoever compares policies under it makes a
          world for each. Delay, loss and duplicates are of acceptances on their way to whoever learns (`People.heard`); `simulate` and
          `transitions` give what is known of them `horizon` seconds after each decision. Values are what people did
Reference greedy on the expected acceptances plus `price` · the delight that is expected, with the truth before its eyes; the price
          chosen on seeds of its own: strong, not proven optimal
Observer  scores by the same formula with what the context tells for s and m and the mean of the history, times a factor, for τ: what
          is within reach of who sees no more than an agent does, but knows the formula. The factor is chosen on seeds of its own
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.features import Encoder
from policies.novelty import novelty
from policies.sequences import U64, Transitions
from policies.surface import FeatureSpec, Number, Objective, Vector
from policies.types import F32, F64, I64, Mask, item_hashes
from policies.worlds.actions import slate_of
from policies.worlds.session_world import drawn, sigmoid
from policies.worlds.switches import Heard, Switches, drifted, heard, replaced, settled

ITEMS, TOPICS, SIZE, CANDIDATES, SLOTS, HISTORY = 60, 12, 8, 15, 2, 10
LEAVES, TASTE, WISH = 0.2, 3.0, 2.5
TELLS, BLURS = 0.4, 0.15  # how the context tells nature and mood: TELLS · it + N(0, BLURS²)
STEP_SECONDS, GAP_SECONDS = 60.0, 86_400.0
SPEC = FeatureSpec(
    context={"explorer": Number(min=-1, max=1), "mood": Number(min=-1, max=1)},
    items={"topic": Vector(size=SIZE, clip=1.0)},
)
OBJECTIVES = {"accept": Objective(kind="accept", range=(0, 1))}


@dataclass(frozen=True, slots=True)
class Glance:
    """U people before their next slate: what a policy may see, and what only the world knows.

    context (U, c), items (U, n, d), history (U, H, d)   encoded, newest last; history_items (U, H) `item_hashes`, 0 = padding
    begins (U,)       a session begins with this decision;   goals, goal_propensities (U,) those of the decision before, −1 and 1 at first
    rows, hashes (U, n)   catalogue rows of the candidates, and `item_hashes` of what lies there now
    expected (U, n)   chance of being accepted in slot 0
    delight (U, n)    what the session's delight would gain if accepted
    """

    context: F32
    items: F32
    history: F32
    history_items: U64
    begins: Mask
    goals: I64
    goal_propensities: F64
    rows: I64
    hashes: U64
    expected: F64
    delight: F64


@dataclass(frozen=True, slots=True)
class Drawn:
    """slate (U, k) candidate numbers and their conditional propensities; goals (U,) with theirs."""

    slate: I64
    propensities: F64
    goals: I64
    goal_propensities: F64


@dataclass(frozen=True, slots=True)
class Value:
    """accepted, sessions, decisions (U,): totals of what each person lived through; returned: share of the ends of sessions."""

    accepted: F64
    sessions: I64
    decisions: I64
    returned: float

    @property
    def per_person(self) -> float:
        return float(self.accepted.mean())

    @property
    def per_decision(self) -> float:
        return float(self.accepted.sum() / self.decisions.sum())


Policy = Callable[[Glance, F64], Drawn]  # people and uniforms (U, k + 1), the last one for the goal


def without_goal(slate: I64, propensities: F64) -> Drawn:
    return Drawn(slate, propensities, np.full(len(slate), -1), np.ones(len(slate)))


class NoveltyWorld:
    """The catalogue of one seed; `people` starts a population."""

    def __init__(
        self,
        seed: int,
        *,
        pays: float = 1.0,
        slots: int = SLOTS,
        candidates: int = CANDIDATES,
        switches: Switches | None = None,
    ) -> None:
        rng = np.random.default_rng([seed, 11])
        self.switches, self._passing = switches or Switches(), np.random.default_rng([seed, 14])
        self.slots, self.candidates, self.pays, self.encoder = slots, candidates, pays, Encoder(SPEC)
        self._topics = unit(rng.normal(size=(TOPICS, SIZE)))
        self.vectors = self._near(np.arange(ITEMS), rng)
        self.ids = [f"item-{row:02d}" for row in range(ITEMS)]
        self._made = ITEMS
        self._name()
        self.examined: F64 = 1 / (1 + 0.15 * np.arange(slots))

    def _near(self, rows: I64, rng: np.random.Generator) -> F64:
        return unit(self._topics[rows % TOPICS] + 0.15 * rng.normal(size=(len(rows), SIZE))).round(4)

    def _name(self) -> None:
        self.hashes: U64 = item_hashes(self.ids)
        self.items = self.encoder.rows([item["features"] for item in self.catalogue], "$.items")

    @property
    def catalogue(self) -> list[dict[str, Any]]:
        """Items as `PUT /v1/items` takes them."""
        return [
            {"id": name, "features": {"topic": vector.tolist()}}
            for name, vector in zip(self.ids, self.vectors, strict=True)
        ]

    def people(self, count: int, seed: int) -> "People":
        return People(self, count, seed)

    def pass_time(self, seconds: float) -> I64:
        """What turnover does meanwhile; rows that hold another item now."""
        rows = replaced(self.switches, ITEMS, seconds, self._passing)
        if len(rows):
            self.vectors = self.vectors.copy()
            self.vectors[rows] = self._near(rows, self._passing)
            for row in rows.tolist():
                self.ids[row] = f"item-{self._made:02d}"
                self._made += 1
            self._name()
        return rows

    def simulate(
        self, policy: Policy, count: int, steps: int, seed: int, horizon: float = np.inf
    ) -> tuple[Value, Transitions]:
        """Let `count` new people live `steps` decisions at most: the policy's value, and what can be learned from it.

        Transitions are those whose next state came within `steps`, in order of time; every end of a session is terminal, as in
        the stream.
        """
        people = self.people(count, seed)
        parts = [people.step(policy) for _ in range(steps)]
        return people.value, people.transitions(parts, horizon)

    def reference_value(self, count: int, steps: int, seed: int) -> Value:
        """Value of the best price of delight, the price chosen on other people than those it is reported on."""
        grid = (0.0, 0.25, 0.5, 1.0, 2.0)
        found = [self.simulate(self.careful(price), 300, steps, seed + 10_000)[0].per_person for price in grid]
        return self.simulate(self.careful(grid[int(np.argmax(found))]), count, steps, seed)[0]

    def observer_value(self, count: int, steps: int, seed: int) -> Value:
        """Value of the best observer, its factor of taste chosen on other people than those it is reported on."""
        grid = (0.25, 0.5, 1.0, 2.0)
        found = [self.simulate(self.observer(taste), 300, steps, seed + 10_000)[0].per_person for taste in grid]
        return self.simulate(self.observer(grid[int(np.argmax(found))]), count, steps, seed)[0]

    def observer(self, taste: float) -> Policy:
        likely = TELLS / (TELLS**2 + BLURS**2)  # E[s | told] = likely · told, but for the cut

        def policy(seen: Glance, u: F64) -> Drawn:
            told = self.pays * WISH * likely * seen.context.astype(float).sum(axis=1)
            lived = (seen.history != 0).any(axis=2).sum(axis=1)
            mean = seen.history.astype(float).sum(axis=1) / np.maximum(lived, 1)[:, None]
            liked = np.einsum("und,ud->un", seen.items, TASTE * taste * mean)
            order = np.argsort(-(liked + told[:, None] * novelty(seen.items, seen.history)), axis=1, kind="stable")
            return without_goal(order[:, : self.slots], np.ones((len(order), self.slots)))

        return policy

    def careful(self, price: float) -> Policy:
        def policy(seen: Glance, u: F64) -> Drawn:
            gain = seen.expected * (1 + price * seen.delight)
            order = np.argsort(-gain, axis=1, kind="stable")[:, : self.slots]
            return without_goal(order, np.ones(order.shape))

        return policy

    def uniform(self, seen: Glance, u: F64) -> Drawn:
        """The floor: every slate equally likely."""
        return without_goal(*drawn(np.zeros(seen.rows.shape), u[:, : self.slots], floor=1.0))


@dataclass(frozen=True, slots=True)
class Lived:
    """One step of everybody who is here, the `step`th; `ended`: the session is over, `gone`: for good."""

    step: int
    who: I64
    seen: Glance
    made: Drawn
    rewards: F64
    ended: Mask
    gone: Mask
    at: F64
    sessions: I64


class People:
    """U people between slates. All luck comes from (world, seed, step), whatever was shown before."""

    def __init__(self, world: NoveltyWorld, count: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 12])
        self.world, self.seed, self.count, self.steps = world, seed, count, 0
        self.taste: F64 = unit(rng.normal(size=(count, SIZE)))
        self.nature, explorer = self._told(rng)
        self.mood, says = self._told(rng)
        # a number from −1 to 1 is encoded as itself, in order of names
        self.context: F32 = np.stack([explorer, says], axis=1)
        self.begins: Mask = np.ones(count, bool)
        self.goals: I64 = np.full(count, -1)
        self.goal_propensities: F64 = np.ones(count)
        self.delight: F64 = np.zeros(count)
        self.here: Mask = np.ones(count, bool)
        self.history: F32 = np.zeros((count, HISTORY, world.encoder.item_size), np.float32)
        self.history_items: U64 = np.zeros((count, HISTORY), np.uint64)
        self.clock: F64 = np.zeros(count)
        self.sessions: I64 = np.ones(count, np.int64)
        self.decisions: I64 = np.zeros(count, np.int64)
        self.accepted: F64 = np.zeros(count)
        self.ends = np.zeros(2)  # ends of sessions, returns among them

    def _told(self, rng: np.random.Generator) -> tuple[F64, F32]:
        """Natures or moods of everybody, and what the context tells of them."""
        true, blur = rng.normal(size=(2, self.count))
        return true, np.clip(TELLS * true + BLURS * blur, -1, 1).astype(np.float32)

    @property
    def wish(self) -> F64:
        """(U,)"""
        return np.asarray(self.world.pays * WISH * (self.nature + self.mood))

    @property
    def value(self) -> Value:
        returned = float(self.ends[1] / max(1.0, self.ends[0]))
        return Value(self.accepted.copy(), self.sessions.copy(), self.decisions.copy(), returned)

    def glance(self, who: I64, rng: np.random.Generator) -> Glance:
        """`rng` draws the candidates of all people: luck is the step's."""
        world = self.world
        rows = np.argsort(rng.random((self.count, ITEMS)), axis=1)[who, : world.candidates]
        items = world.items[rows]
        pull = self.wish[who, None] * (novelty(items, self.history[who]) - 0.5)
        liked = np.einsum("und,ud->un", world.vectors[rows], self.taste[who])
        return Glance(
            context=self.context[who],
            items=items,
            history=self.history[who],
            history_items=self.history_items[who],
            begins=self.begins[who],
            goals=self.goals[who],
            goal_propensities=self.goal_propensities[who],
            rows=rows,
            hashes=world.hashes[rows],
            expected=sigmoid(-1.2 + TASTE * liked + pull),
            delight=pull,
        )

    def step(self, policy: Policy) -> Lived:
        """Everybody who is here is shown one slate, answers, and may leave."""
        world, k = self.world, self.world.slots
        rng = np.random.default_rng([self.seed, 13, self.steps])
        who = np.flatnonzero(self.here)
        seen = self.glance(who, rng)
        answers, choices = rng.random((self.count, k))[who], rng.random((self.count, k + 1))[who]
        leaving, returning = rng.random((2, self.count))[:, who]
        mood, says = self._told(rng)
        made = policy(seen, choices)

        chances = np.take_along_axis(seen.expected, made.slate, axis=1) * world.examined
        rewards = (answers < chances).astype(float)
        gains = np.take_along_axis(seen.delight, made.slate, axis=1) * rewards
        self.delight[who] += gains.sum(axis=1)
        shown = np.take_along_axis(seen.items, made.slate[:, :, None], axis=1)
        named = np.take_along_axis(seen.hashes, made.slate, axis=1)
        for t in range(k):
            took = who[rewards[:, t] > 0]
            for kept, newest in ((self.history, shown), (self.history_items, named)):
                kept[took, :-1] = kept[took, 1:]
                kept[took, -1] = newest[rewards[:, t] > 0, t]
        ended = leaving < LEAVES
        back = ended & (returning < sigmoid(0.6 + 0.6 * world.pays * self.delight[who]))
        at, sessions = self.clock[who], self.sessions[who]
        self.accepted[who] += rewards.sum(axis=1)
        self.decisions[who] += 1
        self.ends += [ended.sum(), back.sum()]
        self.clock[who] += np.where(back, GAP_SECONDS, STEP_SECONDS)
        self.goals[who], self.goal_propensities[who] = made.goals, made.goal_propensities
        self.begins[who] = ended
        self.delight[who[ended]] = 0.0
        again = who[back]
        self.mood[again], self.context[again, 1] = mood[again], says[again]
        self.sessions[again] += 1
        gone = ended & ~back
        self.here[who[gone]] = False
        self.taste = self._drifted()
        self.steps += 1
        world.pass_time(STEP_SECONDS)
        return Lived(self.steps - 1, who, seen, made, rewards, ended, gone, at, sessions)

    def _drifted(self) -> F64:
        rng = np.random.default_rng([self.seed, 16, self.steps])
        walked = drifted(self.world.switches, self.taste, STEP_SECONDS, rng)
        return walked if walked is self.taste else unit(walked)

    def heard(self, lived: Lived) -> Heard:
        """What whoever learns hears of a step, `rows` being those of `lived`."""
        return heard(self.world.switches, lived.rewards[:, :, None], lived.at, self._way(lived))

    def _way(self, lived: Lived) -> np.random.Generator:
        return np.random.default_rng([self.seed, 15, lived.step])

    def transitions(self, parts: list[Lived], horizon: float = np.inf) -> Transitions:
        """Steps in a row as transitions; those of the last step whose session goes on wait for what comes.

        Rewards are those that were heard of within `horizon` seconds of the decision.
        """
        made: list[dict[str, Any]] = []
        for number, now in enumerate(parts):
            follows = np.zeros(self.count, np.int64)
            later = parts[number + 1] if number + 1 < len(parts) else None
            if later is not None:
                follows[later.who] = np.arange(len(later.who))
            keep = now.ended if later is None else np.ones(len(now.who), bool)
            known = settled(self.world.switches, now.rewards[:, :, None], now.at, horizon, self._way(now))
            made.append(self._part(now, known, later, follows[now.who], keep))
        return Transitions(**{name: np.concatenate([part[name] for part in made]) for name in made[0]})

    def _part(self, now: Lived, known: F64, later: Lived | None, place: I64, keep: Mask) -> dict[str, Any]:
        n, k = len(now.who), self.world.slots
        on = ~now.ended
        next_context, next_history = np.zeros_like(now.seen.context), np.zeros_like(now.seen.history)
        next_items, elapsed = np.zeros_like(now.seen.history_items), np.zeros(n)
        if later is not None and on.any():
            next_context[on], next_history[on] = later.seen.context[place[on]], later.seen.history[place[on]]
            next_items[on] = later.seen.history_items[place[on]]
            elapsed[on] = later.at[place[on]] - now.at[on]
        lived, next_lived = ((h != 0).any(axis=2) for h in (now.seen.history, next_history))
        columns: dict[str, Any] = {
            "context": now.seen.context,
            "candidates": now.seen.items,
            "items": now.seen.hashes,
            "allowed": np.ones(now.seen.rows.shape, bool),
            "slate": now.made.slate,
            "propensities": now.made.propensities,
            "present": np.ones((n, k), bool),
            "rewards": known,
            "history": now.seen.history,
            "history_items": now.seen.history_items,
            "lived": lived,
            "next_context": next_context,
            "next_history": next_history,
            "next_history_items": next_items,
            "next_lived": next_lived,
            "terminal": now.ended,
            "elapsed": elapsed,
            "units": (now.who + 1 + self.seed * 1_000_003).astype(np.uint64),
            "sessions": now.sessions.astype(np.uint64),
            "times": now.at,
            "goals": now.made.goals,
            "goal_propensities": now.made.goal_propensities,
        }
        return {name: value[keep] for name, value in columns.items()}


class NoveltyEnv:
    """One person after another with gymnasium's signatures; an action is a slate, k candidate numbers.

    An observation is {context, items, history}; the reward is what was accepted; `info` tells whether a session began. `spaces` needs
    gymnasium, nothing else does.
    """

    def __init__(self, world: NoveltyWorld, steps: int = 100) -> None:
        self.world, self.steps = world, steps
        self._people = world.people(1, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, F32], dict[str, Any]]:
        self._people = self.world.people(1, self._people.seed + 1 if seed is None else seed)
        return self._observation(), {"begins": True}

    def step(self, action: I64) -> tuple[dict[str, F32], float, bool, bool, dict[str, Any]]:
        slate = slate_of(action, self.world.slots, self.world.candidates)
        if not self._people.here[0]:
            raise ValueError("the person has gone: reset first")
        lived = self._people.step(lambda seen, u: without_goal(slate[None], np.ones((1, len(slate)))))
        gone, over = bool(lived.gone[0]), self._people.steps >= self.steps
        info = {"begins": bool(self._people.begins[0])}
        return self._observation(), float(lived.rewards.sum()), gone, over and not gone, info

    def spaces(self) -> tuple[Any, Any]:
        """(observation space, action space)."""
        from gymnasium import spaces

        c, d = self.world.encoder.context_size, self.world.encoder.item_size
        box = {"context": (c,), "items": (self.world.candidates, d), "history": (HISTORY, d)}
        observation = spaces.Dict({name: spaces.Box(-1, 1, shape, np.float32) for name, shape in box.items()})
        return observation, spaces.MultiDiscrete([self.world.candidates] * self.world.slots)

    def _observation(self) -> dict[str, F32]:
        people = self._people
        seen = people.glance(np.zeros(1, np.int64), np.random.default_rng([people.seed, 13, people.steps]))
        return {"context": seen.context[0], "items": seen.items[0], "history": seen.history[0]}


def unit(rows: F64) -> F64:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))
