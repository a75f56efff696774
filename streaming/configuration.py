"""Surface documents to what services run on: read, checked, compiled, and followed as immutable versions.

A version is named by the hash of its canonical content (`semantics.md` 17): names sorted and a policy's implied objective
written out, so that the order of keys in a file means nothing, and never moves a column of an array.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import msgspec
from msgspec import inspect as shapes

from policies.algorithm import Algorithm, Config, Problem
from policies.errors import Rejected
from policies.features import Encoder
from policies.registry import ALGORITHMS, algorithm
from policies.rewards import RewardRule
from policies.surface import PolicySpec, Surface, content_hash, seconds
from streaming import checks, documents
from streaming.checks import RESERVED
from streaming.documents import ConfigInvalid, Document, Fit, Mistake, Path
from streaming.ports import State

__all__ = [
    "Compiled",
    "CompiledPolicy",
    "ConfigInvalid",
    "Configs",
    "Mistake",
    "advice",
    "canonical",
    "compile_surface",
    "from_json",
    "load_folder",
    "parse",
    "publish_surface",
]

VERSION, POINTER = "surface-version", "surface"  # kinds in the state record
_POLICY_KEYS = [field.encode_name for field in msgspec.structs.fields(PolicySpec)]


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy ready to build graphs and learners. `key` names its sums: it changes only with what shapes them."""

    name: str
    algorithm: Algorithm
    config: Config
    problem: Problem
    key: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """One surface version ready to serve and to learn; `policies` has the reserved ones too."""

    surface: Surface
    hash: str
    encoder: Encoder
    rewards: RewardRule
    policies: dict[str, CompiledPolicy]


def parse(text: str, file: str) -> list[Surface]:
    """Every surface of a YAML stream. Raises ConfigInvalid with all mistakes."""
    return [surface for surface, _ in _read(text, file)]


def load_folder(folder: FilePath) -> list[Surface]:
    """Every surface of a folder's *.yaml and *.yml files, hidden ones left out. Raises ConfigInvalid with all mistakes."""
    if not folder.is_dir():
        raise ConfigInvalid([Mistake(str(folder), 1, "document", "no such folder", "a folder of *.yaml files")])
    surfaces: list[Surface] = []
    places: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and path.name[0] != "."):
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
            document.say((), f"expected a mapping, got {documents.got(document.value)}", "a surface document")
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
                configs[name] = _config(policy)
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
    if not isinstance(nested, dict) or raw.get("algorithm") not in ALGORITHMS:
        return own  # one mistake is enough: what is no mapping, or has no algorithm, is said elsewhere
    shape = _shape(ALGORITHMS[raw["algorithm"]].config)
    known = [field.encode_name for field in shape.fields]
    options: dict[str, Any] = {}
    for here, given in ((path, flat), ((*path, "options"), nested)):
        for key in given.keys() - set(known):
            hint, expected = documents.unknown(key, [*_POLICY_KEYS[:-1], *known])
            fit.document.say((*here, key), f"unknown key{hint}", expected)
        options |= fit.struct({key: value for key, value in given.items() if key in known}, shape, here)
    return {**own, "options": options}


def _config(policy: PolicySpec) -> Config:
    """Raises Rejected at the option."""
    kind = algorithm(policy.algorithm).config
    try:
        return msgspec.convert(policy.options, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `")
        raise Rejected(message, at=at.rstrip("`") or "$") from None


def _configs(surface: Surface) -> dict[str, Config]:
    written = {name: _config(policy) for name, policy in surface.policies.items()}
    implied = {name: ALGORITHMS[name].config() for name in RESERVED if name in ALGORITHMS}
    return {**implied, **written}


def advice(surface: Surface) -> list[str]:
    """What to think about in a surface without mistakes, one line each."""
    return list(checks.advice(surface, _configs(surface)))


def canonical(surface: Surface) -> Surface:
    """The same surface in the one form that is hashed: names sorted, implied objectives and option types written out."""
    first = next(iter(surface.objectives), None)
    policies = {}
    for name, policy in sorted(surface.policies.items()):
        config = msgspec.to_builtins(_config(policy))
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
        policies=policies,
    )


def compile_surface(surface: Surface, tenant: str = "default") -> Compiled:
    """A surface ready to run. Raises ConfigInvalid."""
    document = Document(surface.surface)
    try:
        configs = _configs(surface)
    except Rejected as error:
        document.say(("policies",), str(error))
        raise ConfigInvalid(document.mistakes) from None
    for path, message, expected in checks.faults(surface, configs):
        document.say(path, message, expected)
    if document.mistakes:
        raise ConfigInvalid(document.mistakes)
    made = canonical(surface)
    return _compiled(made, content_hash(made), tenant)


