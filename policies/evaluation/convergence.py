"""Has it converged? How probable it is that the leader is best, and what stopping now would cost.

    leader = argmax_a mean_z v_a(z)       P(best = a) = mean_z 1[a = argmax v(z)]       loss = mean_z (max_a v_a(z) − v_leader(z))

v_a(z) is the value of arm or policy a under posterior draw z; ties share.

Source   Chapelle & Li, NeurIPS 2011; Scott, Appl. Stoch. Models 2010 (value remaining)
"""

from dataclasses import dataclass

import numpy as np

from policies.errors import Rejected
from policies.types import F64


@dataclass(frozen=True, slots=True)
class Convergence:
    """leader: column with the largest mean; probability_best (p,) of each; expected_loss: reward a decision, of staying with the
    leader for good; loss_95: its 95th percentile over draws."""

    leader: int
    probability_best: F64
    expected_loss: float
    loss_95: float

    @property
    def probability(self) -> float:
        """That the leader is best."""
        return float(self.probability_best[self.leader])


def convergence(draws: F64) -> Convergence:
    """Of m posterior draws of p values (m, p). Raises Rejected when there are none or one is not finite."""
    if draws.ndim != 2 or not draws.size:
        raise Rejected("Expected draws (m, p), at least one of each", at="$.draws", code="bad_shape")
    if not np.isfinite(draws).all():
        raise Rejected("A draw is not finite", at="$.draws", code="bad_draw")
    best = draws.max(axis=1, keepdims=True)
    tied = draws == best
    leader = int(np.argmax(draws.mean(axis=0)))
    loss = best[:, 0] - draws[:, leader]
    return Convergence(
        leader,
        np.asarray((tied / tied.sum(axis=1, keepdims=True)).mean(axis=0), np.float64),
        float(loss.mean()),
        float(np.quantile(loss, 0.95)),
    )
