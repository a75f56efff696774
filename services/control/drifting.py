"""Drift as metrics, from settled decisions: features that move, and predictions that fail.

It folds what the readouts' settlers give out (`services.control.readouts`), each decision exactly once, beside what policies
earn. `streaming.watching` says what is kept, `policies.evaluation.stability` and `detector` what the numbers mean.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from msgspec import UnsetType

from policies.bundle import Bundle, Manifest
from policies.errors import Corrupt, Rejected
from policies.evaluation.stability import Shift
from services.audit import Change, entry
from services.control.folding import Folding
from services.control.readouts import Seat
from services.releases import Releases
from services.telemetry import Telemetry
from streaming import adjusting
from streaming.configuration import Compiled, CompiledPolicy, Configs, publish_surface
from streaming.estimates import Estimates
from streaming.events import Decision
from streaming.experiences import Experience
from streaming.replay import first_expected
from streaming.watching import (
    WATCH,
    OfSurface,
    Watch,
    Watched,
    evidence,
    examined,
    fold,
    read,
    shifts,
    span_of,
    written,
)

log = logging.getLogger("slatewise.control")
TELL_SECONDS = 5.0
HELD_SECONDS = 30.0  # that a bundle is kept which nobody has asked for: a fold asks twice a second
WHO = "drift"  # in the audit
MOST_SLOTS = 50  # whose examination is told
MOST_FEATURES = 50  # of a surface that become labels; of the others the largest shift is told as `other`


class Predicting:
    """Bundles of the store, those asked for lately kept: one a partition and policy; and those that could not be read."""

    def __init__(self, releases: Releases, clock: Callable[[], float]) -> None:
        self._releases, self._clock = releases, clock
        self.held: OrderedDict[str, tuple[float, Bundle | str]] = OrderedDict()  # name → (asked at, …), oldest first

    def manifest(self, bundle: str) -> Manifest:
        return self._bundle(bundle).manifest

    def expected(self, bundle: str, decision: Decision) -> float:
        try:
            found = first_expected(decision, self._bundle(bundle))
        except (ValueError, KeyError) as error:  # a record of another shape than its bundle
            raise Corrupt("bad_vector", str(error)) from None
        if not np.isfinite(found):
            raise Corrupt("nonfinite", f"{bundle} expects {found}")
        return found

    def _bundle(self, name: str) -> Bundle:
        _, found = self.held.pop(name, (0.0, None))
        if found is None:
            try:
                found = self._releases.read(name)
            except (Rejected, Corrupt) as error:  # past its retention
                found = str(error)
        now = self._clock()
        self.held[name] = now, found
        while next(iter(self.held.values()))[0] < now - HELD_SECONDS:
            self.held.popitem(last=False)
        if isinstance(found, str):
            raise Corrupt("unknown_bundle", found)
        return found


class Drifting:
    """Of all surfaces. It belongs to the readouts' thread."""

    def __init__(
        self,
        releases: Releases,
        opened: Callable[[], Estimates],
        configs: Configs,
        *,
        telemetry: Telemetry | None = None,
        watch: Watch = WATCH,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._releases, self._configs, self._watch = releases, configs, watch
        self._partitions = releases.events.partitions
        self._folding = Folding("drift lacks decisions", opened, self._partitions, read, written)
        self._telemetry, self._predicting = telemetry or Telemetry(), Predicting(releases, time.monotonic)
        self._following = threading.Lock()
        self._next_telling = 0.0

    def wanted(self) -> bool:
        """Whether there is a surface. Raises Unavailable."""
        self._follow()
        return bool(self._configs.surfaces())

    def fold(self, seat: Seat) -> None:
        """Everything of a partition that has settled. Raises Unavailable, and Rejected('fenced')."""
        self._folding.fold(seat, self._begun)

    def folded(self, partition: int) -> int:
        """The next number that is wanted."""
        return self._folding.folded(partition)

    def tell(self) -> None:
        """Metrics, now and then."""
        now = time.monotonic()
        if now < self._next_telling:
            return
        self._next_telling = now + TELL_SECONDS
        self._follow()
        states = self._folding.committed()
        for compiled in self._configs.answering():
            parts = [state[compiled.surface.surface] for state in states if compiled.surface.surface in state]
            self._tell_features(compiled, parts)
            self._tell_residuals(compiled, parts)
            self._tell_examination(compiled, parts)
            self._adjust(compiled.surface.surface)

    def _begun(self) -> Callable[[Watched, list[Experience]], Watched]:
        self._follow()
        configs, predicting, partitions, watch = self._configs, self._predicting, self._partitions, self._watch
        return lambda state, settled: fold(state, settled, configs.current, predicting, partitions, watch)

    def _tell_features(self, compiled: Compiled, parts: Sequence[OfSurface]) -> None:
        surface, found = compiled.surface.surface, list(shifts(compiled, parts).items())
        told = found[:MOST_FEATURES]
        if len(found) > MOST_FEATURES:
            rest = [shift for _, shift in found[MOST_FEATURES:]]
            unseen = [one.unseen for one in rest if one.unseen is not None]
            worst = Shift(max(one.nats for one in rest), max(one.missing for one in rest), max(unseen, default=None))
            told.append(("other", worst))
        for feature, shift in told:
            self._telemetry.set("feature_drift_nats", surface, feature, value=shift.nats)
            self._telemetry.set("feature_missing_ratio", surface, feature, value=shift.missing)
            if shift.unseen is not None:
                self._telemetry.set("feature_unseen_ratio", surface, feature, value=shift.unseen)

    def _tell_residuals(self, compiled: Compiled, parts: Sequence[OfSurface]) -> None:
        surface = compiled.surface.surface
        for name in compiled.surface.policies:
            policy = compiled.policies[name]
            span, found = span_of(policy.problem), evidence(parts, name, policy.key, self._watch)
            if found is None or span is None:
                continue
            for window, mean in (("reference", found.reference), ("recent", found.recent)):
                value = (2.0 * mean - 1.0) * (span[1] - span[0])
                self._telemetry.set("residual_mean_value", surface, name, window, value=value)
            self._telemetry.set("residual_drift_ratio", surface, name, value=found.share)
            left = compiled.surface.policies[name].on_drift
            if found.alarm and not isinstance(left, UnsetType):
                self._reset(policy, left)

    def _reset(self, policy: CompiledPolicy, left: float) -> None:
        """Record that a policy's evidence so far counts less: once, for it is recorded against the resets that its key knows."""
        state, surface = self._releases.state, policy.key.split("/")[1]
        held, recorded = state.get(adjusting.KIND, surface), adjusting.adjustments_on(state, surface)
        if tuple(recorded.resets.get(policy.name, ())) != policy.resets:
            return  # it was, and has not come to act yet
        resets = {**recorded.resets, policy.name: [*policy.resets, left]}
        after = msgspec.structs.replace(recorded, at=self._clock(), resets=resets)
        adjusting.record(state, surface, after, held.version if held is not None else 0)
        self._telemetry.add("drift_resets_total", surface, policy.name)
        log.warning("reset for drift", extra={"surface": surface, "policy": policy.name, "left": left})

    def _tell_examination(self, compiled: Compiled, parts: Sequence[OfSurface]) -> None:
        """How often slots are looked at; recorded when it is sure, and again only when that proves wrong."""
        surface, found = compiled.surface.surface, examined(compiled, parts)
        if found is None:
            return
        for bound, values in (("estimate", found.estimate), ("low", found.low), ("high", found.high)):
            for slot, value in enumerate(values[:MOST_SLOTS].tolist()):
                if np.isfinite(value):
                    self._telemetry.set("examined_ratio", surface, str(slot), bound, value=value)
        held = self._releases.state.get(adjusting.KIND, surface)
        recorded = adjusting.adjustments_on(self._releases.state, surface)
        known = np.array(recorded.examined) if len(recorded.examined) == len(found.estimate) else None
        if found.news(known):
            estimate = [round(value, 4) for value in found.estimate.tolist()]
            after = msgspec.structs.replace(recorded, at=self._clock(), examined=estimate)
            adjusting.record(self._releases.state, surface, after, held.version if held is not None else 0)
            log.info("examination estimated", extra={"surface": surface, "examined": estimate})

    def _adjust(self, surface: str) -> None:
        """Let what is recorded act, also what was recorded before a crash or beside an edit."""
        self._follow()
        current, state = self._configs.current(surface), self._releases.state
        if current is None:
            return
        recorded = adjusting.adjustments_on(state, surface)
        if adjusting.adjusted(current.surface, recorded) == current.surface:
            return
        digest = publish_surface(state, current.surface)
        state.put([entry(Change(recorded.at, WHO, "adjust", f"surface/{surface}", current.hash, digest))])
        self._follow()
        log.info("adjusted", extra={"surface": surface, "version": digest})

    def _follow(self) -> None:
        with self._following:
            self._configs.follow(self._releases.state)
