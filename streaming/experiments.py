"""Experiment documents: read, checked against their surface, kept in the state record as kind `experiment`.

An arm whose policy must not teach others is a surface version of its own (`Surface.untaught`): decisions name it as they
name any version, so joining and rewarding know nothing of experiments. Those versions are stored before the experiment, and
before the surface, that needs them (`semantics.md` 17).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import msgspec
from msgspec import inspect as shapes

from policies.counted import counted
from policies.errors import Rejected
from policies.experiments.assignment import MAX_ARMS
from policies.experiments.course import epoch_seconds
from policies.experiments.document import Condition, Experiment, Scalar, Trial
from policies.registry import algorithm
from policies.surface import Surface, seconds
from streaming import documents
from streaming.checks import NAME, RESERVED, Fault
from streaming.documents import ConfigInvalid, Document, Mistake, Path, spelled
from streaming.fitting import DURATION, Fit, got, unknown
from streaming.ports import State
from streaming.surfaces import config_of, files_of

KIND, INDEX = "experiment", "experiments"  # name → Trial;   surface → names
DECISIONS = "decisions"  # the metric every surface has: how often a unit was exposed
KEY = "16 hex digits: the `key` of an answer"


def load_experiments(folder: FilePath, surfaces: Mapping[str, Surface]) -> list[Experiment]:
    """Every experiment of a folder or file, for surfaces by name. Raises ConfigInvalid with all mistakes."""
    found: list[Experiment] = []
    mistakes: list[Mistake] = []
    places: dict[str, str] = {}
    for file in files_of(folder):
        for document in documents.from_yaml(file.read_text(encoding="utf-8"), str(file)):
            if not isinstance(document.value, dict) or "experiment" not in document.value:
                continue
            experiment = read(document, surfaces)
            if experiment is not None:
                here = f"{file}:{document.line(('experiment',))}"
                first = places.setdefault(experiment.experiment, here)
                if first != here:
                    said = f"{experiment.experiment!r} is already defined at {first}"
                    document.say(("experiment",), said, "each experiment once")
                found.append(experiment)
            mistakes += document.mistakes
    if mistakes:
        raise ConfigInvalid(mistakes)
    return found


def from_json(data: bytes, surfaces: Mapping[str, Surface]) -> Experiment:
    """The experiment of a request body. Raises ConfigInvalid, Rejected(400)."""
    document = documents.from_json(data, "body")
    experiment = read(document, surfaces)
    if experiment is None or document.mistakes:
        raise ConfigInvalid(document.mistakes)
    return experiment


def read(document: Document, surfaces: Mapping[str, Surface]) -> Experiment | None:
    """The experiment of a document; every mistake is said to it."""
    if not isinstance(document.value, dict):
        document.say((), f"expected a mapping, got {got(document.value)}", "an experiment document")
        return None
    shape = shapes.type_info(Experiment)
    assert isinstance(shape, shapes.StructType)
    value = dict(document.value)
    eligible = value.pop("eligible", {})
    fitted = Fit(document).fit(value, shape, ())
    fitted["eligible"] = _conditions(document, eligible)
    if document.mistakes:
        return None
    try:
        experiment = msgspec.convert(fitted, Experiment)
    except msgspec.ValidationError as error:  # a constraint of the types that `Fit` does not know
        document.say((), str(error))
        return None
    for path, message, expected in faults(experiment, surfaces.get(experiment.surface), list(surfaces)):
        if document.sound(path):
            document.say(path, message, expected)
    return None if document.mistakes else experiment


def _conditions(document: Document, said: Any) -> dict[str, Any]:
    """`eligible` as the type has it: a union of values, lists and mappings, which `Fit` cannot tell apart."""
    if not isinstance(said, dict):
        document.say(("eligible",), f"expected a mapping, got {got(said)}", "context feature → condition")
        return {}
    for name, one in said.items():
        try:
            msgspec.convert(one, Scalar | list[Scalar] | Condition)
        except msgspec.ValidationError as error:
            document.say(("eligible", name), str(error).replace("`", ""), "a value, a list, or {any, none, min, max}")
    return said


def faults(experiment: Experiment, surface: Surface | None, known: Sequence[str]) -> Iterator[Fault]:
    """Everything wrong with an experiment whose types fit."""
    named: list[tuple[Path, str]] = [(("experiment",), experiment.experiment), (("layer",), experiment.layer)]
    named += [(("arms", name), name) for name in experiment.arms]
    named += [(("metrics", "ratios", name), name) for name in experiment.metrics.ratios]
    for path, name in named:
        if not NAME.fullmatch(name):
            yield Fault(path, f"the name {name[:80]!r}", "1 to 64 letters, digits, dots, dashes and underscores")
    yield from _arms(experiment)
    yield from _times(experiment)
    analysis = experiment.analysis
    if not 0 < analysis.alpha < 0.5:
        yield Fault(("analysis", "alpha"), f"alpha is {analysis.alpha:g}", "a number above 0 and below 0.5")
    if analysis.planned < 2 * len(experiment.arms):
        yield Fault(("analysis", "planned"), f"{analysis.planned} units", f"at least {2 * len(experiment.arms)}")
    if not analysis.effect > 0:
        yield Fault(("analysis", "effect"), f"effect is {analysis.effect:g}", "a number above 0")
    if surface is None:
        hint, expected = unknown(experiment.surface, list(known))
        yield Fault(("surface",), f"no surface {experiment.surface!r}{hint}", expected)
        return
    policies = [*surface.policies, *RESERVED]
    for name, arm in experiment.arms.items():
        if arm.policy is not None and arm.policy not in policies:
            hint, expected = unknown(arm.policy, policies)
            yield Fault(("arms", name, "policy"), f"no policy {arm.policy!r}{hint}", expected)
        if arm.draw.floor is not None and not 0 <= arm.draw.floor <= surface.exploration.least_share:
            expected = f"a number from 0 to {surface.exploration.least_share:g}"
            yield Fault(("arms", name, "draw", "floor"), f"floor is {arm.draw.floor:g}", expected)
        if arm.draw.temperature is not None and not 0 < arm.draw.temperature < float("inf"):
            message = f"temperature is {arm.draw.temperature:g}"
            yield Fault(("arms", name, "draw", "temperature"), message, "a number above 0")
    yield from _metrics(experiment, surface)
    if experiment.kind == "interleaving":
        yield from _interleaving(experiment, surface)
    for feature in experiment.eligible:
        if feature not in surface.features.context:
            hint, expected = unknown(feature, list(surface.features.context))
            yield Fault(("eligible", feature), f"no context feature {feature!r}{hint}", expected)
        elif feature in counted(surface.features.context):
            message = f"{feature} is counted by the service, and experiments know what callers say"
            yield Fault(("eligible", feature), message, "another feature")


def _arms(experiment: Experiment) -> Iterator[Fault]:
    arms = experiment.arms
    if not 2 <= len(arms) <= MAX_ARMS:
        yield Fault(("arms",), f"{len(arms)} arms", f"from 2 to {MAX_ARMS}")
    for name, arm in arms.items():
        if not 0 <= arm.share <= 1:
            yield Fault(("arms", name, "share"), f"share is {arm.share:g}", "a number from 0 to 1")
    total = sum(arm.share for arm in arms.values())
    if total > 1 + 1e-9:
        yield Fault(("arms",), f"shares add up to {total:g}", "at most 1 together")
    if experiment.control is not None and experiment.control not in arms:
        hint, expected = unknown(experiment.control, list(arms))
        yield Fault(("control",), f"no arm {experiment.control!r}{hint}", expected)
    for key, name in experiment.overrides.items():
        if len(key) != 16 or any(c not in "0123456789abcdef" for c in key):
            yield Fault(("overrides", key), f"{key[:40]!r} is no key", KEY)
        if name not in arms:
            hint, expected = unknown(name, list(arms))
            yield Fault(("overrides", key), f"no arm {name!r}{hint}", expected)


def _interleaving(experiment: Experiment, surface: Surface) -> Iterator[Fault]:
    """Two policies that can follow each other's picks, judged by what their items earn."""
    if len(experiment.arms) != 2:
        yield Fault(("arms",), f"{len(experiment.arms)} arms", "two: a slate is filled by two policies")
    names = [arm.policy or surface.live or surface.fallback for arm in experiment.arms.values()]
    if len(set(names)) < len(names):
        yield Fault(("arms",), f"both arms draw from {names[0]}", "two policies")
    for (name, arm), policy in zip(experiment.arms.items(), names, strict=True):
        if arm.holdout:
            yield Fault(("arms", name, "holdout"), "every slate is of both arms", "no holdout")
        spec = surface.policies.get(policy)
        if spec is None:
            continue
        config = config_of(spec)
        if algorithm(spec.algorithm).manager is not None:
            message = f"{policy} draws goals for sessions, which half a slate cannot keep"
            yield Fault(("arms", name, "policy"), message, "a policy without goals")
        floor = config.floor if arm.draw.floor is None else arm.draw.floor
        if not floor > 0:
            message = f"{policy} has no floor, so it cannot follow what the other policy picks"
            yield Fault(("arms", name, "policy"), message, "a floor above 0")
    metrics = experiment.metrics
    for i, metric in enumerate([metrics.primary, *metrics.secondary]):
        path: Path = ("metrics", "secondary", i - 1) if i else ("metrics", "primary")
        if metric not in surface.objectives:
            yield Fault(path, f"{metric!r} cannot be credited to an item", "an objective of the surface")
    for group in ("guardrails", "ratios"):
        if getattr(metrics, group):
            yield Fault(("metrics", group), f"{group} compare arms, and every slate is of both", f"no {group}")
    if experiment.analysis.method == "bayesian":
        yield Fault(("analysis", "method"), "a preference is no difference of means", "sequential or fixed")


