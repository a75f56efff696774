"""Experiments as an operator handles them: create, edit, start, give other shares, stop. Each step is compared and audited.

A step is one write of the state record: the experiment, its place in the surface's list and the entry of the audit. The
surface versions of its arms are stored before it, so that every replica that knows the experiment can serve it.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from policies.errors import Rejected
from policies.experiments import course
from policies.experiments.document import Experiment, Trial
from policies.surface import Surface
from services.audit import Change, entry
from services.settings import Settings
from services.wiring import own_state
from streaming.configuration import Configs, store_arms
from streaming.experiments import KIND, decode, from_json, indexed, keep_running, load_experiments, stored, trials_on
from streaming.ports import State

Step = Callable[[Trial, Sequence[Trial], float], Trial]
TRIES = 20  # another writer came in between so often: something is wrong


@dataclass(frozen=True, slots=True)
class Trials:
    """Experiments of one installation. `clock` gives epoch seconds."""

    state: State
    configs: Configs
    clock: Callable[[], float] = time.time
    _following: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        state, configs = own_state(settings), Configs(settings.tenant)
        configs.follow(state)
        return cls(state, configs)

    def all(self) -> list[Trial]:
        """By name. Raises Unavailable."""
        with self._following:
            self.configs.follow(self.state)
            return self.configs.trials()

    def get(self, name: str) -> tuple[Trial, int]:
        """(experiment, version to compare with). Raises Rejected(404)."""
        found = self.state.get(KIND, name)
        if found is None or found.value is None:
            raise Rejected(f"No experiment {name!r}", at="$.name", code="unknown_experiment", status=404)
        return decode(found.value), found.version

    def create(self, body: bytes, who: str) -> Trial:
        """A new experiment of a JSON document. Raises ConfigInvalid, Rejected."""
        document = self.read(body)
        return self.add(document, who)

    def create_from(self, path: Path, who: str) -> Trial:
        """A new experiment of the one experiment document of a YAML or JSON file. Raises ConfigInvalid, Rejected."""
        found = load_experiments(path, self._surfaces())
        if len(found) != 1:
            raise Rejected(f"Expected one document with `experiment:` in {path}, got {len(found)}", at=str(path))
        return self.add(found[0], who)

    def read(self, body: bytes) -> Experiment:
        """Raises ConfigInvalid, Rejected(400)."""
        return from_json(body, self._surfaces())

    def add(self, document: Experiment, who: str, *, managed: bool = False) -> Trial:
        """Raises Rejected(409) when there is one of that name."""
        seen, held = self.state.version(), self.state.get(KIND, document.experiment)
        if held is not None and held.value is not None:
            raise Rejected(f"Experiment {document.experiment!r} exists", at="$.experiment", code="exists", status=409)
        now, others = self.clock(), self._others(document)
        trial = course.drafted(document, others, now, managed=managed)
        self._put(None, trial, seen, who, "create", now)
        return trial

    def edit(self, name: str, document: Experiment, who: str, expect: int | None, *, managed: bool = False) -> Trial:
        """Another document. Raises Rejected(409) for one that a file manages, and for what a running one must keep."""
        if document.experiment != name:
            raise Rejected(f"Expected a document of experiment {name!r}", at="$.experiment")

        def step(trial: Trial, others: Sequence[Trial], now: float) -> Trial:
            if trial.managed and not managed:
                raise Rejected(
                    f"Experiment {name!r} is managed: file; edit the config folder", code="managed", status=409
                )
            return msgspec.structs.replace(course.edited(trial, document, others, now), managed=managed)

        return self._step(name, step, who, "edit", expect)

    def check(self, document: Experiment) -> Trial:
        """What `apply` would come to. Raises Rejected for a document that it would refuse."""
        held, others = self.state.get(KIND, document.experiment), self._others(document)
        if held is not None and held.value is not None:
            return course.edited(decode(held.value), document, others, self.clock())
        return course.drafted(document, others, self.clock(), managed=True)

    def apply(self, document: Experiment, who: str) -> Trial:
        """A document of the config folder: a new experiment, or other words about one that keeps its course."""
        held = self.state.get(KIND, document.experiment)
        if held is None or held.value is None:
            return self.add(document, who, managed=True)
        return self.edit(document.experiment, document, who, None, managed=True)

    def release(self, name: str, who: str) -> None:
        """An experiment that the config folder no longer has: it goes on, and may be edited by API."""

        def step(trial: Trial, others: Sequence[Trial], now: float) -> Trial:
            return msgspec.structs.replace(trial, managed=False)

        if self.state.get(KIND, name) is not None:
            self._step(name, step, who, "release", None)

    def start(self, name: str, who: str, expect: int | None = None) -> Trial:
        return self._step(name, course.started, who, "start", expect)

    def allocate(self, name: str, shares: Mapping[str, float], who: str, expect: int | None = None) -> Trial:
        """Other shares of some arms; the others keep theirs."""

        def step(trial: Trial, others: Sequence[Trial], now: float) -> Trial:
            return course.given(trial, shares, others, now)

        return self._step(name, step, who, "allocate", expect)

    def stop(self, name: str, who: str, reason: str = "", expect: int | None = None) -> Trial:
        def step(trial: Trial, others: Sequence[Trial], now: float) -> Trial:
            return course.stopped(trial, reason, now)

        return self._step(name, step, who, "stop", expect)

    def _step(self, name: str, step: Step, who: str, action: str, expect: int | None) -> Trial:
        """`expect`: the version the caller has seen; None: whatever is there now, tried again when it moves."""
        for _ in range(TRIES):
            seen = self.state.version()
            trial, version = self.get(name)
            if expect is not None and expect != version:
                raise Rejected(
                    f'Expected If-Match: "{version}", got "{expect}"',
                    at="$.headers.if-match",
                    code="stale",
                    status=412,
                )
            now = self.clock()
            after = step(trial, self._others(trial.document), now)
            if after == trial:
                return trial
            try:
                self._put(trial, after, seen, who, action, now)
            except Rejected as error:
                if error.code != "conflict" or expect is not None:
                    raise
                continue
            return after
        raise Rejected(f"Experiment {name!r} is being changed by others", code="stale", status=409)

    def _put(self, before: Trial | None, after: Trial, seen: int, who: str, action: str, now: float) -> None:
        with self._following:
            self.configs.follow(self.state)
            compiled = self.configs.current(after.document.surface)
        if compiled is None:
            raise Rejected(f"No surface {after.document.surface!r}", at="$.surface", code="unknown_surface")
        if after.status == "running":
            keep_running(compiled.surface, [after])
        if after.status != "stopped":
            store_arms(self.state, compiled.surface, [after], self.configs.live(compiled))
        name = after.document.experiment
        change = Change(now, who, action, f"experiment/{name}", before and told(before), told(after))
        self.state.put([(KIND, name, stored(after)), *indexed(self.state, after), entry(change)], expect=seen)

    def _others(self, document: Experiment) -> list[Trial]:
        others = [t for t in trials_on(self.state, document.surface) if t.document.experiment != document.experiment]
        for other in others:
            same = other.status == "running" and other.document.layer == document.layer
            if same and other.document.unit != document.unit:
                raise Rejected(
                    f"Layer {document.layer!r} is sticky by {other.document.unit} in {other.document.experiment!r}",
                    at="$.unit",
                    code="layer_unit",
                )
        return others

    def _surfaces(self) -> dict[str, Surface]:
        with self._following:
            self.configs.follow(self.state)
            found = ((name, self.configs.current(name)) for name in self.configs.surfaces())
            return {name: compiled.surface for name, compiled in found if compiled is not None}


def told(trial: Trial) -> dict[str, Any]:
    """An experiment as people read it: without its table of buckets."""
    plain: dict[str, Any] = msgspec.to_builtins(trial)
    shares = trial.allocations[-1].shares if trial.allocations else course.shares_of(trial.document)
    for internal in ("buckets", "written"):
        del plain[internal]
    return {**plain, "shares": shares, "managed": "file" if trial.managed else "api"}
