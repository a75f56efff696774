"""Rewards by policy and exposure by group, as metrics: what the counters of the last minute say."""

from pathlib import Path

import pytest

from policies.surface import Category, FeatureSpec, Number, Objective, PolicySpec, Surface
from services.outcomes import EVERY_SECONDS, MOST_VALUES, WINDOW, Outcomes, groups
from services.telemetry import Telemetry
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters, MemoryLog
from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles
from streaming.configuration import Configs
from streaming.events import Decision, Feedback, encode
from streaming.feed import Feed
from streaming.shard import Shard

NOW = 1_800_000_000.0
SURFACE = Surface(
    "home",
    slots=2,
    features=FeatureSpec(items={"genre": Category(["jazz", "rock"]), "price": Number(0, 100)}),
    objectives={"click": Objective("click"), "watch": Objective("watch", scale=0.1)},
    policies={name: PolicySpec("linear_thompson", objective="click", options={"draws": 8}) for name in ("ts", "other")},
    live="ts",
)


class Town:
    """A shard that derives counters, and the metrics that are read from them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        self.configs, self.counters, self.telemetry = Configs(), MemoryCounters(), Telemetry()
        self.compiled = self.configs.add(SURFACE)
        self.outcomes = Outcomes(self.counters, self.configs, self.telemetry)
        self.log, self.now, self.made = MemoryLog(1, lambda: NOW), 0.0, 0
        feed = Feed(0, 1, self.counters, MemoryProfiles(), lambda: self.now)
        self.shard = Shard(0, self.log, MemoryCheckpoints(), self.configs, MemoryDeadLetters(), epoch=1, feed=feed)

    def decide(self, policy: str, genres: list[str], **feedback: float) -> None:
        """A slate of items of these genres; feedback is heard on its first slot."""
        self.made += 1
        unit = f"{self.made:016x}"
        shown = self.compiled.encoder.rows([{"genre": genre} for genre in genres], "$")
        k = len(genres)
        made = Decision(
            decision_id=f"{unit}-1", unit=unit, at=NOW, surface="home", config=self.compiled.hash, policy=policy,
            bundle="b", mode="live", slate=[f"{unit}-{t}" for t in range(k)], slots=list(range(k)), rows=list(range(k)),
            propensities=[0.5] * k, remaining=[2] * k, greedy=[0] * k, context=b"", shown=shown.tobytes(),
        )  # fmt: skip
        self.log.append([(unit.encode(), encode(made))])
        for kind, value in feedback.items():
            said = Feedback(
                decision_id=f"{unit}-1", unit=unit, at=NOW, kind=kind, slot=0, feedback_id=kind, value=value
            )
            self.log.append([(unit.encode(), encode(said))])

    def pass_by(self, seconds: float = EVERY_SECONDS) -> None:
        self.now += seconds
        self.shard.step(NOW)
        self.outcomes.turn(self.now)

    def value(self, line: str) -> float | None:
        found = [row for row in self.telemetry.text().decode().splitlines() if row.startswith(f"slatewise_{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else None

    def reward(self, policy: str, objective: str) -> float | None:
        labels = f'arm="",objective="{objective}",policy="{policy}",surface="home"'
        return self.value(f"objective_value{{{labels}}}")

    def share(self, group: str) -> float | None:
        return self.value(f'exposure_share{{group="{group}",surface="home"}}')


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Town:
    town = Town(monkeypatch)
    town.pass_by()
    return town


def test_rewards_are_of_a_slot_by_policy(town: Town) -> None:
    for _ in range(3):
        town.decide("ts", ["jazz", "rock"], click=1.0, watch=30.0)
    town.decide("ts", ["jazz", "rock"])
    town.decide("other", ["rock"])
    assert town.reward("ts", "click") is None
    town.pass_by()
    assert town.reward("ts", "click") == pytest.approx(3 / 8)
    assert town.reward("ts", "watch") == pytest.approx(90 / 8)  # raw: scales act on weights
    assert town.reward("other", "click") == 0.0


def test_shares_are_of_slots_by_group(town: Town) -> None:
    town.decide("ts", ["jazz", "rock"])
    town.decide("ts", ["jazz", "polka"])
    town.pass_by()
    assert [town.share(f"genre{group}") for group in ("=jazz", "=rock", "!unseen")] == [0.5, 0.25, 0.25]


def test_what_is_older_than_the_window_is_forgotten(town: Town) -> None:
    town.decide("ts", ["jazz", "jazz"], click=1.0)
    town.pass_by()
    assert town.share("genre=jazz") == 1.0
    for _ in range(WINDOW):
        town.decide("ts", ["rock", "rock"])
        town.pass_by()
    assert town.share("genre=jazz") == 0.0
    assert town.reward("ts", "click") == 0.0


def test_a_minute_without_traffic_leaves_the_last_value(town: Town) -> None:
    town.decide("ts", ["jazz", "rock"], click=1.0)
    town.pass_by()
    for _ in range(2 * WINDOW):
        town.pass_by()
    assert town.reward("ts", "click") == 0.5


def test_counters_are_read_when_it_is_time(town: Town) -> None:
    town.decide("ts", ["jazz", "rock"])
    town.pass_by(EVERY_SECONDS / 2)
    assert town.share("genre=jazz") is None
    town.pass_by(EVERY_SECONDS / 2)
    assert town.share("genre=jazz") == 0.5


def test_labels_are_bounded() -> None:
    many = Category([f"v{i}" for i in range(MOST_VALUES + 1)])
    surface = Surface("home", features=FeatureSpec(items={"creator": many, "genre": Category(["jazz"])}))
    assert [label for _, _, label in groups(surface)] == ["genre=jazz", "genre!unseen"]
