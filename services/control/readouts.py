"""Readouts as a job of the control service: settle, fold, judge, and stop what breaches a guardrail.

    log ─► settler of each partition ─► numbered outbox ─► fold ─► units' totals ─► readout
                                                                     └► guardrail breached: stopped, audited

It starts with the first experiment that runs; without one it costs a look at the record a second. Everything it keeps is a
function of the log (`streaming.totals`), in the data folder, so a restart goes on where it was. A folder that is lost is
made anew of what the log still holds: units from before are then missing, and the readout's `since` says so.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from policies.errors import Corrupt, Rejected, SlatewiseError
from policies.evaluation.gate import Verdict
from policies.experiments.document import Trial
from policies.experiments.interleaving import credit_name
from policies.experiments.readout import Readout, Units, guarded, readout, sample_ratio
from policies.releases import Release
from services.epochs import take_epoch
from services.telemetry import Telemetry
from services.trials import Trials
from streaming.configuration import Compiled, Configs
from streaming.experiences import Experiences
from streaming.experiments import DECISIONS
from streaming.forgets import forgotten
from streaming.ports import Log
from streaming.settle import Settlements, Settler, SettleReport
from streaming.totals import Totals, fold

log = logging.getLogger("slatewise.control")
EPOCH = "experiments"
TURN_SECONDS = 0.5
SHARE = 5  # judging that took t is followed by at least t · SHARE without
PAGE = 2_000
TRIM_SECONDS, TRIM_ROWS = 60.0, 5_000


@dataclass
class Seat:
    """One partition. `stopped`: why it goes no further; `frontier`: all that is due before is in its outbox."""

    settler: Settler
    outbox: Settlements
    experiences: Experiences
    frontier: float = 0.0
    stopped: str = ""


class Beside(Protocol):
    """What is folded from the same settled decisions, whether or not an experiment runs."""

    def wanted(self) -> bool:
        """Whether anybody waits for it. Raises Unavailable."""

    def fold(self, seat: Seat) -> None:
        """Everything of a partition that has settled, each decision once. Raises Unavailable."""

    def folded(self, partition: int) -> int:
        """The next number it wants."""

    def tell(self) -> None:
        """Metrics, and what follows once all partitions are folded. Raises Unavailable."""


class Canaries(Protocol):
    """Experiments that releases run, see `services.control.guarding`."""

    def running(self) -> list[Trial]: ...

    def harmed(self, trial: Trial, reason: str) -> None:
        """A guardrail is breached."""

    def judge(self, trial: Trial, totals: Totals, partitions: int) -> None:
        """End one that is decided."""

    def verdict(self, release: Release, trial: Trial, totals: Totals, partitions: int) -> Verdict: ...


class Readouts:
    """Of all experiments of an installation, and of what is folded beside them. `turn` belongs to one thread; `report` to any."""

    def __init__(
        self,
        trials: Trials,
        events: Log,
        opened: Callable[[], tuple[Totals, Callable[[int], Settlements]]],
        *,
        retention_seconds: float,
        telemetry: Telemetry | None = None,
        beside: Beside | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self._trials, self._events, self._opened = trials, events, opened
        self._beside, self._canaries = beside, canaries
        self._retention_seconds, self._telemetry = retention_seconds, telemetry or Telemetry()
        self._configs = Configs(trials.configs.tenant)
        self._totals: Totals | None = None
        self._seats: list[Seat] = []
        self._opening, self._following = threading.Lock(), threading.Lock()
        self._next_judging: dict[str, float] = {}
        self._next_trim = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readouts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def report(self, name: str) -> dict[str, Any]:
        """The readout of an experiment as it stands. Raises Rejected(404), Unavailable."""
        trial, _ = self._trials.get(name)
        compiled = self._compiled(trial)
        units = units_of(trial, compiled, self._open())
        found: Readout = readout(
            trial.document,
            units,
            trial.allocations,
            {objective: one.better for objective, one in compiled.surface.objectives.items()},
            interference(trial, compiled, self._configs.live(compiled)),
        )
        plain: dict[str, Any] = msgspec.to_builtins(found)
        stopped = [f"partition {seat.settler.partition}: {seat.stopped}" for seat in self._seats if seat.stopped]
        return {
            "status": trial.status,
            "reason": trial.reason,
            "start": trial.start,
            "stop": trial.stop,
            "settled_to": min((seat.frontier for seat in self._seats), default=0.0),
            **plain,
            "missing": stopped,
        }

    def canary(self, release: Release) -> dict[str, Any] | None:
        """The units of a canary that runs; None once it is over. Raises Unavailable."""
        trial = next((t for t in self._running() if t.document.surface == release.surface), None)
        if trial is None:
            return None
        compiled, totals = self._compiled(trial), self._open()
        units = units_of(trial, compiled, totals)
        better = {objective: one.better for objective, one in compiled.surface.objectives.items()}
        return {
            "experiment": trial.document.experiment,
            "assigned": {arm: int((units.arms == i).sum()) for i, arm in enumerate(trial.document.arms)},
            "complete": int(units.complete.sum()),
            "guardrails": [msgspec.to_builtins(one) for one in guarded(trial.document, units, better)],
            "verdict": None
            if self._canaries is None
            else self._canaries.verdict(release, trial, totals, self._events.partitions),
        }

    def turn(self, now: float) -> bool:
        """Settle, fold and judge once; whether there is more to do at once."""
        self._end(now)
        canaries = self._running()
        active = [*(trial for trial in self._trials.all() if self._active(trial)), *canaries]
        beside = self._beside if self._beside is not None and self._beside.wanted() else None
        if not active and beside is None:
            return False
        totals, busy = self._open(), False
        for seat in self._seated():
            if not seat.stopped:
                busy |= self._settled(seat, active, totals, now, beside)
        for trial in active:
            if trial.status == "running":
                self._judge(trial, totals, trial in canaries)
        if beside is not None:
            beside.tell()
        self._telemetry.flush()
        if now >= self._next_trim:
            self._next_trim = now + TRIM_SECONDS
            self._trim(active, totals, now, beside)
        return busy

    def _running(self) -> list[Trial]:
        return self._canaries.running() if self._canaries is not None else []

    def _end(self, now: float) -> None:
        """What was to stop by now, stops; requests have not been assigned since."""
        for trial in self._trials.all():
            if trial.status == "running" and trial.stop and now >= trial.stop:
                self._stopped(trial.document.experiment, "schedule", f"its stop, {trial.document.stop}")

    # -- folding -----------------------------------------------------------------------------------------------------

    def _settled(self, seat: Seat, active: list[Trial], totals: Totals, now: float, beside: Beside | None) -> bool:
        partition = seat.settler.partition
        try:
            report: SettleReport = seat.settler.step(now)
            seat.frontier = report.frontier
            for trial in active:
                self._fold(trial, seat, totals)
            if beside is not None:
                beside.fold(seat)
        except Corrupt as error:  # the log no longer has what comes next
            if error.reason == "offset_out_of_range" and not any(
                totals.cursor(trial.document.experiment, partition)[1] for trial in active
            ):  # nobody's units are in the gap: no experiment ran while it was made
                seat.settler.begin_anew()
                log.info("readouts begin anew", extra={"partition": partition})
                return True
            seat.stopped = str(error)
            log.error("readouts stopped", extra={"partition": partition, "error": str(error)})
            return False
        return bool(report.lag_records or report.settled)

    def _fold(self, trial: Trial, seat: Seat, totals: Totals) -> None:
        name, partition = trial.document.experiment, seat.settler.partition
        compiled = self._compiled(trial)
        since, frontier = totals.cursor(name, partition)
        first, after = seat.outbox.numbers()
        number = max(since, first)
        wanted = trial.start - trial.document.analysis.window_seconds
        while number < after:
            rows = seat.experiences.rows(number, min(PAGE, after - number))
            settled = seat.experiences.of([(n, row) for n, row in rows if row.due > wanted])
            settled = [
                one for one in settled if not forgotten(self._configs.forgotten, one.decision.unit, one.decision.at)
            ]
            units = fold(trial, compiled.surface.horizon_seconds, settled, totals)
            number = rows[-1][0] + 1
            reached = seat.frontier if number == after else frontier
            totals.commit(name, partition, since, number, reached, units)
            since = number
        if since == after and seat.frontier > frontier:
            totals.commit(name, partition, since, since, seat.frontier, {})

    def _trim(self, active: list[Trial], totals: Totals, now: float, beside: Beside | None) -> None:
        """Rows that everyone has folded and that are older than the log's retention."""
        for seat in self._seats:
            partition = seat.settler.partition
            cursors = [totals.cursor(t.document.experiment, partition)[0] for t in active]
            folded = min([*cursors, *([beside.folded(partition)] if beside is not None else [])])
            first, _ = seat.outbox.numbers()
            rows = seat.experiences.rows(first, TRIM_ROWS)
            old = next((n for n, row in rows if row.due >= now - self._retention_seconds), first + len(rows))
            if min(old, folded) > first:
                seat.outbox.trim(min(old, folded))

    # -- judging -----------------------------------------------------------------------------------------------------

    def _judge(self, trial: Trial, totals: Totals, canary: bool = False) -> None:
        """Say how many units there are and whether their ratio is right; stop an experiment that does established harm."""
        name, started = trial.document.experiment, time.monotonic()
        if started < self._next_judging.get(name, 0.0):
            return
        compiled = self._compiled(trial)
        better = {objective: one.better for objective, one in compiled.surface.objectives.items()}
        units = units_of(trial, compiled, totals)
        for number, arm in enumerate(trial.document.arms):
            self._telemetry.set("experiment_units_count", name, arm, value=float((units.arms == number).sum()))
        ratio = sample_ratio(trial.document, units, trial.allocations)
        self._telemetry.set("experiment_mismatch_p_ratio", name, value=ratio.p)
        for one in guarded(trial.document, units, better):
            if one.verdict == "breached" and one.effect is not None and one.high is not None:
                reason = f"guardrail {one.metric}: {one.arm} has {one.effect:.4g}, at most {one.high:.4g}, below {one.min_effect:g}"
                if canary and self._canaries is not None:
                    self._canaries.harmed(trial, reason)
                    return
                self._stopped(name, "guardrail", reason)
                break
        if canary and self._canaries is not None:
            self._canaries.judge(trial, totals, self._events.partitions)
        self._next_judging[name] = time.monotonic() + SHARE * (time.monotonic() - started)

    def _stopped(self, name: str, who: str, reason: str) -> None:
        self._trials.stop(name, who, reason)
        self._telemetry.add("experiment_stops_total", name, who)
        log.warning("experiment stopped", extra={"experiment": name, "reason": reason})

    def _active(self, trial: Trial) -> bool:
        """Running, or stopped with windows that are not folded to their end."""
        if trial.status != "stopped" or not trial.start:
            return trial.status == "running"
        try:
            horizon = self._compiled(trial).surface.horizon_seconds
        except Rejected:  # its surface is gone, and with it what its decisions mean
            return False
        over, totals = trial.stop + trial.document.analysis.window_seconds + horizon, self._open()
        name = trial.document.experiment
        return any(totals.cursor(name, partition)[1] <= over for partition in range(self._events.partitions))

    # -- what it stands on -------------------------------------------------------------------------------------------

    def _compiled(self, trial: Trial) -> Compiled:
        self._follow()
        compiled = self._configs.current(trial.document.surface)
        if compiled is None:
            raise Rejected(f"No surface {trial.document.surface!r}", code="unknown_surface", status=404)
        return compiled

    def _follow(self) -> bool:
        with self._following:
            return self._configs.follow(self._trials.state)

    def _open(self) -> Totals:
        with self._opening:
            if self._totals is None:
                self._totals, self._settlements = self._opened()
            return self._totals

    def _seated(self) -> list[Seat]:
        if not self._seats:
            epoch = take_epoch(self._trials.state, EPOCH)
            self._seats = [self._seat(partition, epoch) for partition in range(self._events.partitions)]
        return self._seats

    def _seat(self, partition: int, epoch: int) -> Seat:
        outbox = self._settlements(partition)
        settler = Settler(partition, self._events, outbox, self._configs, epoch=epoch, refresh=self._follow)
        return Seat(settler, outbox, Experiences(partition, outbox, self._events))

    def _run(self) -> None:
        said = ""
        while not self._stop.is_set():
            busy = False
            try:
                busy = self.turn(time.time())
                said = ""
            except Rejected as error:
                if error.code == "fenced":  # another control service has taken over
                    log.warning("readouts superseded", extra={"error": str(error)})
                    return
                log.error("readouts", extra={"error": str(error)})
            except SlatewiseError as error:  # what is away is tried again: everything uncommitted is read again
                if str(error) != said:
                    log.warning("readouts", extra={"error": str(error)})
                said = str(error)
            except Exception:  # a fault of ours: the thread must live, or no guardrail would be watched
                log.exception("fault", extra={"what": "readouts"})
            if not busy:
                self._stop.wait(TURN_SECONDS)


