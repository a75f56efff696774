"""A small world with everything on before the draw, in which the value of any configuration of rules is a sum and not an estimate.

    cells     3 contexts (the second with a pin of the request), each for people who saw nothing and who saw an item: 6, evenly
    rewards   Bernoulli(pays(cell, item) · look(slot) · ½ where the slate showed the item's genre before)
    boosts    exposure of two groups of items, by the service's own controller, from what the log delivered: they move

Requests go through the service's `Reader`, distributions through its draw. Eight items, one of them filtered, three slots: all
210 slates of a cell can be counted out, so `Chances` are exact for the boosts that were in force.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np

from policies.algorithm import draw_settings
from policies.reranking.acting import Ready
from policies.reranking.exposure import Fair, Law, Owed, entitled, stepped
from policies.slate import draw
from policies.surface import Surface, seconds
from policies.types import F32, F64, I64, DrawSettings, Slate
from services.scoring.catalogue import Catalogue
from services.scoring.decide import capped
from services.scoring.exposures import NEVER, Shown
from services.scoring.query import Query, Reader
from services.scoring.wire import DecisionRequest, Item, encode
from streaming.configuration import compile_surface, from_json
from streaming.index import id_hash
from streaming.ports import Versioned

SLOTS, DRAWS, NOW = 3, 48, 1_000.0
LOOKS = 1.0 / np.log2(np.arange(SLOTS) + 2.0)
GROUPS = ("big", "small")
ITEMS = [
    {
        "id": f"i{i}",
        "features": {"price": float(i), "look": [math.cos(i), math.sin(i)]},
        "attributes": {"creator": f"c{i % 4}", "genre": ("jazz", "rock")[i % 2], "owner": GROUPS[i >= 5]},
    }
    for i in range(8)
]
CONTEXTS: tuple[dict[str, Any], ...] = (
    {"context": {"device": "ios"}},
    {"context": {"device": "web"}, "pins": {1: "i2"}},
    {"context": {"device": "web"}},
)
SEEN = (None, "i1")  # what the two kinds of people were shown within the window
LOGGED: dict[str, Any] = {
    "surface": "home",
    "slots": SLOTS,
    "features": {
        "context": {"device": {"type": "category", "values": ["ios", "web"]}},
        "items": {"price": {"type": "number", "min": 0, "max": 10}, "look": {"type": "vector", "size": 2}},
    },
    "objectives": {"click": {"kind": "click", "aggregate": "max", "range": [0, 1]}},
    "policies": {"home-ts": {"algorithm": "linear_thompson", "objective": "click", "floor": 0.15}},
    "live": "home-ts",
    "rules": [
        {"available": True},
        {"filter": "price < 7"},
        {"seen": {"window": "1d"}},
        {"cap": 2, "by": "creator"},
        {"quota": {"min": 1, "by": "genre", "value": "jazz"}},
        {"spacing": 2, "by": "creator"},
    ],
    "diversity": {"mmr": 0.3, "over": "look", "coverage": 0.2, "by": "genre"},
    "fairness": {
        "exposure": {"by": "owner", "gain": 0.3, "most": 2.0, "window": "10m"},
        "prefix": {"by": "genre", "min": {"rock": 0.3}},
    },
    "exploration": {"max_share": 0.8, "segments": [{"when": "device == 'web'", "max_share": 0.7}]},
}


class Chances(NamedTuple):
    """Of every slate, slot by slot: conditionals[t] (n,)·(t+1), given the slots before; 0 after what cannot happen."""

    conditionals: tuple[F64, ...]

    @property
    def reached(self) -> tuple[F64, ...]:
        """Chance of every prefix, (n,)·(t+1)."""
        found = [self.conditionals[0]]
        for conditional in self.conditionals[1:]:
            found.append(found[-1][..., None] * conditional)
        return tuple(found)

    def at(self, slates: I64) -> F64:
        """(N, K, n) distributions given the slots before in slates (N, K)."""
        first, *later = self.conditionals
        found = [np.broadcast_to(first, (len(slates), len(first)))]
        found += [each[tuple(slates[:, : t + 1].T)] for t, each in enumerate(later)]
        return np.stack(found, axis=1)


def chances(
    scores: F32, settings: DrawSettings, pins: Mapping[int, int] | None, ready: Ready, k: int = SLOTS
) -> Chances:
    """By the draw itself, led down every path by the uniforms that land there."""
    n, u = len(scores), np.zeros(k)
    found = tuple(np.zeros((n,) * (t + 1)) for t in range(k))

    def walk(prefix: tuple[int, ...]) -> None:
        t = len(prefix)
        slate = draw(scores, k, u, settings, pins=pins, full=True, **ready.arguments)
        assert slate.distributions is not None  # asked for
        p = found[t][prefix] = slate.distributions[t]
        if t == k - 1:
            return
        reached = np.add.accumulate(p)
        for row in np.flatnonzero(p).tolist():
            u[t] = min(reached[row] - p[row] / 2, 1.0 - 1e-12)
            walk((*prefix, row))
        u[t] = 0.0

    walk(())
    return Chances(found)


@dataclass(frozen=True)
class Configuration:
    """A surface's rules and a model (cells, n, DRAWS): what is drawn in each cell under given boosts of the groups."""

    name: str
    surface: Surface
    model: F32
    queries: tuple[Query, ...]

    @cached_property
    def law(self) -> Law:
        exposure = self.surface.fairness.exposure
        assert exposure is not None  # every configuration has one
        return Law(exposure.gain, exposure.most, seconds(exposure.window))

    @cached_property
    def _settings(self) -> tuple[DrawSettings, ...]:
        compiled = compile_surface(self.surface)
        settings = draw_settings(compiled.policies["home-ts"].config, None, self.surface.exploration.max_share)
        shares = (query.ruled and query.ruled.max_share for query in self.queries)
        return tuple(settings if share is None else capped(settings, share) for share in shares)

    def acts(self, boosts: F64) -> list[Ready]:
        """What acts in each cell when groups have these boosts, in interquartile ranges."""
        found = []
        for cell, (query, scores) in enumerate(zip(self.queries, self.model, strict=True)):
            fair = msgspec.structs.replace(self._fair(cell), boosts=boosts)
            assert query.ruled is not None  # as `_fair` found
            found.append(msgspec.structs.replace(query.ruled, fair=fair).on(scores).ready(len(query.ids), SLOTS))
        return found

    def draw(self, cell: int, ready: Ready, u: F64) -> Slate:
        """One decision, with its distributions."""
        pins = self.queries[cell].pins
        return draw(self.model[cell], SLOTS, u, self._settings[cell], pins=pins, full=True, **ready.arguments)

    def owed(self, state: Owed, cells: I64, distributions: F64) -> Owed:
        """After a reading of what decisions (N,) with distributions (N, K, n) delivered, a second after the last."""
        entitled_to, delivered = np.zeros((2, len(GROUPS)))
        for cell, count in enumerate(np.bincount(cells, minlength=len(self.queries)).tolist()):
            fair = self._fair(cell)
            entitled_to += count * entitled(fair.shares, np.bincount(fair.codes, minlength=len(GROUPS)), LOOKS)
            mass = LOOKS @ distributions[cells == cell].sum(axis=0)
            delivered += np.bincount(fair.codes, mass, len(GROUPS))
        return stepped(self.law, state, entitled_to, delivered, 1.0)

    def _fair(self, cell: int) -> Fair:
        ruled = self.queries[cell].ruled
        assert ruled is not None  # every configuration has rules
        assert ruled.fair is not None  # … and exposure
        return ruled.fair

    def chances(self, boosts: F64) -> list[Chances]:
        """Of each cell."""
        return [
            chances(scores, settings, query.pins, ready)
            for scores, settings, query, ready in zip(
                self.model, self._settings, self.queries, self.acts(boosts), strict=True
            )
        ]


