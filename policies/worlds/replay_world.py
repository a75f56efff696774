"""Data that somebody logged, replayed as a world: every reward known, or only that of the item that was shown.

    full information   rewards of all items offered are known: any slate gets its true rewards, and regret is exact
    logged             one item a round is known. A round counts when the same item is chosen, and then with probability
                       min p / p of the propensity it was logged with: what is left is as if the chooser had been followed on
                       uniformly random rounds, whatever it learns from them (Li, Chu, Langford & Wang 2011). Others are skipped

Order     rounds are shuffled by the seed; one step is one round, and one second of the switches
Optimum   full information: the k largest rewards of those offered; regret is theirs minus the slate's
Switches  delay, loss, duplicates act on what arrives, never on what a step returns for scoring
          drift adds to every item's rewards a random walk in their own units, clipped to the range of the data
          turnover keeps a share of the items aside, and replaces items shown so far by some of those, under ids never used before
Source    Li, Chu, Langford & Wang, WSDM 2011 (arXiv 1003.5956); rejection for propensities that differ: their section 4 with
          acceptance min p / p
"""

import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policies.errors import Rejected
from policies.types import F32, F64, I64, Mask
from policies.worlds.switches import Switches, arrivals, drifted, replaced

ASIDE = 0.5  # of the items, kept aside under turnover: as many to come as there are to go


class Heard(NamedTuple):
    """Feedback that has arrived: what was shown in a round's slot, by the item's id at that time, and its reward."""

    round: int
    slot: int
    item: str
    reward: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """T rounds over n items.

    context (T, c);  items (n, d) features, d = 0 where items are just names
    offered (T, a)   item rows on offer, −1 = none
    rewards (T, a)   of what is offered; NaN where unknown
    logged (T,)      position of the item that was shown, None under full information;  propensities (T,) of it
    """

    context: F32
    items: F32
    offered: I64
    rewards: F64
    logged: I64 | None = None
    propensities: F64 | None = None

    def __len__(self) -> int:
        return len(self.context)

    def check(self) -> None:
        """Raises Rejected, naming the field."""
        t, n = len(self.context), len(self.items)
        if not t:
            raise Rejected("There are no rounds", at="$.context", code="empty_log")
        if self.offered.shape != self.rewards.shape or len(self.offered) != t:
            raise Rejected(f"Expected {self.offered.shape}, got {self.rewards.shape}", at="$.rewards", code="bad_shape")
        if self.offered.min() < -1 or self.offered.max() >= n:
            raise Rejected(f"Expected rows below {n}", at="$.offered", code="bad_slate")
        there = self.offered >= 0
        if self.logged is None:
            if not np.isfinite(self.rewards[there]).all():
                raise Rejected("Full information has every reward", at="$.rewards", code="bad_reward")
            return
        p = self.propensities
        if p is None or p.shape != (t,) or not (np.isfinite(p) & (p > 0) & (p <= 1)).all():
            raise Rejected("Logged propensities must be in (0, 1]", at="$.propensities", code="bad_propensity")
        if self.logged.shape != (t,) or self.logged.min() < 0 or self.logged.max() >= self.offered.shape[1]:
            raise Rejected("Expected a position of what was offered", at="$.logged", code="bad_slate")
        at = np.arange(t), self.logged
        if not (np.isfinite(self.rewards[at]) & there[at]).all():
            raise Rejected("A reward is not finite", at="$.rewards", code="bad_reward")


