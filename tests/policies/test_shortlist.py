"""Shortlists of large catalogues: every item's chance is the one that is recorded, and the best are kept."""

import numpy as np
import pytest

from policies import shortlist as module
from policies.shortlist import Shortlist, Slope, best, probes, sample, shortlist
from policies.slate import draw, uniforms
from policies.types import F64, DrawSettings

KEY = b"0" * 32
N, SLOTS, DECISIONS = 12, 2, 5_000


def _model(n: int, d: int, m: int, seed: int = 3) -> tuple[np.ndarray, Slope]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(np.float32), Slope(
        np.zeros(m, np.float32), rng.standard_normal((d, m)).astype(np.float32)
    )


def _decide(matrix: np.ndarray, slope: Slope, decision: str, slots: int) -> tuple[Shortlist, np.ndarray, F64, F64]:
    """(shortlist, items of the slate, propensities on it, inclusions)."""
    made = shortlist(matrix, np.arange(len(matrix)), slope, slots, lambda c: uniforms(KEY, decision, "shortlist", c))
    scores = slope.bias + matrix[made.positions] @ slope.slope
    drawn = draw(scores, slots, uniforms(KEY, decision, "slate", slots), DrawSettings(floor=0.8))
    return made, made.positions[drawn.items], drawn.propensities, made.inclusions(drawn.items)


def _z(values: F64, expected: float) -> float:
    """Standard errors between a mean (over axis 0) and what it should be."""
    return float(np.abs((values.mean(axis=0) - expected) / (values.std(axis=0) / np.sqrt(len(values)))).max())


@pytest.fixture(scope="module")
def lived() -> dict[str, F64]:
    """(DECISIONS, N) each: indicators of the item in the first slot and in the second, over what they were drawn with; 1 over the
    chance of being on the list, where it is. Two kept and four drawn of 12: some thousand decisions say something of every item."""
    matrix, slope = _model(N, 3, 1)
    found = {name: np.zeros((DECISIONS, N)) for name in ("first", "second", "listed", "without")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EACH", 2)
        patch.setattr(module, "RANDOM", 4)
        for i in range(DECISIONS):
            made, items, propensities, inclusions = _decide(matrix, slope, f"d-{i}", SLOTS)
            found["first"][i, items[0]], found["second"][i, items[1]] = 1 / np.cumprod(propensities * inclusions)
            found["without"][i, items[0]] = 1 / propensities[0]
            found["listed"][i, made.positions[: made.kept]] = 1.0
            found["listed"][i, made.positions[made.kept :]] = (N - made.kept) / made.drawn
    return found


def test_inclusion_times_propensity_is_what_an_item_is_drawn_with(lived: dict[str, F64]) -> None:
    first, second, listed = lived["first"], lived["second"], lived["listed"]
    assert (first > 0).any(axis=0).all(), "an item was never shown"
    assert _z(first, 1.0) <= 4, "first slot: every item weighs 1"
    assert _z(second, N - 1) <= 4, "whole slate: the item that is second comes after each of the others"
    assert _z(first.sum(axis=1)[:, None], N) <= 4
    assert ((listed.std(axis=0) > 0) == (listed[0] != 1.0)).all()
    assert (listed.std(axis=0) > 0).sum() == N - 2
    assert _z(listed[:, listed.std(axis=0) > 0], 1.0) <= 4


def test_propensities_alone_are_not(lived: dict[str, F64]) -> None:
    """The fault that the test above is there for."""
    assert _z(lived["without"], 1.0) > 4


def test_joint_inclusion_of_a_slate_is_that_of_sampling_without_replacement() -> None:
    made = Shortlist(np.arange(7), kept=3, eligible=13)
    inclusions = made.inclusions(np.array([4, 0, 6, 3]))
    assert inclusions.tolist() == [4 / 10, 1.0, 3 / 9, 2 / 8]


def test_sets_are_equally_likely() -> None:
    rng = np.random.default_rng(1)
    runs = 6_000
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(runs):
        drawn = tuple(sample(rng.random(3), 6).tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 20
    assert all(len(set(drawn)) == 3 for drawn in counts)
    expected = runs / 20
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 45.0  # χ² of 19: p = .0007
    assert sample(rng.random(6), 6).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("share", [1.0, 0.9, 0.2])
def test_the_best_of_every_view_are_kept(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a sort, in batches so small that bars rise, with holes and without."""
    monkeypatch.setattr(module, "BATCH", 256)
    monkeypatch.setattr(module, "FIRST", 64)
    monkeypatch.setattr(module, "MANY", 3)
    rng = np.random.default_rng(7)
    matrix = rng.integers(-4, 5, (5_000, 4)).astype(np.float32)  # whole numbers: many ties, and no rounding
    views = rng.integers(-4, 5, (4, 3)).astype(np.float32)
    rows = np.flatnonzero(rng.random(5_000) < share)
    wanted: set[int] = set()
    for line in (matrix[rows] @ views).T:
        wanted |= set(np.argsort(-line, kind="stable")[:20].tolist())
    assert best(matrix, rows, views, 20).tolist() == sorted(wanted)


def test_forced_items_are_kept_and_positions_are_distinct() -> None:
    matrix, slope = _model(5_000, 6, 16)
    made = shortlist(
        matrix, np.arange(5_000), slope, 10, lambda c: uniforms(KEY, "x", "shortlist", c), forced=[4_999, 17]
    )
    assert {17, 4_999} <= set(made.positions[: made.kept].tolist())
    assert len(set(made.positions.tolist())) == len(made.positions) == made.kept + module.RANDOM
    assert made.positions.max() < 5_000


def test_the_same_decision_has_the_same_shortlist_and_another_one_another() -> None:
    matrix, slope = _model(5_000, 6, 16)
    (one, *first), (two, *second), (other, *_) = (_decide(matrix, slope, name, 10) for name in ("a", "a", "b"))
    assert one.positions.tobytes() == two.positions.tobytes()
    assert [a.tobytes() for a in first] == [b.tobytes() for b in second]
    assert one.positions[: one.kept].tobytes() == other.positions[: other.kept].tobytes()
    assert set(one.positions[one.kept :].tolist()) != set(other.positions[other.kept :].tolist())


def test_without_a_slope_or_with_a_flat_one_everything_is_equally_likely() -> None:
    matrix, slope = _model(5_000, 6, 16)
    flat = Slope(slope.bias, np.zeros_like(slope.slope))
    for none in (None, flat):
        made = shortlist(matrix, np.arange(5_000), none, 10, lambda c: uniforms(KEY, "x", "shortlist", c))
        assert (made.kept, made.drawn) == (0, module.WHOLE)


def test_a_slope_explains_affine_scores_and_no_others() -> None:
    matrix, slope = _model(8, 6, 16)

    def affine(items: np.ndarray) -> np.ndarray:
        return np.float32(2.0) + items @ slope.slope

    def curved(items: np.ndarray) -> np.ndarray:
        return np.tanh(items @ slope.slope)

    def by_place(items: np.ndarray) -> np.ndarray:
        return -np.arange(len(items), dtype=np.float32)[:, None] * np.ones(16, np.float32)

    for scores, yes in ((affine, True), (curved, False), (by_place, False)):
        found = scores(np.concatenate([probes(6), matrix]))
        assert Slope.of(found[:7]).explains(matrix, found[7:]) is yes