def units_of(trial: Trial, compiled: Compiled, totals: Totals) -> Units:
    """Arrays of what is kept."""
    arms = {name: number for number, name in enumerate(trial.document.arms)}
    kept = [one for one in totals.units(trial.document.experiment) if one.unit.arm in arms]
    metrics = [*compiled.surface.objectives, DECISIONS]
    if trial.document.kind == "interleaving":
        metrics += [credit_name(objective, arm) for objective in compiled.surface.objectives for arm in arms]

    def table(name: str) -> Any:
        rows = [[getattr(one.unit, name).get(metric, 0.0) for metric in metrics] for one in kept]
        return np.array(rows, np.float64).reshape(len(kept), len(metrics))

    return Units(
        arms=np.array([arms[one.unit.arm] for one in kept], np.int64),
        allocations=np.array([one.unit.allocation for one in kept], np.int64),
        complete=np.array([one.complete for one in kept], np.bool_),
        totals=table("totals"),
        before=table("before"),
        metrics=metrics,
    )


def interference(trial: Trial, compiled: Compiled, live: str | None) -> list[str]:
    """What arms share, so that what happens in one moves another: learner | exposure. `live`: what the surface serves."""
    document, surface = trial.document, compiled.surface
    drawn = [arm.policy or live or surface.fallback for arm in document.arms.values()]
    algorithms = {name: compiled.policies[name].algorithm for name in drawn if name in compiled.policies}
    learning = [name for name in drawn if name in algorithms and algorithms[name].learner is not None]
    trained = any(algorithm.trainer is not None for algorithm in algorithms.values())  # from every decision, in order
    shared = len(set(learning)) < len(learning) or (
        bool(learning) and (document.learners == "shared" or document.kind == "interleaving")
    )
    counted = any(rule.frequency is not None and rule.frequency.per == "item" for rule in surface.rules)
    fairness = surface.fairness  # arms are boosted by what all of them delivered
    counted |= fairness.exposure is not None or fairness.impression_variance is not None
    return [*(["learner"] if shared or trained else []), *(["exposure"] if counted else [])]
