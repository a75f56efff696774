"""kill -9 of scoring, forwarder and learning under load: what was answered and accepted is in the sums, exactly once.

The oracle is what the callers know: which slates they were answered and which values were accepted. Popular's sums are
per item, Σ 1 over slots shown and Σ value, so a lost or doubled record of either kind shows in them.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from e2e.running import Up, up

from policies.types import item_hashes
from services.client import Decision, Slatewise, reward
from services.epochs import take_epoch
from services.learning.shards import open_shards
from services.wiring import open_log, open_state
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters
from streaming.configuration import Configs
from streaming.events import Decision as Logged
from streaming.events import decode
from streaming.shard import Shard, Statistics

SURFACE = """
surface: page
slots: 2
features:
  context: {hour: {type: number, min: 0, max: 23}}
  items: {size: {type: number, min: 0, max: 1}}
objectives: {score: {kind: score, aggregate: sum}}
policies:
  shown: {algorithm: popular, objective: score}
  model: {algorithm: linear_thompson, objective: score, draws: 16}
live: shown
"""
ITEMS = [{"id": f"item-{number}", "features": {"size": number / 6}} for number in range(6)]
CALLERS = 3


@dataclass
class Caller:
    """A backend: asks, sends what its people did, asks again; never gives up on a request."""

    number: int
    answered: dict[str, Decision] = field(default_factory=dict)
    accepted: Counter[str] = field(default_factory=Counter)  # item → Σ value
    events: int = 0
    failed: list[BaseException] = field(default_factory=list)

    def run(self, url: str, stop: threading.Event) -> None:
        try:
            with Slatewise(url, timeout=120.0, retries=1_000) as slatewise:
                generator = np.random.default_rng(self.number)
                while not stop.is_set():
                    self._turn(slatewise, generator)
        except BaseException as error:  # noqa: BLE001 - told to the test, which is in another thread
            self.failed.append(error)

    def _turn(self, slatewise: Slatewise, generator: np.random.Generator) -> None:
        decision = slatewise.decide("page", f"unit-{generator.integers(50)}", context={"hour": 3}, candidates=ITEMS)
        assert decision.decision_id not in self.answered
        self.answered[decision.decision_id] = decision
        sent = [(item, float(generator.integers(1, 5))) for item in decision.items if generator.random() < 0.7]
        if not sent:
            return
        accepted = slatewise.feedback_batch([reward(decision, "score", value, item=item) for item, value in sent])
        assert not accepted.rejected
        self.events += accepted.accepted
        for item, value in sent:
            self.accepted[item] += value


def loaded(running: Up, callers: list[Caller]) -> None:
    """Kills under load; the load goes on until each victim's successor has worked."""
    stop = threading.Event()
    threads = [threading.Thread(target=caller.run, args=(running.url, stop)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        for victim in ("scoring", "forwarder", "learning", "scoring", "learning", "forwarder"):
            before = sum(len(caller.answered) for caller in callers)
            _until(lambda: sum(len(caller.answered) for caller in callers) > before + 40, callers)  # noqa: B023
            running.kill(victim)
        before = sum(len(caller.answered) for caller in callers)
        _until(lambda: sum(len(caller.answered) for caller in callers) > before + 40, callers)
    finally:
        stop.set()
        for thread in threads:
            thread.join(150.0)
    assert not any(thread.is_alive() for thread in threads)


def _until(found: object, callers: list[Caller]) -> None:
    until = time.monotonic() + 120.0
    while not found():  # type: ignore[operator]
        assert not any(caller.failed for caller in callers), [caller.failed for caller in callers]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    callers = [Caller(number) for number in range(CALLERS)]
    with up(tmp_path, config=SURFACE, partitions="2") as running:
        loaded(running, callers)
        left = running.stop()
        assert left == []
        settings = running.settings
    assert not any(caller.failed for caller in callers), [caller.failed for caller in callers]
    answered = {name: decision for caller in callers for name, decision in caller.answered.items()}

    log, state, configs = open_log(settings), open_state(settings), Configs()
    configs.follow(state)
    records = [record for p in range(log.partitions) for record in log.read(p, 0, 1_000_000)]
    events = [decode(record.value) for record in records]
    logged = {event.decision_id: event for event in events if isinstance(event, Logged)}
    assert set(answered) <= set(logged)
    for name, decision in answered.items():
        assert (logged[name].slate, logged[name].propensities) == (
            decision.items,
            [shown.propensity for shown in decision.slate],
        )

    shards = open_shards(settings, state, configs, take_epoch(state), range(log.partitions))
    again = [Shard(p, log, MemoryCheckpoints(), configs, MemoryDeadLetters(), epoch=1) for p in range(log.partitions)]
    for shard in (*shards, *again):
        while shard.step().records:
            pass
    committed, replayed = ([shard.statistics() for shard in group] for group in (shards, again))
    same_sums(committed, replayed)

    key = next(key for key in committed[0].arrays if key.startswith("default/page/shown/"))
    shown, earned = sums_by_item(committed, key)
    slots: Counter[str] = Counter()
    for event in logged.values():  # a request whose caller saw no answer may be logged; no caller was told it is not
        slots.update(event.slate)
    values: Counter[str] = Counter()
    for caller in callers:
        values.update(caller.accepted)
    for item in (str(item["id"]) for item in ITEMS):
        assert shown[item] == pytest.approx(slots[item], abs=1e-9)
        assert earned[item] == pytest.approx(values[item], abs=1e-9)
    assert sum(caller.events for caller in callers) > 100


def same_sums(committed: list[Statistics], replayed: list[Statistics]) -> None:
    for mine, theirs in zip(committed, replayed, strict=True):
        assert mine.offset == theirs.offset
        assert mine.examples == theirs.examples
        assert set(mine.arrays) == set(theirs.arrays)
        for key, arrays in theirs.arrays.items():
            for name, array in arrays.items():
                if array.dtype.kind == "f":
                    np.testing.assert_allclose(
                        mine.arrays[key][name], array, rtol=1e-9, atol=1e-9, err_msg=f"{key} {name}"
                    )
                else:
                    assert np.array_equal(mine.arrays[key][name], array), (key, name)


def sums_by_item(statistics: list[Statistics], key: str) -> tuple[Counter[str], Counter[str]]:
    """(Σ 1 over slots shown, Σ value) of each item, of all partitions."""
    ids = [str(item["id"]) for item in ITEMS]
    names = dict(zip((int(digest) for digest in item_hashes(ids)), ids, strict=True))
    shown: Counter[str] = Counter()
    earned: Counter[str] = Counter()
    for one in statistics:
        arrays = one.arrays[key]
        for digest, n, value in zip(arrays["item_hashes"], arrays["n"], arrays["B"][:, 0], strict=True):
            shown[names[int(digest)]] += float(n)
            earned[names[int(digest)]] += float(value)
    return shown, earned
