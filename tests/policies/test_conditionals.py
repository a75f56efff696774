"""What a policy would have drawn at each slot along a logged slate: the law of the draw itself, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.evaluation.conditionals import conditionals, mixed
from policies.reranking.within import Constraint, packed
from policies.slate import draw
from policies.types import DrawSettings

HEADS = ["draws", "one_draw", "softmax", "inverse_gap"]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_along_its_own_slate_it_is_what_the_draw_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, k = int(rng.integers(1, 12)), int(rng.choice([1, 8, 64])), int(rng.integers(1, 7))
    scores = rng.normal(size=(n, m)).astype(np.float32)
    if rng.random() < 0.3:
        scores = np.round(scores)  # ties
    how = DrawSettings(
        str(rng.choice(HEADS)),  # type: ignore[arg-type]  # one of three
        float(rng.choice([0, 0.02, 0.5])),
        float(rng.choice([1, 0.3])),
        0.7,
    )
    masks = None if rng.random() < 0.5 else rng.random((k, n)) < 0.7
    boosts = None if rng.random() < 0.5 else rng.normal(size=n)
    pins = None
    if rng.random() < 0.5:
        c = min(n, k, 2)
        pins = dict(zip(rng.permutation(k)[:c].tolist(), rng.permutation(n)[:c].tolist(), strict=True))
    within = None
    if rng.random() < 0.5:
        kinds = Constraint("kinds", "most", rng.integers(-1, 3, n), np.sort(rng.integers(0, 3, k)))
        apart = Constraint("apart", "spacing", rng.integers(-1, 3, n), np.full(k, 2))
        within = packed([kinds, apart], n, k, mmr=(0.5, rng.normal(size=(n, 3)).astype(np.float32)))
    made = draw(scores, k, rng.random(k), how, boosts=boosts, masks=masks, pins=pins, within=within, full=True)
    rules = {"boosts": boosts, "masks": masks, "pins": pins, "within": within, "asked": k}
    found = conditionals(scores, made.slots.tolist(), made.items.tolist(), how, **rules)  # type: ignore[arg-type]  # by name
    assert np.array_equal(found, made.distributions)


@pytest.mark.parametrize("head", HEADS)
def test_along_any_slate_its_product_is_how_often_the_slate_is_drawn(head: str) -> None:
    """All slates of four items in two slots: the products of their conditionals sum to one, and are how often they come."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4, 32)).astype(np.float32)
    how = DrawSettings(head, 0.1)  # type: ignore[arg-type]  # one of three
    slates = [(a, b) for a in range(4) for b in range(4) if a != b]
    chance = {}
    for slate in slates:
        p = conditionals(scores, [0, 1], slate, how)
        chance[slate] = p[0, slate[0]] * p[1, slate[1]]
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-12)
    draws = 4_000
    u = rng.random((draws, 2))
    seen = [tuple(draw(scores, 2, one, how).items.tolist()) for one in u]
    for slate in slates:
        p = chance[slate]
        assert abs(seen.count(slate) - draws * p) <= 4 * np.sqrt(draws * p * (1 - p))


def test_a_prefix_that_could_not_be_drawn_leaves_nothing_to_one_draw() -> None:
    scores = np.array([[3.0], [2.0], [1.0]], np.float32)  # one draw: 0, then 1, then 2 are certain
    greedy = conditionals(scores, [0, 1], [2, 1], DrawSettings("draws", 0.0))
    assert greedy.tolist() == [[1, 0, 0], [1, 0, 0]]  # it looks at what is left alone
    assert conditionals(scores, [0, 1], [2, 1], DrawSettings("one_draw", 0.0)).tolist() == [[1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("slots", "rows", "more", "said"),
    [
        ([0, 1], [1, 1], {}, "once"),
        ([1, 0], [1, 0], {}, "once"),
        ([0], [1], {"pins": {0: 0}}, "contradicts the pins"),
        ([0], [0], {"pins": {1: 0}}, "contradicts the pins"),
        ([0], [0], {"masks": np.array([[False, True]])}, "not allowed"),
    ],
)
def test_slates_that_no_draw_made_are_refused(slots: list[int], rows: list[int], more: dict, said: str) -> None:  # type: ignore[type-arg]  # keyword arguments
    with pytest.raises(ValueError, match=said):
        conditionals(np.zeros((2, 4), np.float32), slots, rows, DrawSettings(), **more)


def test_who_may_be_several_policies_draws_their_mean() -> None:
    """Shares 1/4 and 3/4; the first slot's item tells which it is likely to be: (1/4 · .8) to (3/4 · .2), 4 to 3."""
    one = np.array([[0.8, 0.1, 0.1], [0.0, 0.5, 0.5]])
    other = np.array([[0.2, 0.7, 0.1], [0.0, 0.9, 0.1]])
    found = mixed([0.25, 0.75], [one, other], [0, 1])
    assert found[0] == pytest.approx([0.35, 0.55, 0.10])
    assert found[1] == pytest.approx([0.0, (4 * 0.5 + 3 * 0.9) / 7, (4 * 0.5 + 3 * 0.1) / 7])
    assert found[0, 0] * found[1, 1] == pytest.approx(0.25 * 0.8 * 0.5 + 0.75 * 0.2 * 0.9)
    sure = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert not mixed([0.5, 0.5], [sure, sure], [0, 1])[1].any()  # neither can have drawn the first
