"""Configuration never resets learning (promise 7): a live surface changes while people go on deciding and clicking."""

import time
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import bundle as bundling
from policies.surface import Category, FeatureSpec, Number, Objective, PolicySpec, Surface
from policies.types import item_hashes
from services.epochs import take_epoch
from services.learning.app import Learning
from services.learning.inline import InlineShards
from services.telemetry import Telemetry
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints, MemoryDeadLetters, MemoryLog, MemoryState
from streaming.configuration import Compiled, Configs, publish_surface
from streaming.events import Decision, Feedback, encode
from streaming.publish import Publisher
from streaming.shard import Shard

PARTITIONS = 2
SURFACE = Surface(
    "home",
    slots=1,
    features=FeatureSpec(items={"genre": Category(["jazz", "rock"]), "price": Number(0, 100)}),
    objectives={"click": Objective("click", range=(0.0, 1.0))},
    kinds=["like"],
    policies={
        "ts": PolicySpec("linear_thompson", objective="click", options={"draws": 64}),
        "hits": PolicySpec("popular", objective="click"),
    },
    live="ts",
)
GENRES = SURFACE.features.items["genre"]
LIKE = {"like": Objective("like", range=(0.0, 1.0))}

CHANGES: dict[str, dict[str, Any]] = {
    "a feature added": {"features": FeatureSpec(items=SURFACE.features.items | {"year": Number(1900, 2100)})},
    "a feature removed": {"features": FeatureSpec(items={"genre": GENRES})},
    "a feature's range": {"features": FeatureSpec(items={"genre": GENRES, "price": Number(0, 1000)})},
    "an aggregate": {"objectives": {"click": Objective("click", aggregate="max", range=(0.0, 1.0))}},
    "a range": {"objectives": {"click": Objective("click", range=(0.0, 5.0))}},
    "an objective added": {"objectives": SURFACE.objectives | LIKE},
    "the horizon": {"horizon": "10m"},
    "the credit": {"credit": "clicked"},
    "more slots": {"slots": 3},
    "a half-life": {"policies": {n: msgspec.structs.replace(p, options=p.options | {"half_life": "30d"}) for n, p in SURFACE.policies.items()}},
}  # fmt: skip


class Town:
    """People who like jazz, stores, and a learning service over them that can be started again."""

    def __init__(self) -> None:
        self.now = time.time()  # the service publishes by the machine's clock
        self.log = MemoryLog(PARTITIONS, now=lambda: self.now)
        self.state, self.bundles, self.dead = MemoryState(), MemoryBundles(), MemoryDeadLetters()
        self.checkpoints = [MemoryCheckpoints() for _ in range(PARTITIONS)]
        self.people = 0
        self.become(SURFACE)
        self.start()

    def become(self, surface: Surface) -> None:
        publish_surface(self.state, surface)
        configs = Configs()
        configs.follow(self.state)
        compiled = configs.current("home")
        assert compiled is not None
        self.compiled: Compiled = compiled

    def start(self) -> None:
        configs, epoch = Configs(), take_epoch(self.state)
        self.learning = Learning(self.state, configs, Publisher(self.bundles, configs, epoch), Telemetry(), 0.0)
        self.learning.follow()
        self.learning.begin([])
        shards = [Shard(p, self.log, self.checkpoints[p], configs, self.dead, epoch=epoch) for p in range(PARTITIONS)]
        self.engine = InlineShards(shards)
        self.learning.begin(self.engine.statistics())

    def decide(self, count: int) -> None:
        """As many decisions of one item each; four in five who see jazz click, one in five who see rock."""
        for _ in range(count):
            self.people += 1
            unit, genre = f"{self.people:016x}", "jazz" if self.people % 2 else "rock"
            raw: dict[str, Any] = {"genre": genre, "price": 50.0}
            shown = {name: value for name, value in raw.items() if name in self.compiled.encoder.spec.items}
            made = Decision(
                decision_id=f"{unit}-1", unit=unit, at=self.now, surface="home", config=self.compiled.hash, policy="ts",
                bundle="b", mode="live", slate=[f"{genre}-1"], slots=[0], rows=[0], propensities=[0.5], remaining=[2],
                greedy=[0], context=b"", shown=self.compiled.encoder.rows([shown], "$").tobytes(),
            )  # fmt: skip
            self.log.append([(unit.encode(), encode(made))])
            if (self.people % 10 < 8) == (genre == "jazz"):
                self.say(unit, 1.0)

    def say(self, unit: str, value: float) -> None:
        """A click of a unit, or what corrects it."""
        said = Feedback(
            decision_id=f"{unit}-1", unit=unit, at=self.now, kind="click", slot=0, feedback_id="f", value=value,
            revision=int(value == 0),
        )  # fmt: skip
        self.log.append([(unit.encode(), encode(said))])

    def learn(self) -> None:
        self.learning.follow()
        while self.learning.turn(self.engine):
            pass
        self.learning.finish(self.engine)
        assert self.dead.count() == {}

    def manifest(self, policy: str = "ts") -> bundling.Manifest:
        return bundling.read_manifest(self.bundles.pointers()[f"home/{policy}"], self.bundles.get)

    def preference(self) -> tuple[float, float]:
        """How much jazz is ahead of rock, in clicks: in the model's mean and in the table."""
        held = bundling.read(self.bundles.pointers()["home/ts"], self.bundles.get)
        names = self.compiled.encoder.item_names
        pool = np.asarray(held.arrays["pool"], float)
        pool = pool[0] if pool.ndim == 3 else pool  # of several objectives the first, which is `click`
        ahead = pool[names.index("genre=jazz")] - pool[names.index("genre=rock")]
        return float(ahead.mean()), self._ahead_in_table()

    def _ahead_in_table(self) -> float:
        held = bundling.read(self.bundles.pointers()["home/hits"], self.bundles.get)
        jazz, rock = bundling.item_rows(held.arrays, item_hashes(["jazz-1", "rock-1"]))
        table = np.asarray(held.arrays["table"], float)
        return float(table[jazz] - table[rock])


