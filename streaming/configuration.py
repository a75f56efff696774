"""Surfaces compiled to what services run on, and followed as immutable versions named by the hash of their content.

Every decision is joined, rewarded and weighed for its whole life by the version it names (`semantics.md` 17), so versions
are stored before they are used and none is ever forgotten by a running process.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from policies.algorithm import Algorithm, Config, Problem
from policies.corrected import corrected
from policies.errors import Rejected
from policies.experiments.document import Trial
from policies.features import Encoder
from policies.registry import ALGORITHMS, algorithm
from policies.releases import Released, canary_of
from policies.rewards import RewardRule
from policies.surface import PolicySpec, Surface, content_hash, seconds
from streaming import adjusting, checks, experiments, impressions, losses, releases
from streaming.checks import RESERVED
from streaming.documents import ConfigInvalid, Document, Mistake
from streaming.ports import State
from streaming.surfaces import canonical, config_of, from_json, load_folder, parse

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

VERSION, POINTER, FORGET = "surface-version", "surface", "forget"  # kinds in the state record
_NOTHING_RELEASED = Released()


class Since(msgspec.Struct, frozen=True):
    """As much of a `streaming.forgets.Forget` as everybody needs."""

    at: float


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy ready to build graphs and learners. `key` names its sums: it changes only with what shapes them, and with `resets`
    (`policies.surface.Surface`), which begin new ones."""

    name: str
    algorithm: Algorithm
    config: Config
    problem: Problem
    key: str
    resets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """One surface version ready to serve and to learn; `policies` has the reserved ones too."""

    surface: Surface
    hash: str
    encoder: Encoder
    rewards: RewardRule
    policies: dict[str, CompiledPolicy]

    @property
    def reads_history(self) -> bool:
        """Whether any policy reads what the unit did before: shards then keep profiles, and decisions log them."""
        return self.surface.history > 0 and any(reads_history(policy.algorithm) for policy in self.policies.values())

    @property
    def trains(self) -> bool:
        """Whether any policy has a trainer: decisions then log the candidates they were drawn from."""
        return any(policy.algorithm.trainer is not None for policy in self.policies.values())


def reads_history(algorithm: Algorithm) -> bool:
    return not {"history", "history_rows"}.isdisjoint(algorithm.inputs)


def _configs(surface: Surface) -> dict[str, Config]:
    """Options of every policy, the reserved ones included: those explore no more than the surface's cap."""
    share = surface.exploration.least_share
    made: dict[str, Config] = {}
    for name in RESERVED:
        config = ALGORITHMS[name].config()
        made[name] = msgspec.structs.replace(config, floor=min(config.floor, share))
    return made | {name: config_of(policy) for name, policy in surface.policies.items()}


def advice(surface: Surface) -> list[str]:
    """What to think about in a surface without mistakes, one line each."""
    return list(checks.advice(surface, _configs(surface)))


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
        spec = surface.policies.get(name) or _reserved(name, surface)
        made, horizon = algorithm(spec.algorithm), 0.0
        if surface.silence == "corrected" and "corrects" in made.traits:
            made, horizon = corrected(made), surface.horizon_seconds
        weights = _weights(surface, spec)
        problem = Problem(encoder, dict(surface.objectives), weights, surface.slots, surface.history_rows, horizon)
        resets = surface.resets_of(name) if made.carry is not None else ()
        key = f"{tenant}/{surface.surface}/{name}/{_signature(made, config, surface, encoder, resets)}"
        policies[name] = CompiledPolicy(name, made, config, problem, key, resets)
    return Compiled(surface, digest, encoder, RewardRule(surface.objectives, surface.credit), policies)


def _reserved(name: str, surface: Surface) -> PolicySpec:
    """A policy that every surface has wants what the live one wants."""
    live = surface.policies.get(surface.live or "")
    if live is not None:
        return PolicySpec(name, live.objective, live.objectives)
    return PolicySpec(name, objective=next(iter(surface.objectives), None))


def _weights(surface: Surface, policy: PolicySpec) -> dict[str, float]:
    """Every objective of the surface: weight × scale, turned so that larger is better."""
    weights: Mapping[str, float] = policy.objectives or ({policy.objective: 1.0} if policy.objective else {})
    return {
        name: weights.get(name, 0.0) * objective.scale * (1 if objective.better == "higher" else -1)
        for name, objective in surface.objectives.items()
    }


