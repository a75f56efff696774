"""Streaming evaluation: what each policy earns, what exploration costs, and the gate of a release, from settled decisions.

It folds what the readouts' settlers give out (`services.control.readouts`), each decision exactly once, beside experiments.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from policies.errors import Rejected
from policies.evaluation import gate
from policies.releases import WATCHED, Release
from policies.surface import Surface
from services.control.folding import Folding
from services.control.readouts import Seat
from services.promoting import Promotions
from services.telemetry import Telemetry
from streaming.configuration import Compiled
from streaming.estimates import (
    BLOCK_SECONDS,
    GREEDY,
    SERVED,
    UNIFORM,
    Estimated,
    Estimates,
    OfSurface,
    fold,
    gate_of,
    pooled_gate,
    pooled_value,
    read,
    scale_of,
    written,
)
from streaming.experiences import Experience

TELL_SECONDS = 5.0
GOALS_ANEW = ", its goal drawn anew for each decision: what keeping one through a session does is for a canary to show"


class Estimating:
    """Of all surfaces. `fold` and `tell` belong to the readouts' thread; `value` and `verdict` to any."""

    def __init__(
        self,
        promotions: Promotions,
        opened: Callable[[], Estimates],
        partitions: int,
        *,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._promotions, self._telemetry = promotions, telemetry or Telemetry()
        self._folding = Folding("estimates lack decisions", opened, partitions, read, written)
        self._next_telling = 0.0

    def wanted(self) -> bool:
        """Whether there is a surface whose decisions earn anything. Raises Unavailable."""
        self._promotions.follow()
        return any(_ranged(one.surface) for one in self._promotions.configs.answering())

    def fold(self, seat: Seat) -> None:
        """Everything of a partition that has settled. Raises Unavailable, and Rejected('fenced')."""
        self._folding.fold(seat, self._begun)

    def folded(self, partition: int) -> int:
        """The next number that is wanted."""
        return self._folding.folded(partition)

    def tell(self) -> None:
        """Metrics, now and then."""
        now = time.monotonic()
        if now < self._next_telling:
            return
        self._next_telling = now + TELL_SECONDS
        for name in self._promotions.configs.surfaces():
            compiled = self._promotions.configs.current(name)
            primary = self._primary(compiled) if compiled is not None else None
            if compiled is None or primary is None:
                continue
            for policy, values in self._values(compiled, self._parts(name)).items():
                for bound in ("estimate", "low", "high"):
                    value = values.get(primary, {}).get(bound)
                    if value is not None:
                        self._telemetry.set("ope_value", name, policy, bound, value=value)

    def value(self, name: str) -> dict[str, Any]:
        """Of every policy of a surface that something is known of. Raises Rejected(404), Unavailable."""
        compiled = self._promotions.compiled(name)
        parts = self._parts(name)
        primary = self._primary(compiled)
        values = self._values(compiled, parts, hourly=True)
        known = {policy: found[primary]["estimate"] for policy, found in values.items() if primary in found}
        missing = [one for one in compiled.surface.objectives if compiled.surface.objectives[one].range is None]

        def less(one: str, other: str) -> float | None:
            a, b = known.get(one), known.get(other)
            return None if a is None or b is None else a - b

        return {
            "surface": name,
            "objective": primary,
            "live": self._promotions.configs.live(compiled) or compiled.surface.fallback,
            "unit": "reward a decision, the average over the decisions since then",
            "since": min((part.since for part in parts if part.since), default=0.0),
            "decisions": sum(part.decisions for part in parts),
            "unusable": sum(part.unusable for part in parts),
            "outside_range": sum(part.outside for part in parts),
            "lost": self._folding.lost,
            "learned": less(SERVED, UNIFORM),  # what it earns above showing anything
            "exploration_cost": less(GREEDY, SERVED),  # what always showing the best would earn more
            "policies": values,
            "without_range": missing,
        }

    def verdict(self, release: Release) -> dict[str, Any]:
        """Of the gate, as things stand. Raises Rejected, Unavailable."""
        compiled = self._promotions.compiled(release.surface)
        parts = [
            part.judging
            for part in self._parts(release.surface)
            if part.judging is not None and part.judging.run == release.run
        ]
        judged = pooled_gate(parts) or gate.begin(compiled.surface.slots)
        found: dict[str, Any] = msgspec.to_builtins(gate.verdict(gate_of(release, compiled.surface), judged))
        overlap = sum(part.overlap for part in parts)
        candidate = compiled.policies.get(release.candidate)
        if candidate is not None and candidate.algorithm.manager is not None:
            found["estimates"] += GOALS_ANEW
        return {**found, "agreement": overlap / judged.decisions if judged.decisions else None}

    def _begun(self) -> Callable[[Estimated, list[Experience]], Estimated]:
        self._promotions.follow()  # a version that a settled decision names is in the record by now
        configs = self._promotions.configs
        releases = {
            name: release
            for name in configs.surfaces()
            if (release := configs.released(name).release) is not None and release.stage in WATCHED
        }

        def version(digest: str) -> Surface | None:
            compiled = configs.get(digest)
            return None if compiled is None else compiled.surface

        return lambda state, settled: fold(state, settled, version, releases)

    def _values(
        self, compiled: Compiled, parts: list[OfSurface], *, hourly: bool = False
    ) -> dict[str, dict[str, dict[str, Any]]]:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        slots = compiled.surface.slots
        for policy in dict.fromkeys(policy for part in parts for policy in part.values):
            for objective, span in _ranged(compiled.surface).items():
                scale = scale_of(compiled.surface, objective)
                held = [v for part in parts if (v := part.values.get(policy, {}).get(scale)) is not None]
                if not held:
                    continue
                size = (span[1] - span[0]) * slots
                line: dict[str, Any] = pooled_value(held, size, span[0])
                if hourly:
                    blocks: dict[int, Any] = {}
                    for value in held:
                        for block, sums in value.blocks.items():
                            blocks[block] = np.add(blocks.get(block, (0.0, 0.0)), sums)
                    line["hours"] = [
                        {
                            "from": block * BLOCK_SECONDS,
                            "decisions": float(n),
                            "estimate": span[0] * slots + size * float(total) / float(n),
                        }
                        for block, (n, total) in sorted(blocks.items())
                    ]
                found.setdefault(policy, {})[objective] = line
        return found

    def _primary(self, compiled: Compiled) -> str | None:
        ranged = _ranged(compiled.surface)
        spec = compiled.surface.policies.get(self._promotions.configs.live(compiled) or "")
        wanted = spec.objective if spec is not None else None
        return wanted if wanted in ranged else next(iter(ranged), None)

    def _parts(self, surface: str) -> list[OfSurface]:
        return [state[surface] for state in self._folding.committed() if surface in state]


def _ranged(surface: Surface) -> dict[str, tuple[float, float]]:
    return {name: one.range for name, one in surface.objectives.items() if one.range is not None}


def refusal(release: Release, verdict: dict[str, Any]) -> Rejected:
    """What is said to who would promote what the evidence does not carry."""
    outcome = verdict["outcome"]
    said = (
        f"verdict {outcome}: {release.candidate} less {release.baseline} is {_number(verdict['estimate'])} a decision"
    )
    said += f", at least {_number(verdict['low'])} after {verdict['decisions']} decisions, wanted above {release.terms.margin:g}"
    if outcome == "insufficient":
        said += f"; a design effective sample size of {_number(verdict['design_ess'])} says nothing: a canary would"
    return Rejected(f"{said}. `force` promotes it all the same, and the audit says so", code="not_better", status=409)


def _number(value: float | None) -> str:
    return "unknown" if value is None or not np.isfinite(value) else f"{value:.4g}"
