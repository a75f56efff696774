"""The services on Redis: replicas that share claims and pointers, and what callers are told when Redis is away or empty."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scoring_setup import installed, publish, serving, surface, until

from policies.surface import Surface
from services.epochs import take_epoch
from services.learning.shards import open_shards
from services.loopback import free_port
from services.settings import Settings
from services.stack.redis import RedisServer
from services.wiring import open_bundles, open_derived, open_log, open_state
from streaming.configuration import Configs
from streaming.derived import counter_name
from streaming.events import Decision, Feedback, encode
from streaming.profiles import read_profile
from tests.redis_setup import namespace, started

UNIT = "00000000000000aa"
IDS = [f"item-{n}" for n in range(6)]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with started(lambda: RedisServer(tmp_path / "redis")) as server:
        yield server


def ask(client: httpx.Client, own: str, **more: Any) -> dict[str, Any]:
    answer = client.post(
        "/v1/decisions", json={"surface": "home", "unit": "u", "candidates": IDS, "decision_id": own, **more}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def both(document: Surface, folder: Path, redis: RedisServer) -> tuple[Settings, Settings]:
    """Two replicas with spools and disks of their own, over one record, one bundle folder, one Redis."""
    shared = {"state": redis.url, "bundles": f"file://{folder}/bundles", "keys": str(folder / "one")}
    one = installed(folder / "one", [document], **shared)
    publish(open_state(one), open_bundles(one), document, number=1)
    other = Settings.load(one.environment(), data=folder / "other", http=f"127.0.0.1:{free_port()}")
    other.state_path.parent.mkdir(parents=True, exist_ok=True)
    publish(open_state(other), open_bundles(one), document, number=1)  # the record is SQLite here: a copy each
    return one, other


@pytest.mark.slow
def test_replicas_share_claims_and_pointers_and_go_on_without_redis(tmp_path: Path, redis: RedisServer) -> None:
    document = surface()
    one, other = both(document, tmp_path, redis)
    with serving(one) as a, serving(other) as b, a.client() as ca, b.client() as cb:
        first = ask(ca, "mine")
        again = ask(cb, "mine")
        assert (first["mode"], again["mode"]) == ("live", "cached")
        assert first["slate"] == again["slate"]

        configs = publish(open_state(one), open_bundles(one), document, number=2, examples=200)
        pointer = open_bundles(one).pointers()["home/home-ts"]
        until(lambda: {ask(c, f"swap-{time.monotonic_ns()}")["bundle"] for c in (ca, cb)} == {pointer}, "both to swap")

        redis.pause()
        unchecked = [ask(c, f"paused-{n}") for n, c in enumerate([ca, cb] * 4)]
        assert all(answer["retry_unchecked"] and answer["mode"] == "live" for answer in unchecked)
        for client in (ca, cb):  # each replica counts its own
            until(
                lambda client=client: 'decide_unchecked_total{surface="home"} 4.0' in client.get("/metrics").text, "4"
            )  # type: ignore[misc]  # a default argument
        redis.resume()
        until(lambda: not ask(ca, f"resumed-{time.monotonic_ns()}").get("retry_unchecked"), "claims again")

        redis.kill()
        assert ask(ca, "killed")["retry_unchecked"] is True
        publish(
            open_state(one), open_bundles(one), document, number=3, examples=300
        )  # a move that only the store knows
        moved = open_bundles(one).pointers()["home/home-ts"]
        assert moved != pointer
        until(lambda: {ask(c, f"away-{time.monotonic_ns()}")["bundle"] for c in (ca, cb)} == {moved}, "both to swap")

        redis.start()
        until(lambda: not ask(cb, f"back-{time.monotonic_ns()}").get("retry_unchecked"), "claims again")
        assert ask(ca, "after")["slate"] == ask(cb, "after")["slate"]
        redis.flush()
        assert ask(ca, "after")["mode"] == "live"  # a flushed claim is drawn afresh
        assert configs.current("home") is not None


@pytest.mark.parametrize("on_redis", [False, True], ids=["sqlite", "redis"])
def test_shards_derive_counters_and_profiles_when_asked_to(tmp_path: Path, on_redis: bool) -> None:
    state = namespace(tmp_path) if on_redis else ""
    settings = Settings.load({}, data=tmp_path, derive="on", state=state, partitions=2, ray="inline")
    record, configs, log = open_state(settings), Configs(), open_log(settings)
    publish(record, open_bundles(settings), surface())
    configs.follow(record)
    compiled = configs.current("home")
    assert compiled is not None
    now = time.time()
    made = Decision(
        decision_id=f"{UNIT}-1",
        unit=UNIT,
        at=now,
        surface="home",
        config=compiled.hash,
        policy="home-ts",
        bundle="b",
        mode="live",
        slate=["a", "b"],
        slots=[0, 1],
        rows=[0, 1],
        propensities=[0.5, 0.5],
        remaining=[2, 1],
        greedy=[0, 1],
        context=compiled.encoder.context({"device": "ios"}).tobytes(),
        shown=compiled.encoder.rows([{"genre": "jazz"}, {"genre": "rock"}], "$").tobytes(),
    )
    clicked = Feedback(decision_id=made.decision_id, unit=UNIT, at=now, kind="click", slot=1, value=1.0)
    log.append([(UNIT.encode(), encode(made)), (UNIT.encode(), encode(clicked))])
    for shard in open_shards(settings, record, configs, take_epoch(record), range(2)):
        shard.step()
    counters, profiles = open_derived(settings, 2)
    names = [
        counter_name("default", "home", "item", "a", "exposures"),
        counter_name("default", "home", "item", "b", "reward", "click"),
        counter_name("default", "home", "group", "genre", "rock", "reward", "click"),
    ]
    assert counters.read(names) == [1.0, 1.0, 1.0]
    [profile] = profiles.read([UNIT])
    assert [(act.item, act.kind, act.value) for act in read_profile(profile)] == [("b", "click", 1.0)]


def test_nobody_derives_what_nobody_asked_for(tmp_path: Path) -> None:
    settings = Settings.load({}, data=tmp_path, partitions=1, ray="inline")
    record = open_state(settings)
    for shard in open_shards(settings, record, Configs(), take_epoch(record), [0]):
        shard.step()
    assert not list(tmp_path.glob("counters*"))