def _compiled(surface: Surface, digest: str, tenant: str) -> Compiled:
    """Of a canonical surface that was checked when it was stored: no newer rule may cut off the decisions it answers for."""
    encoder = Encoder(surface.features)
    policies = {}
    for name, config in _configs(surface).items():
        spec = surface.policies.get(name) or PolicySpec(name, objective=next(iter(surface.objectives), None))
        made = algorithm(spec.algorithm)
        problem = Problem(encoder, dict(surface.objectives), _weights(surface, spec), surface.slots)
        key = f"{tenant}/{surface.surface}/{name}/{_signature(made, config, surface, encoder)}"
        policies[name] = CompiledPolicy(name, made, config, problem, key)
    return Compiled(surface, digest, encoder, RewardRule(surface.objectives, surface.credit), policies)


def _weights(surface: Surface, policy: PolicySpec) -> dict[str, float]:
    """Every objective of the surface: weight × scale, turned so that larger is better."""
    weights: Mapping[str, float] = policy.objectives or ({policy.objective: 1.0} if policy.objective else {})
    return {
        name: weights.get(name, 0.0) * objective.scale * (1 if objective.better == "higher" else -1)
        for name, objective in surface.objectives.items()
    }


def _signature(made: Algorithm, config: Config, surface: Surface, encoder: Encoder) -> str:
    """Hash of what shapes the sums. Two versions that share it share what was learned."""
    half_life = getattr(config, "half_life", None)
    return content_hash(
        {
            "algorithm": made.name,
            "schema": encoder.schema if "contextual" in made.traits else None,
            "slots": surface.slots if "contextual" in made.traits else None,
            "objectives": [[n, o.kind, o.aggregate, o.default, o.range] for n, o in surface.objectives.items()],
            "credit": surface.credit,
            "horizon": surface.horizon_seconds,
            "half_life": None if half_life is None else seconds(half_life),
        }
    )


class Configs:
    """All surface versions known to this process, in memory, and which of them is current.

    refused  hash → why a stored version cannot run here (an algorithm this build lacks); the one before stays current
    """

    def __init__(self, tenant: str = "default") -> None:
        self._tenant = tenant
        self._versions: dict[str, Compiled] = {}
        self._current: dict[str, str] = {}
        self._seen = 0
        self.refused: dict[str, str] = {}

    def add(self, surface: Surface) -> Compiled:
        """Compile a surface and make it current. Raises ConfigInvalid."""
        compiled = compile_surface(surface, self._tenant)
        compiled = self._versions.setdefault(compiled.hash, compiled)
        self._current[surface.surface] = compiled.hash
        return compiled

    def get(self, digest: str) -> Compiled | None:
        """The version of a hash."""
        return self._versions.get(digest)

    def current(self, surface: str) -> Compiled | None:
        """The version that answers now."""
        return self._versions.get(self._current.get(surface, ""))

    def surfaces(self) -> list[str]:
        """Names of the surfaces that answer now, sorted."""
        return sorted(self._current)

    def follow(self, state: State) -> bool:
        """Take in what is newer in the state record; whether any surface's current version changed. Raises Unavailable."""
        changed = False
        while entries := state.read(self._seen):
            for entry in entries:
                if entry.kind == VERSION and entry.value is not None:
                    self._store(entry.key, entry.value)
                elif entry.kind == POINTER:
                    changed |= self._point(entry.key, entry.value)
            self._seen = entries[-1].version
        return changed

    def _store(self, digest: str, stored: bytes) -> None:
        if digest in self._versions:
            return
        if hashlib.blake2b(stored, digest_size=8).hexdigest() != digest:
            self.refused[digest] = "its content has another hash"
            return
        try:
            self._versions[digest] = _compiled(msgspec.json.decode(stored, type=Surface), digest, self._tenant)
        except (msgspec.MsgspecError, Rejected) as error:
            self.refused[digest] = str(error)

    def _point(self, surface: str, digest: bytes | None) -> bool:
        before = self._current.get(surface)
        if digest is None:
            self._current.pop(surface, None)
        elif digest.decode() in self._versions:
            self._current[surface] = digest.decode()
        return self._current.get(surface) != before


def publish_surface(state: State, surface: Surface) -> str:
    """Store a surface's version, then make it current; its hash. Harmless when repeated. Raises ConfigInvalid, Unavailable."""
    compiled = compile_surface(surface)
    digest = compiled.hash
    if state.get(VERSION, digest) is None:
        state.put([(VERSION, digest, msgspec.json.encode(compiled.surface, order="sorted"))])
    pointer = state.get(POINTER, surface.surface)
    if pointer is None or pointer.value != digest.encode():
        state.put([(POINTER, surface.surface, digest.encode())])
    return digest
