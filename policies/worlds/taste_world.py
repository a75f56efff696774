"""Visitors whose taste depends on the part of the day: the world of `slatewise demo`.

    P(click at slot t | context, item) = examined(t) · taste[daypart, genre] · (1 − dear · price/20 · [device = web])
    examined(t) = 1 / (1 + 0.15 t),  clicks at different slots independent (position-based model)

Taste    in each daypart one genre is loved (0.50), two are liked (0.22), five are left alone (0.06); which ones is drawn
         from the seed, another loved genre in every daypart, so a policy that ignores the context cannot find the optimum
Visits   user of 2,000, device of 3 and daypart of 4, all uniform
Items    `per_genre` of each genre, prices uniform in [0, 20)
Exact    the expected clicks of a uniformly random slate (each slot's marginal is uniform over items, so it is the mean
         attraction times Σ examined) and of the best slate (attractions in falling order against falling `examined`)
Source   position-based click model: Chuklin, Markov and de Rijke, Click Models for Web Search, 2015
"""

from dataclasses import dataclass

import numpy as np

from policies.types import F64, I64, Value

DEVICES = ("ios", "android", "web")
DAYPARTS = ("morning", "day", "evening", "night")
HOURS = (8, 13, 19, 23)
GENRES = ("jazz", "rock", "pop", "classical", "folk", "techno", "soul", "metal")
LOVED, LIKED, LEFT = 0.50, 0.22, 0.06
DEAR = 0.5
USERS = 2_000


@dataclass(frozen=True, slots=True)
class Visit:
    """One arrival: who, and the raw context a backend would send."""

    unit: str
    device: int
    daypart: int

    @property
    def context(self) -> dict[str, Value]:
        return {"device": DEVICES[self.device], "daypart": DAYPARTS[self.daypart], "hour": HOURS[self.daypart]}


class TasteWorld:
    """taste (4, 8), genres (n,), prices (n,), examined (k,)."""

    def __init__(self, seed: int, slots: int = 5, per_genre: int = 5) -> None:
        generator = np.random.default_rng(seed)
        self.slots = slots
        self.genres: I64 = np.repeat(np.arange(len(GENRES)), per_genre)
        self.prices: F64 = generator.uniform(0, 20, self.genres.size).round(2)
        self.examined: F64 = 1 / (1 + 0.15 * np.arange(slots))
        self.taste: F64 = np.full((len(DAYPARTS), len(GENRES)), LEFT)
        loved = generator.permutation(len(GENRES))[: len(DAYPARTS)]
        for daypart, genre in enumerate(loved):
            others = np.delete(np.arange(len(GENRES)), genre)
            self.taste[daypart, genre] = LOVED
            self.taste[daypart, generator.choice(others, 2, replace=False)] = LIKED

    @property
    def ids(self) -> list[str]:
        return [f"{GENRES[genre]}-{row:02d}" for row, genre in enumerate(self.genres)]

    @property
    def catalogue(self) -> list[dict[str, object]]:
        """Items as `PUT /v1/items` takes them."""
        return [
            {"id": name, "features": {"genre": GENRES[genre], "price": float(price)}}
            for name, genre, price in zip(self.ids, self.genres, self.prices, strict=True)
        ]

    def visit(self, generator: np.random.Generator) -> Visit:
        return Visit(
            f"visitor-{generator.integers(USERS)}",
            int(generator.integers(len(DEVICES))),
            int(generator.integers(len(DAYPARTS))),
        )

    def attraction(self, visit: Visit) -> F64:
        """(n,) probability of a click on each item when it is examined."""
        dear = DEAR * self.prices / 20 if DEVICES[visit.device] == "web" else 0.0
        return np.asarray(self.taste[visit.daypart, self.genres] * (1 - dear), np.float64)

    def chances(self, visit: Visit, rows: I64) -> F64:
        """(k',) probability of a click at each slot of a slate of item rows."""
        return np.asarray(self.attraction(visit)[rows] * self.examined[: len(rows)], np.float64)

    def random_value(self, visit: Visit) -> float:
        """Expected clicks of a uniformly random slate."""
        return float(self.attraction(visit).mean() * self.examined.sum())

    def best_value(self, visit: Visit) -> float:
        """Expected clicks of the best slate."""
        return float(np.sort(self.attraction(visit))[::-1][: self.slots] @ self.examined)
