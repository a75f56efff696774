"""The learning service: drives the shards, publishes what they learned, says how far it is.

    log ─► shards (inline or Ray actors): join, learn, commit ─► publisher ─► bundle, pointer ─► scoring

The prior is published first, before Ray is up, so that scoring has something to draw from; from then on a policy is
published when a commit changed its sums: the live one at most once every `publish_ms`, and with at most half of the time
spent on it, the others, which nobody draws from, once a second.
"""

import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from policies.bundle import FRESH
from policies.delays import early
from policies.errors import Rejected, Unavailable
from services.epochs import stay, take_epoch
from services.learning.beside import Beside
from services.learning.inline import InlineShards
from services.learning.placing import Placing, Trainers
from services.learning.shards import Engine, open_shards
from services.learning.standby import stand_by
from services.learning.switching import Switching
from services.learning.training import Course, Taught
from services.lifetime import stopping
from services.outcomes import Outcomes
from services.releases import holds
from services.retaining import Retaining
from services.scraped import scraped
from services.settings import Settings
from services.telemetry import Telemetry, share
from services.wiring import open_derived, open_log, open_state, open_uploads
from streaming.configuration import Compiled, CompiledPolicy, Configs
from streaming.counted import asked
from streaming.forgets import DONE, Forgot
from streaming.forgets import encode as encode_forget
from streaming.partition import partition_of
from streaming.ports import State
from streaming.publish import Learned, Outcome, Publisher, by_lineage, lineage, older_sums, pointer_name
from streaming.shard import Statistics, StepReport
from streaming.shown import remembers
from streaming.tenancy import claim

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
        self._taught: dict[str, Taught] = {}  # learner key → what its trainer handed out last
        self._handed: set[str] = set()  # of these, what no bundle holds yet
        self._held: frozenset[str] = frozenset()
        self._forgot: dict[str, Forgot] = {}  # unit → what is not told yet
        self.partitions = 1  # of the log
        self.trains = False  # whether a policy has a trainer
        # (pointer, learner key): not tried again until something is learned
        self._refused: set[tuple[str, str]] = set()
        self._next_publish = self._next_others = self._next_follow = 0.0

    def follow(self) -> None:
        """Read what changed in the record: configuration, and which policies are held at a bundle."""
        self._configs.follow(self._state)
        self._tell_forgot()
        before, self._held = self._held, frozenset(holds(self._state))
        freed = before - self._held
        self._changed.update(lineage(policy.key) for policy in self._policies() if pointer_name(policy) in freed)
        self._handed.update(p.key for p in self._trained() if pointer_name(p) in freed and p.key in self._taught)
        self.trains = bool(self._trained())
        self._next_follow = time.monotonic() + FOLLOW_SECONDS

    def _tell_forgot(self) -> None:
        """Say in the record which units' rows are blanked and committed; again where the record is away."""
        for unit, done in list(self._forgot.items()):
            self._state.put([(DONE, f"{unit}/joins", encode_forget(done))])
            del self._forgot[unit]

    def begin(self, statistics: Sequence[Statistics]) -> None:
        """Publish every policy whose pointer names no bundle of the current configuration."""
        self._publish(self._wanting(), statistics)

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

    def taught(self, handed: Sequence[Taught]) -> None:
        """Publish what trainers have handed out, and what had to wait for the configuration it is for."""
        self._taught |= {one.key: one for one in handed}
        self._handed.update(one.key for one in handed)
        for policy in self._trained() if self._handed else ():
            one = self._taught.get(policy.key)
            compiled = self._configs.current(policy.key.split("/")[1])
            if policy.key not in self._handed or one is None or compiled is None or one.config != compiled.hash:
                continue
            self._handed.discard(policy.key)
            if pointer_name(policy) not in self._held:
                outcome = self._publisher.publish(policy, (), one.through, time.time(), ready=one.published)
                self._told(policy, outcome)

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
            times = self._fresh[surface, policy]
            if len(times) < FRESH:  # what a manifest carries; a held policy is not published for a long time
                times.append(accepted_at)
        for (surface, outcome), count in report.outcomes.items():
            self._telemetry.add("join_outcomes_total", surface, outcome, by=count)
        for reason, count in report.dead.items():
            self._telemetry.add("dead_letters_total", reason, by=count)
        if report.lost:
            self._telemetry.add("records_lost_total", str(report.partition), by=report.lost)
        for key, count in report.learned.items():
            surface, policy = key.split("/")[1:3]
            self._telemetry.add("learn_examples_total", surface, policy, by=count)
        for unit, (since, rows) in report.forgot.items():
            if partition_of(unit.encode(), self.partitions) == report.partition:
                self._forgot[unit] = Forgot(since, rows)
        lag = max(time.time() - report.clock, 0.0) if report.lag_records else 0.0
        self._telemetry.set("join_lag_seconds", str(report.partition), value=lag)
        if report.headroom is not None:
            self._telemetry.set("log_retention_headroom_ratio", str(report.partition), value=report.headroom)
        self._telemetry.set("shard_stopped", str(report.partition), value=float(bool(report.stopped)))
        self._telemetry.set("rebuilding_records", str(report.partition), value=report.rebuilding)

    def _publish_changed(self, engine: Engine, *, every: bool = False) -> None:
        started = time.monotonic()
        others = every or started >= self._next_others
        changed = [policy for policy in self._policies() if lineage(policy.key) in self._changed]
        due = [policy for policy in changed if others or self._live(policy)]
        statistics = engine.statistics() if due else []  # Unavailable: tried again, nothing is forgotten
        self._changed = set() if others else self._changed - {lineage(policy.key) for policy in due}
        self._publish(due, statistics)
        if others:
            self._next_others = started + OTHERS_SECONDS
        took = time.monotonic() - started
        self._next_publish = started + max(self._least_seconds, SHARE * took)

    def _live(self, policy: CompiledPolicy) -> bool:
        compiled = self._configs.current(policy.key.split("/")[1])
        return compiled is not None and policy.name == (self._configs.live(compiled) or compiled.surface.fallback)

    def _publish(self, policies: Sequence[CompiledPolicy], statistics: Sequence[Statistics]) -> None:
        learned = by_lineage(one.arrays for one in statistics)
        through = {one.partition: one.offset for one in statistics}
        for policy in policies:
            if pointer_name(policy) not in self._held:
                self._publish_one(policy, learned, through)

    def _publish_one(self, policy: CompiledPolicy, learned: Learned, through: Mapping[int, int]) -> None:
        pointer = pointer_name(policy)
        surface = pointer.split("/")[0]
        fresh = self._fresh.pop((surface, policy.name), [])
        sums = learned.get(lineage(policy.key), {}).get(policy.key, [])
        older = older_sums(self._configs, policy, learned)
        outcome = self._publisher.publish(policy, sums, through, time.time(), fresh=fresh, older=older)
        self._told(policy, outcome)
        if outcome.result == "behind":
            self._changed.add(lineage(policy.key))
        elif outcome.result == "refused":
            self._refused.add((pointer, policy.key))

    def _told(self, policy: CompiledPolicy, outcome: Outcome) -> None:
        surface = policy.key.split("/")[1]
        self._telemetry.add("publish_total", surface, policy.name, outcome.result)
        for objective, (half, decisions) in early(outcome.manifest.diagnostics if outcome.manifest else {}).items():
            self._telemetry.set("delay_half_horizon_share", surface, policy.name, objective, value=half)
            self._telemetry.set("delay_decisions_count", surface, policy.name, objective, value=decisions)
        if outcome.result != "published":
            extra = {"policy": outcome.pointer, "result": outcome.result, "detail": outcome.detail}
            log.warning("publish", extra=extra)

    def _wanting(self) -> list[CompiledPolicy]:
        return [
            policy
            for policy in self._policies()
            if not self._publisher.current(policy)
            and pointer_name(policy) not in self._held
            and (pointer_name(policy), policy.key) not in self._refused
        ]

    def _policies(self) -> list[CompiledPolicy]:
        """Every policy that scoring may draw from and no trainer makes: those written down, and the fallback."""
        return [
            policy
            for compiled in self._configs.answering()
            for policy in published_policies(compiled)
            if policy.algorithm.trainer is None
        ]

    def _trained(self) -> list[CompiledPolicy]:
        """Every policy that a trainer makes."""
        return [
            policy
            for compiled in self._configs.answering()
            for policy in compiled.policies.values()
            if policy.algorithm.trainer is not None
        ]


