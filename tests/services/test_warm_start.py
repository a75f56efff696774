"""Warm start: an algorithm taught from logged data, and a service that starts on the folder where it was."""

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import CALM

from policies.errors import Rejected
from policies.registry import ALGORITHMS
from services.epochs import take_epoch
from services.keys import Keys
from services.learning.shards import open_shards
from services.replay import learned
from services.replay.logged import Logged
from services.scoring.service import Scoring
from services.scoring.wire import encode
from services.settings import Settings
from services.wiring import open_bundles, open_claims, open_spool, open_state
from streaming.configuration import Configs
from streaming.events import unit_hash
from streaming.publish import Publisher

ROWS, NOW = 400, 1_764_000_000.0
LEARNING = [name for name, found in ALGORITHMS.items() if found.learner is not None]


def campaign() -> Logged:
    """400 people, one of three e-mails each by chance: the second is opened by 60%, the others by 15%."""
    rng = np.random.default_rng(5)
    chosen = rng.integers(3, size=ROWS)
    surface: dict[str, Any] = {
        "surface": "mail",
        "slots": 1,
        "features": {
            "context": {"age": {"type": "number", "min": 0, "max": 100}},
            "items": {"name": {"type": "category", "values": ["a", "b", "c"]}},
            "cross": [["age", "name"]],
        },
        "objectives": {"open": {"kind": "open", "aggregate": "max", "range": [0, 1]}},
        "policies": {"taught": {"algorithm": "linear_thompson", "objective": "open"}},
        "live": "taught",
    }
    return Logged(
        name="mail",
        surface=surface,
        policy="taught",
        times=NOW + np.arange(ROWS),
        units=[unit_hash(f"person-{i}", b"salt") for i in range(ROWS)],
        items=["a", "b", "c"],
        item_features=[{"name": name} for name in "abc"],
        chosen=chosen,
        slot=np.zeros(ROWS, np.int64),
        propensity=np.full(ROWS, 1 / 3),
        context=[{"age": float(age)} for age in rng.uniform(18, 80, ROWS)],
        inline=[],
        outcomes={"open": (rng.random(ROWS) < np.where(chosen == 1, 0.6, 0.15)).astype(float)},
    )


@pytest.mark.parametrize("algorithm", LEARNING)
def test_a_service_starts_from_what_logged_data_taught(tmp_path: Path, algorithm: str) -> None:
    logged = campaign()
    done = learned.replay(logged, tmp_path, time.time(), algorithm=algorithm)
    assert done.decisions == done.joined_decisions == ROWS
    assert done.examples == ROWS
    assert all(off < 1e-9 for off in done.off.values())
    answers = decided(tmp_path)
    assert {answer["mode"] for answer in answers} == {"live"}
    assert sum(answer["slate"][0]["id"] == "b" for answer in answers) > 0.6 * len(answers)


def decided(folder: Path, asked: int = 40) -> list[dict[str, Any]]:
    """Answers of a service on the folder, after the first publish of its learning, which is what a start begins with."""
    settings = Settings.load(environ={}, data=folder)
    state, bundles, configs = open_state(settings), open_bundles(settings), Configs()
    configs.follow(state)
    compiled = configs.current("mail")
    assert compiled is not None
    shards = open_shards(settings, state, configs, epoch := take_epoch(state), range(settings.partitions))
    policy, held = compiled.policies["taught"], [shard.statistics() for shard in shards]
    sums = [one.arrays[policy.key] for one in held if policy.key in one.arrays]
    outcome = Publisher(bundles, configs, epoch).publish(
        policy, sums, {one.partition: one.offset for one in held}, time.time()
    )
    assert outcome.manifest is not None, outcome.detail
    assert round(outcome.manifest.diagnostics["examples"]) == ROWS
    spool = open_spool(settings)
    scoring = Scoring(
        state=state, claims=open_claims(settings), bundles=bundles, spool=spool, keys=Keys.load(folder), patience=CALM
    )
    scoring.start()
    ask = [
        encode({"surface": "mail", "unit": f"new-{i}", "context": {"age": 20 + i}, "candidates": ["a", "b", "c"]})
        for i in range(asked)
    ]
    answers = [msgspec.json.decode(scoring.decide(one)) for one in ask]
    scoring.close()
    return answers


def test_what_does_not_learn_from_a_log_is_refused(tmp_path: Path) -> None:
    for wrong in ("uniform", "thompson"):
        with pytest.raises(Rejected, match=wrong):
            learned.replay(campaign(), tmp_path / wrong, time.time(), algorithm=wrong)
