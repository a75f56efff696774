"""What gets in and what does not: broken bundles are refused and named, good ones swap in while requests run."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from scoring_setup import DEADLINE_SECONDS, decisions, in_memory, installed, publish, serving, surface, until

from policies import bundle as bundling
from policies.bundle import Bundle
from services.scoring.service import Scoring
from services.scoring.wire import encode
from services.wiring import open_bundles, open_state
from streaming.adapters.memory import MemoryBundles, MemoryState
from streaming.configuration import publish_surface

ASK = encode({"surface": "home", "unit": "u", "candidates": ["a", "b", "c", "d"]})


def answered(scoring: Scoring) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(scoring.decide(ASK))
    return answer


def renamed(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle under a manifest with changes, named as it should be: only what was changed is wrong."""
    arrays = changes.pop("new_arrays", bundle.arrays)
    probes = changes.pop("new_probes", bundle.probes)
    manifest = msgspec.structs.replace(
        bundle.manifest,
        arrays={name: bundling.digest(_npy(array)) for name, array in arrays.items()},
        probes={name: bundling.digest(_npy(array)) for name, array in probes.items()},
        **changes,
    )
    blank = msgspec.json.encode(msgspec.structs.replace(manifest, bundle=""), order="sorted")
    return Bundle(msgspec.structs.replace(manifest, bundle=bundling.digest(blank)), bundle.graph, arrays, probes)


def _npy(array: Any) -> bytes:
    return bundling._npy(array)  # the one form that hashes are taken of


def flipped(bundle: Bundle) -> dict[str, bytes]:
    """One byte of one array's file."""
    files = bundling.files(renamed(bundle, number=bundle.manifest.number + 1))
    name = f"arrays/{bundle.manifest.arrays['pool']}.npy"
    data = bytearray(files[name])
    data[-1] ^= 1
    return {**files, name: bytes(data)}


def other_schema(bundle: Bundle) -> dict[str, bytes]:
    return bundling.files(renamed(bundle, schema="0" * 16))


def not_a_number(bundle: Bundle) -> dict[str, bytes]:
    pool = np.array(bundle.arrays["pool"])
    pool[..., 0] = np.nan
    return bundling.files(renamed(bundle, new_arrays={**bundle.arrays, "pool": pool}))


def wrong_probe(bundle: Bundle) -> dict[str, bytes]:
    return bundling.files(renamed(bundle, new_probes={**bundle.probes, "scores": bundle.probes["scores"] + 1}))


def collapsed(bundle: Bundle) -> dict[str, bytes]:
    """Every posterior draw the same: a policy that has stopped exploring without having learned."""
    arrays = {name: np.repeat(array[..., :1], array.shape[-1], axis=-1) for name, array in bundle.arrays.items()}
    broken = renamed(bundle, new_arrays=arrays)
    from streaming.scorer import score

    scores = score(broken.graph, arrays, {k: v for k, v in bundle.probes.items() if k != "scores"})  # type: ignore[misc]  # F32
    return bundling.files(renamed(bundle, new_arrays=arrays, new_probes={**bundle.probes, "scores": scores}))


def another_graph(bundle: Bundle) -> dict[str, bytes]:
    return bundling.files(
        renamed(Bundle(bundle.manifest, b"no graph", bundle.arrays, bundle.probes), graph=bundling.digest(b"no graph"))
    )


def truncated(bundle: Bundle) -> dict[str, bytes]:
    made = renamed(bundle, number=bundle.manifest.number + 2)
    files = bundling.files(made)
    name = bundling.manifest_file(made.manifest.bundle)
    return {**files, name: files[name][:-20]}


BROKEN: list[tuple[Callable[[Bundle], dict[str, bytes]], str]] = [
    (flipped, "hash"),
    (other_schema, "schema"),
    (not_a_number, "nonfinite"),
    (wrong_probe, "probe"),
    (collapsed, "entropy"),
    (another_graph, "format"),
    (truncated, "format"),
]


