"""What a cap leaves unused, lent: four replicas over one log, one Redis and the shards that count, and what the log shows."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from redis_setup import started
from scoring_setup import beside, decisions, in_memory, publish, surface

from policies import bundle as bundling
from policies.errors import Unavailable
from policies.features import Encoder
from policies.reranking import exploration_budget as budget
from policies.surface import Exploration, Logging, PolicySpec, Segment, Surface
from services.learning.app import derived_is_read
from services.learning.shards import open_shards
from services.scoring.leases import LIFE_SECONDS, Lending
from services.scoring.serve import open_scoring
from services.scoring.service import Scoring
from services.scoring.wire import DecisionAnswer, encode
from services.settings import Settings
from services.stack.redis import RedisServer
from services.wiring import open_bundles, open_forwarder, open_leases, open_log, open_state
from streaming.adapters.memory import MemoryBundles, MemoryLeases, MemoryState
from streaming.adapters.memory_tables import MemoryCounters
from streaming.configuration import Configs
from streaming.derived import counter_name
from streaming.events import Decision, Strayed, decode
from streaming.ports import Mark
from streaming.replay import recompute
from streaming.shard import Shard
from streaming.strayed import window_name

REPLICAS, SLOTS, CAP, UP_TO, WEB = 4, 3, 0.1, 0.5, 0.06
WEB_COLUMN = Encoder(surface().features).context_names.index("device=web")
# dearer ones are clicked more
PLAIN = [{"id": f"i{j}", "features": {"price": j, "genre": "jazz"}} for j in range(0, 10, 3)]
# who knows
NEW = [{"id": f"n{j}", "features": {"price": 5 + j / 10, "genre": ("jazz", "rock", "x")[j % 3]}} for j in range(8)]


def lending(**more: object) -> Surface:
    """Nothing is lent to the web's requests."""
    policy = PolicySpec("linear_thompson", objective="click", options={"floor": 0.01})
    exploration = Exploration(CAP, [Segment("device == 'web'", WEB)], lend_up_to=UP_TO)
    return surface(slots=SLOTS, policies={"home-ts": policy}, exploration=exploration, logging=Logging(1.0), **more)


@dataclass
class House:
    """Services of their own, each with its folder, over one log, one bundle store and one Redis; the time is the test's."""

    settings: Sequence[Settings]
    replicas: Sequence[Scoring]
    shards: Sequence[Shard]
    now: float

    @classmethod
    def of(cls, folder: Path, redis: str, document: Surface) -> "House":
        settings, replicas = [], []
        for i in range(REPLICAS):
            one = beside(folder, redis, i, partitions=2, derive="on")
            publish(open_state(one), open_bundles(one), document, number=1, examples=100)
            settings.append(one)
            replicas.append(open_scoring(one))
        state, configs = open_state(settings[0]), Configs()
        configs.follow(state)
        shards = open_shards(settings[0], state, configs, 1, range(2))
        house = cls(settings, replicas, shards, time.time() - 3_000.0)
        for scoring in replicas:
            scoring.clock = scoring.leases._clock = lambda: house.now  # no lease lapses because the machine is slow
            scoring.start()
        return house

    def second(self, quiet: int, busy: int, replicas: Sequence[int] = range(REPLICAS)) -> None:
        """Requests, asked of replicas by turns; then their records reach the counters, and the replicas renew at once."""
        for i in range(quiet + busy):
            scoring = self.replicas[replicas[i % len(replicas)]]
            request = {"surface": "home", "unit": f"u{self.now}-{i}", "candidates": PLAIN if i < quiet else NEW}
            scoring.decide(encode({**request, "context": {"device": "web" if i % 8 == 7 else "ios"}}))
        self.read()
        self.renew(replicas)
        self.now += 1.0

    def read(self) -> None:
        for one in self.settings:
            forwarder = open_forwarder(one)
            while forwarder.step():
                pass
            forwarder.close()
        for shard in self.shards:
            while shard.step().records:
                pass
            assert shard._feed is not None
            shard._feed.tell(shard.offset, now=True)

    def renew(self, replicas: Sequence[int] = range(REPLICAS)) -> None:
        with ThreadPoolExecutor(REPLICAS) as racing:
            for done in [racing.submit(self.replicas[i].renew) for i in replicas]:
                done.result()

    def logged(self) -> list[Decision]:
        log = open_log(self.settings[0])
        records = [decode(record.value) for p in range(log.partitions) for record in log.read(p, 0, 100_000)]
        return sorted((one for one in records if isinstance(one, Decision)), key=lambda one: one.at)

    def books(self) -> list[budget.Book]:
        return [budget.unpack(held) for held in open_leases(self.settings[0]).read(["default/home/"])]

    def close(self) -> None:
        for scoring in self.replicas:
            scoring.close()