class RulesWorld:
    """People and items of one seed. `pays` (cells, n): chance of a click in the first slot."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 31])
        self.catalogue = Catalogue()
        entries = [
            Versioned(i, "item", str(item["id"]), encode(msgspec.convert(item, Item)))
            for i, item in enumerate(ITEMS, 1)
        ]
        self.catalogue.apply(self.catalogue.prepare(entries), 0.0)
        self.cells = [(context, seen) for context in CONTEXTS for seen in SEEN]
        n = len(self.configuration("", {}, np.zeros((len(self.cells), 8, DRAWS), np.float32)).queries[0].ids)
        taste = np.repeat(rng.normal(size=(len(CONTEXTS), n)), len(SEEN), axis=0)
        self.pays: F64 = 0.2 + 0.6 / (1 + np.exp(-taste))
        self.taste = taste
        self.genres = np.arange(n) % 2

    def model(self, seed: int, right: float, spread: float) -> F32:
        """(cells, n, DRAWS) scores: taste to the degree that it is right, and a posterior of that spread."""
        rng = np.random.default_rng([seed, 32])
        mean = right * self.taste + (1 - right) * np.repeat(
            rng.normal(size=(len(CONTEXTS), self.taste.shape[1])), len(SEEN), axis=0
        )
        return (mean[:, :, None] + spread * rng.normal(size=(*mean.shape, DRAWS))).astype(np.float32)

    def configuration(self, name: str, changes: Mapping[str, Any], model: F32) -> Configuration:
        """`changes`: keys of the document that differ from the logged configuration's."""
        made = from_json(msgspec.json.encode({**LOGGED, **changes}))
        encoder = compile_surface(made).encoder
        self.catalogue.attach(encoder)
        reader = Reader(made, encoder)
        return Configuration(name, made, model, tuple(self._query(reader, *cell) for cell in self.cells))

    def _query(self, reader: Reader, asked: Mapping[str, Any], seen: str | None) -> Query:
        request = msgspec.convert({"surface": "home", "unit": "u", **asked}, DecisionRequest)
        unit = NEVER if seen is None else (np.array([NOW - 60.0]), np.array([id_hash(seen)], np.uint64))
        shown = Shown(NOW, unit, {}, lambda groups: (np.zeros(len(groups)), np.ones(len(groups))))
        return reader.read(request, self.catalogue, (), shown)

    @cached_property
    def rewards(self) -> list[tuple[F64, ...]]:
        """Of each cell the mean reward of slot t, (n,)·(t+1), for every prefix."""
        same = self.genres[:, None] == self.genres
        found: list[tuple[F64, ...]] = []
        for pays in self.pays:
            second = np.where(same, 0.5, 1.0)  # (first, second)
            third = np.where(same[:, None, :] | same[None, :, :], 0.5, 1.0)
            found.append((pays * LOOKS[0], second * pays * LOOKS[1], third * pays * LOOKS[2]))
        return found

    def value(self, cells: Sequence[Chances]) -> float:
        """Clicks a decision, exact: mean over the cells."""
        each = [
            sum(float((p * r).sum()) for p, r in zip(one.reached, rewards, strict=True))
            for one, rewards in zip(cells, self.rewards, strict=True)
        ]
        return float(np.mean(each))

    def clicks(self, cell: int, slates: I64, rng: np.random.Generator) -> F64:
        """(N, K) of slates."""
        chance = np.stack([r[tuple(slates[:, : t + 1].T)] for t, r in enumerate(self.rewards[cell])], axis=1)
        return (rng.random(chance.shape) < chance).astype(np.float64)
