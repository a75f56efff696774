"""Several replicas, and stores that are away: the same answers everywhere, an answer always, nothing answered lost."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from scoring_setup import (
    CALM,
    DEADLINE_SECONDS,
    Server,
    decisions,
    free_port,
    in_memory,
    installed,
    publish,
    serving,
    surface,
    until,
)

from policies.errors import Unavailable
from services.keys import Keys
from services.scoring.serve import open_scoring
from services.scoring.service import Scoring
from services.scoring.wire import encode
from services.settings import Settings
from services.wiring import open_bundles, open_forwarder, open_log, open_state
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles, MemoryClaims, MemoryState
from streaming.configuration import publish_surface
from streaming.copies import Copies
from streaming.events import decode
from streaming.kept import KeptBundles, KeptState
from streaming.snapshot import Snapshot
from streaming.spool import Spool, spools

ASK: dict[str, Any] = {"surface": "home", "unit": "u", "candidates": ["a", "b", "c", "d"]}


class Cluster:
    """State and bundles that replicas share, and that can be away."""

    def __init__(self) -> None:
        self.state, self.bundles, self.away = MemoryState(), MemoryBundles(), False
        publish(self.state, self.bundles, surface())

    def replica(self, folder: Path, *, copies: bool = True) -> Scoring:
        """One that has not been started; with the copies that an earlier one left in its folder."""

        def opened(store: Any) -> Any:
            if self.away:
                raise Unavailable("away")
            return Visited(self, store)

        state = KeptState(lambda: opened(self.state), Snapshot(folder / "copies" / "state"), time.monotonic, 0.0)
        bundles = KeptBundles(
            lambda: opened(self.bundles), FileBundles(folder / "copies" / "bundles"), time.monotonic, 0.0
        )
        return Scoring(
            state=state,
            bundles=bundles,
            claims=Visited(self, MemoryClaims()),  # type: ignore[arg-type]  # a claims store that can be away
            spool=Spool(folder / "spool"),
            keys=Keys.load(folder),
            patience=CALM,
            copies=Copies(folder / "copies", state, bundles) if copies else None,
        )


class Visited:
    """A store of a cluster, Unavailable while that is away."""

    def __init__(self, cluster: Cluster, store: Any) -> None:
        self._cluster, self._store = cluster, store

    def __getattr__(self, name: str) -> Any:
        if self._cluster.away:
            raise Unavailable("away")
        return getattr(self._store, name)


def ask(scoring: Scoring, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(scoring.decide(encode({**ASK, **more})))
    return answer


def test_a_replica_starts_from_its_copies_when_every_store_is_away(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.state.put([("item", "a", b'{"id":"a","features":{"price":3}}')])
    first = cluster.replica(tmp_path)
    first.start()
    before = ask(first)
    first.keep_copies()
    first.close()

    cluster.away = True
    second = cluster.replica(tmp_path)
    second.start()
    ready, said = second.standing()
    assert ready
    assert said["stores"] == {"state": "copied", "bundles": "copied"}
    assert said["surfaces"]["home"]["mode"] == "live"
    answer = ask(second)
    assert (answer["mode"], answer["policy"], answer["bundle"]) == ("live", before["policy"], before["bundle"])
    assert second.catalogue.get("a") is not None
    second.tell_ages()
    assert 'slatewise_store_away{store="bundles"} 1.0' in second.telemetry.text().decode()
    with pytest.raises(Unavailable):
        second.keep_copies()  # there is nothing to keep, and the copies stay what they were

    cluster.away = False
    publish(cluster.state, cluster.bundles, surface(), number=5, examples=20)
    cluster.state.put([("item", "b", b'{"id":"b","features":{"price":4}}')])
    second.swap(second.poll())
    assert ask(second)["bundle"] == cluster.bundles.pointers()["home/home-ts"] != before["bundle"]
    assert [entry.key for entry in second.state.read(second.catalogue.version)][-1] == "b"
    assert second.standing()[1]["stores"] == {"state": "reached", "bundles": "reached"}
    second.close()


def test_without_bundles_anywhere_the_fallback_answers(tmp_path: Path) -> None:
    cluster = Cluster()
    first = cluster.replica(tmp_path)
    first.start()
    first.keep_copies()
    first.close()
    for pointer in (tmp_path / "copies" / "bundles").glob("pointers.*"):
        pointer.unlink()
    cluster.away = True
    second = cluster.replica(tmp_path)
    second.start()
    answer = ask(second)
    assert (answer["mode"], answer["reason"]) == ("fallback", "no_bundle")
    assert second.standing()[0]
    second.close()


def test_a_replica_that_knows_nothing_does_not_start(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.away = True
    replica = cluster.replica(tmp_path)
    with pytest.raises(Unavailable):
        replica.start()
    replica.close()


def test_of_a_hosts_workers_one_keeps_the_copies(tmp_path: Path) -> None:
    cluster = Cluster()
    one, other = cluster.replica(tmp_path), cluster.replica(tmp_path)
    for replica in (one, other):
        replica.start()
    one.keep_copies()
    held = (tmp_path / "copies" / "state").stat().st_mtime_ns
    publish_surface(cluster.state, surface(slots=4))
    other.keep_copies()
    assert (tmp_path / "copies" / "state").stat().st_mtime_ns == held
    one.close()
    other.keep_copies()  # the next one takes over
    assert (tmp_path / "copies" / "state").stat().st_mtime_ns > held
    other.close()


def test_a_copy_of_a_bundle_is_only_what_passed_the_gate(tmp_path: Path) -> None:
    cluster = Cluster()
    replica = cluster.replica(tmp_path)
    replica.start()
    good = ask(replica)["bundle"]
    cluster.bundles.put("manifests/" + "0" * 32 + ".json", b"{}")
    cluster.bundles.point("home/home-ts", "0" * 32, 1)
    replica.swap(replica.poll())
    replica.keep_copies()
    assert FileBundles(tmp_path / "copies" / "bundles").pointers()["home/home-ts"] == good
    replica.close()


def test_embedded_stores_need_no_copies(tmp_path: Path) -> None:
    settings = installed(tmp_path, [surface()])
    scoring = open_scoring(settings)
    scoring.start()
    assert (scoring.copies, "stores" in scoring.standing()[1]) == (None, False)
    scoring.close()


def test_claims_over_two_replicas_give_one_answer(tmp_path: Path) -> None:
    """Many threads on two replicas with one store: whoever comes first, all get the same slate, and one is not cached."""
    claims = MemoryClaims()
    replicas = [in_memory(tmp_path / str(i), claims=claims) for i in range(2)]
    answers: list[dict[str, Any]] = []
    made = [replicas[i % 2].read(encode({**ASK, "decision_id": "mine"})) for i in range(16)]
    gate = threading.Barrier(len(made))

    def claim(place: int) -> None:
        gate.wait()
        found = replicas[place % 2].claim(made[place])
        answers.append(json.loads(replicas[place % 2].finish_claimed(made[place], found)))

    threads = [threading.Thread(target=claim, args=(place,)) for place in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({json.dumps(answer["slate"]) for answer in answers}) == 1
    assert sorted(answer["mode"] for answer in answers) == ["cached"] * 15 + ["live"]


# -- as processes ------------------------------------------------------------------------------------------------------


def shared(folder: Path, count: int, **settings: Any) -> list[Settings]:
    """Settings of replicas with folders of their own over one state record, one bundle store, one log and the same keys."""
    stores = {
        "state": f"sqlite:///{folder / 'state.sqlite'}",
        "bundles": f"file://{folder / 'bundles'}",
        "log": f"sqlite:///{folder / 'log.sqlite'}",
        "keys": folder / "keys",
    }
    made = [
        Settings.load({}, data=folder / str(i), http=f"127.0.0.1:{free_port()}", **{**stores, **settings})
        for i in range(count)
    ]
    for one in made:
        one.data.mkdir(parents=True)
    publish(open_state(made[0]), open_bundles(made[0]), surface())
    return made


@pytest.mark.slow
def test_three_replicas_agree_on_a_bundle(tmp_path: Path) -> None:
    several = shared(tmp_path, 3)
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(settings)) for settings in several]
        clients = [stack.enter_context(server.client()) for server in servers]

        def drawn_from() -> set[str]:
            return {client.post("/v1/decisions", content=encode(ASK)).json()["bundle"] for client in clients}

        assert len(drawn_from()) == 1
        state, bundles = open_state(several[0]), open_bundles(several[0])
        for number in (1, 2):
            publish(state, bundles, surface(), number=number, examples=10 * number)
            newest = bundles.pointers()["home/home-ts"]
            until(lambda newest=newest: drawn_from() == {newest}, "all replicas to draw from the newest")  # type: ignore[misc]
        put = clients[0].put("/v1/items", content=encode([{"id": "new", "features": {"price": 1}}])).json()["version"]
        until(
            lambda: all(client.get("/readyz").json()["catalogue"] >= put for client in clients),
            "all replicas to see the item",
        )
        assert clients[0].get("/readyz").json()["stores"] == {"state": "reached", "bundles": "reached"}


@pytest.mark.slow
def test_a_process_starts_though_log_state_bundles_and_claims_are_all_away(tmp_path: Path) -> None:
    """What a replica kept while all was well is enough, though Kafka and Redis do not answer and the bundles are unmounted."""
    (settings,) = shared(tmp_path, 1)
    first = open_scoring(settings)
    first.start()
    before = ask(first)
    first.keep_copies()
    first.close()
    nobody = f"127.0.0.1:{free_port()}"
    away = dataclasses.replace(
        settings,
        log=f"kafka://{nobody}",
        state=f"redis://{nobody}",
        bundles=f"file://{tmp_path / 'unmounted'}",
        ack="log",
    )
    with serving(away) as server, server.client() as client:
        said = client.get("/readyz").json()
        assert said["stores"] == {"state": "copied", "bundles": "copied"}
        answer = client.post("/v1/decisions", content=encode(ASK)).json()
        assert (answer["mode"], answer["bundle"]) == ("live", before["bundle"])
        owned = client.post("/v1/decisions", content=encode({**ASK, "decision_id": "mine"})).json()
        assert (owned["mode"], owned["retry_unchecked"]) == ("live", True)
        told = {"decision_id": answer["decision_id"], "kind": "click", "slot": 0}
        refused = client.post("/v1/feedback", content=encode(told))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")  # `ack=log` has no log
    assert len(decisions(settings.data)) == 3  # the first process's, and these two: all wait in the spool


@pytest.mark.slow
def test_what_a_killed_replica_answered_is_adopted_and_one_that_ends_takes_its_spool_along(tmp_path: Path) -> None:
    """kill -9, a successor on the same folder, then SIGTERM for it and the forwarder at once, as a pod gets it."""
    (settings,) = shared(tmp_path, 1)
    answered: list[str] = []

    def some(server: Server, count: int) -> None:
        with server.client() as client:
            answered.extend(
                client.post("/v1/decisions", content=encode(ASK)).json()["decision_id"] for _ in range(count)
            )

    with serving(settings) as server:
        some(server, 30)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(DEADLINE_SECONDS)
    with serving(settings) as server:
        assert len(spools(settings.spool_path)) == 1  # adopted, not another one beside it
        some(server, 30)
        forwarder = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "forwarder"], env={**os.environ, **settings.environment()}
        )
        log = open_log(settings)

        def logged() -> list[str]:
            records = [record for p in range(log.partitions) for record in log.read(p, 0, 10_000)]
            return sorted(decode(record.value).decision_id for record in records)

        until(lambda: logged() == sorted(answered), "what both answered to be in the log, once")
        late = threading.Thread(target=_keep_asking, args=(server.url, answered))
        late.start()
        until(lambda: len(answered) > 80, "more answers")
        forwarder.terminate()
        server.process.terminate()
        late.join(DEADLINE_SECONDS)
        assert server.process.wait(DEADLINE_SECONDS) == 0
        assert forwarder.wait(DEADLINE_SECONDS) == 0
    missing = set(answered) - set(logged())
    assert not missing
    assert len(logged()) == len(set(logged()))


def _keep_asking(url: str, answered: list[str]) -> None:
    """Until the door closes; what was answered is noted."""
    with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        while True:
            try:
                answered.append(client.post("/v1/decisions", content=encode(ASK)).json()["decision_id"])
            except httpx.TransportError:
                return


def _forwarded(settings: Sequence[Settings]) -> None:
    for one in settings:
        forwarder = open_forwarder(one)
        while forwarder.step():
            pass
        forwarder.close()


@pytest.mark.slow
def test_one_answer_to_a_callers_id_on_any_replica_over_redis(tmp_path: Path) -> None:
    from redis_setup import namespace

    several = shared(tmp_path, 2, state=namespace(tmp_path))
    for one in several[1:]:
        publish(
            open_state(one), open_bundles(one), surface()
        )  # with Redis the record lies beside the log, on this disk
    with ExitStack() as stack:
        clients = [stack.enter_context(stack.enter_context(serving(settings)).client()) for settings in several]
        for turn in range(20):
            body = encode({**ASK, "decision_id": f"mine-{turn}"})
            first = clients[turn % 2].post("/v1/decisions", content=body).json()
            again = clients[1 - turn % 2].post("/v1/decisions", content=body).json()
            assert again == {**first, "mode": "cached"}
    _forwarded(several)
    log = open_log(several[0])
    records = [decode(record.value) for p in range(log.partitions) for record in log.read(p, 0, 1_000)]
    assert len(records) == 40  # the answer given again is logged again, for the joiner to drop
    assert len({record.decision_id for record in records}) == 20
