"""Slates for users whose taste follows their clicks: the simulator of Eide et al. 2021.

    P(click item i of slate a | h) = exp(β s(h, vᵢ)) / (exp(β b₀) + Σ_{j∈a} exp(β s(h, vⱼ))),   s(h, v) = −‖h − v‖₂
    after a click on i: h ← γ h + (1 − γ) vᵢ;   after none: h stays

Paper     5,000 users, 500 items in 10 groups, dimension 2, β = 5, γ = 0.9, b₀ = 0, 20 steps
Ours      slates of 5 (`slots`); group centres N(0, I), items N(centre, 0.3² I), 50 a group, users start at N(0, 0.3² I): from much
          the same place, and go where they click
Optimum   the slate of the k nearest items has the largest chance of a click of all slates (each term grows as an item comes
          nearer), so regret is exact: that chance minus the shown slate's, in the state the user is in. What a click does to
          later states is in no regret; the oracle that shows the best slate at every step says what it comes to
Switches  one second is one step: drift moves every user, turnover replaces items by new ones of the same group
Source    Eide, Leslie and Frigessi, Dynamic slate recommendation with gated recurrent units and Thompson sampling,
          Data Mining and Knowledge Discovery 2022 (arXiv 2104.15046)
"""

from typing import Any

import numpy as np

from policies.errors import Rejected
from policies.types import F64, I64, Value
from policies.worlds.switches import Switches, drifted, replaced

SPREAD = 0.3  # of items around their group's centre, and of users' first states
STEPS = 20
NONE = -1  # position of a click that was not made


class SlateWorld:
    """All users at once: vectors (n, dim), group (n,), state (users, dim), ids (n,). Users are independent given the items."""

    def __init__(
        self,
        seed: int,
        *,
        users: int = 5_000,
        items: int = 500,
        groups: int = 10,
        dimension: int = 2,
        slots: int = 5,
        multiplier: float = 5.0,
        gamma: float = 0.9,
        no_click: float = 0.0,
        switches: Switches | None = None,
    ) -> None:
        for name, value, low in (
            ("users", users, 1),
            ("groups", groups, 1),
            ("slots", slots, 1),
            ("items", items, slots),
        ):
            if value < low:
                raise Rejected(f"Expected at least {low}, got {value}", at=f"$.{name}")
        if not 0 <= gamma <= 1:
            raise Rejected(f"Expected a number from 0 to 1, got {gamma}", at="$.gamma")
        self.slots, self.multiplier, self.gamma, self.no_click = slots, multiplier, gamma, no_click
        self.switches = switches or Switches()
        self._rng = np.random.default_rng([seed, 1])
        self.centres: F64 = self._rng.standard_normal((groups, dimension))
        self.group: I64 = np.arange(items) % groups
        self.vectors: F64 = self._near(self.group)
        self.state: F64 = SPREAD * self._rng.standard_normal((users, dimension))
        self._made = items
        self.ids: list[str] = [f"item-{i}" for i in range(items)]

    def _near(self, group: I64) -> F64:
        return self.centres[group] + SPREAD * self._rng.standard_normal((len(group), self.centres.shape[1]))

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Feature spec of a surface on this world: an item tells its group, a user nothing."""
        return {"items": {"group": {"type": "category", "values": [f"group-{g}" for g in range(len(self.centres))]}}}

    @property
    def catalogue(self) -> list[dict[str, dict[str, Value] | str]]:
        """Items as `PUT /v1/items` takes them."""
        return [
            {"id": name, "features": {"group": f"group-{g}"}}
            for name, g in zip(self.ids, self.group.tolist(), strict=True)
        ]

    # -- exact ---------------------------------------------------------------------------------------------------------

    def chances(self, slates: I64, users: I64 | slice = slice(None)) -> F64:
        """(U, k) chance of a click on each slot of slates (U, k) of item rows; what is left of 1 is the chance of none."""
        return self._chances(self.vectors[slates], users)

    def _chances(self, vectors: F64, users: I64 | slice) -> F64:
        distance = np.sqrt(((self.state[users][:, None] - vectors) ** 2).sum(axis=2))
        odds = np.exp(-self.multiplier * distance)
        return np.asarray(odds / (np.exp(self.multiplier * self.no_click) + odds.sum(axis=1, keepdims=True)))

    def best(self, users: I64 | slice = slice(None), among: I64 | None = None) -> I64:
        """(U, k) the slates of the largest chance of a click, nearest item first; `among`: item rows that may be shown."""
        vectors = self.vectors if among is None else self.vectors[among]
        state = self.state[users]
        squares = (vectors**2).sum(axis=1) - 2 * state @ vectors.T  # and ‖h‖², which is the same for all
        nearest = np.argpartition(squares, self.slots - 1, axis=1)[:, : self.slots]
        order = np.argsort(np.take_along_axis(squares, nearest, axis=1), axis=1, kind="stable")
        rows = np.take_along_axis(nearest, order, axis=1)
        return rows if among is None else among[rows]

    def regret(self, slates: I64, users: I64 | slice = slice(None)) -> F64:
        """(U,) by how much the chance of a click misses that of the best slate."""
        return np.asarray(self.chances(self.best(users), users).sum(axis=1) - self.chances(slates, users).sum(axis=1))

    # -- moving --------------------------------------------------------------------------------------------------------

    def random_slates(self, users: int, rng: np.random.Generator, among: I64 | None = None) -> I64:
        """(users, k) uniform slates without repetition."""
        rows = np.arange(len(self.ids)) if among is None else among
        if len(rows) < 4 * self.slots:  # rejection would take long
            return rows[np.argsort(rng.random((users, len(rows))), axis=1)[:, : self.slots]]
        slates: I64 = rng.integers(len(rows), size=(users, self.slots))
        again = np.arange(users)
        while len(again):
            ordered = np.sort(slates[again], axis=1)
            again = again[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
            slates[again] = rng.integers(len(rows), size=(len(again), self.slots))
        return rows[slates]

    def click(self, slates: I64, u: F64, users: I64 | slice = slice(None)) -> I64:
        """Positions (U,) clicked on, NONE where none, by one uniform a user; the users' states move."""
        chances = self.chances(slates, users)
        reached = np.cumsum(chances, axis=1)
        position = np.where(u < reached[:, -1], (u[:, None] >= reached).sum(axis=1), NONE)
        clicked = np.flatnonzero(position != NONE)
        who = np.arange(len(self.state))[users][clicked]
        vectors = self.vectors[slates[clicked, position[clicked]]]
        self.state[who] = self.gamma * self.state[who] + (1 - self.gamma) * vectors
        return position

    def pass_time(self, steps: float = 1.0) -> I64:
        """What drift and turnover do in `steps`; rows that hold another item now."""
        self.state = drifted(self.switches, self.state, steps, self._rng)
        rows = replaced(self.switches, len(self.ids), steps, self._rng)
        self._renew(rows)
        return rows

    def add(self, each: int) -> I64:
        """`each` new items in every group, never shown to anyone: their rows."""
        first, groups = len(self.ids), len(self.centres)
        self.group = np.concatenate([self.group, np.arange(each * groups) % groups])
        self.vectors = np.concatenate([self.vectors, np.zeros((each * groups, self.vectors.shape[1]))])
        self.ids = [*self.ids, *[""] * (each * groups)]
        rows = np.arange(first, len(self.ids))
        self._renew(rows)
        return rows

    def _renew(self, rows: I64) -> None:
        if len(rows):
            self.vectors[rows] = self._near(self.group[rows])
            for row in rows.tolist():
                self.ids[row] = f"item-{self._made}"
                self._made += 1


