"""Sequences: a trajectory is a slate whose slots are steps, W_t = Π_{s ≤ t} π/β, and what counts is its discounted return.

    pdis     mean Σ_t γ^t W_t r_t                                     unbiased
    wpdis    Σ_t γ^t Σ_i W_it r_it / Σ_i W_it                         bias O(1/N)
    fqe      mean φ̄_0ᵀθ,  θ = (Σ φ(φ − γφ̄')ᵀ + λI)⁻¹ Σ φ r            as good as q = φᵀθ: the fixed point of fitted Q evaluation
    magic    Σ_j x_j g_j,  x = argmin xᵀ(Ω + bbᵀ)x on the simplex     g_j: weighted doubly robust up to step j, model after
               g_j = Σ_{t ≤ j} ⟨γ^t (r_t − q_t)⟩_t + Σ_{t ≤ j+1} ⟨γ^t v_t⟩_{t−1},   ⟨y⟩_t = Σ_i W_it y_i / Σ_i W_it
               Ω their covariance, b_j how far g_j lies outside the 90% interval of g_T (all importance weights)

q_t = φ_tᵀθ, v_t = φ̄_tᵀθ = E_π q; for magic θ is fitted on earlier time blocks only. The interval of g_T is the delta method's, so
that an estimate is a function of the log alone. magic's own contributions take θ and x as known: where it leans on the model
its intervals are too narrow, and pdis or wpdis are the ones to conclude from.

Source   Precup, Sutton & Singh, ICML 2000 (pdis, wpdis); Le, Voloshin & Yue, ICML 2019, Lagoudakis & Parr 2003 (fqe);
         Thomas & Brunskill, ICML 2016 (magic)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from policies.errors import Rejected
from policies.evaluation.estimate import Estimate, Needs, Ratio, chosen, mean_of, supported
from policies.evaluation.importance import ASSUMES
from policies.evaluation.intervals import delta
from policies.evaluation.logged import Logged, checked
from policies.evaluation.models import RIDGE, time_blocks
from policies.types import F64

MARKOV = "the features tell all of the past that matters"


@dataclass(frozen=True, slots=True)
class Trajectories:
    """N trajectories of up to T steps.

    steps      `Logged` with a row a trajectory and a slot a step: `behaviour` and `target` are of the whole decision of a step
               (the product over its slots, times the ratio of a goal where one was drawn), `present` while it lasts,
               `times` when it began, `units` what intervals are clustered by; `features` φ(s, a) and `expected_features`
               E_π φ(s, ·) of each step for fqe and magic
    discount   γ in (0, 1] a step
    """

    steps: Logged
    discount: float

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def discounts(self) -> F64:
        """γ^t (T,)."""
        return np.asarray(self.discount ** np.arange(self.steps.rewards.shape[1]), np.float64)


def checked_trajectories(trajectories: Trajectories) -> Trajectories:
    """`trajectories` itself. Raises Rejected, naming the field."""
    checked(trajectories.steps)
    present = trajectories.steps.present
    if not present[:, 0].all() or (present[:, 1:] & ~present[:, :-1]).any():
        raise Rejected("Steps come first to last without a gap", at="$.steps.present", code="bad_step")
    if not 0 < trajectories.discount <= 1:
        raise Rejected("A discount is above 0 and at most 1", at="$.discount", code="bad_discount")
    return trajectories


@dataclass(frozen=True, slots=True)
class SequenceEstimator:
    """As `Estimator`, for trajectories: the estimate is of a trajectory's discounted return."""

    name: str
    function: Callable[..., Estimate]
    assumption: str
    formula: str
    source: str
    needs: tuple[Needs, ...] = ()
    unbiased: bool = False
    options: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, trajectories: Trajectories, **options: float) -> Estimate:
        """Raises Rejected for bad input, for features that are missing, and for an option it has not."""
        given = chosen(self.name, self.options, options)
        if self.needs and trajectories.steps.features is None:
            raise Rejected(f"{self.name} needs features", at="$.steps.features", code="no_features")
        return self.function(checked_trajectories(trajectories), **given)