@pytest.mark.parametrize(("broken", "reason"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_a_broken_bundle_is_refused_named_and_the_old_one_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Callable[[Bundle], dict[str, bytes]], reason: str
) -> None:
    scoring = in_memory(tmp_path)
    before = answered(scoring)
    assert before["mode"] == "live"
    store = scoring._follower._bundles
    assert isinstance(store, MemoryBundles)
    good = bundling.read(before["bundle"], store.get)
    files = broken(good)
    manifest = next(name for name in reversed(files) if name.startswith("manifests/"))
    name = manifest.removeprefix("manifests/").removesuffix(".json")
    for file, data in files.items():
        store._files[file] = data  # as a fault of the disk would have it: no check on the way in
    store.point("home/home-ts", name, 1)

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            scoring.swap(scoring.poll())
    said = [record for record in caplog.records if record.message == "bundle_refused"]
    assert [(one.bundle, one.reason) for one in said] == [(name, reason)]  # type: ignore[attr-defined]  # once, by name
    line = f'slatewise_swap_total{{outcome="{reason}",policy="home-ts",surface="home"}} 1.0'
    assert line in scoring.telemetry.text().decode()
    after = answered(scoring)
    assert (after["mode"], after["bundle"]) == ("live", before["bundle"])


def test_a_good_bundle_swaps_in_and_an_old_answer_keeps_its_own(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    first = answered(scoring)["bundle"]
    store = scoring._follower._bundles
    publish(scoring.state, store, surface(), number=7, examples=30)
    held = scoring.live
    scoring.swap(scoring.poll())
    assert answered(scoring)["bundle"] != first
    assert held.surfaces["home"].policy is not None
    assert held.surfaces["home"].policy.bundle == first
    assert scoring.poll() is scoring.live  # nothing new: the very same value


def test_a_swap_tells_how_fresh_it_is(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    series = scoring.telemetry.series("freshness_seconds", "home", answered(scoring)["policy"])
    assert series == []  # the first bundle of a process says nothing: it was fresh for others
    accepted = time.time() - 0.25
    publish(scoring.state, scoring._follower._bundles, surface(), number=7, examples=30, fresh=[accepted, accepted])
    scoring.swap(scoring.poll())
    assert len(series) == 2
    assert all(0.25 <= age < DEADLINE_SECONDS for age in series)


def test_without_a_bundle_the_fallback_answers_and_says_so(tmp_path: Path) -> None:
    state, store = MemoryState(), MemoryBundles()
    publish_surface(state, surface())
    scoring = in_memory(tmp_path)
    empty = Scoring(
        state=state,
        claims=scoring.claims,
        bundles=store,
        spool=scoring.spool,
        keys=scoring.keys,
        patience=scoring.patience,
    )
    empty.start()
    answer = answered(empty)
    assert (answer["mode"], answer["reason"], answer["policy"]) == ("fallback", "no_bundle", "given_order")
    floor = 0.02
    assert answer["slate"][0]["propensity"] in (pytest.approx(1 - floor + floor / 4), pytest.approx(floor / 4))
    publish(state, store, surface())
    empty.swap(empty.poll())
    assert answered(empty)["mode"] == "live"


def test_a_changed_surface_takes_over_when_its_bundle_is_there(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    old = answered(scoring)["bundle"]
    changed = surface(slots=4)  # another shape of sums, so another key: the old bundle is not for it
    publish_surface(scoring.state, changed)
    scoring.configs.follow(scoring.state)
    scoring.swap(scoring.poll())
    assert (answered(scoring)["bundle"], len(answered(scoring)["slate"])) == (old, 3)
    publish(scoring.state, scoring._follower._bundles, changed)
    scoring.swap(scoring.poll())
    assert len(answered(scoring)["slate"]) == 4
    assert answered(scoring)["bundle"] != old


def test_exploration_changes_without_a_new_bundle(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    old = answered(scoring)["bundle"]
    publish_surface(scoring.state, surface(live="given_order"))
    scoring.configs.follow(scoring.state)
    scoring.swap(scoring.poll())
    assert answered(scoring)["policy"] == "given_order"
    publish_surface(scoring.state, surface())
    scoring.configs.follow(scoring.state)
    scoring.swap(scoring.poll())
    assert answered(scoring)["bundle"] == old


@pytest.mark.slow
def test_swapping_under_load_drops_no_request(tmp_path: Path) -> None:
    """Forty publishes while four callers ask: every request is answered live, and many bundles have answered."""
    settings = installed(tmp_path, [surface()])
    stop = threading.Event()
    seen: list[tuple[int, str, str]] = []

    def call(url: str) -> None:
        with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
            while not stop.is_set():
                response = client.post("/v1/decisions", content=ASK)
                body = response.json()
                seen.append((response.status_code, body.get("mode", ""), body.get("bundle", "")))

    with serving(settings) as server:
        callers = [threading.Thread(target=call, args=(server.url,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        state, store = open_state(settings), open_bundles(settings)
        for number in range(1, 41):
            publish(state, store, surface(), number=number, examples=10)
        newest = store.pointers()["home/home-ts"]
        until(lambda: bool(seen) and seen[-1][2] == newest, "the newest bundle to answer")
        stop.set()
        for caller in callers:
            caller.join()
    assert {(status, mode) for status, mode, _ in seen} <= {(200, "live"), (200, "fallback")}
    assert len({bundle for _, _, bundle in seen}) > 5
    assert sum(mode == "live" for _, mode, _ in seen) > 0.9 * len(
        seen
    )  # fallback: only what a busy test machine made wait
    assert len(decisions(tmp_path)) == len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_drains(tmp_path: Path, workers: int) -> None:
    """What was sent before the end is answered: a caller sees whole answers, then a closed door, and all are logged."""
    settings = installed(tmp_path, [surface()], workers=workers)
    got: list[int] = []
    broken: list[str] = []

    async def call(client: httpx.AsyncClient) -> None:
        while True:
            try:
                response = await client.post("/v1/decisions", content=ASK)
            except httpx.ConnectError:
                return  # the door is closed
            except httpx.TransportError as error:
                broken.append(repr(error))
                return
            got.append(response.status_code)

    async def load(url: str, end: Callable[[], None]) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_SECONDS) as client:
            callers = [asyncio.create_task(call(client)) for _ in range(4)]
            while len(got) < 40:
                await asyncio.sleep(0.01)
            end()
            await asyncio.gather(*callers)

    with serving(settings) as server:
        asyncio.run(load(server.url, server.process.terminate))
        assert server.process.wait(DEADLINE_SECONDS) == 0
    assert set(got) == {200}
    assert len(broken) <= 4  # a connection may close while its next request is on its way; each caller at most once
    assert len(decisions(tmp_path)) >= len(got)  # every answer is logged
    assert len(decisions(tmp_path)) <= len(got) + len(broken)


@pytest.mark.slow
def test_a_dead_worker_is_started_again(tmp_path: Path) -> None:
    with serving(installed(tmp_path, [surface()], workers=2)) as server, server.client() as client:
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(children) == 2
        until(lambda: server.log.read_text().count('"listening"') == 2, "both workers to listen")
        os.kill(int(children[0]), signal.SIGKILL)
        until(lambda: "worker_died" in server.log.read_text(), "the death to be noticed")
        until(lambda: server.log.read_text().count('"listening"') == 3, "a third worker to listen")
        assert client.post("/v1/decisions", content=ASK).status_code == 200


@pytest.mark.slow
def test_scoring_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    """What the scoring image leaves out is not imported."""
    settings = installed(tmp_path, [surface()])
    code = (
        "import sys; from services.settings import Settings; from services.scoring.serve import open_scoring;"
        "from services.scoring.app import create_app; scoring = open_scoring(Settings.load()); create_app(scoring);"
        "scoring.start(); print([m for m in ('ray', 'torch', 'pandas', 'matplotlib', 'kafka') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


def test_the_clock_of_a_test_is_not_the_machines(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path, clock=lambda: 1_000_000.0)
    answered(scoring)
    (logged,) = decisions(tmp_path)
    assert logged.at == 1_000_000.0
    assert time.time() > logged.at