class SlateSession:
    """One user of a world with the `reset` and `step` of gymnasium, for agents that know that interface.

    observation  item rows clicked so far, oldest first, NONE in front (steps,): all a recommender can know
    action       item rows of a slate (k,)
    reward       1 for a click; `info` has the position clicked, its chances (k,) and the regret
    """

    def __init__(self, steps: int = STEPS, **world: Any) -> None:
        self.steps, self._options = steps, world
        self._seed = 0
        self._start()

    def _start(self) -> None:
        self.world = SlateWorld(self._seed, **{"users": 1, **self._options})
        self._rng = np.random.default_rng([self._seed, 2])
        self._clicked: list[int] = []
        self._step = 0

    @property
    def observation_space(self) -> Any:
        """As gymnasium has them; only these two need gymnasium to be installed."""
        from gymnasium.spaces import Box

        return Box(NONE, len(self.world.ids) - 1, (self.steps,), np.int64)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import MultiDiscrete

        return MultiDiscrete(np.full(self.world.slots, len(self.world.ids)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[I64, dict[str, Any]]:
        """The world of a seed, its user at the start; without a seed the next world."""
        self._seed = self._seed + 1 if seed is None else seed
        self._start()
        return self._observation(), {}

    def step(self, action: I64) -> tuple[I64, float, bool, bool, dict[str, Any]]:
        """Show a slate. Raises Rejected for one that is none: rows out of range, repeated, or of another number."""
        slate = np.asarray(action)
        k, n = self.world.slots, len(self.world.ids)
        if slate.shape != (k,) or len(np.unique(slate)) < k or slate.min() < 0 or slate.max() >= n:
            raise Rejected(f"Expected {k} different rows below {n}, got {slate.tolist()}", at="$.action")
        info = {"chances": self.world.chances(slate[None])[0], "regret": float(self.world.regret(slate[None])[0])}
        position = int(self.world.click(slate[None], self._rng.random(1))[0])
        if position != NONE:
            self._clicked.append(int(slate[position]))
        self.world.pass_time()
        self._step += 1
        return (
            self._observation(),
            float(position != NONE),
            False,
            self._step >= self.steps,
            {**info, "position": position},
        )

    def _observation(self) -> I64:
        seen = self._clicked[-self.steps :]
        return np.array([NONE] * (self.steps - len(seen)) + seen, np.int64)
