"""A goal is drawn once for a stretch of a session, claimed, kept through swaps, and in the record with what its slate was drawn from."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import bundle as bundling
from policies.errors import Corrupt, Unavailable
from policies.surface import Logging, PolicySpec
from services.keys import Keys
from services.scoring.goals import Goals, one_hot, propensities
from services.scoring.service import Scoring
from streaming.adapters.memory import MemoryBundles, MemoryClaims, MemoryState
from streaming.configuration import Configs, publish_surface
from streaming.events import Decision
from streaming.ports import Claims
from streaming.publish import Publisher
from streaming.replay import recompute
from streaming.scorer import score
from streaming.spool import Spool
from tests.scoring_setup import CALM, decisions, surface
from tests.training_setup import GOALS, WITH_GOALS, registered

SURFACE: dict[str, Any] = {
    "policies": {"agent": PolicySpec("with_goals", objective="click", options={"floor": 0.1})},
    "live": "agent",
    "logging": Logging(1.0),
}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered(WITH_GOALS):
        yield


class House:
    """Replicas over the same stores."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.bundles, self.claims = folder, MemoryState(), MemoryBundles(), MemoryClaims()
        publish_surface(self.state, surface(**SURFACE))
        self.configs = Configs()
        self.configs.follow(self.state)
        self.publisher = Publisher(self.bundles, self.configs, 1)
        self.publish(0)

    def publish(self, seed: int) -> str:
        compiled = self.configs.current("home")
        assert compiled is not None
        policy = compiled.policies["agent"]
        ready = WITH_GOALS.publish(policy.config, policy.problem, {}, time.time(), seed)
        outcome = self.publisher.publish(policy, (), {}, time.time(), ready=ready)
        assert outcome.result == "published", outcome
        assert outcome.manifest is not None
        return outcome.manifest.bundle

    def replica(self, name: str, claims: Claims | None = None) -> "Replica":
        return Replica(self, name, claims or self.claims)

    def bundle(self, name: str) -> bundling.Bundle:
        return bundling.read(name, self.bundles.get)


class Replica:
    def __init__(self, house: House, name: str, claims: Claims) -> None:
        self.folder = house.folder / name
        self.scoring = Scoring(
            state=house.state,
            claims=claims,
            bundles=house.bundles,
            spool=Spool(self.folder / "spool"),
            keys=Keys.load(house.folder),
            patience=CALM,
        )
        self.scoring.start()

    def decide(self, unit: str = "u", session: str | None = "s") -> Decision:
        body: dict[str, Any] = {
            "surface": "home",
            "unit": unit,
            "candidates": ["a", {"id": "b", "features": {"price": 5}}],
        }
        body |= {"session": session} if session else {}
        answer = msgspec.json.decode(self.scoring.decide(msgspec.json.encode(body)))
        [record] = [one for one in decisions(self.folder) if one.decision_id == answer["decision_id"]]
        assert (record.mode, record.reason) == (answer["mode"], answer.get("reason"))
        return record


class Away:
    """Claims that nobody answers."""

    def claim(self, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
        raise Unavailable("claims: gone")

    def claim_all(self, tenant: str, claims: Any, now: float) -> list[bytes | None]:
        raise Unavailable("claims: gone")


def test_a_goal_is_kept_for_its_steps_by_every_replica_and_through_swaps(tmp_path: Path) -> None:
    house = House(tmp_path)
    one, other = house.replica("one"), house.replica("other")
    first = one.decide()
    assert first.goal is not None
    assert first.goal.drawn_at_decision == first.decision_id
    assert (first.mode, first.goal.bundle) == ("live", first.bundle)
    newer = house.publish(1)
    for replica in (one, other):
        replica.scoring.swap(replica.scoring.poll())
    here, there = one.decide(), other.decide()
    assert here.bundle == there.bundle == newer != first.bundle
    assert here.goal == there.goal == first.goal
    one.decide()
    fourth = one.decide()
    assert fourth.goal is not None
    assert (fourth.goal.bundle, fourth.goal.drawn_at_decision) == (newer, fourth.decision_id)
    for record in (first, here, there, fourth):
        slate = recompute(record, house.bundle(record.bundle))
        assert slate.propensities.tolist() == record.propensities
        assert slate.distributions is not None
        assert slate.distributions.tobytes() == record.sample.distributions  # type: ignore[union-attr]
    another = one.decide(session="t")
    assert another.goal is not None
    assert another.goal.drawn_at_decision == another.decision_id


def test_the_store_away_is_the_neutral_goal_in_fallback(tmp_path: Path) -> None:
    house = House(tmp_path)
    record = house.replica("lone", Away()).decide()
    assert (record.mode, record.reason, record.policy) == ("fallback", "goal_unclaimed", "agent")
    assert record.goal is not None
    assert (record.goal.id, record.goal.propensity) == (-1, 1.0)
    assert recompute(record, house.bundle(record.bundle)).propensities.tolist() == record.propensities


def test_goals_are_drawn_as_often_as_they_say() -> None:
    logits = np.array([0.0, 1.0, -1.0, 0.5], np.float32)
    p = propensities(logits, 0.1)
    goals, counts = Goals(MemoryClaims(), "default", b"k", clock=lambda: 0.0), np.zeros(GOALS)
    n = 4_000
    for i in range(n):
        goal = goals.of(f"s{i}", f"d{i}", "b", lambda _: logits, {}, steps=0, floor=0.1, now=0.0)
        assert goal.propensity == p[goal.id]
        counts[goal.id] += 1
    assert (np.abs(counts - n * p) <= 4 * np.sqrt(n * p * (1 - p))).all()
    assert p.sum() == pytest.approx(1.0)
    assert (p >= 0.1 / GOALS).all()


def test_a_goal_that_a_bundle_does_not_have_is_the_neutral_one() -> None:
    assert not one_hot(7, GOALS).any()
    assert not one_hot(-1, GOALS).any()
    assert one_hot(2, GOALS).tolist() == [0, 0, 1, 0]


def test_a_manager_is_part_of_what_the_gate_checks(tmp_path: Path) -> None:
    house = House(tmp_path)
    found = house.bundle(house.bundles.pointers()["home/agent"])
    compiled = house.configs.current("home")
    assert compiled is not None
    schema = compiled.encoder.schema
    bundling.verify(found, schema=schema, score=score)
    assert f"graphs/{found.manifest.manager}.onnx" in bundling.files(found)
    with pytest.raises(Corrupt, match="manager"):
        bundling.verify(
            bundling.Bundle(found.manifest, found.graph, found.arrays, found.probes), schema=schema, score=score
        )
    spoilt = {**found.probes, "goal_logits": found.probes["goal_logits"] + 1}
    named = {**found.manifest.probes, "goal_logits": bundling.digest(bundling._npy(spoilt["goal_logits"]))}
    manifest = msgspec.structs.replace(found.manifest, probes=named)
    manifest = msgspec.structs.replace(manifest, bundle=bundling._name(manifest))
    with pytest.raises(Corrupt, match="manager does not give"):
        bundling.verify(
            bundling.Bundle(manifest, found.graph, found.arrays, spoilt, found.manager), schema=schema, score=score
        )