def _signature(made: Algorithm, config: Config, surface: Surface, encoder: Encoder, resets: tuple[float, ...]) -> str:
    """Hash of what shapes the sums. Two versions that share it share what was learned."""
    half_life, examined = getattr(config, "half_life", None), surface.slot_examination
    return content_hash(
        {
            "algorithm": made.name,
            "schema": encoder.schema if "contextual" in made.traits else None,
            "slots": surface.slots if "contextual" in made.traits else None,
            "objectives": [[n, o.kind, o.aggregate, o.default, o.range] for n, o in surface.objectives.items()],
            "credit": surface.credit,
            "horizon": surface.horizon_seconds,
            "half_life": None if half_life is None else seconds(half_life),
            **{name: getattr(config, name) for name in made.shaping},
            # left out where nobody reads it: keys from before it stay what they were
            **({"history": surface.history} if reads_history(made) else {}),
            **({"history_hashed": surface.history_hashed} if surface.history_hashed and reads_history(made) else {}),
            **({"resets": resets} if resets else {}),
            **({"examined": examined} if examined is not None and made.learner is not None else {}),
            **({"silence": surface.silence} if surface.silence == "corrected" and "corrects" in made.traits else {}),
        }
    )


class Configs:
    """All surface versions known to this process, in memory, and which of them is current; and who is to be forgotten, for
    everybody who reads the log follows this.

    refused  hash → why a stored version cannot run here (an algorithm this build lacks); the one before stays current, or
             where this process knows of none, the newest that runs
    """

    def __init__(self, tenant: str = "default") -> None:
        self.tenant = tenant
        self._versions: dict[str, Compiled] = {}
        self._learned: dict[str, CompiledPolicy] = {}
        self._current: dict[str, str] = {}
        self._newest: dict[str, str] = {}
        self._trials: dict[str, Trial] = {}
        self._released: dict[str, Released] = {}
        self._canaries: dict[str, Trial] = {}
        self._impressions: dict[str, impressions.Told] = {}
        self._seen = 0
        # unit's hash → what it did before is taken for never done (`semantics.md` 24)
        self.forgotten: dict[str, float] = {}
        self.lost: dict[int, int] = {}  # partition → its records before this offset are accepted as lost
        self.forgets = 0  # entries of the record that said so: who saw as many has seen all
        self.changes = 0  # of versions, currents, experiments, releases: a follower that saw as many has seen all
        self.refused: dict[str, str] = {}

    def add(self, surface: Surface) -> Compiled:
        """Compile a surface and make it current. Raises ConfigInvalid."""
        compiled = compile_surface(surface, self.tenant)
        compiled = self._keep(compiled)
        self._current[surface.surface] = compiled.hash
        return compiled

    def get(self, digest: str) -> Compiled | None:
        """The version of a hash."""
        return self._versions.get(digest)

    def learned_as(self, key: str) -> CompiledPolicy | None:
        """The policy of a learner key, as the first version that has it; None when no version known here does."""
        return self._learned.get(key)

    def current(self, surface: str) -> Compiled | None:
        """The version that answers now."""
        return self._versions.get(self._current.get(surface, ""))

    def surfaces(self) -> list[str]:
        """Names of the surfaces that answer now, sorted."""
        return sorted(self._current)

    def answering(self) -> list[Compiled]:
        """The versions that answer now, by name; a surface whose version is not known here is left out."""
        return [found for name in self.surfaces() if (found := self.current(name)) is not None]

    def trials(self, surface: str | None = None) -> list[Trial]:
        """Experiments by name, of one surface or of all."""
        found = sorted(self._trials.items())
        return [trial for _, trial in found if surface in (None, trial.document.surface)]

    def released(self, surface: str) -> Released:
        """What releases have made of a surface."""
        return self._released.get(surface, _NOTHING_RELEASED)

    def impressions(self, surface: str) -> impressions.Told | None:
        """What was released of who sees a surface's items, the same value for as long as nothing newer was."""
        return self._impressions.get(surface)

    def canary(self, surface: str) -> Trial | None:
        """The canary that runs on a surface, the same value for as long as it does."""
        return self._canaries.get(surface)

    def live(self, compiled: Compiled) -> str | None:
        """The policy a surface serves: what is released wins over what its document says (`semantics.md` 19)."""
        live = self.released(compiled.surface.surface).live
        return live if live is not None and live in compiled.policies else compiled.surface.live

    def untaught(self, compiled: Compiled, names: frozenset[str]) -> Compiled | None:
        """The version that differs by the policies its decisions do not teach; None while it is not known here."""
        return self._versions.get(content_hash(_untaught(compiled.surface, names))) if names else compiled

    def follow(self, state: State) -> bool:
        """Take in what is newer in the state record; whether any surface's current version changed. Raises Unavailable."""
        changed = False
        while entries := state.read(self._seen):
            for entry in entries:
                if entry.kind == VERSION and entry.value is not None:
                    self._store(entry.key, entry.value)
                elif entry.kind == POINTER:
                    changed |= self._point(entry.key, entry.value)
                elif entry.kind == experiments.KIND:
                    self._try(entry.key, entry.value)
                elif entry.kind == releases.KIND and entry.key.startswith(releases.PREFIX):
                    self._release(entry.key.removeprefix(releases.PREFIX), entry.value)
                elif entry.kind == impressions.KIND:
                    self._tell(entry.key, entry.value)
                elif entry.kind == FORGET and entry.value is not None:
                    self.forgotten[entry.key] = msgspec.json.decode(entry.value, type=Since).at
                    self.forgets += 1
                    continue
                elif entry.kind == losses.KIND and entry.value is not None:
                    self.lost[int(entry.key)] = losses.decode(entry.value).offset
                    continue
                else:
                    continue
                self.changes += 1
            self._seen = entries[-1].version
        return changed

    def _keep(self, compiled: Compiled) -> Compiled:
        kept = self._versions.setdefault(compiled.hash, compiled)
        for policy in kept.policies.values():
            self._learned.setdefault(policy.key, policy)
        return kept

    def _try(self, name: str, stored: bytes | None) -> None:
        if stored is None:
            self._trials.pop(name, None)
            return
        try:
            self._trials[name] = experiments.decode(stored)
        except msgspec.MsgspecError as error:  # of a newer build: what this one knows of it goes on
            self.refused[f"experiment {name}"] = str(error)

    def _release(self, surface: str, stored: bytes | None) -> None:
        try:
            released = releases.decode(stored) if stored is not None else Released()
        except msgspec.MsgspecError as error:  # of a newer build: what this one knows of it goes on
            self.refused[f"release {surface}"] = str(error)
            return
        before, self._released[surface] = self._released.get(surface), released
        canary = canary_of(released)
        if canary is None:
            self._canaries.pop(surface, None)
        elif before is None or before.release != released.release or surface not in self._canaries:
            self._canaries[surface] = canary

    def _tell(self, surface: str, stored: bytes | None) -> None:
        try:
            if stored is None:
                self._impressions.pop(surface, None)
            else:
                self._impressions[surface] = impressions.decode(stored)
        except msgspec.MsgspecError as error:  # of a newer build: what this one knows of it goes on
            self.refused[f"impressions {surface}"] = str(error)

    def _store(self, digest: str, stored: bytes) -> None:
        if digest in self._versions:
            self._newer(self._versions[digest].surface, digest)
            return
        if hashlib.blake2b(stored, digest_size=8).hexdigest() != digest:
            self.refused[digest] = "its content has another hash"
            return
        try:
            surface = msgspec.json.decode(stored, type=Surface)
            self._keep(_compiled(surface, digest, self.tenant))
            self._newer(surface, digest)
        except (msgspec.MsgspecError, Rejected) as error:
            self.refused[digest] = str(error)

    def _newer(self, surface: Surface, digest: str) -> None:
        if not surface.untaught:  # an experiment's arm answers for its own decisions only
            self._newest[surface.surface] = digest

    def _point(self, surface: str, digest: bytes | None) -> bool:
        before = self._current.get(surface)
        if digest is None:
            self._current.pop(surface, None)
        elif digest.decode() in self._versions:
            self._current[surface] = digest.decode()
        elif before is None and surface in self._newest:
            self._current[surface] = self._newest[surface]
        return self._current.get(surface) != before