@pytest.fixture
def town() -> Town:
    town = Town()
    town.decide(200)
    town.learn()
    return town


def changed(change: str) -> Surface:
    return msgspec.structs.replace(SURFACE, **CHANGES[change])


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_keeps_what_was_learned(town: Town, change: str) -> None:
    """The first bundle of the new version knows all the old one knew, and what comes then is learned on top of it."""
    before = town.preference()
    assert min(before) > 0.4
    town.become(changed(change))
    town.learning.follow()
    town.learning.begin(town.engine.statistics())
    after = town.manifest()
    assert after.config == town.compiled.hash
    assert after.diagnostics["examples"] == pytest.approx(200, rel=1e-3)
    assert town.manifest("hits").diagnostics["examples"] == pytest.approx(200, rel=1e-3)
    np.testing.assert_allclose(town.preference(), before, rtol=0.1)
    town.decide(100)
    town.learn()
    assert town.manifest().diagnostics["examples"] == pytest.approx(300, rel=1e-3)
    np.testing.assert_allclose(town.preference(), before, rtol=0.1)


@pytest.mark.parametrize("change", list(CHANGES))
def test_it_also_does_while_the_service_is_down(town: Town, change: str) -> None:
    """No prior of the new version is published over what was learned, not even until the checkpoints are read."""
    seen: list[bundling.Manifest] = []
    move = town.bundles.point

    def watched(policy: str, bundle: str, epoch: int) -> None:
        seen.append(bundling.read_manifest(bundle, town.bundles.get))
        move(policy, bundle, epoch)

    town.bundles.point = watched  # type: ignore[method-assign]  # to see every bundle there was
    town.become(changed(change))
    town.start()
    assert {manifest.config for manifest in seen} == {town.compiled.hash}
    learned = [manifest for manifest in seen if manifest.policy in ("ts", "hits")]
    assert len(learned) == 2
    assert [manifest.diagnostics["examples"] for manifest in learned] == pytest.approx([200, 200], rel=1e-3)


def test_corrections_of_old_decisions_reach_the_new_version(town: Town) -> None:
    """Clicks on jazz are taken back, and rock's come late: the new version's model turns round."""
    town.become(changed("a feature added"))
    town.learn()
    for person in range(1, 201):
        town.say(f"{person:016x}", 0.0 if person % 2 else 1.0)  # odd people saw jazz
    number = town.manifest().number
    town.learn()
    assert town.manifest().number > number
    assert max(town.preference()) < -0.4
    assert town.manifest().diagnostics["examples"] == pytest.approx(200)


def test_several_changes_in_a_row_and_back_again(town: Town) -> None:
    before = town.manifest()
    for change in CHANGES:
        town.become(changed(change))
        town.learn()
        town.learning.begin(town.engine.statistics())
        town.decide(10)
        town.learn()
    town.become(SURFACE)
    town.learning.follow()
    town.learning.begin(town.engine.statistics())
    assert town.manifest().key == before.key
    assert town.manifest().diagnostics["examples"] == pytest.approx(200 + 10 * len(CHANGES), rel=1e-2)


def test_another_algorithm_under_the_name_starts_with_nothing_learned(town: Town) -> None:
    policies = SURFACE.policies | {"ts": SURFACE.policies["hits"], "hits": SURFACE.policies["ts"]}
    town.become(msgspec.structs.replace(SURFACE, policies=policies))
    town.learning.follow()
    town.learning.begin(town.engine.statistics())
    assert {town.manifest(name).diagnostics["examples"] for name in ("ts", "hits")} == {0}


def test_a_policy_without_its_older_sums_is_caught(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the tests above are for."""
    monkeypatch.setattr("services.learning.app.older_sums", lambda *_: [])
    with pytest.raises(AssertionError):
        test_a_change_keeps_what_was_learned(town, "a feature added")
