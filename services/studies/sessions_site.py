"""The real stack as `slatewise stack` makes it, with one host on it, for a study: four policies, and an experiment between them.

Kafka, Redis, a Ray cluster ◄── scoring, forwarder, learning (shards and trainers on Ray), each a process of its own
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from policies.worlds.session_world import HISTORY, NAMED, OBJECTIVES, SLOTS, SPEC, SessionWorld
from services.chaos.house import Host, actors, wait_for
from services.client import Slatewise
from services.learning.regaining import regained
from services.learning.retracing import Trained, retraced, trained
from services.loopback import free_port
from services.settings import Settings
from services.stack.command import standing
from services.studies.guardrails_ways import CONFIG, STRENGTHS, WEIGHTS, WINDOW
from services.supervisor import parts_of, prepare
from services.trials import Trials
from services.wiring import open_bundles, open_log, open_state, open_training
from streaming.configuration import Configs

SURFACE, EXPERIMENT = "sessions", "four-policies"
AGENTS = {"agent": "two_stage", "held": "lagrangian"}  # policy → its mode
# arm, which is also its policy's name → share of the people
ARMS = {
    "random": 0.1,
    "behaviour": 0.3,
    "agent": 0.3,
    "held": 0.3,
}
PARTS = ("scoring", "forwarder", "learning")  # no control service: nobody looks on, and two processors are few
PARTITIONS = 2


def documents(horizon: float, timeout: float, thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The surface and the experiment. Objectives are weighed as the behaviour of `guardrails` weighs them; agents have its settings,
    save for the replay, which is in every checkpoint."""
    weights = {name: abs(weight) / OBJECTIVES[name].scale for name, weight in WEIGHTS.items()}
    chosen = ("floor", "minibatch", "replay_ratio", "learning_rate", "entropy", "multiplier_rate")
    agent = {"algorithm": "constrained_actor_critic", "objective": NAMED[0]} | {
        name: getattr(CONFIG, name) for name in chosen
    }
    surface = {
        "surface": SURFACE,
        "slots": SLOTS,
        "horizon": horizon,
        "correctable": "10m",
        "session_timeout": timeout,
        "history": HISTORY,
        "history_kinds": [OBJECTIVES["watch"].kind],  # told of every slot: what was shown
        "features": msgspec.to_builtins(SPEC),
        "objectives": {name: msgspec.to_builtins(one) for name, one in OBJECTIVES.items()},
        "policies": {
            "random": {"algorithm": "uniform"},
            "behaviour": {"algorithm": "linear_thompson", "objectives": weights, "floor": CONFIG.floor, "draws": 64},
            "agent": {**agent, "strengths": STRENGTHS},
            "held": {**agent, "mode": "lagrangian", "thresholds": dict(thresholds), "window": WINDOW},
        },
        "live": "behaviour",
    }
    experiment = {
        "experiment": EXPERIMENT,
        "surface": SURFACE,
        "arms": {name: {"policy": name, "share": share} for name, share in ARMS.items()},
        "metrics": {"primary": "watch", "secondary": ["like", "hate"]},
        "control": "behaviour",
        "learners": "shared",
    }
    return [surface, experiment]


@dataclass
class Site:
    """The stack and its host; stores are opened once, beside the processes that own them."""

    settings: Settings
    host: Host

    def __post_init__(self) -> None:
        self._bundles, self._log = open_bundles(self.settings), open_log(self.settings)
        self._order, self._outboxes = open_training(self.settings)

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        folder: Path,
        world: SessionWorld,
        nodes: int,
        horizon: float,
        timeout: float,
        thresholds: Mapping[str, float],
    ) -> Iterator["Site"]:
        """A site with all four policies, its trainer on Ray, that answers with the behaviour; the stack outlives its host, and ends here."""
        config = folder / "config"
        config.mkdir(parents=True)
        for one in documents(horizon, timeout, thresholds):
            (config / f"{next(iter(one.values()))}.yaml").write_bytes(msgspec.json.encode(one))  # JSON is YAML
        with standing(folder, nodes) as urls:
            http = {name: f"127.0.0.1:{free_port()}" for name in ("http", "control_http")}
            data = {"data": folder / "host", "partitions": PARTITIONS}
            settings = Settings.load({}, config=config, **data, **http, **urls)
            prepare(settings)
            site = cls(settings, Host.start(settings, [part for part in parts_of(settings) if part.name in PARTS]))
            try:
                wait_for(site.host.ready, "the site answers")
                with Slatewise(site.host.url, timeout=60.0) as client:
                    client.put_items(world.catalogue)
                wait_for(site.trainers, "the trainer sits on Ray")
                wait_for(lambda: set(site.bundles()) >= {f"{SURFACE}/{name}" for name in ARMS}, "four policies")
                yield site
            finally:
                site.host.supervisor.stop.set()
                site.host.thread.join()

    def split(self) -> None:
        """Begin the experiment: until now everybody got the live policy's slates."""
        Trials.of(self.settings).start(EXPERIMENT, "study")

    def trainers(self) -> list[int]:
        """Processes of the trainers' actor."""
        return actors("Trainer")

    def bundles(self) -> dict[str, str]:
        """surface/policy → what is drawn from now."""
        return self._bundles.pointers()

    def kill_trainer(self) -> int:
        """kill -9; the process that was."""
        [pid] = wait_for(self.trainers, "a trainer to kill")
        os.kill(pid, signal.SIGKILL)
        return pid

    def entries(self) -> int:
        """Entries of the order that are recorded."""
        return self._order.numbers()[1]

    def checkpoint(self) -> Trained:
        """The newest on the trainers' disk."""
        return trained(self._order.load())

    def replay(self, found: Trained) -> list[str]:
        """Names of arrays in which a replay of the recorded order, from nothing, is not what was trained, to the last bit."""
        configs = Configs()
        configs.follow(open_state(self.settings))
        return retraced(self._order, self._outboxes, self._log, configs, found)

    def upload(self) -> Trained:
        """What a machine with an empty disk begins with."""
        elsewhere = replace(self.settings, data=self.settings.data.with_name("elsewhere"))
        order, _ = regained(elsewhere, self._log.identity, time.time_ns())  # above every owner's number
        return trained(order.load())

    def records(self) -> int:
        """In the log."""
        return sum(self._log.end(partition)[0] for partition in range(PARTITIONS))