def _times(experiment: Experiment) -> Iterator[Fault]:
    try:
        if seconds(experiment.analysis.window) <= 0:
            yield Fault(("analysis", "window"), "the window is empty", DURATION)
    except Rejected:
        yield Fault(("analysis", "window"), f"got {experiment.analysis.window!r}", DURATION)
    found: dict[str, float] = {}
    for name, written in (("start", experiment.start), ("stop", experiment.stop)):
        if written is not None:
            try:
                found[name] = epoch_seconds(written)
            except Rejected as error:
                yield Fault((name,), error.message, "RFC 3339 with an offset")
    if len(found) == 2 and found["stop"] <= found["start"]:
        yield Fault(("stop",), "it stops before it starts", f"a time after {experiment.start}")


def _metrics(experiment: Experiment, surface: Surface) -> Iterator[Fault]:
    metrics = experiment.metrics
    plain = [*surface.objectives, DECISIONS]
    for name, parts in metrics.ratios.items():
        if name in plain:
            yield Fault(("metrics", "ratios", name), f"{name!r} is a metric already", "another name")
        for i, part in enumerate(parts):
            if part not in plain:
                hint, expected = unknown(part, plain)
                yield Fault(("metrics", "ratios", name, i), f"no metric {part!r}{hint}", expected)
    known = [*plain, *metrics.ratios]
    wanted: list[tuple[Path, str]] = [(("metrics", "primary"), metrics.primary)]
    wanted += [(("metrics", "secondary", i), name) for i, name in enumerate(metrics.secondary)]
    wanted += [(("metrics", "guardrails", name), name) for name in metrics.guardrails]
    for path, name in wanted:
        if name not in known:
            hint, expected = unknown(name, known)
            yield Fault(path, f"no metric {name!r}{hint}", expected)
    for name, guardrail in metrics.guardrails.items():
        if guardrail.min_effect > 0:
            message = f"min_effect {guardrail.min_effect:g} would stop what does no harm"
            yield Fault(("metrics", "guardrails", name, "min_effect"), message, "a number of at most 0")


