"""Every algorithm that learns, served: what is logged with a decision, with its bundle, gives the decision again."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from scoring_setup import CALM, decisions, learned, publish, surface

from policies import bundle as bundling
from policies.bundle import Bundle, read
from policies.errors import Corrupt
from policies.registry import ALGORITHMS
from policies.surface import Exploration, Logging, PolicySpec, Surface
from services.evaluation.resolving import scored
from services.keys import Keys
from services.scoring.service import Scoring
from services.scoring.wire import encode
from streaming.adapters.memory import MemoryBundles, MemoryClaims, MemoryState
from streaming.configuration import compile_surface
from streaming.events import Decision, floats
from streaming.replay import recompute
from streaming.scorer import score
from streaming.spool import Spool

SERVED = [name for name, found in ALGORITHMS.items() if found.learner is not None]


def configured(algorithm: str) -> Surface:
    return surface(
        policies={"home-ts": PolicySpec(algorithm, objectives={"click": 1.0, "watch": 0.3})},
        exploration=Exploration(0.9),
        logging=Logging(1.0),
    )


def served(folder: Path, algorithm: str, asked: int = 8) -> list[tuple[Decision, Bundle]]:
    """Decisions of a service with a policy of 200 examples, half of them under weights of their own, and their bundle."""
    live = configured(algorithm)
    state, bundles = MemoryState(), MemoryBundles()
    publish(state, bundles, live, number=3, examples=200)
    scoring = Scoring(
        state=state,
        claims=MemoryClaims(),
        bundles=bundles,
        spool=Spool(folder / "spool", quota_bytes=1 << 30),
        keys=Keys.load(folder),
        patience=CALM,
    )
    scoring.start()
    for i in range(asked):
        request = {
            "surface": "home",
            "unit": f"user-{i}",
            "context": {"device": "ios", "hour": 3 * i},
            "candidates": [
                {"id": f"n{j}", "features": {"price": j, "genre": ["jazz", "rock"][j % 2]}} for j in range(7)
            ],
        }
        scoring.decide(encode(request | ({"objectives": {"click": 0.2, "watch": 2.0}} if i % 2 else {})))
    scoring.close()
    made = read(bundles.pointers()["home/home-ts"], bundles.get)
    return [(decision, made) for decision in decisions(folder)]


@pytest.mark.parametrize("algorithm", SERVED)
def test_a_decision_is_recomputed_from_its_record_and_its_bundle(tmp_path: Path, algorithm: str) -> None:
    found = served(tmp_path, algorithm)
    assert len(found) == 8
    for decision, made in found:
        assert decision.bundle == made.manifest.bundle
        assert decision.sample is not None
        slate = recompute(decision, made)
        assert slate.items.tolist() == decision.rows
        assert slate.propensities.tolist() == decision.propensities
        assert slate.distributions is not None
        assert slate.distributions.tobytes() == decision.sample.distributions


def test_the_temperature_a_publish_found_is_drawn_with_and_logged(tmp_path: Path) -> None:
    """SquareCB's 1/γ: in the manifest, in the record, and in the gaps of the first slot, solved for γ."""
    for decision, made in served(tmp_path, "squarecb"):
        gamma = made.manifest.diagnostics["gamma"]
        assert gamma == pytest.approx(10 * np.sqrt(made.manifest.diagnostics["examples"]) / (1.0 + 0.3 * 0.1 * 60))
        assert decision.temperature == made.manifest.temperature == 1 / gamma
        assert decision.head == "inverse_gap"
        slate = recompute(decision, made)
        assert slate.distributions is not None
        base = (slate.distributions[0] - decision.epsilon / 7) / (1 - decision.epsilon)
        inputs = {"context": floats(decision.context), "items": floats(decision.matrix or b"").reshape(7, -1)}
        weights = decision.weights or made.manifest.weights
        inputs["weights"] = np.array([weights[name] for name in made.manifest.weights], np.float32)
        scores = score(made.graph, made.arrays, inputs)[:, 0].astype(float)
        worse = scores < scores.max()
        np.testing.assert_allclose(1 / base[worse], 7 + gamma * (scores.max() - scores[worse]), rtol=1e-3)


def test_a_policy_fitted_for_an_evaluation_is_asked_at_the_temperature_it_found() -> None:
    compiled = compile_surface(configured("squarecb"))
    policy = compiled.policies["home-ts"]
    published = policy.algorithm.publish(policy.config, policy.problem, learned(policy), 1.0, 0)
    assert scored(compiled, policy, published).served.settings.temperature == published.temperature != 1.0


def test_a_manifest_without_a_temperature_is_named_as_before(tmp_path: Path) -> None:
    """Bundles of builds that knew no temperature keep their names: a field that is not set is not there."""
    found = served(tmp_path, "linear_thompson", asked=1)[0][1]
    assert b"temperature" not in bundling.files(found)[f"manifests/{found.manifest.bundle}.json"]


def test_a_temperature_that_is_none_is_refused(tmp_path: Path) -> None:
    found = served(tmp_path, "squarecb", asked=1)[0][1]
    for wrong in (0.0, -1.0):
        manifest = msgspec.structs.replace(found.manifest, temperature=wrong)
        spoilt = Bundle(
            msgspec.structs.replace(manifest, bundle=bundling._name(manifest)), found.graph, found.arrays, found.probes
        )
        with pytest.raises(Corrupt, match="temperature"):
            bundling.verify(spoilt, schema=found.manifest.schema, score=score)
