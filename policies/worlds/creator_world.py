"""Creators who leave when nobody sees them: what short-sighted ranking costs in the long run.

    people    T types, even shares; the attraction of creator j to type i is σ(a_ij), a a random walk (`switches.drift` a period)
    slate     k slots of looks v_t = 1 / log₂(t + 2); a creator is shown with the newest item; utility Σ v_t · σ(a_ij)
    creators  of M, each needs `need` times an even share of a period's looks; `patience` hungry periods in a row and it leaves,
              for good unless `switches.turnover` brings somebody new in its place, with attractions of their own

Since tastes walk, who is nobody's favourite today is somebody's later, if still there.

Reference  `best` of each type when nobody had ever left: the utility of a request with all creators and no error, period by period.
           Regret is that less what was got. Switches loss, duplicates and delay act on the looks that are heard of (`heard`).
           A second is a period.
"""

from typing import Any

import numpy as np

from policies.types import F64, I64, Mask
from policies.worlds.switches import Switches, arrivals, drifted, replaced

SPREAD, LEVEL = 0.7, -1.0
DRIFT = Switches(drift=0.25)


class CreatorWorld:
    """wants (T, M); here (M,): who has not left; hungry (M,): periods in a row below the need."""

    def __init__(
        self,
        seed: int,
        *,
        creators: int = 24,
        types: int = 6,
        slots: int = 3,
        need: float = 0.4,
        patience: int = 2,
        switches: Switches = DRIFT,
    ) -> None:
        self._rng = np.random.default_rng([seed, 41])
        self.switches, self.slots, self.need, self.patience = switches, slots, need, patience
        self.wants: F64 = LEVEL + SPREAD * self._rng.standard_normal((types, creators))
        self.here: Mask = np.ones(creators, bool)
        self.hungry: I64 = np.zeros(creators, np.int64)
        self.looks: F64 = 1.0 / np.log2(np.arange(slots) + 2.0)

    @property
    def values(self) -> F64:
        """(T, M) utility of a look."""
        return np.asarray(1.0 / (1.0 + np.exp(-self.wants)))

    @property
    def best(self) -> float:
        """Mean utility of a request had nobody left."""
        return float((np.sort(self.values, axis=1)[:, ::-1][:, : self.slots] @ self.looks).mean())

    def heard(self, rows: int, rng: np.random.Generator) -> I64:
        """Rows of decisions as whoever counts looks hears of them."""
        return arrivals(self.switches, np.zeros(rows), rng)[0]

    def pass_period(self, given: F64) -> I64:
        """Creators who leave after a period in which they got looks `given` (M,). Tastes walk, somebody new may come."""
        wanted = self.need * given.sum() / len(given)
        self.hungry = np.where(self.here & (given < wanted), self.hungry + 1, 0)
        left = np.flatnonzero(self.here & (self.hungry >= self.patience))
        self.here[left] = False
        self.wants = drifted(self.switches, self.wants, 1.0, self._rng)
        new = replaced(self.switches, len(self.here), 1.0, self._rng)
        if len(new):
            self.wants[:, new] = LEVEL + SPREAD * self._rng.standard_normal((len(self.wants), len(new)))
            self.here[new], self.hungry[new] = True, 0
        return left


class CreatorEnv:
    """Periods with gymnasium's signatures: an action is a slate (k,) for every type (T, k), creator numbers, a step a period.

    An observation is attractions (T, M), 0 of who has left; the reward is the mean utility of a request. `spaces` needs gymnasium.
    """

    def __init__(self, steps: int = 30, **world: Any) -> None:
        self.steps, self._options, self._seed = steps, world, 0
        self.world = CreatorWorld(0, **world)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[F64, dict[str, Any]]:
        self._seed = self._seed + 1 if seed is None else seed
        self.world, self._done = CreatorWorld(self._seed, **self._options), 0
        return self._observation(), {}

    def step(self, action: I64) -> tuple[F64, float, bool, bool, dict[str, Any]]:
        world, values = self.world, self._observation()
        types = np.arange(len(values))[:, None]
        reward = float((values[types, action] @ world.looks).mean())
        given = np.zeros(len(world.here))
        np.add.at(given, action, np.broadcast_to(world.looks, action.shape))
        regret, left = world.best - reward, world.pass_period(given)
        self._done += 1
        return self._observation(), reward, False, self._done >= self.steps, {"regret": regret, "left": left}

    @property
    def spaces(self) -> tuple[Any, Any]:
        """(observation, action) as gymnasium has them."""
        from gymnasium import spaces

        shape = self.world.wants.shape
        return spaces.Box(0.0, 1.0, shape, np.float64), spaces.MultiDiscrete(
            np.full((shape[0], self.world.slots), shape[1])
        )

    def _observation(self) -> F64:
        return np.asarray(self.world.values * self.world.here)
