"""A scoring service to test against: configured, published from the prior, in memory or as a real process."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np

from policies.surface import Category, Exploration, FeatureSpec, Logging, Number, Objective, PolicySpec, Surface
from policies.types import Arrays, Changes
from services.keys import Keys
from services.loopback import free_port
from services.scoring.admission import Patience
from services.scoring.service import Scoring
from services.settings import Settings
from services.wiring import open_bundles, open_state
from streaming.adapters.memory import MemoryBundles, MemoryClaims, MemoryState
from streaming.configuration import CompiledPolicy, Configs, publish_surface
from streaming.events import Decision, Event, Feedback, decode
from streaming.frames import scan
from streaming.ports import Bundles, Claims, State
from streaming.publish import Publisher
from streaming.spool import Spool

CALM = Patience(live=60.0, batch=60.0, explain=60.0, decision=120.0)  # a slow test machine is no overload
DEADLINE_SECONDS = 120.0


def surface(**changes: Any) -> Surface:
    """A small surface: 3 slots, two objectives, one policy that learns."""
    document = {
        "surface": "home",
        "slots": 3,
        "features": FeatureSpec(
            context={"device": Category(["ios", "web"]), "hour": Number(0, 23)},
            items={"price": Number(0, 10), "genre": Category(["jazz", "rock"])},
            cross=[("device", "genre")],
        ),
        "objectives": {"click": Objective("click", range=(0, 1)), "watch": Objective("play", scale=0.1, range=(0, 60))},
        "policies": {"home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.05})},
        "live": "home-ts",
        "logging": Logging(0.0),
        "exploration": Exploration(1.0),
    }
    return Surface(**{**document, **changes})


def publish(
    state: State,
    bundles: Bundles,
    *surfaces: Surface,
    number: int | None = None,
    epoch: int = 1,
    examples: int = 0,
    fresh: Sequence[float] = (),
) -> Configs:
    """Configure surfaces and publish all their policies: the prior, or after a number of examples."""
    for one in surfaces:
        publish_surface(state, one)
    configs = Configs()
    configs.follow(state)
    publisher = Publisher(bundles, configs, epoch)
    for one in surfaces:
        compiled = configs.current(one.surface)
        assert compiled is not None
        for policy in compiled.policies.values():
            sums = [learned(policy, examples)] if examples and policy.algorithm.learner else []
            outcome = publisher.publish(policy, sums, {}, time.time(), number, fresh)
            assert outcome.result == "published", outcome
    return configs


def learned(policy: CompiledPolicy, examples: int = 200) -> Arrays:
    """Sums of a policy that has seen some feedback: dearer items were clicked more."""
    rng = np.random.default_rng(5)
    encoder, o = policy.problem.encoder, len(policy.problem.objectives)
    items = rng.uniform(-1, 1, (examples, encoder.item_size)).astype(np.float32)
    rewards = np.zeros((examples, o))
    rewards[:, 0] = rng.random(examples) < 0.5 + 0.4 * items[:, -1]
    one = np.ones(examples)
    assert policy.algorithm.learner is not None
    learner = policy.algorithm.learner(policy.config, policy.problem)
    learner.learn(
        Changes(
            context=rng.uniform(-1, 1, (examples, encoder.context_size)).astype(np.float32),
            items=items,
            slots=np.arange(examples) % policy.problem.slots,
            slates=np.arange(examples) // policy.problem.slots,
            times=one,
            weights=one,
            present_before=0 * one,
            present_after=one,
            rewards_before=np.zeros((examples, o)),
            rewards_after=rewards,
            item_hashes=np.arange(examples, dtype=np.uint64),
            propensities=one / 4,
        )
    )
    return learner.arrays()


def in_memory(folder: Path, *surfaces: Surface, claims: Claims | None = None, **more: Any) -> Scoring:
    """A started service on memory adapters, with a real spool."""
    state, bundles = MemoryState(), MemoryBundles()
    publish(state, bundles, *(surfaces or (surface(),)), examples=more.pop("examples", 0))
    more = {"patience": CALM, **more}
    scoring = Scoring(
        state=state,
        claims=claims or MemoryClaims(),
        bundles=bundles,
        spool=Spool(folder / "spool", quota_bytes=more.pop("quota_bytes", 1 << 30)),
        keys=Keys.load(folder),
        **more,
    )
    scoring.start()
    return scoring


def spooled(folder: Path) -> list[Event]:
    """Every record in the spools of a data directory, in the order of each writer."""
    found: list[Event] = []
    for segment in sorted((folder / "spool").glob("*/*.seg")):
        data = segment.read_bytes()
        while data:
            part = scan(data)
            assert not part.broken
            if not part.used:
                break
            found += [decode(value) for _, value in part.records]
            data = data[part.used :]
    return found


def decisions(folder: Path) -> list[Decision]:
    return [event for event in spooled(folder) if isinstance(event, Decision)]


def feedback(folder: Path) -> list[Feedback]:
    return [event for event in spooled(folder) if isinstance(event, Feedback)]


@dataclass
class Server:
    """A scoring service in a process of its own."""

    url: str
    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def data(self) -> Path:
        return self.settings.data

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS)


def installed(folder: Path, surfaces: Sequence[Surface], examples: int = 0, **settings: Any) -> Settings:
    """A data directory with surfaces configured and their policies published."""
    made = Settings.load({}, data=folder, http=f"127.0.0.1:{free_port()}", **settings)
    folder.mkdir(parents=True, exist_ok=True)
    publish(open_state(made), open_bundles(made), *surfaces, examples=examples)
    return made


def beside(folder: Path, redis: str, number: int, **more: Any) -> Settings:
    """Settings of one of several services, each with a folder of its own, over one log, one bundle store and one Redis."""
    made = Settings.load(
        {},
        data=folder / str(number),
        state=f"{redis}?timeout_ms=20000",
        bundles=f"file://{folder / 'bundles'}",
        log=f"sqlite:///{folder / 'log.sqlite'}",
        keys=folder / "keys",
        **more,
    )
    made.data.mkdir(parents=True)
    return made


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """A real process that is ready, ended by SIGTERM."""
    log = settings.data / "scoring.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "scoring"],
            env={**os.environ, **settings.environment(), "OMP_NUM_THREADS": "1"},
            stderr=file,
        )
    server = Server(f"http://{settings.http}", settings, process, log)
    try:
        until(lambda: _ready(server), f"the service to be ready: {log}")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(DEADLINE_SECONDS)


def until(done: Callable[[], bool], what: str) -> None:
    """Wait for something that will happen, on however slow a machine."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {DEADLINE_SECONDS:.0f} s for {what}")
        time.sleep(0.02)


def _ready(server: Server) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        return httpx.get(f"{server.url}/readyz", timeout=DEADLINE_SECONDS).status_code == 200
    except httpx.TransportError:
        return False


def followed(scoring: Scoring) -> None:
    """The scoring service has read the record and draws from what it says."""
    scoring.configs.follow(scoring.state)
    scoring.swap(scoring.poll())


def decided(scoring: Scoring, unit: str, **more: object) -> dict[str, Any]:
    """The answer to a request of the surface `home`."""
    request = {"surface": "home", "unit": unit, **more}
    answer: dict[str, Any] = msgspec.json.decode(scoring.decide(msgspec.json.encode(request)))
    return answer