def shares(records: Sequence[Decision]) -> Iterator[tuple[float, bool, float]]:
    """(time, of the web, expected share of the slot that is not greedy) of every drawn slot, from the distributions themselves."""
    for record in records:
        assert record.sample is not None
        chances = np.frombuffer(record.sample.distributions).reshape(len(record.slate), -1)
        web = bool(np.frombuffer(record.context, "<f4")[WEB_COLUMN] == 1.0)
        for t, greedy in enumerate(record.greedy):
            yield record.at, web, 1.0 - chances[t, greedy]


def beyond(records: Sequence[Decision]) -> float:
    """Slots' worth explored above the cap."""
    return sum(max(0.0, share - CAP) for _, web, share in shares(records) if not web)


def worst(records: Sequence[Decision]) -> float:
    """Largest over all prefixes of the log of what was explored beyond cap × slots, outside the web."""
    at, explored = np.array([(at, share) for at, web, share in shares(records) if not web]).T
    total = np.cumsum(explored - CAP)
    return float(total[np.append(at[1:] != at[:-1], True)].max())


def opened(folder: Path, redis: str, document: Surface) -> House:
    """… whose leases' books count from now on."""
    house = House.of(folder, redis, document)
    house.renew()
    house.now += budget.AHEAD_SECONDS + budget.WINDOW_SECONDS
    return house


def test_what_is_left_is_lent_and_in_every_prefix_of_the_log_never_more(tmp_path: Path) -> None:
    """A replica dies with a lease, Redis is flushed in the middle, and then goes."""
    with started(lambda: RedisServer(tmp_path / "redis")) as server:
        house = opened(tmp_path, server.url, lending())
        for _ in range(4):
            house.second(16, 0)
        calm = house.logged()
        unused = CAP * len(calm) * SLOTS * 7 / 8 - sum(share for _, web, share in shares(calm) if not web)
        for i in range(6):
            house.second(4, 4, range(REPLICAS) if i < 3 else range(1, REPLICAS))
        burst = house.logged()[len(calm) :]
        assert beyond(calm) == 0.0
        assert beyond(burst) > 0.5 * unused  # most of what was left is used, by those who had none left
        server.flush()
        for _ in range(2):
            house.second(4, 4)
        assert all(
            book.since > budget.window_of(house.now) for book in house.books()
        )  # nothing that was lent is lent again
        house.now += budget.AHEAD_SECONDS + budget.WINDOW_SECONDS
        for _ in range(4):
            house.second(6, 4)
        lent = house.logged()
        assert beyond(lent[len(calm) + len(burst) :]) > 0.0
        server.stop()
        for scoring in house.replicas:
            with pytest.raises(Unavailable):
                scoring.renew()
        for i in range(2 * REPLICAS):
            house.replicas[i % REPLICAS].decide(
                encode({"surface": "home", "unit": f"last-{i}", "candidates": NEW, "context": {"device": "ios"}})
            )
        house.read()
        everything = house.logged()
        house.close()
    assert worst(everything) < 1e-9
    assert all(share < (WEB if web else UP_TO) + 1e-9 for _, web, share in shares(everything))
    away = everything[len(lent) :]
    assert len(away) == 2 * REPLICAS
    assert [record.max_share for record in away] == [CAP] * len(away)
    assert beyond(away) < 1e-9


def test_what_is_lent_and_not_noted_is_seen_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: grants are not in the book, and the counters tell of them a second too late."""
    monkeypatch.setattr(budget, "granted", lambda book, slots, now: book)
    with started(lambda: RedisServer(tmp_path / "redis")) as server:
        house = opened(tmp_path, server.url, lending())
        house.second(12, 0)
        for _ in range(2):
            house.second(0, 12)
        assert worst(house.logged()) > 0.1
        house.close()


# --- one worker -------------------------------------------------------------------------------------------------------


class Alone:
    """A service on memory adapters, whose leases come from counters that the test writes, at a time that is the test's."""

    def __init__(self, folder: Path, document: Surface, unused: float) -> None:
        self.now, self.counters, self.leases, self.away = 6_000_000.0, MemoryCounters(), MemoryLeases(), False
        lending = Lending(self._stores, clock=lambda: self.now)
        self.scoring = in_memory(folder, document, examples=100, leases=lending, clock=lambda: self.now)
        self.scoring.renew()
        self.now += budget.AHEAD_SECONDS + budget.WINDOW_SECONDS
        name = counter_name("default", "home", *window_name("", budget.window_of(self.now)), "unused")
        self.counters.write(0, Mark(1, 1), {name: unused}, None)

    def _stores(self) -> tuple[MemoryCounters, MemoryLeases]:
        if self.away:
            raise Unavailable("away")
        return self.counters, self.leases

    def ask(self, **more: object) -> DecisionAnswer:
        request = {"surface": "home", "unit": f"{self.now}", "candidates": NEW, "context": {"device": "ios"}}
        return msgspec.json.decode(self.scoring.decide(encode({**request, **more})), type=DecisionAnswer)


