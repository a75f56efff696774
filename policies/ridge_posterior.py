"""The posterior of a linear model whose prior's strength is inferred: for every λ of a grid, for one eigendecomposition.

    A = Λ + S,  Θ = A⁻¹B,  Λ = λ right of the bar of φ, BASE left of it
    λ has a grid of nine powers of four, uniform over log λ, each weighed by its evidence

`Quadratic` is the normal N(Θ, A⁻¹) of a log likelihood θᵀB − ½θᵀSθ. `Posterior` is ridge regression's: noise of unknown
covariance, Ψ = (2β₀ + Y − BᵀΘ) / (2α₀ + n), θ ~ N(Θ, Ψ ⊗ A⁻¹), evidence D/2 log λ − ½ log∣A∣ − (α₀ + n/2) log β_n. α₀ = 1, and
β₀ = (span/2)² of the objective's range (1 where it has none), the largest variance a reward in that range can have: rewards
that all happen to be zero do not make σ zero.

Source   Bishop, Pattern Recognition and Machine Learning, 2006, 3.5 (evidence)
"""

from collections.abc import Sequence

import numpy as np

from policies.ridge import Sums
from policies.types import F64, Mask

# λ from effects 8 times the noise (nearly noiseless) to 1/32 of it (rare clicks)
GRID: F64 = np.exp2(np.arange(-6.0, 11.0, 2.0))
BASE = 1.0  # precision of the columns left of the bar: one observation's worth
ALPHA = 1.0
CALM = 10  # slates without correlation that ρ̂ is shrunk towards


