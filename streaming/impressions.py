"""Who sees an item against who could have, over a sensitive attribute of people: where the attribute and its counts lie, and
what is released of them (`policies.reranking.impression_variance`).

A window's counts + Laplace noise, added to those released before, and the boosts that follow from the sums: that is all that
leaves the aggregator. It lies in the state record, because what cost privacy must not be released again with other noise.
Attributes, counts and ledgers are in a store that only the aggregator opens (`Audience`, `Counting`). Which items are in the
table, and who was shown what, the log says anyway: what is protected is the attribute.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Struct

from policies.reranking.impression_variance import Controller, Privacy, Released
from policies.surface import Category, ImpressionVariance, Surface, content_hash, seconds
from policies.types import F64

KIND = "impressions"  # in the state record, by surface
DELIVERED, ELIGIBLE, SUMMARIES = "delivered", "eligible", "summaries"
MOST_ITEMS = 2_048  # of a surface: what is released of them is one record; those not met for longest go first
DAY_SECONDS = 86_400
SURE = 3.0  # standard errors of the noise that a summary's people must stand clear of
OTHERS = "…"  # the summary of people whose value is none of the feature's
Cell = tuple[str, str, str]  # kind, item or summary, value of the attribute
Counts = dict[Cell, float]
Place = tuple[str, int]  # `counted_as`, window


class Ledger(Struct):
    """Of a unit: spent day → ε; counted `counted_as` → window → requests."""

    spent: dict[int, float] = {}
    counted: dict[str, dict[int, int]] = {}


class Told(Struct, frozen=True, omit_defaults=True):
    """Everything released of a surface under one scheme: noisy sums over `releases` windows, the last of them `window`.

    ends             of that window, epoch seconds
    items (n), seen (n,)   the table, and the window in which each was last met
    delivered, eligible    float32 (n, G);   summaries float32 (S, G)
    boosts           float32 (n, S), in interquartile ranges of a request's scores
    """

    scheme: str
    window: int
    ends: float
    releases: int = 0
    items: list[str] = []
    seen: list[int] = []
    delivered: bytes = b""
    eligible: bytes = b""
    summaries: bytes = b""
    boosts: bytes = b""

    def sums(self, groups: int) -> Released:
        delivered, eligible, summaries = (
            np.frombuffer(each, "<f4").reshape(-1, groups).astype(np.float64)
            for each in (self.delivered, self.eligible, self.summaries)
        )
        return Released(delivered, eligible, summaries, max(self.releases, 1))

    def lifts(self) -> F64:
        """(n, S) boosts."""
        return np.frombuffer(self.boosts, "<f4").reshape(len(self.items), -1).astype(np.float64)


class Opened(NamedTuple):
    """A surface as the aggregator has it: decisions dated before `since` are not counted; `told`: released last, encoded."""

    scheme: str
    window: int
    since: float
    told: bytes


class Audience(Protocol):
    """What people are, told by those who know. Nothing but the aggregator reads it."""

    def tell(self, people: Mapping[str, Mapping[str, str | None]]) -> None:
        """Unit's hash → attribute → value; None takes it away. Raises Unavailable."""

    def values(self, units: Sequence[str], attribute: str) -> dict[str, str]:
        """Of those that are known. Raises Unavailable."""

    def forget(self, unit: str) -> int:
        """Take away all that is known of a unit, its ledger included; how many rows."""


class Counting(Protocol):
    """Counts of open windows, ledgers, and how far each partition is counted."""

    def cursor(self, partition: int) -> int:
        """The next number to count; 0 before the first commit. Raises Unavailable."""

    def ledgers(self, units: Sequence[str]) -> dict[str, Ledger]:
        """Of units that have one."""

    def commit(
        self, partition: int, since: int, number: int, counts: Mapping[Place, Counts], ledgers: Mapping[str, Ledger]
    ) -> None:
        """Add counts and replace ledgers in one transaction with the cursor. Raises Unavailable, and Rejected('fenced') when the
        partition is not at `since`."""

    def opened(self, surface: str) -> Opened | None: ...

    def open(self, surface: str, opened: Opened) -> None:
        """Begin, or begin anew: counts of another scheme are dropped."""

    def release(self, surface: str, window: int, oldest: int, made: Callable[[Opened, Counts], bytes]) -> bool:
        """Replace `told` by what is made of a window's counts, take the counts away, open the next window, and drop ledgers that
        were last spent from before the day `oldest`: one transaction. False when that window is not the open one any more."""


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Told).decode