class ReplayWorld:
    """One pass over the rounds, with the `reset` and `step` of gymnasium.

    observation  {"context": (c,), "offered": (n,) 1 where the item may be shown}
    action       item rows of a slate (k,), all of them offered; under logged data k = 1
    reward       the sum over the slate; 0 for a round that does not count
    info         counted, rewards (k,), regret (NaN where not every reward is known), arrived [Heard]
    """

    def __init__(self, rounds: Rounds, seed: int = 0, *, slots: int = 1, switches: Switches | None = None) -> None:
        rounds.check()
        if rounds.logged is not None and slots != 1:
            raise Rejected("Of a logged round one item's reward is known", at="$.slots", code="bad_slots")
        most = int((rounds.offered >= 0).sum(axis=1).min())
        if not 1 <= slots <= most:
            raise Rejected(f"Expected 1 to {most} slots, got {slots}", at="$.slots", code="bad_slots")
        self.rounds, self.slots, self.switches = rounds, slots, switches or Switches()
        known = rounds.rewards[np.isfinite(rounds.rewards)]
        self.range = float(known.min()), float(known.max())
        self._least = 1.0 if rounds.propensities is None else float(rounds.propensities.min())
        self._seed = seed
        self._start()

    def _start(self) -> None:
        n = len(self.rounds.items)
        self._rng = np.random.default_rng([self._seed, 7])
        self._noise = np.random.default_rng([self._seed, 8])
        self._order = self._rng.permutation(len(self.rounds))
        self.active: Mask = np.ones(n, bool)
        if self.switches.turnover:
            self.active[self._rng.permutation(n)[: int(ASIDE * n)]] = False
        self.ids: list[str] = [f"item-{row}" for row in range(n)]
        self._made = n
        self._offset: F64 = np.zeros(n)
        self._waiting: list[tuple[float, int, Heard]] = []
        self._step = self._sent = 0
        self._seek()

    def _seek(self) -> None:
        """On to the next round that can be played: where enough items are here, and the logged one is."""
        while not self.done and not self._playable(self._order[self._step]):
            self._step += 1

    def _playable(self, row: int) -> bool:
        offered = self.rounds.offered[row]
        here = (offered >= 0) & self.active[offered]
        if self.rounds.logged is not None:
            return bool(here[self.rounds.logged[row]])
        return int(here.sum()) >= self.slots

    @property
    def done(self) -> bool:
        return self._step >= len(self._order)

    @property
    def observation_space(self) -> Any:
        """As gymnasium has them; only these two need gymnasium to be installed."""
        from gymnasium.spaces import Box, Dict, MultiBinary

        context = Box(-np.inf, np.inf, (self.rounds.context.shape[1],), np.float32)
        return Dict({"context": context, "offered": MultiBinary(len(self.rounds.items))})

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import MultiDiscrete

        return MultiDiscrete(np.full(self.slots, len(self.rounds.items)))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rounds in the order of a seed; without one the next order."""
        self._seed = self._seed + 1 if seed is None else seed
        self._start()
        return self._observation(), {}

    def rewards(self) -> F64:
        """(n,) of the round that is on, drift included; NaN where unknown or not offered."""
        found = np.full(len(self.rounds.items), np.nan)
        row = self._order[self._step]
        offered = self.rounds.offered[row]
        there = (offered >= 0) & self.active[offered]
        rows = offered[there]
        found[rows] = np.clip(self.rounds.rewards[row][there] + self._offset[rows], *self.range)
        return found

    def step(self, action: I64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Show a slate. Raises Rejected for one that is none, or of items not on offer, and after the last round."""
        if self.done:
            raise Rejected("There are no rounds left: reset", at="$.action", code="done")
        slate, rewards = np.atleast_1d(np.asarray(action)), self.rewards()
        row = self._order[self._step]
        offered = self._offered(row)
        k, n = self.slots, len(rewards)
        if slate.shape != (k,) or len(np.unique(slate)) < k or slate.min() < 0 or slate.max() >= n:
            raise Rejected(f"Expected {k} different rows below {n}, got {slate.tolist()}", at="$.action")
        if not offered[slate].all():
            raise Rejected(f"Not all of {slate.tolist()} are on offer", at="$.action", code="bad_slate")
        counted = self._counts(row, slate)
        shown = rewards[slate] if counted else np.zeros(k)
        regret = float("nan")
        if self.rounds.logged is None:
            regret = float(np.sort(rewards[offered])[::-1][:k].sum() - shown.sum())
        if counted:
            self._send(slate, shown)
        self._pass_time()
        info = {"counted": counted, "rewards": shown, "regret": regret, "arrived": self._arrived()}
        return self._observation(), float(shown.sum()), False, self.done, info

    def leftover(self) -> list[Heard]:
        """What had not arrived after the last round, in the order in which it would."""
        found = [heard for _, _, heard in sorted(self._waiting)]
        self._waiting.clear()
        return found

    def _counts(self, row: int, slate: I64) -> bool:
        logged, p = self.rounds.logged, self.rounds.propensities
        if logged is None or p is None:
            return True
        same = slate[0] == self.rounds.offered[row, logged[row]]
        return bool(self._rng.random() < self._least / p[row]) and bool(same)

    def _send(self, slate: I64, rewards: F64) -> None:
        rows, at = arrivals(self.switches, np.full(len(slate), float(self._step)), self._noise)
        for slot, time in zip(rows.tolist(), at.tolist(), strict=True):
            heard = Heard(self._step, slot, self.ids[slate[slot]], float(rewards[slot]))
            heapq.heappush(self._waiting, (time, self._sent, heard))
            self._sent += 1

    def _arrived(self) -> list[Heard]:
        found = []
        while self._waiting and self._waiting[0][0] < self._step:
            found.append(heapq.heappop(self._waiting)[2])
        return found

    def _pass_time(self) -> None:
        before = self._step
        self._step += 1
        self._seek()
        elapsed = float(self._step - before)
        self._offset = drifted(self.switches, self._offset, elapsed, self._noise)
        here, aside = np.flatnonzero(self.active), np.flatnonzero(~self.active)
        gone = here[replaced(self.switches, len(here), elapsed, self._noise)][: len(aside)]
        for old, new in zip(gone.tolist(), self._noise.permutation(aside)[: len(gone)].tolist(), strict=True):
            self.active[old], self.active[new] = False, True
            self.ids[new], self._made = f"item-{self._made}", self._made + 1
        if len(gone):
            self._seek()

    def _offered(self, row: int) -> Mask:
        found = np.zeros(len(self.rounds.items), bool)
        rows = self.rounds.offered[row]
        found[rows[rows >= 0]] = True
        return found & self.active

    def _observation(self) -> dict[str, Any]:
        """After the last round: nothing is offered."""
        if self.done:
            return {
                "context": np.zeros(self.rounds.context.shape[1], np.float32),
                "offered": np.zeros(len(self.rounds.items), np.int8),
            }
        row = self._order[self._step]
        return {"context": self.rounds.context[row], "offered": self._offered(row).astype(np.int8)}