class Quadratic:
    """N(A⁻¹B, A⁻¹) for every λ of `grid`.

    With b the columns left of the bar and e those right of it: T = S_ee − S_eb(S_bb + I)⁻¹S_be = QEQᵀ, so for any λ the
    effects have precision Q(E + λ)Qᵀ, and the rest is normal given the effects with a covariance that knows no λ. All square
    roots are the symmetric ones: eigenvectors jump at a rounding, these do not, so equal evidence gives equal draws. A
    semi-definite S that rounding pushed below zero needs no jitter: its eigenvalues are set to what they must be at least.
    """

    def __init__(self, S: F64, B: F64, effect: Mask, grid: F64) -> None:
        """S (D, D), B (D, o), effect (D,) right of the bar, grid (l,)."""
        self.effect, self.grid = effect, grid
        e, b = np.flatnonzero(effect), np.flatnonzero(~effect)
        values, vectors = np.linalg.eigh(S[np.ix_(b, b)])
        self.base_root = (vectors / np.sqrt(np.maximum(values, 0) + BASE)) @ vectors.T  # (S_bb + I)⁻¹ = root root
        half = self.base_root @ S[np.ix_(b, e)]
        self.base_pull, self.base_B = self.base_root @ half, self.base_root @ (self.base_root @ B[b])
        values, self.Q = np.linalg.eigh(S[np.ix_(e, e)] - half.T @ half)
        self.precision = np.maximum(values, 0) + grid[:, None]  # (l, e)
        self.rotated = self.Q.T @ (B[e] - half.T @ (self.base_root @ B[b]))

    @property
    def odds(self) -> F64:
        """½ log∣Λ∣ − ½ log∣A∣ for each λ (l,), up to a constant."""
        odds: F64 = (np.log(self.grid[:, None]) - np.log(self.precision)).sum(axis=1) / 2
        return odds

    def unit_shares(self) -> F64:
        """Posterior probability of each λ (l,) where B and S are of a log likelihood: no noise is left to be inferred."""
        return normalised(self.odds + np.einsum("eo,le->l", self.rotated**2, 1 / self.precision) / 2)

    def mean(self, shares: F64) -> F64:
        """Θ averaged over λ, (o, D)."""
        theta = np.empty((self.rotated.shape[1], len(self.effect)))
        of_effects = self.Q @ (self.rotated * (shares @ (1 / self.precision))[:, None])
        theta[:, self.effect] = of_effects.T
        theta[:, ~self.effect] = (self.base_B - self.base_pull @ of_effects).T
        return theta

    def root(self, variance: F64) -> F64:
        """R (D, D), Var θ = RRᵀ, where a unit of A⁻¹ is worth `variance` (l,) under each λ: shares, times what noise there is."""
        D, e = len(self.effect), self.effect
        root = np.zeros((D, D))
        of_effects = (self.Q * np.sqrt(variance @ (1 / self.precision))) @ self.Q.T
        root[np.ix_(e, e)] = of_effects
        root[np.ix_(~e, e)] = -self.base_pull @ of_effects
        root[np.ix_(~e, ~e)] = np.sqrt(variance.sum()) * self.base_root
        return root

    def draw(self, shares: F64, m: int, spread: float, rng: np.random.Generator, roots: F64 | None = None) -> F64:
        """θ (o, D, m). Draws come in opposite pairs of one λ, so that their mean is the posterior's; λ by quantiles of its share.

        roots (l, o, o) of the noise's covariance under each λ; None: the objectives are independent and of unit noise
        """
        pairs, o, d = -(-m // 2), self.rotated.shape[1], len(self.effect)
        drawn = np.searchsorted(np.cumsum(shares), (np.arange(pairs) + 0.5) / pairs * shares.sum())
        drawn = np.minimum(drawn, len(shares) - 1)
        if roots is None:
            roots = np.broadcast_to(np.eye(o), (len(shares), o, o))
        z = spread * np.einsum("pdi,pji->jdp", rng.standard_normal((pairs, d, o)), roots[drawn])  # (o, D, p)
        z = np.concatenate([z, -z], axis=2)[:, :, :m]
        precision = self.precision[np.concatenate([drawn, drawn])[:m]].T  # (e, m)
        theta = np.empty((o, d, m))
        turned = self.Q.T @ z[:, self.effect]
        of_effects = self.Q @ (self.rotated.T[:, :, None] / precision + turned / np.sqrt(precision))
        theta[:, self.effect] = of_effects
        theta[:, ~self.effect] = (
            self.base_B.T[:, :, None] - self.base_pull @ of_effects + self.base_root @ z[:, ~self.effect]
        )
        return theta


class Posterior(Quadratic):
    """Ridge regression's: N(A⁻¹B, Ψ ⊗ A⁻¹) for every λ of `grid`."""

    def __init__(self, S: F64, B: F64, Y: F64, n: float, effect: Mask, beta: F64, grid: F64) -> None:
        super().__init__(S, B, effect, grid)
        self.alpha = ALPHA + n / 2
        left = Y - B[~effect].T @ self.base_B
        explained = np.einsum("ei,le,ej->lij", self.rotated, 1 / self.precision, self.rotated)
        values, vectors = np.linalg.eigh(left - explained)
        residual = np.einsum("lij,lj,lkj->lik", vectors, np.maximum(values, 0), vectors)
        self.scatter = 2 * beta + residual
        self.noise = self.scatter / (2 * self.alpha)  # Ψ (l, o, o)

    def shares(self, weights: F64) -> F64:
        """Posterior probability of each λ (l,), by the evidence of the weighted reward."""
        scatter = np.maximum(np.einsum("i,lij,j->l", weights, self.scatter, weights), np.finfo(float).tiny)
        return normalised(self.odds - self.alpha * np.log(scatter))

    def variance(self, weights: F64) -> F64:
        """σ² of the weighted reward's noise under each λ, (l,)."""
        variance: F64 = np.einsum("i,lij,j->l", weights, self.noise, weights)
        return variance

    def draws(self, shares: F64, m: int, spread: float, rng: np.random.Generator) -> F64:
        """θ (o, D, m) with the noise's covariance between objectives, see `draw`."""
        values, vectors = np.linalg.eigh(self.noise)
        roots = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ vectors.transpose(0, 2, 1)  # Ψ = root root
        return self.draw(shares, m, spread, rng, roots)


def normalised(logs: F64) -> F64:
    """Probabilities ∝ exp(logs)."""
    likelihood = np.exp(logs - logs.max())
    return np.asarray(likelihood / likelihood.sum())


def correlation(theta: F64, weights: F64, own: Sequence[int], sums: Sums, slots: int) -> float:
    """ρ̂: mean product of two residuals of one slate over their variance, shrunk towards 0 and kept in [0, 1]."""

    def squares(S: str, B: str, Y: str) -> float:
        """Σ w (r − θᵀφ)², over slots or over slate totals."""
        y, b = weights @ sums[Y][np.ix_(own, own)] @ weights, sums[B][:, own] @ weights
        return float(y - 2 * theta @ b + theta @ sums[S] @ theta)

    n, each = float(sums["n"][0]), squares("S", "B", "Y")
    if slots == 1 or n <= 0 or each <= 0:
        return 0.0
    calm = CALM * slots * (slots - 1) * n / (n + 1)  # nothing learned counts for nothing
    together = squares("slate_S", "slate_B", "slate_Y") - each
    return float(np.clip(together * n / (each * (float(sums["pairs"][0]) + calm)), 0, 1))
