"""Requests whose candidates come with features: read in one pass, they say what they say when `wire` and the encoder read them."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scoring_setup import decided, decisions, in_memory, surface

from policies.errors import Rejected
from policies.surface import Bool, Category, Count, Exposure, Fairness, FeatureSpec, Number, Prefix, Quota, Rule, Vector
from services.scoring.countings import given_in
from services.scoring.exposures import Shown
from services.scoring.inline import Inline, InlineReader, surface_named
from services.scoring.query import Query
from services.scoring.service import Scoring
from services.scoring.wire import DecisionRequest, Item, encode, read_decision

FEATURES = FeatureSpec(
    context={"device": Category(["ios", "web"])},
    items={
        "price": Number(0, 2e6),
        "weight": Number(-1, 1),
        "genre": Category(["jazz", "rock"]),
        "new": Bool(),
        "look": Vector(3, clip=2.0),
        "clicks": Count("click", "1d", 100),
    },
)
RULES = [
    Rule(filter="price < 1900000 and not (genre == 'rock')"),
    Rule(cap=2, by="price"),
    Rule(quota=Quota(1, "price", 1234567)),
    Rule(spacing=2, by="new"),
]
GOOD: dict[str, list[Any]] = {
    "price": [0, -0.0, 3, 3.0, 1234567, 1234567.0, 1e-7, 5e5, 2**53 + 1, 10**30, 1e300, None],
    "weight": [0, 1, -1, 0.25, -0.5, 10**40, None],
    "genre": ["jazz", "rock", "folk", "", None],
    "new": [True, False, None],
    "clicks": [0, 3, 2.5, 10**40, None],
    "look": [[1, 2, 3], [0.5, -9.0, 1e300], [0.0, -0.0, 0.25], None],
}
BAD: list[tuple[str, Any]] = [
    ("price", "1"),
    ("price", True),
    ("price", 10**400),
    ("genre", 3),
    ("new", 1),
    ("clicks", -1),
    ("clicks", "1"),
    ("look", [1, 2]),
    ("look", [1, None, 3]),
    ("look", "abc"),
    ("unknown", 1),
]


def home(**more: Any) -> Any:
    fairness = Fairness(Exposure("price"), Prefix("price", {"1234567": 0.5}))
    return surface(features=FEATURES, rules=RULES, fairness=fairness, **more)


@pytest.fixture
def scoring(tmp_path: Path) -> Scoring:
    scoring: Scoring = in_memory(tmp_path, home(), surface(surface="other"))
    items = [
        Item("i0", {"price": 1234567, "genre": "rock", "new": True}),
        Item("i1", {"weight": 0.5, "look": [1.0, 2.0, 3.0]}),
    ]
    scoring.state.put([("item", item.id, encode(item)) for item in items])
    scoring.catalogue.apply(scoring.catalogue.prepare(scoring.state.read()), 0.0)
    return scoring


def one(rng: random.Random, *, whole: bool) -> dict[str, Any]:
    names = [name for name in GOOD if (name != "clicks" or rng.random() < 0.2) and (whole or rng.random() < 0.7)]
    rng.shuffle(names)
    return {name: rng.choice(GOOD[name]) for name in names}


def request(rng: random.Random) -> dict[str, Any]:
    """Mostly right: rows or columns, with all features or some, now and then with one thing wrong."""
    n, whole = rng.randint(1, 12), rng.random() < 0.6
    ids = [f"i{row}" for row in rng.sample(range(20), n)]
    candidates: Any
    if rng.random() < 0.5:
        candidates = [{"id": item, "features": one(rng, whole=whole)} for item in ids]
        if rng.random() < 0.1:
            candidates[0] = rng.choice([ids[0], {"id": ids[0]}, {"id": "", "features": {}}])
        if rng.random() < 0.2:
            name, value = rng.choice(BAD)
            rng.choice([c for c in candidates if isinstance(c, dict)] or [{}]).setdefault("features", {})[name] = value
    else:
        each = [{name: rng.choice(values) for name, values in GOOD.items()} for _ in ids]
        candidates = {"ids": ids, "features": {name: [row[name] for row in each] for name in one(rng, whole=whole)}}
        if rng.random() < 0.2:
            name, value = rng.choice(BAD)
            candidates["features"][name] = [*candidates["features"].get(name, ids)[1:], value]
        if rng.random() < 0.1:
            candidates["features"]["price"] = [1.0] * (n + 1)
    asked = {"surface": "home", "unit": "u", "context": {"device": "ios"}, "candidates": candidates}
    if rng.random() < 0.1:
        more: dict[str, Any] = {
            "slots": 101,
            "exclude": ids[:1],
            "explain": True,
            "pins": {"0": ids[0]},
            "diversity": {"mmr": 0.5},
            "x": 1,
        }
        name = rng.choice([*more])
        asked[name] = more[name]
    if n > 1 and rng.random() < 0.05:
        (candidates["ids"] if isinstance(candidates, dict) else candidates)[0] = (
            ids[1] if isinstance(candidates, dict) else {**candidates[1]} if isinstance(candidates[1], dict) else ids[1]
        )
    keys = [*asked]
    rng.shuffle(keys)
    return {key: asked[key] for key in keys}


def told(scoring: Scoring, asked: DecisionRequest) -> Any:
    """Everything that is drawn from, as plain values."""
    reader = scoring.live.surfaces[asked.surface].reader
    query: Query = reader.read(asked, scoring.catalogue, (), Shown(0.0, None, {}, lambda groups: None))
    ruled = query.ruled
    assert ruled is not None
    assert ruled.fair is not None
    lines = ruled.acting.constraints
    candidates: Any = asked.candidates
    counted = given_in(candidates, ("clicks",))
    return (
        (list(query.ids), query.items.tobytes(), query.context.tobytes(), query.slots, query.inline, query.pins),
        (
            ruled.acted,
            ruled.removed,
            dict(ruled.acting.skipped),
            lines.names,
            lines.codes.tobytes(),
            lines.limits.tobytes(),
        ),
        (list(ruled.fair.groups), ruled.fair.codes.tobytes()),
        counted is None or counted.tolist(),
    )


def outcome(scoring: Scoring, read: Any, body: bytes) -> Any:
    try:
        return told(scoring, read(body))
    except Rejected as error:
        return (error.code, error.at, error.message)


def test_both_ways_read_the_same(scoring: Scoring) -> None:
    rng = random.Random(3)
    fast = accepted = 0
    for _ in range(1_000):
        body = json.dumps(request(rng)).encode()
        both = [outcome(scoring, read, body) for read in (scoring.asked, lambda b: read_decision(b, "$"))]
        assert both[0] == both[1], body
        accepted += len(both[0]) == 4
        reader = scoring.live.surfaces["home"].reader
        fast += reader.inline.read(body) is not None
    assert accepted > 450
    assert fast > 250


def test_a_difference_would_be_seen(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: numbers read as floats alone call a group 1.23457e+06 that callers call 1234567."""
    reader = scoring.live.surfaces["home"].reader
    right = reader.inline.read

    def wrong(self: InlineReader, body: bytes) -> Any:
        asked: Any = right(body)
        if asked is not None and "price" in asked.candidates.given:
            given = {**asked.candidates.given, "price": [p and float(p) for p in asked.candidates.given["price"]]}
            asked.candidates = Inline(asked.candidates.ids, asked.candidates.listed, given, asked.candidates.items)
        return asked

    monkeypatch.setattr(InlineReader, "read", wrong)
    with pytest.raises(AssertionError):
        test_both_ways_read_the_same(scoring)


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_what_is_usual_is_read_in_one_pass(scoring: Scoring, form: str) -> None:
    each = [{"price": 1, "weight": 0.5, "genre": "jazz", "new": True, "look": None} for _ in range(3)]
    rows = [{"id": f"i{i}", "features": row} for i, row in enumerate(each)]
    columns = {"ids": ["i0", "i1", "i2"], "features": {"price": [1, 2, None]}}
    body = {"surface": "home", "unit": "u", "candidates": rows if form == "rows" else columns}

    def usual(**more: Any) -> bool:
        candidates: object = scoring.asked(msgspec.json.encode({**body, **more})).candidates
        return isinstance(candidates, Inline)

    assert usual()
    assert not usual(decision_id="mine"), "claims are of requests as they were sent"


def test_a_surface_is_what_the_request_says_it_is(scoring: Scoring) -> None:
    """… wherever else the word stands: an encoder of another surface would scale its numbers otherwise."""
    candidates = {"ids": ["a"], "features": {"price": [1]}}
    body = {"unit": "u", "where": {"surface": "home"}, "candidates": candidates, "surface": "other"}
    assert surface_named(msgspec.json.encode(body)) == "home"
    found: object = scoring.asked(msgspec.json.encode(body)).candidates
    assert not isinstance(found, Inline)


def test_the_log_carries_what_came(scoring: Scoring, tmp_path: Path) -> None:
    each: dict[str, list[Any]] = {"price": [5, 7], "genre": ["jazz", "folk"]}
    answer = decided(scoring, "u", candidates={"ids": ["a", "b"], "features": each})
    [record] = decisions(tmp_path)
    assert record.decision_id == answer["decision_id"]
    encoder = scoring.live.surfaces["home"].reader.encoder
    assert record.matrix == encoder.columns(each, 2, "$").tobytes()
