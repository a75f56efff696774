"""What ends a release by itself: a canary's verdict, its guardrails, and bundle trouble while it answers.

    verdict      two-sample, anytime-valid, on the canary's units (`gate.Canary`): better is promoted, worse is aborted
    guardrail    judged with the readouts on the same units: a breach aborts
    trouble      the log's newest decisions are followed: of the candidate's last 200, those in mode `fallback` because it had
                 no bundle or failed (a score that is not finite, a graph that raises); and bundles that scoring refused.
                 A canary is aborted, a promoted candidate rolled back

A unit of the canary is a row: the mean reward of its decisions within the window, once that is closed.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Rejected, SlatewiseError
from policies.evaluation.gate import Canary, Verdict, compare, concluded, open_canary
from policies.experiments.document import Trial
from policies.releases import CANDIDATE, Release
from policies.surface import Surface, seconds
from services.promoting import Promotions
from services.telemetry import Telemetry
from streaming.experiments import DECISIONS
from streaming.ports import Log
from streaming.totals import Totals

log = logging.getLogger("slatewise.control")
ESTIMATES = (
    "the average over the canary's units of the mean reward of a decision within a unit's window, by the candidate less by the "
    "live policy"
)
LAST, LEAST, LEAST_FALLEN = 200, 20, 5  # decisions looked at, and of how many on a share is one
BACK, READ = 1_000, 2_000
TROUBLES = frozenset({"no_bundle", "error"})  # reasons of a fallback that are the candidate's own
TURN_SECONDS = 0.5


class _Decided(Struct, tag_field="type", tag="decision"):
    """As much of a decision as tells whose trouble it is."""

    surface: str
    at: float
    mode: str
    reason: str | None = None
    experiment: dict[str, str] | None = None


class _Heard(Struct, tag_field="type", tag="feedback"):
    pass


_decode = msgspec.json.Decoder(_Decided | _Heard).decode


class Canaries:
    """The canaries that run, for the readouts that fold their units."""

    def __init__(self, promotions: Promotions, telemetry: Telemetry | None = None) -> None:
        self._promotions, self._telemetry = promotions, telemetry or Telemetry()

    def running(self) -> list[Trial]:
        """Raises Unavailable."""
        self._promotions.follow()
        configs = self._promotions.configs
        return [trial for name in configs.surfaces() if (trial := configs.canary(name)) is not None]

    def harmed(self, trial: Trial, reason: str) -> None:
        """A guardrail is breached. Raises Unavailable."""
        self._end(trial, "guardrail", reason)

    def judge(self, trial: Trial, totals: Totals, partitions: int) -> None:
        """End a canary that is decided. Raises Unavailable."""
        release = self._release(trial)
        if release is None:
            return
        found = self.verdict(release, trial, totals, partitions)
        if found.outcome == "worse":
            self._end(trial, "canary", "worse than the live policy", msgspec.to_builtins(found))
        elif found.outcome == "promote":
            with _unless_moved():
                self._promotions.promote(release.surface, "canary", msgspec.to_builtins(found), run=release.run)
                self._said(release, "promote", "canary", "better than the live policy")

    def verdict(self, release: Release, trial: Trial, totals: Totals, partitions: int) -> Verdict:
        """As things stand. Raises Rejected(404)."""
        surface = self._promotions.compiled(release.surface).surface
        objective, name = surface.objectives[release.objective], trial.document.experiment
        canary = Canary(
            release.terms.share,
            _a_decision(surface, release.objective),
            release.trial,
            release.terms.alpha,
            release.terms.margin,
            objective.better == "lower",
        )
        closed = min(totals.cursor(name, partition)[1] for partition in range(partitions))
        units = [one.unit for one in totals.units(name) if one.unit.closes < closed and one.unit.totals.get(DECISIONS)]
        units.sort(key=lambda unit: (unit.closes, unit.first, unit.arm))  # the order in which they are complete
        rewards = np.array([unit.totals[release.objective] / unit.totals[DECISIONS] for unit in units])
        taken = np.array([unit.arm == CANDIDATE for unit in units], np.bool_)
        state = compare(canary, open_canary(), taken, rewards) if units else open_canary()
        return replace(concluded(canary, state), estimates=ESTIMATES)

    def _end(self, trial: Trial, who: str, reason: str, verdict: dict[str, Any] | None = None) -> None:
        release = self._release(trial)
        if release is None:
            return
        with _unless_moved():
            self._promotions.abort(release.surface, who, reason, run=release.run, verdict=verdict)
            self._said(release, "abort", who, reason)

    def _release(self, trial: Trial) -> Release | None:
        """None once it is not this canary any more."""
        release = self._promotions.configs.released(trial.document.surface).release
        same = self._promotions.configs.canary(trial.document.surface)
        return release if same is not None and same.document == trial.document else None

    def _said(self, release: Release, step: str, who: str, reason: str) -> None:
        self._telemetry.add("release_steps_total", release.surface, step, who)
        log.warning(
            "release ended",
            extra={"surface": release.surface, "candidate": release.candidate, "step": step, "reason": reason},
        )


class Guard:
    """Follows the newest decisions for bundle trouble. `turn` belongs to one thread.

    refused  surface/policy → bundles that scoring refused so far
    """

    def __init__(
        self,
        promotions: Promotions,
        events: Log,
        refused: Callable[[str, str], float] = lambda surface, policy: 0.0,
        *,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._promotions, self._events, self._refused, self._clock = promotions, events, refused, clock
        self._telemetry = telemetry or Telemetry()
        self._offsets: list[int] = []
        self._fell: dict[tuple[str, int], deque[bool]] = {}
        self._refusals: dict[tuple[str, int], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="release-guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def turn(self) -> None:
        """Read what is new, and end what is in trouble. Raises Unavailable."""
        now = self._clock()
        watched = {
            (name, release.run, release.stage): release
            for name, released in self._promotions.all().items()
            if (release := released.release) is not None and _watched(release, now)
        }
        if not watched:
            self._offsets, self._fell, self._refusals = [], {}, {}
            return
        self._follow(list(watched.values()))
        for release in watched.values():
            reason = self._trouble(release)
            if reason:
                self._end(release, reason)
        self._telemetry.flush()

    def _follow(self, watched: list[Release]) -> None:
        partitions = range(self._events.partitions)
        if not self._offsets:
            self._offsets = [max(self._events.first(p), self._events.end(p)[0] - BACK) for p in partitions]
        for partition in partitions:
            records = self._events.read(partition, self._offsets[partition], READ)
            self._offsets[partition] += len(records)
            for record in records:
                try:
                    event = _decode(record.value)
                except msgspec.MsgspecError:  # the shard sets it aside and counts it
                    continue
                if isinstance(event, _Decided):
                    self._take(event, watched)

    def _take(self, event: _Decided, watched: list[Release]) -> None:
        for release in watched:
            if release.surface != event.surface or event.at < release.since:
                continue
            said = event.experiment or {}
            if release.stage == "canary":
                own = said.get("arm") == CANDIDATE and said.get("name", "").endswith(
                    f"/{release.candidate}:{release.run}"
                )
            else:
                own = not said
            if own:
                fell = self._fell.setdefault((release.surface, _number(release)), deque(maxlen=LAST))
                fell.append(event.mode == "fallback" and event.reason in TROUBLES)

    def _trouble(self, release: Release) -> str:
        key = release.surface, _number(release)
        fell = self._fell.get(key, ())
        share = sum(fell) / len(fell) if fell else 0.0
        self._telemetry.set("release_fallback_ratio", release.surface, release.candidate, value=share)
        if len(fell) >= LEAST and sum(fell) >= LEAST_FALLEN and share > release.terms.max_fallback:
            return f"{sum(fell)} of its last {len(fell)} decisions fell back: it had no bundle, or failed"
        refused = self._refused(release.surface, release.candidate)
        before = self._refusals[key] = min(refused, self._refusals.get(key, refused))  # a restart counts from 0
        return f"scoring refused {refused - before:.0f} of its bundles" if refused > before else ""

    def _end(self, release: Release, reason: str) -> None:
        step = "abort" if release.stage == "canary" else "rollback"
        with _unless_moved():
            if step == "abort":
                self._promotions.abort(release.surface, "bundle", reason, run=release.run)
            else:
                self._promotions.rollback(release.surface, "bundle", reason, run=release.run)
            self._telemetry.add("release_steps_total", release.surface, step, "bundle")
            log.warning(
                "release ended",
                extra={"surface": release.surface, "candidate": release.candidate, "step": step, "reason": reason},
            )

    def _run(self) -> None:
        said = ""
        while not self._stop.wait(TURN_SECONDS):
            try:
                self.turn()
                said = ""
            except SlatewiseError as error:  # what is away is tried again
                if str(error) != said:
                    log.warning("release guard", extra={"error": str(error)})
                said = str(error)
            except Exception:  # a fault of ours: the thread must live, or nothing would be rolled back
                log.exception("fault", extra={"what": "release guard"})


@contextmanager
def _unless_moved() -> Iterator[None]:
    """A step that a person has taken meanwhile is no fault."""
    try:
        yield
    except Rejected as error:
        if error.status != 409:
            raise


def _watched(release: Release, now: float) -> bool:
    over = release.since + seconds(release.terms.watch)
    return release.stage == "canary" or (release.stage == "live" and now < over)


def _number(release: Release) -> int:
    """Tells a canary from the same candidate after its promotion."""
    return 2 * release.run + (release.stage == "live")


def _a_decision(surface: Surface, objective: str) -> tuple[float, float]:
    """Range of a whole slate's reward, of which slots may be empty or not seen."""
    span = surface.objectives[objective].range
    if span is None:
        raise Rejected(f"Objective {objective!r} has no range now", at="$.terms.objective", code="no_range")
    return min(0.0, span[0]) * surface.slots, max(0.0, span[1]) * surface.slots
