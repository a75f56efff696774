"""Every sampled decision, recomputed in another process from its record and its bundle: the same bits."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scoring_setup import decisions, installed, serving, surface

from policies.surface import (
    Diversity,
    Exploration,
    Fairness,
    ImpressionVariance,
    Logging,
    PolicySpec,
    Quota,
    Rule,
    Segment,
)
from services.settings import Settings
from services.wiring import open_state
from streaming.impressions import KIND, Told, encode, scheme_of

pytestmark = pytest.mark.slow
ASKED = 600
RECOMPUTE = """
import json, sys
from pathlib import Path
from policies.bundle import read
from scoring_setup import decisions
from services.settings import Settings
from services.wiring import open_bundles
from streaming.replay import recompute

folder = Path(sys.argv[1])
store, bundles = open_bundles(Settings.load({}, data=folder)), {}
seen = wrong = 0
for decision in decisions(folder):
    if decision.sample is None:
        continue
    name = decision.bundle
    if name and name not in bundles:
        bundles[name] = read(name, store.get)
    slate = recompute(decision, bundles.get(name))
    seen += 1
    wrong += not (
        slate.items.tolist() == decision.rows
        and [decision.candidates[row] for row in slate.items] == decision.slate
        and slate.slots.tolist() == decision.slots
        and slate.propensities.tolist() == decision.propensities
        and slate.distributions.tobytes() == decision.sample.distributions
        and slate.remaining.tolist() == decision.remaining
        and slate.greedy.tolist() == decision.greedy
        and (decision.alphas is None or slate.alphas.tolist() == decision.alphas)
    )
print(json.dumps([seen, wrong]))
"""


def test_sampled_decisions_recompute_bit_for_bit(tmp_path: Path) -> None:
    policies = {
        "home-ts": PolicySpec("linear_thompson", objectives={"click": 1.0, "watch": 0.3}, options={"floor": 0.05}),
        "popular": PolicySpec("popular", objective="click"),
    }
    rules = [
        Rule(filter="price != 5"),
        Rule(cap=1, by="creator"),
        Rule(quota=Quota(2, "genre", "rock")),
        Rule(spacing=2, by="genre"),
        Rule(pin="i3", slot=1),
    ]
    diversity = Diversity(mmr=1.0, coverage=0.5, by="genre")
    exploration = Exploration(0.5, [Segment("hour < 6", 0.1)])
    live = surface(
        policies=policies,
        exploration=exploration,
        logging=Logging(0.5),
        rules=rules,
        diversity=diversity,
        fairness=Fairness(impression_variance=ImpressionVariance("religion", ["north", "south"], "device")),
    )
    other = surface(surface="side", policies=policies, live="popular", logging=Logging(1.0), rules=rules[1:3])
    plain = surface(surface="plain", policies=policies, live="given_order", logging=Logging(1.0))
    settings = installed(tmp_path, [live, other, plain])
    boosts = np.linspace(-0.3, 0.3, 30, dtype="<f4")
    items = [f"i{i}" for i in range(10)]
    told = Told(scheme_of(live), 1, time.time(), 1, items, [1] * 10, boosts=boosts.tobytes())
    open_state(settings).put([(KIND, "home", encode(told))])
    with serving(settings) as server, server.client() as client:
        items = [
            {
                "id": f"i{i}",
                "features": {"price": i, "genre": ("jazz", "rock")[i % 2]},
                "attributes": {"creator": f"c{i % 4}"},
            }
            for i in range(10)
        ]
        client.put("/v1/items", json=items).raise_for_status()
        for start in range(0, ASKED, 200):
            requests = [ask(i) for i in range(start, start + 200)]
            found = client.post("/v1/decisions:batch", json={"requests": requests}).raise_for_status().json()
            assert [answer for answer in found["responses"] if "error" in answer] == []
    logged = decisions(tmp_path)
    sampled = [decision for decision in logged if decision.sample is not None]
    assert len(logged) == ASKED
    assert len(sampled) > 0.5 * ASKED
    assert {decision.surface for decision in sampled} == {"home", "side", "plain"}
    acted = {name for decision in sampled for name in decision.acted}
    assert acted >= {
        "filter",
        "cap:creator",
        "quota:genre=rock",
        "spacing:genre",
        "pin:1",
        "mmr",
        "coverage",
        "impression_variance",
    }
    assert any(decision.relaxed for decision in sampled)
    assert recomputed(settings) == (len(sampled), 0)


def ask(i: int) -> dict[str, object]:
    """Requests of every kind that changes what the draw reads."""
    request: dict[str, object] = {
        "surface": ("home", "home", "side", "plain")[i % 4],
        "unit": f"user-{i}",
        "context": {"device": "ios", "hour": i % 24},
        "candidates": [f"i{j}" for j in range(8)]
        if i % 3
        else [{"id": f"n{j}", "features": {"price": j}} for j in range(7)],
    }
    if i % 5 == 0:
        request["objectives"] = {"click": 0.2, "watch": 2.0}
    if i % 7 == 0:
        request["pins"] = {"2": "i1" if i % 3 else "n1"}
    if i % 4 == 1:
        request["diversity"] = {"mmr": 0.2, "coverage": 3.0}
    if i % 11 == 0:
        del request["candidates"]
        request.pop("pins", None)
    return request


def recomputed(settings: Settings) -> tuple[int, int]:
    """(sampled decisions seen, those that came out otherwise), found by a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", RECOMPUTE, str(settings.data)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{Path.cwd()}:{Path(__file__).parent.parent}", "OMP_NUM_THREADS": "1"},
    )
    seen, wrong = json.loads(found.stdout)
    return seen, wrong
