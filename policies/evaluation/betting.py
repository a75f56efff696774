"""The same lower confidence sequence by betting: tighter, for numbers whose conditional mean does not move.

    K_t(ν) = Π (1 + λ_i(ν) (x_i − ν)),   λ_i(ν) = (μ̂ − ν)/(σ̂² + (μ̂ − ν)²) in [0, ½/ν],  μ̂ and σ̂² of the numbers before i

A gambler who stakes on x being above ν grows rich only if it is: K is a supermartingale when the mean is at most ν, so the
lower bound is the largest ν of the grid at which the capital, as at all smaller ones, is 1/α or more. Where the conditional
mean drifts, what is bounded is its largest value and not its average: then use `confidence`.

State    401 capitals a sequence;   an update costs n × 401 multiplications
Source   Waudby-Smith & Ramdas, JRSS B 2023 (approximate Kelly bets, truncated at ½); the same with Wu, Karampatziakis &
         Mineiro 2022 for importance weights
"""

from dataclasses import dataclass

import numpy as np

from policies.compiling import compiled
from policies.types import F64

GRID: F64 = 1.0 / (1.0 + np.exp(-np.linspace(-11.5, 11.5, 401)))  # 10⁻⁵ … 1 − 10⁻⁵, fine at both ends: rare rewards
STAKE = 0.5  # share of the capital that may be lost at once
TOGETHER = 16  # factors multiplied before a logarithm; each is in [½, 10⁷]


@dataclass(frozen=True, slots=True)
class Bets:
    """count, total Σ x, scatter Σ (x − μ̂)², each (…); log_capital (…, 401)."""

    count: F64
    total: F64
    scatter: F64
    log_capital: F64


def start(shape: tuple[int, ...] = ()) -> Bets:
    return Bets(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros((*shape, len(GRID))))


def update(state: Bets, x: F64) -> Bets:
    """The state after n more numbers of each sequence, x (…, n) in their order, all at least 0."""
    order = np.arange(x.shape[-1])
    totals = state.total[..., None] + np.cumsum(x, axis=-1)
    seen = state.count[..., None] + order
    mean = (0.5 + totals - x) / (1.0 + seen)  # of the numbers before, as if ½ had been seen
    squares = (x - mean) ** 2
    scatters = state.scatter[..., None] + np.cumsum(squares, axis=-1)
    variance = (0.25 + scatters - squares) / (1.0 + seen)
    flat = (state.count.size, x.shape[-1])
    numbers, means, variances = (np.ascontiguousarray(each).reshape(flat) for each in (x, mean, variance))
    grown = _growth(numbers, means, variances, GRID)
    return Bets(
        state.count + x.shape[-1],
        state.total + x.sum(axis=-1),
        state.scatter + squares.sum(axis=-1),
        state.log_capital + grown.reshape(state.log_capital.shape),
    )


@compiled
def _growth(x: F64, mean: F64, variance: F64, grid: F64) -> F64:
    """Σ_i log(1 + λ_i (x_i − ν)): (s, n) each → (s, 401)."""
    grown = np.zeros((x.shape[0], len(grid)))
    for s in range(x.shape[0]):
        for g in range(len(grid)):
            nu, total, product = grid[g], 0.0, 1.0
            for i in range(x.shape[1]):
                edge = mean[s, i] - nu
                if edge > 0.0:
                    product *= 1.0 + min(edge / (variance[s, i] + edge * edge), STAKE / nu) * (x[s, i] - nu)
                if i % TOGETHER == TOGETHER - 1:
                    total += np.log(product)
                    product = 1.0
            grown[s, g] = total + np.log(product)
    return grown


def lower(state: Bets, alpha: F64 | float) -> F64:
    """L (…): below the mean at every time at once, with probability 1 − α. 0 where the capital never sufficed."""
    won = state.log_capital >= -np.log(np.asarray(alpha, np.float64))[..., None]
    reached = np.cumprod(won, axis=-1).sum(axis=-1)  # how many from the smallest ν on
    return np.asarray(np.concatenate([[0.0], GRID])[reached], np.float64)
