"""What is drawn from right now: one immutable value, swapped whole. A request keeps the one it started with.

The follower reads pointers and configuration, and lets a bundle in only through the gate. What fails the gate is named in
the log and the metrics once, and what served before goes on serving. A new surface version takes over when a bundle for
it has passed, so a change of configuration costs no answer either.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from msgspec import UNSET

from policies import bundle as bundling
from policies.algorithm import draw_settings
from policies.errors import Corrupt, Unavailable
from policies.experiments.assignment import Split, in_order, split_of
from policies.experiments.document import Arm, Trial
from policies.releases import WATCHED
from policies.surface import Surface
from policies.types import F32, Arrays
from services.scoring.decide import Scores, Served
from services.scoring.interleaving import pair_of
from services.scoring.lifting import Lifting, lifting_of
from services.scoring.query import Reader
from services.scoring.shadowing import Shadowing
from services.telemetry import Telemetry
from streaming.configuration import Compiled, CompiledPolicy, Configs
from streaming.experiments import untaught
from streaming.impressions import Told
from streaming.ports import Bundles
from streaming.scorer import Scorer

log = logging.getLogger("slatewise.scoring")
RETRY_POLLS = 50  # a bundle whose files could not be read is tried again after as many polls


@dataclass(frozen=True, slots=True)
class Armed:
    """What an arm draws from, and the version its decisions are made under. `policy` None: it has no bundle yet."""

    policy: Served | None
    config: str


@dataclass(frozen=True, slots=True)
class LiveSurface:
    """A surface version with the policies it is served by; `policy` None while no bundle has passed the gate.

    policies  by name: all that may be drawn from, be it live, by an experiment's arm or beside it
    splits    experiments that run, in the order they are asked (`assignment.choose`), a release's canary last;   arms: by
              (experiment, arm);   shadow: the candidate of a release that is drawn beside `policy`
    lifting   what was released of who sees its items, None before anything was
    """

    surface: Surface
    config: str
    schema: str
    reader: Reader
    policy: Served | None
    fallback: Served
    policies: Mapping[str, Served] = field(default_factory=dict)
    splits: tuple[Split, ...] = ()
    arms: Mapping[tuple[str, str], Armed] = field(default_factory=dict)
    shadow: Shadowing | None = None
    lifting: Lifting | None = None

    @property
    def rate(self) -> float:
        return self.surface.logging.sample


@dataclass(frozen=True, slots=True)
class Live:
    """Everything a decision reads besides its request and the catalogue."""

    surfaces: Mapping[str, LiveSurface] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset().union(*(found.surface.feedback_kinds for found in self.surfaces.values()))

    @property
    def bundles(self) -> dict[str, str]:
        """surface/policy → bundle, of all that is drawn from."""
        drawn = (
            (name, served)
            for name, found in self.surfaces.items()
            for served in (found.policy, found.fallback, *found.policies.values())
        )
        return {f"{name}/{served.policy}": served.bundle for name, served in drawn if served and served.bundle}

    @property
    def correctable_seconds(self) -> float:
        return max((found.surface.correctable_seconds for found in self.surfaces.values()), default=0.0)


class Follower:
    """Follows the bundles' pointers and the configuration. `poll` may run in a thread; one at a time."""

    def __init__(self, bundles: Bundles, configs: Configs, telemetry: Telemetry) -> None:
        self._bundles, self._configs, self._telemetry = bundles, configs, telemetry
        self._scorers: dict[str, Scorer] = {}
        self._served: dict[tuple[str, str], Served] = {}  # (pointer, config) → the last that passed
        self._tried: dict[str, tuple[str, str]] = {}  # pointer → (bundle, config) last looked at
        self._away: dict[str, int] = {}
        self._readers: dict[str, Reader] = {}
        self._made = Live()  # what the last poll answered
        self._seen: tuple[dict[str, str], int] = ({}, -1)
        self._splits: dict[str, tuple[Trial, Split]] = {}
        self._armed: dict[tuple[str, str], tuple[Served | None, Armed]] = {}
        self._pairs: dict[str, tuple[Armed, Armed, Armed]] = {}  # experiment → its arms, and what draws from both
        self._lifts: dict[str, tuple[Told | None, str, Lifting | None]] = {}
        self.manifests: dict[str, bundling.Manifest] = {}

    def poll(self, live: Live, pointers: Mapping[str, str] | None = None) -> Live:
        """The value to serve from now on: `live` itself when nothing changed. Raises Unavailable."""
        if pointers is None:
            pointers = self._bundles.pointers()
        if not self._changed(pointers) and live is self._made:
            return live
        surfaces = {name: self._surface(name, pointers, live.surfaces.get(name)) for name in self._configs.surfaces()}
        found = {name: surface for name, surface in surfaces.items() if surface is not None}
        if len(found) == len(live.surfaces) and all(live.surfaces.get(name) is found[name] for name in found):
            self._made = live
        else:
            self._made = Live(found)
        return self._made

    def _changed(self, pointers: Mapping[str, str]) -> bool:
        """Whether there is anything to look at: pointers, configuration, or a bundle whose files could not be read."""
        seen = (dict(pointers), self._configs.changes)
        if seen == self._seen and not self._away:
            return False
        self._seen = seen
        return True

    def _surface(self, name: str, pointers: Mapping[str, str], before: LiveSurface | None) -> LiveSurface | None:
        compiled = self._configs.current(name)
        if compiled is None:
            return before
        wanted = self._configs.live(compiled)
        policy = self._policy(compiled, compiled.policies[wanted], pointers) if wanted else None
        fallback = self._fallback(compiled, pointers)
        if before is not None and before.policy is not None and policy is None and wanted is not None:
            other = before.config != compiled.hash or before.policy.policy != wanted
            if other:  # the new version, or live policy, has no bundle yet: the old one goes on, whole
                return before
        policies = {policy.policy: policy} if policy is not None else {}
        splits, arms = self._arms(compiled, policy, pointers, policies)
        made = LiveSurface(
            compiled.surface,
            compiled.hash,
            compiled.encoder.schema,
            self._reader(compiled),
            policy,
            fallback,
            policies,
            splits,
            arms,
            self._shadow(compiled, pointers, policies),
            self._lifting(compiled),
        )
        return before if before is not None and _same(before, made) else made

    def _arms(
        self, compiled: Compiled, live: Served | None, pointers: Mapping[str, str], policies: dict[str, Served]
    ) -> tuple[tuple[Split, ...], dict[tuple[str, str], Armed]]:
        """(experiments that run, what their arms draw from); the latter are added to `policies`."""
        splits: list[Split] = []
        arms: dict[tuple[str, str], Armed] = {}
        canary = self._configs.canary(compiled.surface.surface)
        for trial in [*self._configs.trials(compiled.surface.surface), *([canary] if canary else [])]:
            if trial.status != "running":
                continue
            document, made = trial.document, {}
            for name, arm in document.arms.items():
                version = self._configs.untaught(
                    compiled, untaught(document, name, self._configs.live(compiled) or compiled.surface.fallback)
                )
                if version is None or (arm.policy is not None and arm.policy not in compiled.policies):
                    break  # not stored yet, or not any more: nobody is in this experiment unless all its arms can be
                drawn = live if arm.policy is None else self._policy(compiled, compiled.policies[arm.policy], pointers)
                if drawn is not None:
                    policies[drawn.policy] = drawn
                made[document.experiment, name] = self._arm(drawn, arm, version.hash, (document.experiment, name))
            else:
                arms |= self._together(made) if document.kind == "interleaving" else made
                splits.append(self._split(trial))
        last = canary.document.experiment if canary else None
        return (*in_order([s for s in splits if s.name != last]), *(s for s in splits if s.name == last)), arms

    def _together(self, made: dict[tuple[str, str], Armed]) -> dict[tuple[str, str], Armed]:
        """Two arms whose slates both fill: each draws from the pair, the same value for as long as nothing changed."""
        (key, one), (_, other) = made.items()
        before = self._pairs.get(key[0])
        if before is None or before[0] is not one or before[1] is not other:
            both = None if one.policy is None or other.policy is None else pair_of(one.policy, other.policy)
            before = self._pairs[key[0]] = one, other, Armed(both, one.config)
        return dict.fromkeys(made, before[2])

    def _shadow(self, compiled: Compiled, pointers: Mapping[str, str], policies: dict[str, Served]) -> Shadowing | None:
        """The candidate of a release that is watched, once it has a bundle; it is added to `policies`."""
        release = self._configs.released(compiled.surface.surface).release
        if release is None or release.stage not in WATCHED or release.candidate not in compiled.policies:
            return None
        drawn = self._policy(compiled, compiled.policies[release.candidate], pointers)
        if drawn is None:
            return None
        policies[drawn.policy] = drawn
        return Shadowing(drawn, release.terms.rate)

    def _lifting(self, compiled: Compiled) -> Lifting | None:
        """The same value for as long as nothing newer was released."""
        name = compiled.surface.surface
        told = self._configs.impressions(name)
        before = self._lifts.get(name)
        if before is None or before[0] is not told or before[1] != compiled.hash:
            before = self._lifts[name] = told, compiled.hash, lifting_of(compiled.surface, told)
        return before[2]

    def _arm(self, drawn: Served | None, arm: Arm, config: str, key: tuple[str, str]) -> Armed:
        """The same value for as long as nothing changed. A draw of its own leaves the bundle as it is."""
        before = self._armed.get(key)
        if before is not None and before[0] is drawn and before[1].config == config:
            return before[1]
        changed = {name: value for name in ("floor", "temperature") if (value := getattr(arm.draw, name)) is not None}
        policy = replace(drawn, settings=replace(drawn.settings, **changed)) if drawn and changed else drawn
        made = Armed(policy, config)
        self._armed[key] = drawn, made
        return made

    def _split(self, trial: Trial) -> Split:
        name = trial.document.experiment
        if name not in self._splits or self._splits[name][0] is not trial:
            self._splits[name] = trial, split_of(trial)
        return self._splits[name][1]

    def _reader(self, compiled: Compiled) -> Reader:
        if compiled.hash not in self._readers:
            self._readers[compiled.hash] = Reader(
                compiled.surface, compiled.encoder, reads_history=compiled.reads_history, trains=compiled.trains
            )
        return self._readers[compiled.hash]

    def _fallback(self, compiled: Compiled, pointers: Mapping[str, str]) -> Served:
        policy = compiled.policies[compiled.surface.fallback]
        ready = self._policy(compiled, policy, pointers)
        # what has to learn first has nothing to say yet, which is what uniform says too
        return ready or self._without_bundle(compiled, compiled.policies["uniform"])

    def _without_bundle(self, compiled: Compiled, policy: CompiledPolicy) -> Served:
        """An algorithm that has nothing to learn needs no bundle: its reference in numpy serves."""
        key = (f"{compiled.surface.surface}/{policy.name}!", compiled.hash)
        if key not in self._served:
            algorithm = policy.algorithm

            def scores(inputs: Mapping[str, Any]) -> F32:
                return algorithm.reference(policy.config, policy.problem, {}, dict(inputs))

            self._served[key] = served(policy, compiled.surface, scores, {})
        return self._served[key]

    def _policy(self, compiled: Compiled, policy: CompiledPolicy, pointers: Mapping[str, str]) -> Served | None:
        pointer = f"{compiled.surface.surface}/{policy.name}"
        name, key = pointers.get(pointer), (pointer, compiled.hash)
        before = self._served.get(key)
        if name is None:
            learns = policy.algorithm.learner or policy.algorithm.trainer
            return None if learns else self._without_bundle(compiled, policy)
        if self._tried.get(pointer) == (name, compiled.hash):
            if pointer not in self._away:
                return before
            self._away[pointer] -= 1
            if self._away[pointer] > 0:
                return before
        self._tried[pointer] = (name, compiled.hash)
        self._away.pop(pointer, None)
        try:
            loaded = self._load(name, compiled, policy)
        except Unavailable as error:
            self._away[pointer] = RETRY_POLLS
            self._refused(pointer, name, "unavailable", str(error))
            return before
        except Corrupt as error:
            self._refused(pointer, name, error.reason, error.detail)
            return before
        self._served[key] = loaded
        self._telemetry.add("swap_total", compiled.surface.surface, policy.name, "swapped")
        if before is not None:  # what a process finds at its start was fresh for others
            self._fresh(compiled.surface.surface, policy.name, pointer)
        log.info("bundle_swapped", extra={"policy": pointer, "bundle": name})
        return loaded

    def _load(self, name: str, compiled: Compiled, policy: CompiledPolicy) -> Served:
        """Read, check, bind. Raises Corrupt with a reason, Unavailable."""
        bundle = bundling.read(name, self._bundles.get)
        manifest = bundle.manifest
        if manifest.key != policy.key:
            raise Corrupt("schema", f"learned as {manifest.key}, this version is {policy.key}")
        bundling.verify(bundle, schema=compiled.encoder.schema, algorithm=policy.algorithm.name, score=self._score)
        self.manifests[f"{manifest.surface}/{manifest.policy}"] = manifest
        bound = self._scorer(bundle.graph).bind(bundle.arrays)
        made = served(policy, compiled.surface, bound.scores, bundle.arrays, manifest)
        return with_goals(made, policy, bundle, self._scorer)

    def _fresh(self, surface: str, policy: str, pointer: str) -> None:
        """Age, now that it is drawn from, of the feedback that is new in a bundle (a sample of it: `Manifest.fresh`)."""
        now = time.time()
        for accepted_at in self.manifests[pointer].fresh:
            self._telemetry.observe("freshness_seconds", surface, policy, value=max(0.0, now - accepted_at))

    def _scorer(self, graph: bytes) -> Scorer:
        name = bundling.digest(graph)
        if name not in self._scorers:
            self._scorers[name] = Scorer(graph)
        return self._scorers[name]

    def _score(self, graph: bytes, arrays: Arrays, inputs: Mapping[str, Any]) -> F32:
        return self._scorer(graph).scores(inputs, arrays)

    def _refused(self, pointer: str, name: str, reason: str, detail: str) -> None:
        surface, _, policy = pointer.partition("/")
        self._telemetry.add("swap_total", surface, policy, reason)
        log.error("bundle_refused", extra={"policy": pointer, "bundle": name, "reason": reason, "detail": detail})


