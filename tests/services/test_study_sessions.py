"""The study of sessions, seconds of it: people over HTTP, Kafka, Redis, the agent on Ray, its trainer killed, the order replayed."""

import math

import numpy as np
import pytest

from services.stack.kafka import missing
from services.studies.sessions import QUICK, Mean, against, play, rates, told
from services.studies.sessions_people import Shown
from services.studies.sessions_site import ARMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own: sockets and files of processes that end with it
]


@pytest.mark.timeout(
    900
)  # some thirty seconds on a machine of its own: a broker, a cluster and six processes have to start
def test_an_agent_learns_on_the_real_stack_and_its_killed_trainer_resumes() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    pytest.importorskip("ray", reason="needs Ray: pip install 'slatewise[learning]'")
    found = play(QUICK, 1)
    shown = found.lived.shown
    assert {one.arm for one in shown} == set(ARMS)
    assert {one.mode for one in shown} == {"live"}
    assert all((one.arm == one.policy) for one in shown)
    assert found.records >= len(shown) + found.lived.feedback
    death = found.death
    assert death.resumed is not None
    assert death.resumed.entries > death.entries > 0
    assert found.final.entries >= death.resumed.entries
    assert all(not names for names in found.differs.values()), found.differs
    names = {name for held in found.final.statistics.values() for name in held}
    assert {"mean.actor", "square.actor", "step.actor", "replay.slate"} <= names  # what was compared
    study = told(found, QUICK)
    assert len(study.tables) == 7
    assert study.picture.startswith(b"\x89PNG")


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