def pdis(trajectories: Trajectories) -> Estimate:
    steps = trajectories.steps
    values = (trajectories.discounts * steps.prefix_ratios * steps.rewards).sum(axis=1)
    return Estimate("pdis", (mean_of(values),), steps.units)


def wpdis(trajectories: Trajectories) -> Estimate:
    """Raises Rejected when all weights of a step are 0."""
    steps, discounts = trajectories.steps, trajectories.discounts
    W = steps.prefix_ratios
    parts = (Ratio(discounts[t] * W[:, t] * steps.rewards[:, t], supported(W[:, t])) for t in range(W.shape[1]))
    return Estimate("wpdis", tuple(parts), steps.units)


@dataclass(frozen=True, slots=True)
class StepWeights:
    """What the weights W_t are worth as steps go on, each (T,).

    going   trajectories that got so far;   ess   (Σ W)²/Σ W² over all of them, an ended one keeping its weight
    mean    of W, which must be 1;   zero   share of trajectories whose weight is 0 by then
    """

    going: list[int]
    ess: list[float]
    mean: list[float]
    zero: list[float]

    @classmethod
    def of(cls, trajectories: Trajectories) -> "StepWeights":
        W, present = trajectories.steps.prefix_ratios, trajectories.steps.present
        squares = (W**2).sum(axis=0)
        ess = np.divide(W.sum(axis=0) ** 2, squares, out=np.zeros(len(squares)), where=squares > 0)
        return cls(present.sum(axis=0).tolist(), ess.tolist(), W.mean(axis=0).tolist(), (W == 0).mean(axis=0).tolist())


def _features(steps: Logged) -> tuple[F64, F64]:
    """φ and φ̄ (N, T, d), 0 after the end."""
    assert steps.features is not None  # `needs` has looked
    assert steps.expected_features is not None
    there = steps.present[:, :, None]
    return np.where(there, steps.features, 0.0), np.where(there, steps.expected_features, 0.0)


def _normal_equations(phi: F64, mean_phi: F64, rewards: F64, discount: float) -> tuple[F64, F64]:
    """A (d, d) = Σ φ(φ − γφ̄')ᵀ, b (d,) = Σ φ r."""
    following = np.concatenate([mean_phi[:, 1:], np.zeros_like(mean_phi[:, :1])], axis=1)
    flat = phi.reshape(-1, phi.shape[-1])
    return flat.T @ (flat - discount * following.reshape(flat.shape)), flat.T @ rewards.reshape(-1)


def fqe(trajectories: Trajectories, ridge: float) -> Estimate:
    """Contributions carry the error of θ: (Σφ̄_0)ᵀA⁻¹ Σ_t φ_t (r + γφ̄'ᵀθ − φᵀθ) of each trajectory, to first order."""
    steps = trajectories.steps
    phi, mean_phi = _features(steps)
    A, b = _normal_equations(phi, mean_phi, steps.rewards, trajectories.discount)
    A = A + ridge * np.eye(len(b))
    theta = np.linalg.solve(A, b)
    following = np.concatenate([mean_phi[:, 1:] @ theta, np.zeros((len(steps), 1))], axis=1)
    errors = np.where(steps.present, steps.rewards + trajectories.discount * following - phi @ theta, 0.0)
    back = np.linalg.solve(A.T, mean_phi[:, 0].sum(axis=0))
    learned = np.einsum("ntd,nt,d->n", phi, errors, back)
    return Estimate("fqe", (mean_of(mean_phi[:, 0] @ theta + learned - learned.mean()),), steps.units)


def _earlier_values(trajectories: Trajectories, ridge: float) -> tuple[F64, F64]:
    """q and v (N, T) of each time block from θ of the blocks before it; 0 in the first."""
    steps = trajectories.steps
    phi, mean_phi = _features(steps)
    width = phi.shape[-1]
    A, b = ridge * np.eye(width), np.zeros(width)
    q, v = np.zeros(steps.rewards.shape), np.zeros(steps.rewards.shape)
    block = time_blocks(steps.times)
    for each in np.unique(block):
        rows = slice(*np.searchsorted(block, (each, each + 1)).tolist())
        theta = np.linalg.solve(A, b)  # b = 0 before anything was seen
        q[rows], v[rows] = phi[rows] @ theta, mean_phi[rows] @ theta
        more = _normal_equations(phi[rows], mean_phi[rows], steps.rewards[rows], trajectories.discount)
        A, b = A + more[0], b + more[1]
    return q, v


