"""The learning service: drives the shards, publishes what they learned, says how far it is.

    log ─► shards (inline or Ray actors): join, learn, commit ─► publisher ─► bundle, pointer ─► scoring

The prior is published first, before Ray is up, so that scoring has something to draw from; from then on a policy is
published when a commit changed its sums: the live one at most once every `publish_ms`, and with at most half of the time
spent on it, the others, which nobody draws from, once a second.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from policies.errors import Unavailable
from services.epochs import take_epoch
from services.learning.inline import InlineShards
from services.learning.shards import Engine, open_shards
from services.lifetime import listen_again, stopping
from services.releases import holds
from services.settings import Settings
from services.telemetry import Telemetry, share
from services.wiring import open_bundles, open_log, open_state
from streaming.configuration import Compiled, CompiledPolicy, Configs
from streaming.ports import State
from streaming.publish import Publisher, lineage, older_sums, pointer_name
from streaming.shard import Statistics, StepReport

log = logging.getLogger("slatewise.learning")
FOLLOW_SECONDS = 0.25
IDLE_SECONDS = 0.005
SHARE = 2  # a publish that took t is followed by at least (SHARE − 1)·t without one
OTHERS_SECONDS = 1.0  # between two publishes of policies that are not live
AWAY_SECONDS = 0.5
FINISH_SECONDS = 5.0  # the rest is read at the next start


class Learning:
    """One run of the loop over an engine."""

    def __init__(
        self, state: State, configs: Configs, publisher: Publisher, telemetry: Telemetry, least_seconds: float
    ) -> None:
        self._state, self._configs, self._publisher, self._telemetry = state, configs, publisher, telemetry
        self._least_seconds = least_seconds
        self._changed: set[str] = set()  # lineages of learner keys: an older version's sums count too
        self._fresh: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._held: frozenset[str] = frozenset()
        self._refused: set[tuple[str, str]] = (
            set()
        )  # (pointer, learner key): not tried again until something is learned
        self._next_publish = self._next_others = self._next_follow = 0.0

    def follow(self) -> None:
        """Read what changed in the record: configuration, and which policies are held at a bundle."""
        self._configs.follow(self._state)
        before, self._held = self._held, frozenset(holds(self._state))
        freed = [policy for policy in self._policies() if pointer_name(policy) in before - self._held]
        self._changed.update(lineage(policy.key) for policy in freed)
        self._next_follow = time.monotonic() + FOLLOW_SECONDS

    def begin(self, statistics: Sequence[Statistics]) -> None:
        """Publish every policy whose pointer names no bundle of the current configuration."""
        for policy in self._wanting():
            self._publish(policy, statistics)

    def turn(self, engine: Engine) -> int:
        """One turn: step, and publish when it is time; the number of records read."""
        reports = engine.step()
        for report in reports:
            self._note(report)
        now = time.monotonic()
        if now >= self._next_follow:
            self.follow()
            self._telemetry.flush()
            if self._wanting():
                self.begin(engine.statistics())
        if self._changed and now >= self._next_publish:
            self._publish_changed(engine)
        return sum(report.records for report in reports)

    def finish(self, engine: Engine) -> None:
        """Read the log to its end, as far as `FINISH_SECONDS` go, and publish what was learned since the last publish."""
        until = time.monotonic() + FINISH_SECONDS
        while self.turn(engine) and time.monotonic() < until:
            pass
        if self._changed:
            self._publish_changed(engine, every=True)

    def _note(self, report: StepReport) -> None:
        self._changed.update(map(lineage, report.learned))
        for surface, policy, accepted_at in report.fresh:
            self._fresh[surface, policy].append(accepted_at)
        for (surface, outcome), count in report.outcomes.items():
            self._telemetry.add("join_outcomes_total", surface, outcome, by=count)
        for reason, count in report.dead.items():
            self._telemetry.add("dead_letters_total", reason, by=count)
        for key, count in report.learned.items():
            surface, policy = key.split("/")[1:3]
            self._telemetry.add("learn_examples_total", surface, policy, by=count)
        lag = max(time.time() - report.clock, 0.0) if report.lag_records else 0.0
        self._telemetry.set("join_lag_seconds", str(report.partition), value=lag)

    def _publish_changed(self, engine: Engine, *, every: bool = False) -> None:
        started = time.monotonic()
        others = every or started >= self._next_others
        changed = [policy for policy in self._policies() if lineage(policy.key) in self._changed]
        due = [policy for policy in changed if others or self._live(policy)]
        statistics = engine.statistics() if due else []  # Unavailable: tried again, nothing is forgotten
        self._changed = set() if others else self._changed - {lineage(policy.key) for policy in due}
        for policy in due:
            self._publish(policy, statistics)
        if others:
            self._next_others = started + OTHERS_SECONDS
        took = time.monotonic() - started
        self._next_publish = started + max(self._least_seconds, SHARE * took)

    def _live(self, policy: CompiledPolicy) -> bool:
        compiled = self._configs.current(policy.key.split("/")[1])
        return compiled is not None and policy.name == (compiled.surface.live or compiled.surface.fallback)

    def _publish(self, policy: CompiledPolicy, statistics: Sequence[Statistics]) -> None:
        pointer = pointer_name(policy)
        if pointer in self._held:
            return
        surface = pointer.split("/")[0]
        fresh = self._fresh.pop((surface, policy.name), [])
        sums = [one.arrays[policy.key] for one in statistics if policy.key in one.arrays]
        through = {one.partition: one.offset for one in statistics}
        older = older_sums(self._configs, policy, [one.arrays for one in statistics])
        outcome = self._publisher.publish(policy, sums, through, time.time(), fresh=fresh, older=older)
        self._telemetry.add("publish_total", surface, policy.name, outcome.result)
        if outcome.result != "published":
            log.warning("publish", extra={"policy": pointer, "result": outcome.result, "detail": outcome.detail})
            if outcome.result == "behind":
                self._changed.add(lineage(policy.key))
            else:
                self._refused.add((pointer, policy.key))

    def _wanting(self) -> list[CompiledPolicy]:
        return [
            policy
            for policy in self._policies()
            if not self._publisher.current(policy)
            and pointer_name(policy) not in self._held
            and (pointer_name(policy), policy.key) not in self._refused
        ]

    def _policies(self) -> list[CompiledPolicy]:
        """Every policy that scoring may draw from: those written down, and the fallback."""
        return [policy for compiled in _current(self._configs) for policy in published_policies(compiled)]


def published_policies(compiled: Compiled) -> list[CompiledPolicy]:
    """Policies of a surface that get bundles: those written down, and the one it falls back to."""
    names = dict.fromkeys([*compiled.surface.policies, compiled.surface.fallback])
    return [compiled.policies[name] for name in names]


def _current(configs: Configs) -> list[Compiled]:
    found = (configs.current(name) for name in configs.surfaces())
    return [compiled for compiled in found if compiled is not None]


class Later:
    """An engine that takes seconds to start, built in a thread that then stays: what it started may end with its thread."""

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._build = build
        self._done, self._over = threading.Event(), threading.Event()
        self._engine: Engine | None = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def take(self) -> Engine | None:
        """The engine, once, when it is there. Raises what building it raised."""
        if not self._done.is_set():
            return None
        if self._error is not None:
            raise self._error
        engine, self._engine = self._engine, None
        return engine

    def forget(self) -> None:
        """Give up: `take` has nothing from now on."""
        self._error = None

    def end(self) -> None:
        self._over.set()

    def _run(self) -> None:
        try:
            self._engine = self._build()
        except Exception as error:  # noqa: BLE001 - handed to `take`, in the thread that decides what it means
            self._error = error
        self._done.set()
        self._over.wait()


def run(settings: Settings) -> None:
    """Learn until SIGTERM: inline at once, on Ray as soon as it is up."""
    stop = stopping()
    share(settings.metrics_path)
    state, configs = open_state(settings), Configs()
    epoch = take_epoch(state)
    publisher = Publisher(open_bundles(settings), configs, epoch)
    learning = Learning(state, configs, publisher, Telemetry(), settings.publish_ms / 1000)
    learning.follow()
    learning.begin([])
    partitions = open_log(settings).partitions
    engine: Engine = InlineShards(open_shards(settings, state, configs, epoch, range(partitions)))
    later = Later(lambda: _on_ray(settings, partitions, epoch)) if settings.ray != "inline" else None
    try:
        learning.begin(engine.statistics())
        while not stop.is_set():
            found = _taken(later, settings) if later is not None else None
            if found is not None:
                engine.close()
                engine = found
                listen_again()  # Ray takes the signals for itself
            _turn(learning, engine, stop)
        learning.finish(engine)
        log.info("stopped", extra={"epoch": epoch})
    finally:
        engine.close()
        if later is not None:
            later.end()


def _turn(learning: Learning, engine: Engine, stop: threading.Event) -> None:
    """One turn; when a store is away, wait for it: everything uncommitted is read again."""
    try:
        if learning.turn(engine) == 0:
            stop.wait(IDLE_SECONDS)
    except Unavailable as error:
        log.warning("away", extra={"error": str(error)})
        stop.wait(AWAY_SECONDS)


def _on_ray(settings: Settings, partitions: int, epoch: int) -> Engine:
    from services.learning.rays import RayShards  # the only file that needs Ray, and not everyone has it

    return RayShards(settings, partitions, epoch)


def _taken(later: Later, settings: Settings) -> Engine | None:
    """The engine on Ray when it is up. Where nobody asked for Ray by name, learning goes on without it."""
    try:
        return later.take()
    except Exception as error:
        if settings.ray != "auto":
            raise
        log.warning("inline", extra={"why": f"no Ray: {error}"})
        later.forget()
        return None
