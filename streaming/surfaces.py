"""Surface documents, from YAML or JSON, to canonical `Surface` values; every mistake is said at once.

Canonical: names sorted, a policy's implied objective and its options' types written out. So the order of keys in a file means
nothing, never moves a column of an array, and a version's hash does not depend on who encoded it.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec import inspect as shapes

from policies.algorithm import Config
from policies.errors import Rejected
from policies.registry import ALGORITHMS, algorithm
from policies.surface import PolicySpec, Surface
from streaming import checks, documents
from streaming.documents import ConfigInvalid, Document, Mistake, Path
from streaming.fitting import Fit, got, unknown

_POLICY_KEYS = [field.encode_name for field in msgspec.structs.fields(PolicySpec)]


def parse(text: str, file: str) -> list[Surface]:
    """Every surface of a YAML stream. Raises ConfigInvalid with all mistakes."""
    return [surface for surface, _ in _read(text, file)]


def load_folder(folder: FilePath) -> list[Surface]:
    """Every surface of one file, or of a folder's visible *.yaml and *.yml files. Raises ConfigInvalid with all mistakes."""
    if not folder.exists():
        raise ConfigInvalid([Mistake(str(folder), 1, "document", "no such folder", "a folder of *.yaml files")])
    surfaces: list[Surface] = []
    places: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for file in files_of(folder):
        try:
            found = _read(file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError as error:
            mistakes.append(Mistake(str(file), 1, "document", f"not UTF-8: {error.reason}", "UTF-8 text"))
        except ConfigInvalid as error:
            mistakes += error.mistakes
        else:
            for surface, line in found:
                here = f"{file}:{line}"
                if places.setdefault(surface.surface, here) != here:
                    mistakes.append(_twice(str(file), line, surface.surface, places[surface.surface]))
                surfaces.append(surface)
    if mistakes:
        raise ConfigInvalid(mistakes)
    return surfaces


def files_of(folder: FilePath) -> list[FilePath]:
    """The documents of a folder: visible *.yaml and *.yml; or the one file it is."""
    if folder.is_file():
        return [folder]
    return [file for file in sorted(folder.iterdir()) if file.suffix in (".yaml", ".yml") and file.name[0] != "."]


def from_json(data: bytes) -> Surface:
    """The surface of a JSON document, in the same form as YAML. Raises ConfigInvalid, Rejected(400)."""
    document = documents.from_json(data, "document")
    surface = _surface(document)
    if document.mistakes or surface is None:
        raise ConfigInvalid(document.mistakes)
    return surface


def _twice(file: str, line: int, name: str, first: str) -> Mistake:
    return Mistake(file, line, "surface", f"{name!r} is already defined at {first}", "each surface once")


def _read(text: str, file: str) -> list[tuple[Surface, int]]:
    found: list[tuple[Surface, int]] = []
    places: dict[str, int] = {}
    mistakes: list[Mistake] = []
    for document in documents.from_yaml(text, file):
        if isinstance(document.value, dict) and "experiment" in document.value:
            continue  # of another kind, see `streaming.experiments`
        surface = _surface(document)
        if surface is not None and not document.mistakes:
            line = document.line(("surface",))
            if places.setdefault(surface.surface, line) != line:
                mistakes.append(_twice(file, line, surface.surface, f"line {places[surface.surface]}"))
            found.append((surface, line))
        mistakes += document.mistakes
    if mistakes:
        raise ConfigInvalid(sorted(mistakes, key=lambda mistake: mistake.line))
    return found


@cache
def _shape(kind: type) -> shapes.StructType:
    shape = shapes.type_info(kind)
    assert isinstance(shape, shapes.StructType)
    return shape


def _surface(document: Document) -> Surface | None:
    """The canonical surface of a document; every mistake is said to the document."""
    if not isinstance(document.value, dict):
        if not document.mistakes:
            document.say((), f"expected a mapping, got {got(document.value)}", "a surface document")
        return None
    fit = Fit(document)
    value = dict(document.value)
    if isinstance(value.get("policies"), dict):
        value["policies"] = {name: _policy(raw, name, fit) for name, raw in value["policies"].items()}
    fitted = fit.fit(value, _shape(Surface), ())
    try:
        surface = msgspec.convert(fitted, Surface)
    except msgspec.ValidationError as error:  # a constraint of the types that `Fit` does not know
        document.say((), str(error))
        return None
    configs = {}
    for name, policy in surface.policies.items():
        if policy.algorithm in ALGORITHMS:
            try:
                configs[name] = config_of(policy)
            except Rejected as error:
                path: Path = ("policies", name, *error.at.removeprefix("$").lstrip(".").split("."))
                if document.sound(path):
                    document.say(path if path[-1] else path[:-1], error.message)
    for path, message, expected in checks.faults(surface, configs):
        if document.sound(path):
            document.say(path, message, expected)
    return None if document.mistakes else canonical(surface)


def _policy(raw: Any, name: str, fit: Fit) -> Any:
    """A policy's mapping with the algorithm's own keys moved into `options`, which may also be written out."""
    if not isinstance(raw, dict):
        return raw
    path: Path = ("policies", name)
    own = {key: value for key, value in raw.items() if key in _POLICY_KEYS}
    flat = {key: value for key, value in raw.items() if key not in _POLICY_KEYS}
    nested = raw.get("options", {})
    written = raw.get("algorithm")
    if not isinstance(nested, dict) or not isinstance(written, str) or written not in ALGORITHMS:
        return own  # one mistake is enough: what is no mapping, or has no algorithm, is said elsewhere
    shape = _shape(ALGORITHMS[written].config)
    known = [field.encode_name for field in shape.fields]
    options: dict[str, Any] = {}
    for here, given in ((path, flat), ((*path, "options"), nested)):
        for key in given.keys() - set(known):
            hint, expected = unknown(key, [*_POLICY_KEYS[:-1], *known])
            fit.document.say((*here, key), f"unknown key{hint}", expected)
        options |= fit.struct({key: value for key, value in given.items() if key in known}, shape, here)
    return {**own, "options": options}


def config_of(policy: PolicySpec) -> Config:
    """Raises Rejected at the option."""
    kind = algorithm(policy.algorithm).config
    try:
        return msgspec.convert(policy.options, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `")
        raise Rejected(message, at=at.rstrip("`") or _refused(policy.options, kind)) from None


def _refused(options: Mapping[str, Any], kind: type[Config]) -> str:
    """Path of the option that is refused by itself: a Config's own check names no field."""
    for name, value in options.items():
        try:
            msgspec.convert({name: value}, kind)
        except msgspec.ValidationError:
            return f"$.{name}"
    return "$"


def canonical(surface: Surface) -> Surface:
    """The same surface in the one form that is hashed: names sorted, implied objectives and option types written out."""
    first = next(iter(surface.objectives), None)
    policies = {}
    for name, policy in sorted(surface.policies.items()):
        config = msgspec.to_builtins(config_of(policy))
        options = {key: config[key] for key in sorted(policy.options)}
        objective = first if policy.objectives is None and policy.objective is None else policy.objective
        policies[name] = msgspec.structs.replace(policy, options=options, objective=objective)
    spec = surface.features
    features = msgspec.structs.replace(
        spec,
        context=dict(sorted(spec.context.items())),
        items=dict(sorted(spec.items.items())),
        cross=sorted(spec.cross),
    )
    return msgspec.structs.replace(
        surface,
        features=features,
        objectives=dict(sorted(surface.objectives.items())),
        kinds=sorted(set(surface.kinds)),
        history_kinds=sorted(set(surface.history_kinds)),
        untaught=sorted(set(surface.untaught)),
        policies=policies,
        examination=UNSET if surface.examination == "none" else surface.examination,
    )