def asked_of(surface: Surface) -> ImpressionVariance | None:
    return surface.fairness.impression_variance


def scheme_of(surface: Surface) -> str:
    """What sums must share to be added: attribute, groups, summaries, length of windows."""
    asked = asked_of(surface)
    assert asked is not None  # asked only where there is one
    return content_hash([asked.attribute, asked.values, asked.summary, summaries_of(surface), window_seconds(asked)])


def counted_as(surface: str, scheme: str) -> str:
    """What counts and ledgers know a surface's scheme as."""
    return f"{surface}/{scheme}"


def window_seconds(asked: ImpressionVariance) -> float:
    return seconds(asked.window)


def summaries_of(surface: Surface) -> tuple[str, ...]:
    """Values of the summary, and last that of everybody else."""
    asked = asked_of(surface)
    assert asked is not None  # asked only where there is one
    feature = surface.features.context[asked.summary]
    assert isinstance(feature, Category)  # `streaming.fairness` has checked
    return (*sorted(feature.values), OTHERS)


def released(
    before: Told, counts: Mapping[Cell, float], surface: Surface, window: int, noise: np.random.Generator
) -> Told:
    """What is released with a window: all sums of the table grow by their counts and by noise, whether they were met or not."""
    asked = asked_of(surface)
    assert asked is not None  # asked only where there is one
    privacy, groups = Privacy(asked.counts, asked.release, asked.total), {v: g for g, v in enumerate(asked.values)}
    kinds, width = summaries_of(surface), len(asked.values)
    seen = dict(zip(before.items, before.seen, strict=True))
    seen |= dict.fromkeys([name for kind, name, _ in counts if kind != SUMMARIES], window)
    items = sorted(seen, key=lambda item: -seen[item])[:MOST_ITEMS]  # a stable order: those of before come first
    old = {item: place for place, item in enumerate(before.items)}
    rows = np.array([old.get(item, -1) for item in items], np.int64)
    nothing = np.zeros((0, width))
    told = before.sums(width) if before.releases else Released(nothing, nothing, np.zeros((len(kinds), width)))
    places = {DELIVERED: {item: i for i, item in enumerate(items)}}
    places |= {ELIGIBLE: places[DELIVERED], SUMMARIES: {kind: i for i, kind in enumerate(kinds)}}
    fresh = {kind: np.zeros((len(names), width)) for kind, names in places.items()}
    for (kind, name, value), count in counts.items():
        if name in places[kind] and value in groups:
            fresh[kind][places[kind][name], groups[value]] += count
    summed = {
        kind: (was if kind == SUMMARIES else _taken(was, rows))
        + fresh[kind]
        + noise.laplace(0.0, privacy.scale, fresh[kind].shape)
        for kind, was in ((DELIVERED, told.delivered), (ELIGIBLE, told.eligible), (SUMMARIES, told.summaries))
    }
    sums = Released(summed[DELIVERED], summed[ELIGIBLE], summed[SUMMARIES], before.releases + 1)
    lifts = _taken(before.lifts(), rows) if before.releases else None
    boosts = np.clip(Controller(np.array(asked.controller)).boosts(sums, privacy, lifts), -asked.most, asked.most)
    hidden = sums.summaries.sum(axis=1) < SURE * privacy.scale * np.sqrt(2.0 * sums.releases * width)
    boosts[:, hidden] = 0.0  # of summaries with fewer people than noise, nothing is known
    return Told(
        scheme=before.scheme,
        window=window,
        ends=(window + 1) * window_seconds(asked),
        releases=sums.releases,
        items=items,
        seen=[seen[item] for item in items],
        delivered=_packed(sums.delivered),
        eligible=_packed(sums.eligible),
        summaries=_packed(sums.summaries),
        boosts=_packed(boosts),
    )


def _taken(table: F64, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> F64:
    """Rows of a table, 0 where the row is −1."""
    return np.vstack([table, np.zeros((1, table.shape[1]))])[rows]


def _packed(table: F64) -> bytes:
    return table.astype("<f4").tobytes()
