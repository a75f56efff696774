"""The learning service's loop over memory adapters: prior first, then what was learned, never back in time."""

import msgspec
import pytest

from policies import bundle as bundling
from policies.errors import Rejected
from services.configuring import quickstart
from services.epochs import OWNERS, stay, take_epoch
from services.learning.app import Learning
from services.learning.inline import InlineShards
from services.releases import KEY, KIND
from services.telemetry import Telemetry
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints, MemoryDeadLetters, MemoryLog, MemoryState
from streaming.configuration import Compiled, Configs, publish_surface
from streaming.events import Decision, Feedback, encode
from streaming.publish import Publisher
from streaming.shard import Shard

NOW = 1_000_000.0
PARTITIONS = 2


class House:
    """Stores that outlive a learning service, and services over them."""

    def __init__(self) -> None:
        self.log = MemoryLog(PARTITIONS, now=lambda: NOW)
        self.state, self.bundles, self.dead = MemoryState(), MemoryBundles(), MemoryDeadLetters()
        self.checkpoints = [MemoryCheckpoints() for _ in range(PARTITIONS)]
        self.surface = quickstart()[0]
        publish_surface(self.state, self.surface)
        self.made = 0

    def start(self) -> tuple[Learning, InlineShards]:
        configs, epoch = Configs(), take_epoch(self.state)
        learning = Learning(self.state, configs, Publisher(self.bundles, configs, epoch), Telemetry(), 0.0)
        learning.follow()
        learning.begin([])
        shards = [Shard(p, self.log, self.checkpoints[p], configs, self.dead, epoch=epoch) for p in range(PARTITIONS)]
        return learning, InlineShards(shards)

    def manifest(self, policy: str = "home/home-ts") -> bundling.Manifest:
        return bundling.read_manifest(self.bundles.pointers()[policy], self.bundles.get)

    def people(self, count: int) -> list[float]:
        """Decisions with a click each; when the clicks were accepted."""
        configs = Configs()
        configs.follow(self.state)
        compiled = configs.current("home")
        assert compiled is not None
        accepted = []
        for _ in range(count):
            self.made += 1
            unit = f"{self.made:016x}"
            accepted.append(NOW + self.made / 1_000)
            click = Feedback(
                decision_id=f"{unit}-1",
                unit=unit,
                at=NOW,
                kind="click",
                slot=0,
                feedback_id="f",
                accepted_at=accepted[-1],
            )
            self.log.append([(unit.encode(), encode(decision(compiled, unit))), (unit.encode(), encode(click))])
        return accepted


def decision(compiled: Compiled, unit: str) -> Decision:
    context = compiled.encoder.context({"device": "ios", "daypart": "day"})
    shown = compiled.encoder.rows([{"genre": "jazz", "price": 3.0}, {"genre": "rock"}], "$")
    return Decision(
        decision_id=f"{unit}-1", unit=unit, at=NOW, surface="home", config=compiled.hash, policy="home-ts", bundle="b",
        mode="live", slate=["a", "b"], slots=[0, 1], rows=[0, 1], propensities=[0.5, 1.0], remaining=[2, 1],
        greedy=[0, 1], context=context.tobytes(), shown=shown.tobytes(),
    )  # fmt: skip


@pytest.fixture
def house() -> House:
    return House()


def turns(learning: Learning, engine: InlineShards) -> None:
    while learning.turn(engine):
        pass
    learning.finish(engine)


def test_the_prior_is_published_before_anything_is_learned(house: House) -> None:
    house.start()
    assert set(house.bundles.pointers()) == {"home/home-ts", "home/home-popular", "home/given_order"}
    assert house.manifest().diagnostics["examples"] == 0


def test_what_people_did_is_in_the_next_bundle(house: House) -> None:
    learning, engine = house.start()
    accepted = house.people(20)
    turns(learning, engine)
    manifest = house.manifest()
    assert manifest.diagnostics["examples"] == 40  # two slots each
    assert manifest.trained_through == {str(p): house.log.end(p)[0] for p in range(PARTITIONS)}
    assert sorted(manifest.fresh) == accepted
    assert house.manifest("home/home-popular").diagnostics != {}


