"""The study of leases, small: what it says it holds, and that there is something to be seen."""

import numpy as np

from services.studies import leases
from services.studies.leases import Setting, lived

SMALL = Setting(calm=150, after=30, visits=4, known=2_000)


def test_more_is_explored_when_new_items_come_and_the_promise_holds() -> None:
    plain, lent, free = (lived(leases.TUNED_ON, way, SMALL) for way in leases.WAYS)
    for held in (plain, lent):
        assert held.beyond < 1e-9
    assert free.beyond > 1.0  # the policy alone would break it
    np.testing.assert_array_equal(plain.explored[: SMALL.calm], lent.explored[: SMALL.calm])
    assert plain.explored.max() < SMALL.cap + 1e-9
    assert lent.explored[SMALL.calm :].mean() > 1.5 * plain.explored[SMALL.calm :].mean()
