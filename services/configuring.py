"""Applies a folder of surface and experiment documents to the state record, once for each content (`semantics.md` 19).

What a folder brought is managed by it: the control API refuses to edit it, but for the course of experiments (shares, start,
stop), which is state and survives. Without a folder, a service that has never been configured gets the quickstart surface,
which nobody manages.
"""

import time
from importlib.resources import as_file, files
from pathlib import Path

import msgspec
from msgspec import Struct

from policies.experiments.document import Experiment
from policies.surface import Surface, content_hash
from services.audit import Change, entry
from services.trials import Trials
from streaming.configuration import POINTER, Configs, load_folder, publish_surface
from streaming.experiments import keep_running, load_experiments, trials_on
from streaming.ports import State

KIND, KEY = "config-folder", "default"
FILE = "config folder"  # who it was, in the audit


class Applied(Struct, frozen=True):
    """What the last applied folder was."""

    hash: str
    surfaces: list[str]
    managed: bool = True
    experiments: list[str] = []


def apply_folder(state: State, folder: Path) -> bool:
    """Publish every surface and experiment of a folder when it differs from the last one applied. Raises ConfigInvalid, and
    Rejected for what a running experiment must keep; then nothing is applied."""
    surfaces = load_folder(folder)
    known = {one.surface: one for one in [*current_surfaces(state), *surfaces]}
    return _apply(state, surfaces, load_experiments(folder, known), managed=True)


def current_surfaces(state: State) -> list[Surface]:
    """Those that answer now."""
    configs = Configs()
    configs.follow(state)
    return [compiled.surface for compiled in configs.answering()]


def apply_quickstart(state: State) -> bool:
    """Publish the quickstart surface unless the state record already holds a configuration."""
    if applied(state) is not None or any(entry.kind == "surface" for entry in state.read()):
        return False
    return _apply(state, quickstart(), [], managed=False)


def quickstart() -> list[Surface]:
    """The surfaces that come with the package."""
    with as_file(files("services") / "quickstart") as folder:
        return load_folder(folder)


def applied(state: State) -> Applied | None:
    entry = state.get(KIND, KEY)
    return msgspec.json.decode(entry.value, type=Applied) if entry and entry.value else None


def _apply(state: State, surfaces: list[Surface], experiments: list[Experiment], *, managed: bool) -> bool:
    digest = content_hash([msgspec.to_builtins(one) for one in [*surfaces, *experiments]])
    last = applied(state)
    if last is not None and last.hash == digest and last.managed == managed:
        return False
    trials, now = Trials(state, Configs()), time.time()
    for surface in surfaces:
        keep_running(surface, trials_on(state, surface.surface))
    for experiment in experiments:
        trials.check(experiment)
    for surface in surfaces:
        pointer = state.get(POINTER, surface.surface)
        before = pointer.value.decode() if pointer and pointer.value else None
        after = publish_surface(state, surface)
        if before != after:
            change = Change(now, FILE, "edit" if before else "create", f"surface/{surface.surface}", before, after)
            state.put([entry(change)])
    for experiment in experiments:
        trials.apply(experiment, FILE)
    names = [experiment.experiment for experiment in experiments]
    for name in last.experiments if last is not None else []:
        if name not in names:
            trials.release(name, FILE)
    done = Applied(digest, [surface.surface for surface in surfaces], managed, names)
    state.put([(KIND, KEY, msgspec.json.encode(done))])
    return True