def test_nothing_new_nothing_published(house: House) -> None:
    learning, engine = house.start()
    house.people(3)
    turns(learning, engine)
    before = house.bundles.pointers()
    turns(learning, engine)
    assert house.bundles.pointers() == before


def test_a_restart_neither_forgets_nor_goes_back(house: House) -> None:
    learning, engine = house.start()
    house.people(20)
    turns(learning, engine)
    before = house.manifest()
    again, engine_again = house.start()
    assert house.manifest() == before  # no prior over what was learned
    house.people(5)
    turns(again, engine_again)
    assert house.manifest().diagnostics["examples"] == 50
    assert house.manifest().number > before.number


def test_an_old_service_cannot_write_once_a_new_one_has(house: House) -> None:
    old, old_engine = house.start()
    house.people(2)
    turns(old, old_engine)
    new, new_engine = house.start()
    house.people(2)
    turns(new, new_engine)
    house.people(2)
    with pytest.raises(Rejected, match=r"epoch|fenced"):
        turns(old, old_engine)
    assert house.manifest().diagnostics["examples"] == 8
    turns(new, new_engine)
    assert house.manifest().diagnostics["examples"] == 12


def test_a_changed_configuration_keeps_what_was_learned(house: House) -> None:
    learning, engine = house.start()
    house.people(20)
    turns(learning, engine)
    before = house.manifest()
    policies = dict(house.surface.policies)
    policies["home-ts"] = msgspec.structs.replace(policies["home-ts"], options={"floor": 0.1, "draws": 64})
    changed = publish_surface(house.state, msgspec.structs.replace(house.surface, policies=policies))
    learning.follow()
    learning.begin(engine.statistics())
    after = house.manifest()
    assert after.config == changed
    assert after.draws == 64
    assert (after.key, after.diagnostics["examples"]) == (before.key, 40)


def test_a_held_policy_stays_and_follows_again(house: House) -> None:
    learning, engine = house.start()
    held = house.manifest().bundle
    house.state.put([(KIND, KEY, msgspec.json.encode({"home/home-ts": held}))])
    learning.follow()
    house.people(4)
    turns(learning, engine)
    assert house.manifest().bundle == held
    assert house.manifest("home/home-popular").trained_through["0"] == house.log.end(0)[0]  # the others go on
    house.state.put([(KIND, KEY, msgspec.json.encode({}))])
    learning.follow()
    turns(learning, engine)
    assert house.manifest().diagnostics["examples"] == 8


def test_of_a_policy_that_is_held_no_more_times_are_kept_than_a_manifest_carries(house: House) -> None:
    learning, engine = house.start()
    house.state.put([(KIND, KEY, msgspec.json.encode({"home/home-ts": house.manifest().bundle}))])
    learning.follow()
    accepted = house.people(2 * bundling.FRESH)
    turns(learning, engine)
    assert len(learning._fresh["home", "home-ts"]) == bundling.FRESH
    house.state.put([(KIND, KEY, msgspec.json.encode({}))])
    learning.follow()
    turns(learning, engine)
    assert len(house.manifest().fresh) == bundling.FRESH
    assert set(house.manifest().fresh) < set(accepted)


def test_epochs_are_taken_once_each() -> None:
    state = MemoryState()
    assert [take_epoch(state) for _ in range(3)] == [OWNERS, 2 * OWNERS, 3 * OWNERS]


def test_an_epoch_is_over_when_the_next_one_is_taken() -> None:
    state = MemoryState()
    state.put([("epoch", "learning", b"7")])  # taken before epochs left room for owners
    first = take_epoch(state)
    stay(state, first)
    stay(state, first + 3)
    take_epoch(state)
    with pytest.raises(Rejected, match="is over") as caught:
        stay(state, first + 3)
    assert caught.value.code == "fenced"
