"""`slatewise plan CONFIG`: what applying a configuration would keep, rebuild and move. Nothing is written."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import msgspec
import numpy as np

from policies.errors import Rejected
from policies.experiments import course
from policies.experiments.assignment import BUCKETS, NOBODY
from policies.experiments.document import Experiment, Trial
from policies.surface import Surface
from services.cli import _settings, settings_options
from services.configuring import applied, current_surfaces
from services.trials import Trials
from services.wiring import own_state
from streaming import adjusting
from streaming.configuration import Compiled, CompiledPolicy, ConfigInvalid, Configs, compile_surface, load_folder
from streaming.experiments import keep_running, load_experiments
from streaming.ports import State


@click.command(epilog="Exit code 1: the configuration has mistakes, or a running experiment forbids it.")
@click.argument("folder", metavar="CONFIG", type=click.Path(exists=True, path_type=Path))
@settings_options
def command(folder: Path, **flags: object) -> None:
    """What applying a config folder would keep, rebuild and move; nothing is written."""
    said, mistakes = plan(own_state(_settings(flags)), folder)
    for line in said:
        click.echo(line)
    for line in mistakes:
        click.echo(line, err=True)
    if mistakes:
        raise SystemExit(1)


def plan(state: State, folder: Path) -> tuple[list[str], list[str]]:
    """(what would happen, what forbids it), one line each."""
    configs = Configs()
    configs.follow(state)
    try:
        surfaces = load_folder(folder)
        known = {one.surface: one for one in [*current_surfaces(state), *surfaces]}
        experiments = load_experiments(folder, known)
    except ConfigInvalid as error:
        return [], [str(mistake) for mistake in error.mistakes]
    said: list[str] = []
    mistakes: list[str] = []
    for surface in surfaces:
        adjusted = adjusting.adjusted(surface, adjusting.adjustments_on(state, surface.surface))
        said += _surface(configs.current(surface.surface), compile_surface(adjusted))
        try:
            keep_running(surface, configs.trials(surface.surface))
        except Rejected as error:
            mistakes.append(f"{surface.surface}: {error}")
    last = applied(state)
    named = {surface.surface for surface in surfaces}
    said += [
        f"{name}: not in the folder any more; it stays, and may be edited by API"
        for name in _gone(last.surfaces if last else [], named)
    ]
    trials = Trials(state, configs)
    for experiment in experiments:
        try:
            said += _experiment(trials, experiment, known)
        except Rejected as error:
            mistakes.append(f"experiment {experiment.experiment}: {error}")
    named = {experiment.experiment for experiment in experiments}
    gone = _gone(last.experiments if last else [], named)
    said += [f"experiment {name}: not in the folder any more; it goes on, and may be edited by API" for name in gone]
    return said, mistakes


def _gone(before: list[str], now: set[str]) -> list[str]:
    return [name for name in before if name not in now]


def _surface(before: Compiled | None, after: Compiled) -> Iterator[str]:
    name = after.surface.surface
    if before is None:
        yield f"{name}: new, version {after.hash}"
        yield from (f"  {policy}: begins with nothing learned" for policy in after.surface.policies)
        return
    if before.hash == after.hash:
        yield f"{name}: unchanged"
        return
    changed = ", ".join(_fields(before.surface, after.surface))
    yield f"{name}: version {before.hash} → {after.hash}: {changed}; decisions made before keep the version they name"
    first, then = _live(before), _live(after)
    if first != then:
        yield f"  answers move from {first} to {then}"
    for policy in after.surface.policies:
        yield f"  {policy}: {_policy(before.policies.get(policy), after.policies[policy])}"
    for policy in before.surface.policies:
        if policy not in after.surface.policies:
            yield f"  {policy}: removed; what it learned stays in the checkpoints, and is taken up again under that name"


def _fields(before: Surface, after: Surface) -> list[str]:
    return [name for name in before.__struct_fields__ if getattr(before, name) != getattr(after, name)]


def _live(compiled: Compiled) -> str:
    return compiled.surface.live or compiled.surface.fallback


def _policy(before: CompiledPolicy | None, after: CompiledPolicy) -> str:
    """What becomes of what a policy learned: a function of the keys of its sums (`policies.carrying`)."""
    algorithm = after.algorithm
    learns = algorithm.learner is not None or algorithm.trainer is not None
    if not learns:
        return "has nothing to learn"
    if before is None:
        return "new, begins with nothing learned"
    if before.key == after.key:
        same = before.config == after.config and before.problem.weights == after.problem.weights
        return "keeps all it learned" + ("" if same else "; its options and weights act from the next publish on")
    if before.algorithm.name != algorithm.name:
        return f"begins with nothing learned: {before.algorithm.name} → {algorithm.name}"
    if algorithm.carry is None:
        return f"begins with nothing learned: {algorithm.name} cannot carry sums of another shape"
    if not any(weight and name in before.problem.objectives for name, weight in after.problem.weights.items()):
        return "begins with nothing learned: it knew none of the objectives it weighs now"
    return (
        "rebuilds: new sums, to which what it learned is added at every publish; the old bundle serves until the first"
    )


def _experiment(trials: Trials, document: Experiment, surfaces: Mapping[str, Surface]) -> Iterator[str]:
    """Raises Rejected for what a running experiment must keep."""
    name = document.experiment
    held = {trial.document.experiment: trial for trial in trials.all()}.get(name)
    if held is None:
        begins = f"begins at {document.start}" if document.start else f"waits for `slatewise experiment start {name}`"
        yield f"experiment {name}: new, {begins}"
        return
    after = trials.check(document)
    if after == msgspec.structs.replace(held, managed=after.managed):
        yield f"experiment {name}: unchanged, {held.status}"
        return
    yield f"experiment {name}: {held.status}, {', '.join(_changes(held.document, document))}"
    moved = _moved(held, after)
    if moved:
        yield f"  moves {sum(moved.values()) / BUCKETS:.2%} of the layer's units: " + ", ".join(
            f"{count / BUCKETS:.2%} {first} → {then}" for (first, then), count in sorted(moved.items())
        )
    elif held.status == "running":
        yield "  moves nobody"


def _changes(before: Experiment, after: Experiment) -> list[str]:
    fields = [name for name in before.__struct_fields__ if getattr(before, name) != getattr(after, name)]
    if "arms" in fields and course.shares_of(before) != course.shares_of(after):
        fields[fields.index("arms")] = "shares"
    return fields or ["as the course left it"]


def _moved(before: Trial, after: Trial) -> dict[tuple[str, str], int]:
    """(from, to) → buckets."""
    names = dict(enumerate(after.document.arms)) | {NOBODY: "nobody"}
    tables = [np.frombuffer(trial.buckets, np.uint8) for trial in (before, after)]
    pairs, counts = np.unique(np.stack(tables), axis=1, return_counts=True)
    found = zip(pairs.T.tolist(), counts.tolist(), strict=True)
    return {(names[first], names[then]): count for (first, then), count in found if first != then}
