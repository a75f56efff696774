"""The encoder: what odd values mean, that its four calls agree bit for bit, and that the schema hash moves when it must."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.errors import Rejected
from policies.features import Encoder, crossed
from policies.surface import Bool, Category, FeatureSpec, Number, Vector

STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine is no failure
FEATURES = {
    "price": Number(0, 100),
    "genre": Category(["rock", "jazz"]),
    "fresh": Bool(),
    "embedding": Vector(3, clip=2.0),
    "age": Number(-1, 3),
}
SPEC = FeatureSpec(
    context={"device": Category(["ios", "web"]), "hour": Number(0, 24)},
    items=FEATURES,
    cross=[("device", "genre"), ("hour", "price")],
)
ENCODER = Encoder(SPEC)
NAMES = ENCODER.item_names

Encode = Callable[[str, Any], np.ndarray]
WAYS: dict[str, tuple[Encode, str]] = {
    "item": (lambda name, value: ENCODER.item({name: value}), "$.features.{name}"),
    "rows": (
        lambda name, value: ENCODER.rows([{}, {name: value}], "$.candidates")[1],
        "$.candidates[1].features.{name}",
    ),
    "columns": (
        lambda name, value: ENCODER.columns({name: [None, value]}, 2, "$.candidates.features")[1],
        "$.candidates.features.{name}[1]",
    ),
}
every_way = pytest.mark.parametrize("way", WAYS)


def part(row: np.ndarray, name: str) -> list[float]:
    """The columns of one feature."""
    return [float(x) for x in row[ENCODER.item_columns[name]]]


def test_the_columns_are_named_after_what_they_mean() -> None:
    expected = (
        "age:-1.0..3.0",
        *("embedding[0]", "embedding[1]", "embedding[2]"),
        "fresh",
        *("genre=jazz", "genre=rock", "genre!unseen"),
        "price:0.0..100.0",
    )
    assert expected == NAMES
    assert ENCODER.context_names == ("device=ios", "device=web", "device!unseen", "hour:0.0..24.0")
    assert (ENCODER.context_size, ENCODER.item_size) == (4, 9)
    assert [NAMES[columns] for columns in ENCODER.item_columns.values()] == [
        NAMES[:1],
        NAMES[1:4],
        NAMES[4:5],
        NAMES[5:8],
        NAMES[8:],
    ]


@every_way
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("price", 0, [-1]),
        ("price", 100, [1]),
        ("price", 50, [0]),
        ("price", 75.0, [0.5]),
        ("price", None, [0]),
        ("price", -5, [-1]),
        ("price", 101, [1]),
        ("price", 1.7976931348623157e308, [1]),
        ("price", 10**400, [1]),
        ("price", -(10**400), [-1]),
        ("age", 2, [0.5]),
        ("genre", "jazz", [1, 0, 0]),
        ("genre", "rock", [0, 1, 0]),
        ("genre", "polka", [0, 0, 1]),
        ("genre", "", [0, 0, 1]),
        ("genre", None, [0, 0, 0]),
        ("fresh", True, [1]),
        ("fresh", False, [-1]),
        ("fresh", None, [0]),
        ("embedding", [0.5, -1, 2], [0.5, -1, 2]),
        ("embedding", [9.0, -9.0, 1e300], [2, -2, 2]),
        ("embedding", [10**400, 0, 0], [2, 0, 0]),
        ("embedding", None, [0, 0, 0]),
    ],
)
def test_a_value_means(way: str, name: str, value: Any, expected: list[float]) -> None:
    row = WAYS[way][0](name, value)
    assert part(row, name) == expected
    assert row.dtype == np.float32
    assert sum(map(abs, row)) == pytest.approx(sum(map(abs, expected))), "another feature was touched"


@every_way
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("price", "3", "Expected number, got str"),
        ("price", True, "Expected number, got bool"),
        ("price", [3.0], "Expected number, got list"),
        ("price", {}, "Expected number, got dict"),
        ("price", math.nan, "Expected a finite number, got nan"),
        ("price", math.inf, "Expected a finite number, got inf"),
        ("price", -math.inf, "Expected a finite number, got -inf"),
        ("genre", 3, "Expected text, got int"),
        ("genre", True, "Expected text, got bool"),
        ("genre", ["jazz"], "Expected text, got list"),
        ("fresh", 1, "Expected true or false, got int"),
        ("fresh", "true", "Expected true or false, got str"),
        ("embedding", [1.0, 2.0], "Expected 3 numbers, got 2"),
        ("embedding", [1.0, 2.0, 3.0, 4.0], "Expected 3 numbers, got 4"),
        ("embedding", [], "Expected 3 numbers, got 0"),
        ("embedding", "abc", "Expected 3 numbers, got str"),
        ("embedding", [1.0, math.nan, 0.0], "Expected finite numbers, got nan"),
        ("embedding", [1.0, True, 0.0], "Expected numbers only, got bool"),
        ("embedding", [1.0, None, 0.0], "Expected numbers only, got null"),
        ("prize", 3, "Unknown feature, expected one of: age, embedding, fresh, genre, price"),
        ("prize", None, "Unknown feature, expected one of: age, embedding, fresh, genre, price"),
    ],
)
def test_a_value_is_refused_by_its_path(way: str, name: str, value: Any, message: str) -> None:
    encode, path = WAYS[way]
    with pytest.raises(Rejected) as caught:
        encode(name, value)
    at = path if name in FEATURES else path.removesuffix("[1]")  # an unknown column is named as a whole
    assert (caught.value.message, caught.value.at) == (message, at.format(name=name))


def test_the_context_is_refused_by_its_path() -> None:
    with pytest.raises(Rejected) as caught:
        ENCODER.context({"device": "ios", "hour": "noon"})
    assert str(caught.value) == "Expected number, got str - at $.context.hour"
    with pytest.raises(Rejected) as caught:
        ENCODER.context({"hours": 3})
    assert (caught.value.at, caught.value.code) == ("$.context.hours", "unknown_feature")


def test_a_name_without_end_does_not_fill_the_answer() -> None:
    with pytest.raises(Rejected) as caught:
        ENCODER.context({"x" * 10_000: 3})
    assert len(caught.value.at) < 100


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(Rejected, match="Expected 2 values, one an item, got 3") as caught:
        ENCODER.columns({"price": [1, 2, 3]}, 2, "$.candidates.features")
    assert caught.value.at == "$.candidates.features.price"


def test_no_items_and_no_features() -> None:
    bare = Encoder(FeatureSpec())
    assert ENCODER.rows([], "$").shape == (0, 9)
    assert ENCODER.columns({}, 0, "$").shape == (0, 9)
    assert ENCODER.columns({}, 4, "$").tolist() == np.zeros((4, 9)).tolist()
    assert bare.context({}).shape == (0,)
    assert bare.rows([{}, {}], "$").shape == (2, 0)
    assert bare.columns({}, 2, "$").shape == (2, 0)
    assert [len(side) for side in bare.cross] == [0, 0]
    with pytest.raises(Rejected, match="expected one of: none"):
        bare.rows([{}, {"price": 1}], "$")


numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([0, 100, -0.0, 1e-320, 10**400, -(10**400)]))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=3), st.sampled_from(["jazz", "rock"]))
values = st.one_of(
    scalars, st.lists(st.one_of(numbers, scalars), max_size=4), st.lists(numbers, min_size=3, max_size=3)
)
sound = {
    "price": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers()),
    "age": st.one_of(st.none(), st.floats(-2, 4), st.sampled_from([10**400, -(10**400)])),
    "genre": st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["jazz", "rock"])),
    "fresh": st.one_of(st.none(), st.booleans()),
    "embedding": st.one_of(
        st.none(), st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3)
    ),
}
sound_rows = st.lists(st.fixed_dictionaries({}, optional=sound), min_size=1, max_size=5)
any_rows = st.lists(st.dictionaries(st.sampled_from([*FEATURES, "prize"]), values, max_size=4), min_size=1, max_size=4)


def one_by_one(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([ENCODER.item(row, f"$[{i}].features") for i, row in enumerate(rows)])


def verdict(encode: Callable[[], np.ndarray]) -> tuple[bytes | None, str | None]:
    """The encoded bytes, or how they were refused."""
    try:
        return encode().tobytes(), None
    except Rejected as refused:
        return None, str(refused)


@STEADY
@given(sound_rows)
def test_all_calls_agree_bit_for_bit(rows: list[dict[str, Any]]) -> None:
    columns = {name: [row.get(name) for row in rows] for name in FEATURES}
    expected = one_by_one(rows)
    assert expected.tobytes() == ENCODER.rows(rows, "$").tobytes()
    assert expected.tobytes() == ENCODER.columns(columns, len(rows), "$").tobytes()
    assert np.abs(expected).max() <= 2.0


@STEADY
@given(any_rows)
def test_rows_accept_and_refuse_exactly_what_single_items_do(rows: list[dict[str, Any]]) -> None:
    expected, refused = verdict(lambda: one_by_one(rows))
    given_rows, refused_rows = verdict(lambda: ENCODER.rows(rows, "$"))
    assert (expected, refused) == (given_rows, refused_rows)


@STEADY
@given(st.floats(-1e308, 1e308), st.floats(-1e308, 1e308), numbers)
def test_a_number_of_any_range_stays_within_one(one: float, other: float, value: float) -> None:
    low, high = sorted((one, other))
    if not high / 2 - low / 2 > 0 or (isinstance(value, float) and not math.isfinite(value)):
        return  # configuration refuses the range; NaN and infinity are refused above
    encoder = Encoder(FeatureSpec(items={"x": Number(low, high)}))
    row = encoder.item({"x": value})
    assert np.abs(row).max() <= 1.0
    assert row.tobytes() == encoder.rows([{"x": value}], "$").tobytes()


def test_the_widest_range_does_not_overflow() -> None:
    encoder = Encoder(FeatureSpec(items={"x": Number(-1.7e308, 1.7e308)}))
    values = [-1.7e308, -0.85e308, 0.0, 0.85e308, 1.7e308]
    assert [float(encoder.item({"x": value})[0]) for value in values] == [-1, -0.5, 0, 0.5, 1]
    assert encoder.columns({"x": values}, 5, "$")[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_crosses_are_products_of_the_named_columns() -> None:
    assert len(ENCODER.cross_names) == 3 * 3 + 1 * 1
    for i, j, name in zip(*ENCODER.cross, ENCODER.cross_names, strict=True):
        assert name == f"{ENCODER.context_names[i]}×{ENCODER.item_names[j]}"
    context = ENCODER.context({"device": "web", "hour": 18})
    items = ENCODER.rows([{"genre": "jazz", "price": 0}, {}], "$")
    table = crossed(ENCODER, context, items)
    assert dict(zip(ENCODER.cross_names, table[0].tolist(), strict=True)) == {
        name: {"device=web×genre=jazz": 1.0, "hour:0.0..24.0×price:0.0..100.0": -0.5}.get(name, 0.0)
        for name in ENCODER.cross_names
    }
    assert not table[1].any()
    assert (crossed(ENCODER, np.stack([context, context]), items) == table).all()


def test_the_schema_hash_is_this_for_ever() -> None:
    """Learned sums and bundles carry it: a change of the encoding must raise FORMAT, and then this number, on purpose."""
    assert ENCODER.schema == "a13fbd551f8171a1"


def test_the_order_of_a_document_changes_nothing() -> None:
    turned = FeatureSpec(
        context=dict(reversed(SPEC.context.items())),
        items={**dict(reversed(FEATURES.items())), "genre": Category(["jazz", "rock"])},
        cross=SPEC.cross[::-1],
    )
    other = Encoder(turned)
    assert (other.schema, other.item_names, other.cross_names) == (ENCODER.schema, NAMES, ENCODER.cross_names)
    row = {"genre": "rock", "price": 3, "embedding": [1, 2, 3]}
    assert (other.item(row) == ENCODER.item(row)).all()


@pytest.mark.parametrize(
    "changed",
    [
        replace(SPEC, items={**FEATURES, "price": Number(0, 99)}),
        replace(SPEC, items={**FEATURES, "genre": Category(["rock", "jazz", "folk"])}),
        replace(SPEC, items={**FEATURES, "embedding": Vector(4, clip=2.0)}),
        replace(SPEC, items={**FEATURES, "embedding": Vector(3, clip=3.0)}),
        replace(SPEC, items={**FEATURES, "fresh": Number(0, 1)}),
        replace(SPEC, items={**FEATURES, "more": Bool()}),
        replace(SPEC, context={**SPEC.context, "more": Bool()}),
        replace(SPEC, cross=SPEC.cross[:1]),
    ],
    ids=["range", "category", "size", "clip", "type", "item feature", "context feature", "cross"],
)
def test_every_change_of_the_encoding_changes_the_schema(changed: FeatureSpec) -> None:
    assert Encoder(changed).schema != ENCODER.schema


def test_another_process_gets_the_spec_and_builds_its_own() -> None:
    rebuilt = copy.deepcopy(ENCODER)
    assert rebuilt is not ENCODER
    assert (rebuilt.schema, rebuilt.spec) == (ENCODER.schema, SPEC)
