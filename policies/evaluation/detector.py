"""Have predictions of bounded rewards gone wrong? Asked at any time, with a stated rate of false alarms.

    e_i = reward − expected, in spans of the reward, in [−1, 1];   s_i = the sign of expected_i less the mean of those before it
    x = (1 + e)/2   level: what is expected of everything is too much or too little
    z = (1 + e s)/2 taste: what is expected to be good is not, while the mean may be what it was

    while nothing changes  ∣E[x_i ∣ past] − x̂∣ ≤ τ,  E[z_i ∣ past] ≥ min(ẑ, ½) − τ,  x̂, ẑ means of the reference, τ of each its own
    of a block             ℓ(λ) = λ (Σx − n (x̂ + τ))/x̂ − ψ(λ) Σ(x − x̂)²/x̂²,  ψ(λ) = −log(1 − λ) − λ;  alike of 1 − x and of 1 − z
    evidence               M = mean over these three and all λ of  Σ_i exp(Σ_{j ≥ i} ℓ_j(λ)),  i over the blocks held

x/x̂ is at least 0, which is all that is asked of it: exp ℓ has a mean of at most 1 given the past, each i is capital staked on a
change that began with block i, and M has a mean of at most the blocks begun. An alarm at M ≥ c so has an average run length of
at least c blocks, however often it is looked at: on average no more than one false alarm in c blocks. Blocks are spans of
decision time and hold five sums, so shards add, in any order; leaving out old ones only makes M smaller.

τ is `TOLERATED` of the reference's standard deviation, and three standard errors of its mean besides. What is guarded against
is a mean that moves further than that; the reference is of as many numbers as make the second part small.

Source   Shin, Ramdas & Rinaldo 2023 (arXiv 2203.03532: e-detectors, the Shiryaev-Roberts kind); Fan, Grama & Liu 2015 and Howard
         et al. 2021 (ψ)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.evaluation.confidence import LAMBDAS, PSI
from policies.types import F64

ALARM_BLOCKS = 2_880.0  # c: thirty days of quarters of an hour
TOLERATED = 0.1  # standard deviations: half of what is called a small effect (Cohen 1988)
ERRORS = 3.0  # standard errors of the reference's mean that count as nothing
STILL = 1e-4  # variance the reference is taken to have at least
LEAST = 0.01  # from 0 and from 1 a reference's mean is taken to be: residuals that are there do not vary
MOST_NATS = 700.0  # exp holds 709
SIZE = 5  # n, Σ x, Σ x², Σ z, Σ z²


@dataclass(frozen=True, slots=True)
class Evidence:
    """`share`: log M / log c, an alarm from 1 on; `reference`, `recent`: means of x; `tolerated`: its τ; `n` numbers in the blocks."""

    share: float
    reference: float
    recent: float
    tolerated: float
    n: float

    @property
    def alarm(self) -> bool:
        return self.share >= 1.0


def sums_of(residual: float, sign: float) -> F64:
    """(5,) of one e and its s."""
    x, z = 0.5 + 0.5 * residual, 0.5 + 0.5 * residual * sign
    return np.array([1.0, x, x * x, z, z * z])


def evidence(reference: Sequence[float], blocks: F64, alarm_blocks: float = ALARM_BLOCKS, recent: int = 4) -> Evidence:
    """Of a reference (5,) that holds at least one number and blocks (J, 5) in order of time; `recent` so many of the last make the
    recent mean."""
    blocks = np.asarray(blocks, np.float64).reshape(-1, SIZE)
    of_x, of_z = [0, 1, 2], [0, 3, 4]
    level, taste = _Base.of([reference[i] for i in of_x]), _Base.of([reference[i] for i in of_z])
    held = blocks[:, of_x]
    logs = [
        capital(held, level.mean, level.tolerated),
        capital(_turned(held), 1.0 - level.mean, level.tolerated),
        capital(_turned(blocks[:, of_z]), 1.0 - min(taste.mean, 0.5), taste.tolerated),
    ]
    log_m = float(np.logaddexp.reduce(logs) - np.log(len(logs)))
    last = blocks[-recent:].sum(axis=0)
    now = float(last[1] / last[0]) if len(blocks) and last[0] else level.mean
    share = max(log_m, 0.0) / float(np.log(alarm_blocks))
    return Evidence(share, level.mean, now, level.tolerated, float(blocks[:, 0].sum()))


@dataclass(frozen=True, slots=True)
class _Base:
    """What numbers are compared with."""

    mean: float
    tolerated: float

    @classmethod
    def of(cls, sums: Sequence[float]) -> "_Base":
        count, total, squares = sums
        mean = min(max(total / count, LEAST), 1.0 - LEAST)
        variance = max(squares / count - mean**2, STILL)
        return cls(mean, TOLERATED * float(np.sqrt(variance)) + ERRORS * float(np.sqrt(variance / count)))


def capital(blocks: F64, mean: float, tolerated: float) -> float:
    """log M of one side, that x lies above mean + tolerated, of blocks (J, 3)."""
    if not len(blocks):
        return -np.inf
    n, total, squares = blocks.T[..., None]
    scatter = squares - 2.0 * mean * total + n * mean**2
    logs = LAMBDAS * (total - n * (mean + tolerated)) / mean - PSI * scatter / mean**2  # (J, L)
    since = np.cumsum(logs[::-1], axis=0)
    top = min(float(since.max()), MOST_NATS)
    return float(top + np.log(np.exp(np.minimum(since, MOST_NATS) - top).sum(axis=0).mean()))


def _turned(blocks: F64) -> F64:
    """The sums of 1 − x."""
    n, total, squares = blocks.T
    return np.stack([n, n - total, n - 2.0 * total + squares], axis=1)
