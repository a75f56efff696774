"""Jester as a full-information world of slates: five jokes out of 80, for people whose taste is known from 20 others.

Everything a request may know beforehand comes from the users who did not rate all jokes (3,527 in Jester 5k), so nothing
of the world's own users leaks into a feature; the world's users are those who rated all (1,473), so every slate's reward is known.

asked      the 20 jokes the others rated most often: what a service that asks newcomers would ask (it holds the gauge set)
embedding  rank-8 factors of the others' ratings (iterated truncated SVD over the missing ones), one row a joke
popularity the others' mean rating of a joke
taste      a user's ratings of the 20 asked jokes, folded into the same 8 dimensions by ridge: the context
reward     (rating + 10) / 20, in [0, 1], for each joke shown
Source     Goldberg, Roeder, Gupta, Perkins 2001
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.types import F64, I64
from services.replay.datasets import located

JOKES, ASKED, RANK = 100, 20, 8


@dataclass(frozen=True)
class JesterWorld:
    """asked (20,) and arms (80,) joke numbers; taste (u, r); embedding (80, r); popularity (80,); rewards (u, 80)."""

    asked: I64
    arms: I64
    taste: F64
    embedding: F64
    popularity: F64
    rewards: F64
    others: int

    @property
    def ids(self) -> list[str]:
        return [f"joke-{joke}" for joke in self.arms]

    def features(self, arm: int) -> dict[str, float | list[float]]:
        """What the catalogue knows of an arm."""
        return {"popularity": float(self.popularity[arm]), "embedding": self.embedding[arm].round(5).tolist()}

    def context(self, user: int) -> dict[str, float | list[float]]:
        return {"taste": self.taste[user].round(5).tolist()}


def surface(slots: int, half_life: str | None = None) -> dict[str, object]:
    """The surface document both the service and the in-process loop run: one default configuration of the algorithm."""
    policy: dict[str, object] = {"algorithm": "linear_thompson", "objective": "laugh"}
    if half_life:
        policy["half_life"] = half_life
    return {
        "surface": "jester",
        "slots": slots,
        "horizon": "30m",
        "features": {
            "context": {"taste": {"type": "vector", "size": RANK}},
            "items": {
                "popularity": {"type": "number", "min": -10, "max": 10},
                "embedding": {"type": "vector", "size": RANK},
            },
            "cross": [["taste", "embedding"]],
        },
        "objectives": {"laugh": {"kind": "rating", "aggregate": "last", "default": 0.0, "range": [0, 1]}},
        "policies": {"ridge": policy},
        "live": "ridge",
    }


def ratings(file: Path) -> F64:
    """(users, 100) ratings in [−10, 10], NaN where not rated."""
    table = np.loadtxt(file, delimiter=",", skiprows=1)
    users, jokes = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    matrix = np.full((users.max() + 1, JOKES), np.nan)
    matrix[users, jokes] = table[:, 2]
    return matrix


def factors(known: F64, rank: int = RANK, rounds: int = 30, shrink: float = 5.0) -> tuple[F64, F64]:
    """(mean (j,), V (j, rank)) of ratings with holes: fill with the mean, decompose, shrink, fill again (Mazumder et al. 2010)."""
    mean = np.nanmean(known, axis=0)
    hole = np.isnan(known)
    filled = np.where(hole, 0.0, known - mean)
    for _ in range(rounds):
        u, s, vt = np.linalg.svd(filled, full_matrices=False)
        low = (u[:, :rank] * np.maximum(s[:rank] - shrink, 0.0)) @ vt[:rank]
        filled = np.where(hole, low, known - mean)
    return mean, np.ascontiguousarray(vt[:rank].T * np.sqrt(len(vt.T)))  # rows of about unit scale


def fold_in(answers: F64, mean: F64, v: F64, ridge: float = 20.0) -> F64:
    """(u, r): least squares of centred answers (u, a) on the factors (a, r) of the jokes asked, with a ridge."""
    folded = np.linalg.solve(v.T @ v + ridge * np.eye(v.shape[1]), v.T @ (answers - mean).T)
    return np.ascontiguousarray(folded.T, np.float64)


def world(data: Path | None) -> JesterWorld:
    """The world in DIR/jester/jester5k.csv."""
    return from_ratings(ratings(located(data, "jester/jester5k.csv")))


def from_ratings(matrix: F64, asked: int = ASKED, rank: int = RANK) -> JesterWorld:
    """Split users into those who rated all (the world) and the others (the features), jokes into asked and arms."""
    full = ~np.isnan(matrix).any(axis=1)
    others, people = matrix[~full], matrix[full]
    counts = (~np.isnan(others)).sum(axis=0)
    order = np.lexsort((np.arange(matrix.shape[1]), -counts))
    asked_jokes, arms = np.sort(order[:asked]), np.sort(order[asked:])
    mean, v = factors(others, rank)
    taste = fold_in(people[:, asked_jokes], mean[asked_jokes], v[asked_jokes])
    answered = ~np.isnan(others[:, asked_jokes]).any(axis=1)
    spread = fold_in(others[answered][:, asked_jokes], mean[asked_jokes], v[asked_jokes]).std(axis=0)
    return JesterWorld(
        asked_jokes, arms, taste / spread, v[arms], mean[arms], (people[:, arms] + 10.0) / 20.0, int((~full).sum())
    )
