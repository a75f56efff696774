"""A publish: what is pointed at is sound and never older than what was there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import bundle as bundling
from policies.algorithm import Published
from policies.errors import Rejected
from policies.surface import Category, FeatureSpec, Objective, PolicySpec, Surface
from policies.types import Arrays
from streaming.adapters.memory import MemoryBundles
from streaming.configuration import Compiled, CompiledPolicy, Configs
from streaming.publish import Publisher, merged, pointer_name

NOW = 1_000_000.0


class House:
    def __init__(self) -> None:
        self.bundles, self.configs = MemoryBundles(), Configs()
        self.compiled: Compiled = self.configs.add(
            Surface(
                "home",
                slots=2,
                features=FeatureSpec(items={"genre": Category(["jazz", "rock"])}),
                objectives={"click": Objective("click", range=(0.0, 1.0))},
                policies={"ts": PolicySpec("linear_thompson", objective="click", options={"draws": 8})},
                live="ts",
            )
        )
        self.policy = self.compiled.policies["ts"]
        self.publisher = Publisher(self.bundles, self.configs, 3)

    @property
    def pointer(self) -> str:
        return self.bundles.pointers()["home/ts"]

    def sums(self, count: int) -> Arrays:
        """Sums of `count` examples of one kind."""
        made = merged(self.policy, [])
        width = len(made["columns"])
        x = np.ones(width)
        return {**made, "S": count * np.outer(x, x), "n": np.array([float(count)])}


@pytest.fixture
def house() -> House:
    return House()


def test_the_files_are_there_before_the_pointer(house: House) -> None:
    """Whoever follows the pointer at any moment can read all of what it names."""
    seen: list[bundling.Bundle] = []

    class Watched(MemoryBundles):
        def point(self, policy: str, bundle: str, epoch: int) -> None:
            seen.append(bundling.read(bundle, self.get))
            super().point(policy, bundle, epoch)

    bundles = Watched()
    outcome = Publisher(bundles, house.configs, 1).publish(house.policy, [], {0: 0}, NOW)
    assert outcome.manifest == seen[0].manifest
    assert bundles.pointers() == {pointer_name(house.policy): seen[0].manifest.bundle}


def test_sums_of_partitions_add_in_any_order(house: House) -> None:
    first, second = house.sums(3), house.sums(5)
    one = house.publisher.publish(house.policy, [first, second], {0: 9, 1: 9}, NOW, number=7)
    other = Publisher(MemoryBundles(), house.configs, 3).publish(
        house.policy, [second, first], {0: 9, 1: 9}, NOW, number=7
    )
    assert one.manifest is not None
    assert other.manifest is not None
    assert one.manifest.arrays == other.manifest.arrays
    assert one.manifest.diagnostics["examples"] == 8


def test_numbers_and_seeds_go_up(house: House) -> None:
    numbers = [house.publisher.publish(house.policy, [], {0: 0}, NOW).manifest for _ in range(3)]
    assert [(m.number, m.seed) for m in numbers if m] == [(0, 0), (1, 1), (2, 2)]
    after = Publisher(house.bundles, house.configs, 4).publish(house.policy, [], {0: 0}, NOW).manifest
    assert after is not None
    assert (after.number, after.epoch) == (3, 4)


def test_a_partition_behind_the_last_publish_waits(house: House) -> None:
    house.publisher.publish(house.policy, [house.sums(3)], {0: 10, 1: 20}, NOW)
    before = house.pointer
    for behind in ({0: 9, 1: 20}, {0: 10}):
        assert house.publisher.publish(house.policy, [house.sums(2)], behind, NOW).result == "behind"
        assert Publisher(house.bundles, house.configs, 4).publish(house.policy, [], behind, NOW).result == "behind"
    assert house.pointer == before
    assert house.publisher.publish(house.policy, [house.sums(3)], {0: 10, 1: 21}, NOW).result == "published"


def _planted(policy: CompiledPolicy, change: Callable[[Published], Published]) -> CompiledPolicy:
    def publish(*arguments: Any) -> Published:
        return change(policy.algorithm.publish(*arguments))

    return replace(policy, algorithm=replace(policy.algorithm, publish=publish))


def _nan(published: Published) -> Published:
    arrays = {name: array.copy() for name, array in published.arrays.items()}
    arrays["pool"][0, 0] = np.nan
    return replace(published, arrays=arrays)


def _collapsed(published: Published) -> Published:
    arrays = {name: np.zeros_like(array) for name, array in published.arrays.items()}
    arrays["pool"][0] = 1e6
    return replace(published, arrays=arrays)


@pytest.mark.parametrize(("fault", "reason"), [(_nan, "nonfinite"), (_collapsed, "entropy")])
def test_what_the_gate_refuses_is_not_pointed_at(house: House, fault: Any, reason: str) -> None:
    house.publisher.publish(house.policy, [], {0: 0}, NOW)
    before = house.pointer
    outcome = house.publisher.publish(_planted(house.policy, fault), [house.sums(3)], {0: 1}, NOW)
    assert outcome.result == "refused"
    assert reason in outcome.detail
    assert house.pointer == before
    assert house.publisher.publish(house.policy, [house.sums(3)], {0: 1}, NOW).result == "published"


def test_an_older_epoch_is_refused(house: House) -> None:
    house.publisher.publish(house.policy, [], {0: 0}, NOW)
    with pytest.raises(Rejected, match=r"epoch|fenced"):
        Publisher(house.bundles, house.configs, 2).publish(house.policy, [], {0: 0}, NOW)


def test_a_lost_manifest_is_published_over(house: House) -> None:
    house.bundles.point("home/ts", "0" * 32, 1)
    assert not house.publisher.current(house.policy)
    assert house.publisher.publish(house.policy, [], {0: 0}, NOW).result == "published"
    assert house.publisher.current(house.policy)


def test_current_means_this_very_configuration(house: House) -> None:
    house.publisher.publish(house.policy, [], {0: 0}, NOW)
    assert house.publisher.current(house.policy)
    options = PolicySpec("linear_thompson", objective="click", options={"draws": 16})
    changed = house.configs.add(msgspec.structs.replace(house.compiled.surface, policies={"ts": options}))
    assert not house.publisher.current(changed.policies["ts"])