def keep_running(surface: Surface, trials: Iterable[Trial]) -> None:
    """Raises Rejected(409) for a version of a surface that lacks what an experiment running on it needs."""
    for trial in trials:
        if trial.status != "running":
            continue
        for path, message, _ in faults(trial.document, surface, [surface.surface]):
            raise Rejected(
                f"Experiment {trial.document.experiment!r} runs on this surface: {message}",
                at=f"$.{spelled(path)}",
                code="experiment_running",
                status=409,
            )


def untaught(document: Experiment, arm: str, live: str) -> frozenset[str]:
    """Policies that an arm's decisions do not teach: those that only other arms draw from. Interleaved slates teach both."""
    if document.learners == "shared" or document.kind == "interleaving":
        return frozenset()
    own = document.arms[arm].policy or live
    return frozenset(other.policy or live for other in document.arms.values()) - {own}


def decode(value: bytes) -> Trial:
    return msgspec.json.decode(value, type=Trial)


def stored(trial: Trial) -> bytes:
    return msgspec.json.encode(trial)


def trials_on(state: State, surface: str) -> list[Trial]:
    """Experiments of a surface, from the record."""
    entry = state.get(INDEX, surface)
    names: list[str] = msgspec.json.decode(entry.value) if entry and entry.value else []
    entries = (state.get(KIND, name) for name in names)
    return [decode(entry.value) for entry in entries if entry is not None and entry.value is not None]


def indexed(state: State, trial: Trial) -> list[tuple[str, str, bytes | None]]:
    """The entry that makes `trials_on` find it; none when it is there already."""
    surface, name = trial.document.surface, trial.document.experiment
    entry = state.get(INDEX, surface)
    names: list[str] = msgspec.json.decode(entry.value) if entry and entry.value else []
    return [] if name in names else [(INDEX, surface, msgspec.json.encode([*names, name]))]


def arms_untaught(trials: Iterable[Trial], live: str) -> set[frozenset[str]]:
    """Every set of policies that some arm's decisions do not teach, of experiments that run or may."""
    return {
        found
        for trial in trials
        if trial.status != "stopped"
        for arm in trial.document.arms
        if (found := untaught(trial.document, arm, live))
    }
