"""Counts and rates as numbers: one transformation on every way in, and nothing known is 0."""

from math import log1p

import numpy as np
import pytest

from policies.counted import counted, kinds_of, value
from policies.errors import Rejected
from policies.features import Encoder
from policies.surface import Category, Count, FeatureSpec, Rate

CTR = Rate("click", "1h", (1, 19), max=0.25)
SPEC = FeatureSpec(items={"genre": Category(["jazz"]), "plays": Count("play", "1d", 1000), "ctr": CTR})
ENCODER = Encoder(SPEC)


def encoded(name: str, number: float | None) -> float:
    return float(ENCODER.item({name: number})[ENCODER.item_columns[name].start])


def test_a_count_goes_by_its_logarithm_from_nothing_to_one() -> None:
    assert [encoded("plays", n) for n in (0, None, 1000, 10**400)] == [0.0, 0.0, 1.0, 1.0]
    assert encoded("plays", 9) == pytest.approx(log1p(9) / log1p(1000))


def test_a_rate_is_its_distance_from_the_priors() -> None:
    assert [encoded("ctr", p) for p in (None, 0.25, 1.0, 7)] == [0.0, 1.0, 1.0, 1.0]
    assert encoded("ctr", 0.05) == 0.0
    assert encoded("ctr", 0.15) == pytest.approx(0.5)
    assert encoded("ctr", 0.0) == pytest.approx(-0.25)
    wide = Encoder(FeatureSpec(items={"p": Rate("click", "1h", (9, 1))}))
    assert [float(wide.item({"p": p})[0]) for p in (0.0, 0.9, 1.0)] == pytest.approx([-1.0, 0.0, 1 / 9])


def test_counts_become_values() -> None:
    assert value(CTR, (0.0, 0.0)) == 0.05
    assert value(CTR, (3.0, 20.0)) == 0.1
    assert value(CTR, (90.0, 10.0)) == 1.0
    assert value(CTR, (-1e-12, -1e-12)) == 0.05  # a rest of rounding
    assert value(Count("play", 60), (7.0,)) == 7.0
    assert (kinds_of(CTR), kinds_of(Count("play", 60))) == (("click", "shown"), ("play",))
    assert list(counted(SPEC.items)) == ["ctr", "plays"]


def test_all_ways_in_agree_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    rates, plays = rng.random(200).tolist(), [float(n) if n % 7 else None for n in rng.integers(0, 3000, 200)]
    columns = ENCODER.columns({"ctr": rates, "plays": plays}, 200, "$")
    rows = ENCODER.rows([{"ctr": p, "plays": n} for p, n in zip(rates, plays, strict=True)], "$")
    one = np.stack([ENCODER.item({"ctr": p, "plays": n}) for p, n in zip(rates, plays, strict=True)])
    assert columns.tobytes() == rows.tobytes() == one.tobytes()


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), True, "3", [1.0]])
def test_what_is_no_count_is_refused_by_path(wrong: object) -> None:
    with pytest.raises(Rejected) as caught:
        ENCODER.item({"plays": wrong})  # type: ignore[dict-item]  # what callers send
    assert caught.value.at == "$.features.plays"
    with pytest.raises(Rejected) as caught:
        ENCODER.columns({"plays": [1.0, wrong]}, 2, "$.candidates.features")  # type: ignore[list-item]  # as above
    assert caught.value.at == "$.candidates.features.plays[1]"


@pytest.mark.parametrize(
    "other",
    [
        Rate("click", "2h", (1, 19), max=0.25),
        Rate("click", "1h", (1, 9), max=0.25),
        Rate("like", "1h", (1, 19), max=0.25),
        Rate("click", "1h", (1, 19), max=0.5),
        Rate("click", "1h", (1, 19), "view", 0.25),
    ],
)
def test_a_columns_name_says_all_that_gives_it_its_meaning(other: Rate) -> None:
    def schema(ctr: Rate) -> str:
        return Encoder(FeatureSpec(items={"ctr": ctr})).schema

    assert schema(other) != schema(CTR)
    assert schema(Rate("click", 3600, (1.0, 19.0), max=0.25)) == schema(CTR)