def publish_surface(state: State, surface: Surface) -> str:
    """Store a surface's version, and those of its experiments' arms, then make it current; its hash. Harmless when
    repeated. Raises ConfigInvalid, Unavailable, and Rejected(409) when an experiment that runs needs what it lacks."""
    compiled = compile_surface(adjusting.adjusted(surface, adjusting.adjustments_on(state, surface.surface)))
    digest = compiled.hash
    trials = experiments.trials_on(state, surface.surface)
    experiments.keep_running(compiled.surface, trials)
    released = releases.released_on(state, surface.surface)
    releases.keep_released(compiled.surface, released)
    store_version(state, compiled.surface)
    store_arms(state, compiled.surface, trials, released.live)
    pointer = state.get(POINTER, surface.surface)
    if pointer is None or pointer.value != digest.encode():
        state.put([(POINTER, surface.surface, digest.encode())])
    return digest


def store_version(state: State, surface: Surface) -> None:
    """A canonical surface under its hash, unless it is there."""
    digest = content_hash(surface)
    if state.get(VERSION, digest) is None:
        state.put([(VERSION, digest, msgspec.json.encode(surface, order="sorted"))])


def store_arms(state: State, surface: Surface, trials: Sequence[Trial], live: str | None = None) -> None:
    """The versions that arms of experiments on a canonical surface need, before anyone decides by them. `live`: what is
    released to be it, whatever the document says."""
    for names in experiments.arms_untaught(trials, live or surface.live or surface.fallback):
        store_version(state, _untaught(surface, names))


def _untaught(surface: Surface, names: frozenset[str]) -> Surface:
    """From the surface as it is read back, where a number written as 1 is 1.0: one hash, whoever asks for it."""
    surface = msgspec.json.decode(msgspec.json.encode(surface), type=Surface)
    return msgspec.structs.replace(surface, untaught=sorted({*surface.untaught, *names}))
