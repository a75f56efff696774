"""What acts on a draw, by source: joined, and made into the arguments of the draw."""

import numpy as np

from policies.reranking.acting import NOTHING_ACTS, Acting, spread
from policies.reranking.within import Constraint, stacked


def test_sources_are_joined_and_the_left_one_yields_last() -> None:
    n, k = 4, 3
    cap, seen = (
        stacked([Constraint(name, "mask", np.zeros(n, np.int64), np.zeros(k, np.int64))], n, k)
        for name in ("cap", "seen")
    )
    rules = Acting({"rank": np.array([1.0, 0, 0, 0])}, {"filter": np.array([True, True, True, False])}, cap)
    mask = np.ones((k, n), bool)
    mask[1, 0] = False
    fairness = Acting({"exposure": np.array([0.5, 0, 0, 2.0])}, {"prefix": mask}, seen, skipped={"x": "away"})
    both = rules + fairness
    assert both.constraints.names == ("cap", "seen")
    ready = both.ready(n, k)
    assert ready.boosts is not None
    assert ready.boosts.tolist() == [1.5, 0.0, 0.0, 2.0]
    assert ready.masks is not None
    assert ready.masks.tolist() == [[True] * 3 + [False], [False, True, True, False], [True] * 3 + [False]]
    assert ready.within is not None
    assert ready.within.codes.shape == (2, n)
    assert both.skipped == {"x": "away"}


def test_nothing_acts() -> None:
    assert NOTHING_ACTS.ready(4, 3).arguments == {"boosts": None, "masks": None, "within": None}
    assert (NOTHING_ACTS + NOTHING_ACTS) == NOTHING_ACTS


def test_the_unit_of_boosts_is_the_spread_of_the_candidates_in_one_draw() -> None:
    scores = np.array([[0.0, 0.0], [4.0, 8.0], [8.0, 16.0], [2.0, 4.0]], np.float32)  # quartiles 2 and 8, 4 and 16
    assert spread(scores) == (6.0 + 12.0) / 2
    assert spread(np.repeat(scores[:, :1], 256, axis=1)) == 6.0
    assert spread(scores[:1]) == spread(np.zeros((5, 3), np.float32)) == 0.0