def published_policies(compiled: Compiled) -> list[CompiledPolicy]:
    """Policies of a surface that get bundles: those written down, and the one it falls back to."""
    names = dict.fromkeys([*compiled.surface.policies, compiled.surface.fallback])
    return [compiled.policies[name] for name in names]


def run(settings: Settings) -> None:
    """Learn until SIGTERM. Of two services the older stops learning, and stands by."""
    stop = stopping()
    share(settings.metrics_path)
    with scraped(settings):
        _learn(settings, stop)
    log.info("stopped")


def _learn(settings: Settings, stop: threading.Event) -> None:
    state, telemetry = open_state(settings), Telemetry()
    while not stop.is_set():
        try:
            claim(state, settings.tenant)
            _reign(settings, state, telemetry, take_epoch(state), stop)
        except Unavailable as error:  # at the beginning: `_turn` waits for what goes away later
            log.warning("away", extra={"error": str(error)})
            stop.wait(AWAY_SECONDS)
        except Rejected as error:
            if error.code != "fenced":
                raise
            log.warning("superseded", extra={"why": str(error)})
            stand_by(open_uploads(settings), open_log(settings), stop)


def _reign(settings: Settings, state: State, telemetry: Telemetry, epoch: int, stop: threading.Event) -> None:
    """Learn for one epoch, or until shards have to derive what they did not. Raises Rejected('fenced') when it is over."""
    configs, owners = Configs(settings.tenant), itertools.count(epoch)
    retaining = Retaining(settings, state, configs, epoch)
    publisher = Publisher(retaining.bundles, configs, epoch)
    learning = Learning(state, configs, publisher, telemetry, settings.publish_ms / 1000)
    learning.follow()
    learning.begin([])
    partitions = learning.partitions = open_log(settings).partitions
    derives = settings.derive == "on" or (settings.derive == "auto" and derived_is_read(configs))
    wanted, settings = settings.derive, replace(settings, derive="on" if derives else "off")
    outcomes = Outcomes(open_derived(settings, partitions)[0], configs, telemetry, settings.tenant) if derives else None

    def near() -> Engine:
        return InlineShards(open_shards(settings, state, configs, next(owners), range(partitions)))

    def far() -> Engine:
        from services.learning.rays import RayShards  # the only file that needs Ray, and not everyone has it

        return RayShards(settings, partitions, lambda: next(owners))

    engine = Switching(near, None if settings.ray == "inline" else far, insist=settings.ray != "auto")

    def beside() -> Trainers:
        made = Beside(lambda: Course(settings, open_state(settings), next(owners)))
        made.start()
        return made

    def seated() -> Trainers:
        from services.learning.trainer_actor import TrainerSeat

        return TrainerSeat(settings, lambda: next(owners))

    training = Placing(beside, seated, engine, lambda: learning.trains)
    retaining.start()
    try:
        learning.begin(engine.statistics())
        next_look = 0.0
        while not stop.is_set() and not (wanted == "auto" and not derives and derived_is_read(configs)):
            _turn(learning, engine, stop)
            learning.taught(training.report(telemetry))
            retaining.training = training.needed
            if time.monotonic() >= next_look:
                stay(state, epoch)
                retaining.report(telemetry)
                if outcomes is not None:
                    with suppress(Unavailable):  # the counters' store: read again in a while
                        outcomes.turn(time.monotonic())
                next_look = time.monotonic() + FOLLOW_SECONDS
        learning.finish(engine)
    finally:
        retaining.stop()
        training.stop()
        engine.close()


def derived_is_read(configs: Configs) -> bool:
    """Whether a policy that can be drawn from, a rule, a feature or a lease reads what shards derive. Deriving begins with the next
    reign."""
    return any(
        compiled.reads_history
        or remembers(compiled.surface)
        or asked(compiled.surface) is not None
        or compiled.surface.exploration.lending
        for compiled in configs.answering()
    )


def _turn(learning: Learning, engine: Engine, stop: threading.Event) -> None:
    """One turn; when a store is away, wait for it: everything uncommitted is read again."""
    try:
        if learning.turn(engine) == 0:
            stop.wait(IDLE_SECONDS)
    except Unavailable as error:
        log.warning("away", extra={"error": str(error)})
        stop.wait(AWAY_SECONDS)
