"""The numbers of the study of sessions. What it plays, an agent on the real stack whose trainer is killed, chaos plays in `tests/e2e`."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic
from services.learning.retracing import Trained
from services.studies.sessions import BEFORE, LATER, Death, Mean, Run, against, held, rates
from services.studies.sessions_people import Lived, Shown
from services.studies.sessions_site import AGENTS, ARMS, documents
from streaming import experiments
from streaming.configuration import compile_surface, from_json


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


def test_the_sites_documents_are_ones_the_service_takes() -> None:
    """Both agents have the study's settings, the Lagrangian its thresholds; every arm is a policy, and everybody is in one."""
    surface, experiment = documents(3.0, 15.0, {"like": 0.8, "hate": 0.2})
    compiled = compile_surface(from_json(msgspec.json.encode(surface)))
    trial = experiments.from_json(msgspec.json.encode(experiment), {compiled.surface.surface: compiled.surface})
    assert {name: arm.share for name, arm in trial.arms.items()} == ARMS
    assert sum(ARMS.values()) == pytest.approx(1)
    made = {name: compiled.policies[name].config for name in AGENTS}
    for name, config in made.items():
        assert isinstance(config, ConstrainedActorCritic)
        assert config.mode == AGENTS[name]
        assert config.thresholds == ({"like": 0.8, "hate": 0.2} if name == "held" else {})
    assert compiled.surface.live == "behaviour"
    assert BEFORE != LATER


def test_thresholds_are_compared_with_the_last_fifth_of_the_lagrangians_arm() -> None:
    one = Shown(0.0, 0, 0, "held", "held", "live", "b", np.array([10.0, 0.9, 0.1]))
    shown = [
        replace(one, at=float(at), person=at, rewards=np.array([10.0, 0.9 if at < 80 else 0.7, 0.1]))
        for at in range(101)
    ]
    shown += [replace(other, arm="agent", rewards=np.zeros(3)) for other in shown]
    nothing = Lived([], 0)
    run = Run(nothing, Lived(shown, 0), {"like": 0.8, "hate": 0.2}, Death(), Trained(0, {}), {}, 0, 0.0)
    name, threshold, wanted, had, share, kept = held(run, "like")
    assert (name, threshold, wanted, kept) == ("like", 0.8, "at least", False)
    assert had.startswith("0.7 ")
    assert share.startswith("0.875 ")
    assert held(run, "hate")[2:4] == ["at most", "0.1 [0.1, 0.1]"]
    assert held(run, "hate")[-1] is True
