"""Releases of policies as an operator handles them: start, canary, promote, abort, roll back. Each step is compared and audited.

A step is one write of the state record: what releases have made of the surface, and the entry of the audit. That is state, so
it survives restarts, and surfaces of a config folder may be released by API (`semantics.md` 19).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from policies import releases as course
from policies.errors import Rejected
from policies.releases import Release, Released, Terms
from services.audit import Change, entry
from streaming.checks import RESERVED
from streaming.configuration import Compiled, Configs, store_arms
from streaming.experiments import DECISIONS, trials_on
from streaming.ports import State
from streaming.releases import KIND, decode, key_of, stored

TRIES = 20  # another writer came in between so often: something is wrong
Step = Callable[[Released, Compiled, float], Released]


@dataclass(frozen=True, slots=True)
class Promotions:
    """Releases of one installation. `clock` gives epoch seconds."""

    state: State
    configs: Configs
    clock: Callable[[], float] = time.time
    _following: threading.Lock = field(default_factory=threading.Lock)

    def get(self, surface: str) -> tuple[Released, int]:
        """(what releases have made of a surface, version to compare with; 0: none yet). Raises Rejected(404)."""
        self.compiled(surface)
        found = self.state.get(KIND, key_of(surface))
        return (Released(), 0) if found is None or found.value is None else (decode(found.value), found.version)

    def all(self) -> dict[str, Released]:
        """By surface, of those that have had a release. Raises Unavailable."""
        self.follow()
        found = {name: self.configs.released(name) for name in self.configs.surfaces()}
        return {name: released for name, released in found.items() if released != Released()}

    def start(
        self,
        surface: str,
        candidate: str,
        who: str,
        *,
        terms: Terms | None = None,
        stage: Literal["apprentice", "shadow"] = "apprentice",
        baseline: str | None = None,
        expect: int | None = None,
    ) -> Released:
        """Watch a candidate beside the baseline, which is served from now on; default: what is served already. Raises Rejected."""

        def step(released: Released, compiled: Compiled, now: float) -> Released:
            served = self.configs.live(compiled) or compiled.surface.fallback
            against = baseline or served
            for name, at in ((candidate, "$.candidate"), (against, "$.baseline")):
                if name not in compiled.policies:
                    known = ", ".join([*compiled.surface.policies, *RESERVED])
                    raise Rejected(f"No policy {name!r}; there are {known}", at=at, code="unknown_policy")
            wanted = judged_by(terms or Terms(), compiled, against)
            after = course.started(released, surface, candidate, against, stage, wanted, now)
            if against == served:
                return after
            store_arms(self.state, compiled.surface, trials_on(self.state, surface), against)
            return msgspec.structs.replace(after, live=against, before=[*after.before, released.live])

        return self._step(surface, step, who, "start", expect)

    def watch(self, surface: str, who: str, expect: int | None = None) -> Released:
        """From apprentice to shadow."""
        return self._step(surface, lambda released, _, now: course.watched(released, now), who, "shadow", expect)

    def canary(self, surface: str, who: str, share: float | None = None, expect: int | None = None) -> Released:
        return self._step(surface, lambda released, _, now: course.tried(released, share, now), who, "canary", expect)

    def promote(
        self,
        surface: str,
        who: str,
        verdict: dict[str, Any] | None,
        *,
        run: int | None = None,
        forced: bool = False,
        reason: str = "",
        expect: int | None = None,
    ) -> Released:
        """`verdict`: what allows it, unless it is forced; `run`: the one it was found in. Raises Rejected(409)."""

        def step(released: Released, compiled: Compiled, now: float) -> Released:
            release = _same(course.running(released), run)
            if not forced and (verdict is None or verdict.get("outcome") != "promote"):
                said = "nothing was judged" if verdict is None else f"the verdict is {verdict.get('outcome')}"
                raise Rejected(f"{release.candidate} is not promoted: {said}", code="not_better", status=409)
            after = course.promoted(released, verdict, now, forced=forced, reason=reason)
            store_arms(self.state, compiled.surface, trials_on(self.state, surface), after.live)
            return after

        return self._step(surface, step, who, "promote", expect)

    def abort(
        self,
        surface: str,
        who: str,
        reason: str = "",
        *,
        run: int | None = None,
        verdict: dict[str, Any] | None = None,
        expect: int | None = None,
    ) -> Released:
        def step(released: Released, _: Compiled, now: float) -> Released:
            _same(course.running(released), run)
            return course.aborted(released, reason, now, verdict)

        return self._step(surface, step, who, "abort", expect)

    def rollback(
        self, surface: str, who: str, reason: str = "", *, run: int | None = None, expect: int | None = None
    ) -> Released:
        def step(released: Released, compiled: Compiled, now: float) -> Released:
            if run is not None and released.release is not None:
                _same(released.release, run)
            after = course.rolled_back(released, reason, now)
            store_arms(self.state, compiled.surface, trials_on(self.state, surface), after.live)
            return after

        return self._step(surface, step, who, "rollback", expect)

    def compiled(self, surface: str) -> Compiled:
        """Raises Rejected(404)."""
        self.follow()
        found = self.configs.current(surface)
        if found is None:
            raise Rejected(f"No surface {surface!r}", at="$.surface", code="unknown_surface", status=404)
        return found

    def follow(self) -> None:
        """Take in what is newer in the record. Raises Unavailable."""
        with self._following:
            self.configs.follow(self.state)

    def _step(self, surface: str, step: Step, who: str, action: str, expect: int | None) -> Released:
        """`expect`: the version the caller has seen; None: whatever is there now, tried again when it moves."""
        for _ in range(TRIES):
            seen = self.state.version()
            before, version = self.get(surface)
            if expect is not None and expect != version:
                raise Rejected(
                    f'Expected If-Match: "{version}", got "{expect}"', at="$.headers.if-match", code="stale", status=412
                )
            now = self.clock()
            after = step(before, self.compiled(surface), now)
            change = Change(now, who, action, f"release/{surface}", told(before), told(after))
            try:
                self.state.put([(KIND, key_of(surface), stored(after)), entry(change)], expect=seen)
            except Rejected as error:
                if error.code != "conflict" or expect is not None:
                    raise
                continue
            self.follow()
            return after
        raise Rejected(f"Releases of {surface!r} are being changed by others", code="stale", status=409)


def judged_by(terms: Terms, compiled: Compiled, baseline: str) -> Terms:
    """The terms with the objective that they leave out. Raises Rejected, naming the field."""
    surface = compiled.surface
    spec = surface.policies.get(baseline)
    objective = terms.objective or (spec.objective if spec else None) or next(iter(surface.objectives), None)
    if objective is None or objective not in surface.objectives:
        known = ", ".join(surface.objectives) or "none"
        raise Rejected(
            f"No objective {objective!r}; there are {known}", at="$.terms.objective", code="unknown_objective"
        )
    if surface.objectives[objective].range is None:
        raise Rejected(
            f"Objective {objective!r} needs a `range` to be judged by", at="$.terms.objective", code="no_range"
        )
    for name in terms.guardrails:
        if name not in (*surface.objectives, DECISIONS):
            raise Rejected(f"No metric {name!r}", at=f"$.terms.guardrails.{name}", code="unknown_metric")
    return msgspec.structs.replace(terms, objective=objective)


def told(released: Released) -> dict[str, Any]:
    """As people read it in the audit: without what went before."""
    plain: dict[str, Any] = msgspec.to_builtins(released)
    del plain["history"]
    return plain


def _same(release: Release, run: int | None) -> Release:
    """Raises Rejected(409) when what was judged is over."""
    if run is not None and release.run != run:
        raise Rejected(f"{release.candidate} is in another run by now", code="stale", status=409)
    return release
