"""What `long_term` searches: a policy that is linear in what it sees of a person, with estimates of who that is made by hand or not at all."""

import numpy as np

from policies.types import F64
from policies.worlds.long_term_world import HORIZON, KALE, NOISE, SPREAD, Seen
from policies.worlds.session_world import sigmoid

STEEP = 4.0  # the optimum switches: θ of size one should, nearly


class Sigmoid:
    """Plays θ (P, f) for P groups of as many people; starts again at step 0. `prior`: mean of choc, None: no inference."""

    def __init__(self, theta: F64, people: int, prior: float | None) -> None:
        self.theta = np.repeat(theta, people, axis=0)  # (P · people, f)
        self.prior = prior
        self._rewards, self._moves = self._nothing()
        self._satisfaction = np.full(len(self.theta), 0.5)

    @staticmethod
    def size(inferring: bool) -> int:
        return 11 if inferring else 6

    def __call__(self, seen: Seen) -> F64:
        left = HORIZON - 1 - seen.step
        odds = logit(seen.satisfaction)  # k · NPE
        near = np.exp(-left / 3)
        columns = [np.ones(len(odds)), np.full(len(odds), near), odds, odds * near, seen.clickbait]
        columns.append(np.full(len(odds), np.exp(-seen.step / 5)))
        if self.prior is not None:
            choc, memory, sensitivity = self.person(seen)
            choc, memory, sensitivity = (choc - 12) / 5, 10 * (memory - 0.8), 10 * (sensitivity - 0.5)
            columns += [choc, choc * odds, choc * near, memory, sensitivity]
        return sigmoid((STEEP * self.theta * np.stack(columns, axis=1)).sum(axis=1).clip(-30, 30))

    def _nothing(self) -> tuple[F64, F64]:
        """Sums of least squares with nothing seen but the prior: of choc, and of memory and sensitivity."""
        every, precision = np.ones(len(self.theta)), NOISE**2 / SPREAD**2
        rewards = np.stack([precision * every, precision * (self.prior or 0.0) * every])
        return rewards, np.stack([0.01 * every, 0.0 * every, 0.01 * every, 0.008 * every, 0.005 * every])

    def person(self, seen: Seen) -> tuple[F64, F64, F64]:
        """Estimates of choc, m and k after the last step: r − (1 − c) kale SAT = choc · c SAT, and k NPE′ = m · k NPE − k · 2 (c − ½)."""
        if seen.step == 0:
            self._rewards, self._moves = self._nothing()
        else:
            x = seen.clickbait * self._satisfaction
            self._rewards = self._rewards + np.stack(
                [x * x, x * (seen.reward - (1 - seen.clickbait) * KALE * self._satisfaction)]
            )
            one, two, y = logit(self._satisfaction), -2 * (seen.clickbait - 0.5), logit(seen.satisfaction)
            self._moves = self._moves + np.stack([one * one, one * two, two * two, one * y, two * y])
        self._satisfaction = seen.satisfaction
        a, b, d, p, q = self._moves
        over = a * d - b * b
        return self._rewards[1] / self._rewards[0], (d * p - b * q) / over, (a * q - b * p) / over


def logit(share: F64) -> F64:
    return np.asarray(np.log(share / (1 - share)))
