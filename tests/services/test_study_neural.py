"""The study of neural_linear: a world that pays what it says and is not linear, floors that hold, a table with every row."""

import numpy as np
import pytest

from policies.worlds.near_world import near
from services.studies import neural


def test_the_near_world_pays_what_it_expects_and_no_products_say_it() -> None:
    made, again, other = near(3, 4_000), near(3, 4_000), near(4, 4_000)
    assert np.array_equal(made.rewards, again.rewards)
    assert not np.array_equal(made.expected, other.expected)
    off = made.rewards - made.expected
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size)
    n, K = made.expected.shape
    x, a = np.repeat(made.context, K, axis=0), np.tile(made.arms, (n, 1))
    phi = np.concatenate([np.ones((n * K, 1)), x, a, (x[:, :, None] * a[:, None]).reshape(n * K, -1)], axis=1)
    linear = phi @ np.linalg.lstsq(phi, made.expected.ravel(), rcond=None)[0]
    chosen = linear.reshape(n, K).argmax(axis=1)
    gap = made.expected.max(axis=1).mean() - made.expected.mean()
    best_linear = (made.expected[np.arange(n), chosen].mean() - made.expected.mean()) / gap
    assert 0.3 < best_linear < 0.8, "with all that is to be known, the best linear model leaves this much"


def test_a_small_run_has_every_row_and_its_floors() -> None:
    study = neural.run(quick=True, seeds=1, data=None)
    assert [len(table.rows) for table in study.tables] == [7, 7, 7]
    for table in study.tables:
        told = {row[0]: [float(str(cell).split()[0]) for cell in row[1:]] for row in table.rows}
        for way in neural.WAYS:
            assert all(np.array(told[way]) < np.array(told["oracle"]))
        difference = np.array(told[neural.OURS]) - told[neural.PEER]
        assert difference == pytest.approx(np.array(told["neural_linear − linear_thompson"]), abs=2e-4)