def with_goals(
    made: Served, policy: CompiledPolicy, bundle: bundling.Bundle, scorer: Callable[[bytes], Scorer]
) -> Served:
    """… and with its bundle's manager, where it has goals."""
    if "goal" not in bundle.probes:
        return made
    return replace(
        made,
        goals=len(bundle.probes["goal"]),
        manager=scorer(bundle.manager).bind(bundle.arrays).scores if bundle.manager else None,
        goal_steps=getattr(policy.config, "goal_steps", 0),
    )


def served(
    policy: CompiledPolicy,
    surface: Surface,
    scores: Scores,
    arrays: Arrays,
    manifest: bundling.Manifest | None = None,
    temperature: float | None = None,
) -> Served:
    """A policy ready to be drawn from: its bundle's scores under its configuration's settings. `temperature` is what a publish
    found that no manifest speaks for."""
    config, problem = policy.config, policy.problem
    if manifest is not None:
        temperature = None if manifest.temperature is UNSET else manifest.temperature
    several = len(problem.weights) > 1 and "weights" in policy.algorithm.inputs
    return Served(
        policy=policy.name,
        bundle=manifest.bundle if manifest else "",
        scores=scores,
        settings=draw_settings(config, temperature, surface.exploration.max_share),
        weights=np.array(list(problem.weights.values()), np.float32) if several else None,
        signs={name: signed_scale(surface, name) for name in problem.weights} if several else {},
        known_items=arrays if {"item_rows", "history_rows"} & set(policy.algorithm.inputs) else None,
        slot_weight=manifest.slot_weight if manifest else 1.0,
        created_at=manifest.created_at if manifest else 0.0,
    )


def _same(before: LiveSurface, made: LiveSurface) -> bool:
    """Whether nothing changed: values are made once and kept, so identity tells, and no array is compared."""
    return (
        before.config == made.config
        and before.policy is made.policy
        and before.fallback is made.fallback
        and before.shadow == made.shadow
        and before.lifting is made.lifting
        and len(before.splits) == len(made.splits)
        and all(a is b for a, b in zip(before.splits, made.splits, strict=True))
        and before.arms.keys() == made.arms.keys()
        and all(before.arms[key] is arm for key, arm in made.arms.items())
    )


def signed_scale(surface: Surface, objective: str) -> float:
    found = surface.objectives[objective]
    return found.scale if found.better == "higher" else -found.scale