def test_a_raised_cap_is_recorded_and_recomputed_and_what_it_allows_is_spent(tmp_path: Path) -> None:
    alone = Alone(tmp_path, lending(), unused=2.0)
    alone.ask()  # nothing is lent before somebody wanted it
    alone.scoring.renew()
    [lease] = alone.scoring.leases._leases.values()
    assert lease.held == 1.0  # half of what is left, for more than that is wanted
    for pins in ({"1": "n3"}, {}, {}, {}):
        alone.now += 0.1
        held = lease.held
        answer = alone.ask(explain=True, pins=pins)
        record, said = decisions(tmp_path)[-1], answer.exploration
        raised = max(CAP, min(UP_TO, CAP + held / (SLOTS - len(pins)))) if held > budget.LEAST else CAP
        assert said is not None
        assert record.max_share == said.max_share == pytest.approx(raised)
        assert said.lent == pytest.approx(raised - CAP)
        assert record.strayed == Strayed("", tuple(said.explored))
        slate = recompute(record, bundling.read(record.bundle, alone.scoring._follower._bundles.get))
        assert slate.propensities.tolist() == record.propensities
        assert slate.distributions is not None
        assert record.sample is not None
        assert slate.distributions.tobytes() == record.sample.distributions
        assert slate.distributions.sum(axis=1) == pytest.approx(1.0)
        greedy = slate.distributions[np.arange(SLOTS), record.greedy]
        assert (greedy >= 1.0 - record.max_share - 1e-12).all()
        spent = float(np.maximum(0.0, 1.0 - greedy - CAP).sum())
        assert lease.held == pytest.approx(held - spent, abs=1e-9)
    assert lease.held == pytest.approx(0.0, abs=1e-9)  # all of it is spent, and then the cap is the plain one
    assert record.max_share == CAP
    alone.scoring.tick()
    text = alone.scoring.telemetry.text().decode()
    labels = 'segment="",surface="home"'
    assert f'slatewise_exploration_leases_total{{outcome="granted",{labels}}} 1.0' in text
    assert f"slatewise_exploration_left_slots{{{labels}}} 1.0" in text
    shown = float(text.split(f"slatewise_exploration_lent_share{{{labels}}} ")[1].split()[0])
    assert shown == pytest.approx(1.0 / (5 * SLOTS - 1))


def test_a_lease_ends_when_it_is_not_renewed_and_what_nobody_wants_is_let_go(tmp_path: Path) -> None:
    alone = Alone(tmp_path, lending(), unused=4.0)
    alone.ask()
    alone.scoring.renew()
    [lease] = alone.scoring.leases._leases.values()
    assert lease.held > 1.0
    alone.now += LIFE_SECONDS - 0.001
    assert alone.ask(explain=True).exploration.lent > 0.0  # type: ignore[union-attr]  # it was asked for
    alone.now += 0.001
    assert lease.held == 0.0
    assert alone.ask(explain=True).exploration.lent == 0.0  # type: ignore[union-attr]  # it was asked for
    alone.scoring.renew()
    assert lease.held > 0.0
    alone.scoring.renew()  # in this second nobody asked
    assert lease.held == 0.0


def test_fallbacks_leave_what_they_do_not_explore_and_borrow_nothing(tmp_path: Path) -> None:
    alone = Alone(tmp_path, lending(), unused=4.0)
    alone.ask()
    alone.scoring.renew()
    [lease] = alone.scoring.leases._leases.values()
    held, wanted = lease.held, lease.wanted
    assert alone.ask(deadline_ms=0.0001).mode == "fallback"
    assert (lease.held, lease.wanted) == (held, wanted)
    record = decisions(tmp_path)[-1]
    assert record.max_share == CAP
    assert record.strayed is not None


def test_where_nothing_is_lent_records_say_nothing_of_it(tmp_path: Path) -> None:
    alone = Alone(tmp_path, surface(exploration=Exploration(CAP)), unused=4.0)
    alone.ask()
    alone.scoring.renew()
    alone.ask()
    assert [record.strayed for record in decisions(tmp_path)] == [None, None]
    assert alone.leases.read(["default/home/"]) == [b""]


def test_shards_count_where_a_surface_lends() -> None:
    for exploration, counts in ((Exploration(CAP), False), (Exploration(CAP, lend_up_to=UP_TO), True)):
        configs = Configs()
        publish(state := MemoryState(), MemoryBundles(), surface(exploration=exploration))
        configs.follow(state)
        assert derived_is_read(configs) is counts