def magic(trajectories: Trajectories, ridge: float) -> Estimate:
    """details: `model_share` x of the model alone, `weights_share` x of all importance weights. Raises Rejected when all
    weights of a step are 0.
    """
    steps = trajectories.steps
    q, v = _earlier_values(trajectories, ridge)
    n, T = steps.rewards.shape
    W, discounts = steps.prefix_ratios, trajectories.discounts
    before = np.concatenate([np.ones((n, 1)), W[:, :-1]], axis=1)
    left = [Ratio(discounts[t] * W[:, t] * (steps.rewards[:, t] - q[:, t]), supported(W[:, t])) for t in range(T)]
    model = [Ratio(discounts[t] * before[:, t] * v[:, t], before[:, t]) for t in range(T)]
    ends = [Estimate("magic", (*left[: j + 1], *model[: j + 2]), steps.units) for j in range(-1, T)]
    g = np.array([end.value for end in ends])
    _, group = np.unique(steps.units, return_inverse=True)
    off = np.stack([np.bincount(group, end.contributions - end.value) for end in ends], axis=1)
    around = delta(ends[-1], level=0.9)
    bias = np.maximum(g - around.high, 0.0) + np.maximum(around.low - g, 0.0)
    x = simplex_minimum(off.T @ off / n**2 + np.outer(bias, bias))
    mixed = sum(share * end.contributions for share, end in zip(x.tolist(), ends, strict=True))
    details = {"model_share": float(x[0]), "weights_share": float(x[-1])}
    return Estimate("magic", (mean_of(np.asarray(mixed, np.float64)),), steps.units, details)


def simplex_minimum(M: F64, steps: int = 2_000) -> F64:
    """argmin xᵀMx over x ≥ 0, Σx = 1, for M (J, J) symmetric and not negative: accelerated projected gradient from 1/J."""
    x = y = np.full(len(M), 1.0 / len(M))
    rate = 1.0 / max(float(np.linalg.eigvalsh(M)[-1]), 1e-300)
    for i in range(steps):
        moved = y - rate * (M @ y)
        ordered = np.sort(moved)[::-1]
        surplus = (np.cumsum(ordered) - 1.0) / np.arange(1, len(M) + 1)
        new = np.maximum(moved - surplus[np.flatnonzero(ordered > surplus)[-1]], 0.0)  # nearest point of the simplex
        y = new + i / (i + 3.0) * (new - x)
        x = new
    return np.asarray(x, np.float64)


SEQUENCES: dict[str, SequenceEstimator] = {
    each.name: each
    for each in (
        SequenceEstimator(
            "pdis", pdis, ASSUMES, "mean Σ_t γ^t W_t r_t", "Precup, Sutton & Singh, ICML 2000", unbiased=True
        ),
        SequenceEstimator(
            "wpdis",
            wpdis,
            f"{ASSUMES}; bias O(1/N)",
            "Σ_t γ^t Σ_i W_it r_it / Σ_i W_it",
            "Precup, Sutton & Singh, ICML 2000",
        ),
        SequenceEstimator(
            "fqe",
            fqe,
            f"{MARKOV}; the value of state and decision is linear in them",
            "mean φ̄_0ᵀ (Σ φ(φ − γφ̄')ᵀ + λI)⁻¹ Σ φ r",
            "Le, Voloshin & Yue, ICML 2019; Lagoudakis & Parr, JMLR 2003",
            needs=("features",),
            options={"ridge": RIDGE},
        ),
        SequenceEstimator(
            "magic",
            magic,
            f"{ASSUMES}; bias O(1/N); intervals leave out the error of the model and of x",
            "Σ_j x_j g_j, x = argmin xᵀ(Ω + bbᵀ)x on the simplex",
            "Thomas & Brunskill, ICML 2016",
            needs=("features",),
            options={"ridge": RIDGE},
        ),
    )
}
