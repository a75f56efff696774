"""The numbers of the study of sessions. What it plays, an agent on the real stack whose trainer is killed, chaos plays in `tests/e2e`."""

import math

import numpy as np

from services.studies.sessions import Mean, against, rates
from services.studies.sessions_people import Shown


def test_rates_and_their_errors_are_between_people() -> None:
    rng = np.random.default_rng(4)
    shown, truth = [], np.array([10.0, 0.5, 0.2])
    for person in range(400):
        own = rng.gamma(4.0, 0.25)  # slates of a person are alike
        for _ in range(int(rng.integers(1, 9))):
            rewards = truth * own * rng.gamma(2.0, 0.5, 3)
            shown.append(Shown(0.0, 0, person, "agent", "agent", "live", "b", rewards))
    found = rates(shown)
    for mean, value in zip(found, truth, strict=True):
        assert abs(mean.value - value) < 4 * mean.error
    naive = float(np.std([one.rewards[0] for one in shown]) / math.sqrt(len(shown)))
    assert found[0].error > 1.3 * naive  # who takes slates for independent sees too little
    assert against(Mean(11.0, 0.0), Mean(10.0, 0.0)) == "+10.0 % [+10.0, +10.0]"
