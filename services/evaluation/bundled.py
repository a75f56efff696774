"""Bundles of a data folder as targets, and as what drew the decisions of a log: through the gate of scoring, as it would serve them."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from policies import bundle as bundling
from policies.errors import Corrupt, Rejected, Unavailable
from policies.types import F32
from services.evaluation.decisions import LoggedDecision
from services.evaluation.targets import HISTORY, Scored, check_inputs, unknown
from services.scoring.live import served, with_goals
from services.settings import Settings
from streaming.configuration import Compiled, Configs
from streaming.scorer import Scorer, score

KEPT = 16  # bundles held at once: decisions come in the order of time, and so do the bundles they were drawn from


class Found(NamedTuple):
    """`through`: partition → offset up to which the bundle was learned from the log it belongs to."""

    target: Scored
    compiled: Compiled
    through: dict[int, int]


class Bundled:
    """Of one data folder. Raises Rejected where it cannot be opened."""

    def __init__(self, data: Path) -> None:
        from services.wiring import open_bundles, own_state

        settings = Settings.load(data=data)
        self._store, self._configs = open_bundles(settings), Configs(settings.tenant)
        self._configs.follow(own_state(settings))
        self._read = lru_cache(KEPT)(self.find)

    def find(self, name: str) -> Found:
        """The bundle of an id or of `surface/policy`. Raises Rejected('unknown_bundle' | 'unknown_input'), Corrupt."""
        try:
            found = bundling.read(self._store.pointers().get(name, name), self._store.get)
        except Unavailable:
            raise Rejected(
                f"No bundle and no policy {name!r} in the data folder", at="--policy", code="unknown_bundle"
            ) from None
        manifest = found.manifest
        compiled = self._configs.get(manifest.config)
        if compiled is None or manifest.policy not in compiled.policies:
            raise Corrupt("schema", f"no configuration {manifest.config} in the data folder")
        policy = compiled.policies[manifest.policy]
        bundling.verify(found, schema=compiled.encoder.schema, algorithm=policy.algorithm.name, score=score)
        scorer = Scorer(found.graph)
        check_inputs(name, scorer.inputs)
        made = served(policy, compiled.surface, scorer.bind(found.arrays).scores, found.arrays, manifest)
        target = Scored(
            name=f"{manifest.surface}/{manifest.policy} {manifest.bundle}",
            served=with_goals(made, policy, found, Scorer),
            encoder=compiled.encoder,
            remembers=bool(HISTORY & set(scorer.inputs)),
        )
        through = {int(partition): offset for partition, offset in manifest.trained_through.items()}
        return Found(target, compiled, through)

    def drew(self, decision: LoggedDecision) -> Scored:
        """The policy that a decision was drawn from, as it was then. Raises Rejected, whose code is the reason."""
        if not decision.bundle:
            return self._without_bundle(decision)
        try:
            return self._read(decision.bundle).target
        except Corrupt as error:
            raise unknown(
                "bundle_refused", f"Bundle {decision.bundle} does not pass the gate of scoring: {error}"
            ) from None
        except Rejected as error:
            gone = error.code == "unknown_bundle"
            raise unknown("bundle_gone" if gone else error.code, error.message) from None

    def _without_bundle(self, decision: LoggedDecision) -> Scored:
        """An algorithm that has nothing to learn: its reference in numpy serves."""
        compiled = self._configs.get(decision.config)
        policy = None if compiled is None else compiled.policies.get(decision.policy)
        if compiled is None or policy is None or policy.algorithm.learner or policy.algorithm.trainer:
            raise unknown("policy_gone", f"What {decision.policy} was is not in the data folder")
        algorithm, config, problem = policy.algorithm, policy.config, policy.problem

        def scores(inputs: Mapping[str, Any]) -> F32:
            return algorithm.reference(config, problem, {}, dict(inputs))

        return Scored(
            name=decision.policy, served=served(policy, compiled.surface, scores, {}), encoder=compiled.encoder
        )
