"""What slates of jokes earned, against what could have been earned: uniform, best fixed slate, full-information ridge.

Every reward of every slate is known, so references are exact for each person and regret needs no estimator.

    uniform  the mean of all jokes
    fixed    the best fixed slate: the k jokes of the highest mean over the people of the stream, all their ratings known
    ridge    the k best jokes by a ridge model with the service's own features, fitted to all ratings of the stream's people;
             for a person of the stream by the four fifths of the stream that person is not in

Held-out people are decided for after a pass and never learned from. Intervals: 10,000 bootstraps over people, 95%.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from policies.features import Encoder
from policies.surface import FeatureSpec
from policies.types import F64, I64
from services.replay.jester import JesterWorld, surface

FOLDS, BOOTSTRAPS, RIDGE = 5, 10_000, 1.0


@dataclass(frozen=True)
class Split:
    """People by number: those of the stream, those held out."""

    stream: I64
    held_out: I64


@dataclass(frozen=True)
class References:
    """Mean reward of a slate by person: (stream,) and (held out,) of each reference."""

    fixed_slate: I64
    stream: dict[str, F64]
    held_out: dict[str, F64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def split(people: int, held_out: int, seed: int) -> Split:
    order = np.random.default_rng([seed, 11]).permutation(people)
    return Split(order[held_out:], order[:held_out])


def references(world: JesterWorld, people: Split, k: int) -> References:
    rewards = world.rewards
    fixed = _top(rewards[people.stream].mean(axis=0), k)
    x = _columns(world)

    def ridge_slates(learned: I64, asked: I64) -> F64:
        rows = x[learned].reshape(-1, x.shape[2])
        gram = rows.T @ rows + RIDGE * np.eye(x.shape[2])
        theta = np.linalg.solve(gram, rows.T @ rewards[learned].ravel())
        return np.array([rewards[u, _top(x[u] @ theta, k)].mean() for u in asked])

    stream_ridge = np.empty(len(people.stream))
    for fold in range(FOLDS):
        inside = np.arange(len(people.stream)) % FOLDS == fold
        stream_ridge[inside] = ridge_slates(people.stream[~inside], people.stream[inside])

    def of(asked: I64, ridge: F64) -> dict[str, F64]:
        return {"uniform": rewards[asked].mean(axis=1), "fixed": rewards[asked][:, fixed].mean(axis=1), "ridge": ridge}

    return References(
        fixed, of(people.stream, stream_ridge), of(people.held_out, ridge_slates(people.stream, people.held_out))
    )


def mean_interval(values: F64, seed: int = 0) -> Interval:
    """Of the mean over people."""
    return _bootstrap(values[:, None], lambda means: means[:, 0], seed)


def share_closed(served: F64, fixed: F64, ridge: F64, seed: int = 0) -> Interval:
    """(served − fixed) / (ridge − fixed) of means over the same people: 1 is the full-information model, 0 the fixed slate."""
    return _bootstrap(
        np.column_stack([served, fixed, ridge]), lambda m: (m[:, 0] - m[:, 1]) / (m[:, 2] - m[:, 1]), seed
    )


def cumulative_regret(earned: Sequence[float], reference: F64) -> F64:
    """Σ (reference − earned) by decision."""
    return np.cumsum(reference - np.asarray(earned))


def _bootstrap(columns: F64, statistic: Callable[[F64], F64], seed: int) -> Interval:
    rng = np.random.default_rng([seed, 13])
    n = len(columns)
    means = np.empty((BOOTSTRAPS, columns.shape[1]))
    for start in range(0, BOOTSTRAPS, 500):  # in blocks: 10,000 × people indices at once would be large
        means[start : start + 500] = columns[rng.integers(0, n, (500, n))].mean(axis=1)
    low, high = np.percentile(statistic(means), [2.5, 97.5])
    value = statistic(columns.mean(axis=0)[None])[0]
    return Interval(float(value), float(low), float(high))


def _columns(world: JesterWorld) -> F64:
    """(u, arms, D): intercept, context, item features and crosses as the service encodes them."""
    encoder = Encoder(msgspec.convert(surface(1)["features"], FeatureSpec))
    items = encoder.rows([world.features(a) for a in range(len(world.arms))], "$.items").astype(float)
    of_context, of_item = encoder.cross
    contexts = np.array([encoder.context(world.context(u)) for u in range(len(world.taste))], float)
    people, arms = len(contexts), len(items)
    crosses = contexts[:, None, of_context] * items[None, :, of_item]
    return np.concatenate(
        [
            np.ones((people, arms, 1)),
            np.broadcast_to(contexts[:, None], (people, arms, contexts.shape[1])),
            np.broadcast_to(items[None], (people, arms, items.shape[1])),
            crosses,
        ],
        axis=2,
    )


def _top(scores: F64, k: int) -> I64:
    """The k best, ties by number."""
    return np.argsort(-scores, kind="stable")[:k]
