"""What the service finds out about a surface and acts on, beside what its document says: recorded, so that a replay knows it.

    examined   how often slots are looked at, estimated where the document says `examination: estimated`
    resets     policies whose residuals have drifted, where the document says what is left then of their evidence (`on_drift`)

An adjustment is state, like a release: it survives restarts and edits of the document. It acts through a new version of the
surface, which every decision made after it names and is taught by; so the sums are a function of the log, and what was
learned before is an addend (`policies.carrying`). Versions are content: adjusting twice alike changes nothing.
"""

from collections.abc import Iterator

import msgspec
from msgspec import UNSET, Struct, UnsetType

from policies.registry import ALGORITHMS
from policies.surface import PolicySpec, Surface
from streaming.documents import Path
from streaming.ports import State

LEAST_LEFT = 1e-3
KIND = "adjustment"  # in the state record, by surface
Fault = tuple[Path, str, str]


class Adjustments(Struct, frozen=True):
    """Of one surface. `at`: epoch seconds of the last."""

    at: float = 0.0
    examined: list[float] = []
    resets: dict[str, list[float]] = {}


def adjustments_on(state: State, surface: str) -> Adjustments:
    """What is recorded. Raises Unavailable."""
    entry = state.get(KIND, surface)
    return msgspec.json.decode(entry.value, type=Adjustments) if entry and entry.value else Adjustments()


def record(state: State, surface: str, adjustments: Adjustments, seen: int) -> None:
    """Put it into the record. Raises Unavailable, and Rejected(409) when somebody wrote since version `seen` was read."""
    state.put([(KIND, surface, msgspec.json.encode(adjustments))], expect=seen)


def adjusted(surface: Surface, adjustments: Adjustments) -> Surface:
    """The surface with what is recorded in place of what its document may say there."""
    wanted = surface.examination == "estimated" and len(adjustments.examined) >= surface.slots
    examined = adjustments.examined[: surface.slots] if wanted else UNSET
    resets = {name: found for name, found in sorted(adjustments.resets.items()) if name in surface.policies and found}
    return msgspec.structs.replace(surface, examined=examined, resets=resets or UNSET)


def faults(surface: Surface) -> Iterator[Fault]:
    """(path, what is wrong, what would be right)."""
    examination = surface.examination
    if isinstance(examination, list):
        if len(examination) < surface.slots:
            yield ("examination",), f"{len(examination)} numbers for {surface.slots} slots", f"{surface.slots} numbers"
        for i, chance in enumerate(examination):
            if not 0 < chance <= 1:
                yield ("examination", i), f"a slot that is looked at with probability {chance:g}", "above 0, at most 1"
    if examination == "estimated":
        yield from _unidentified(surface)
    for name, policy in surface.policies.items():
        yield from _reset(("policies", name), policy)
    if examination not in (UNSET, "none"):
        for name, policy in surface.policies.items():
            found = ALGORITHMS.get(policy.algorithm)
            if found is not None and "odds" in found.traits:
                message = f"{policy.algorithm} takes rewards within the range only, and examination divides them"
                yield ("policies", name, "algorithm"), message, "another algorithm, or examination: none"


def _reset(path: Path, policy: PolicySpec) -> Iterator[Fault]:
    if isinstance(policy.on_drift, UnsetType):
        return
    if not LEAST_LEFT <= policy.on_drift < 1:
        expected = f"what the evidence before counts, from {LEAST_LEFT:g} to below 1"
        yield (*path, "on_drift"), f"on_drift is {policy.on_drift:g}", expected
    found = ALGORITHMS.get(policy.algorithm)
    if found is not None and (found.carry is None or "predicts" not in found.traits):
        message = f"{policy.algorithm} has no sums that could count less, or predicts no reward that could be missed"
        yield (*path, "on_drift"), message, "another algorithm, or no on_drift"


def _unidentified(surface: Surface) -> Iterator[Fault]:
    """Constraints inside the slate make what may follow depend on what was drawn, which the estimate cannot have."""
    expected = "examination of each slot, or no such rule"
    for i, rule in enumerate(surface.rules):
        for key in ("cap", "quota", "spacing"):
            if getattr(rule, key) is not None:
                yield ("rules", i, key), f"examination cannot be estimated under {key}", expected
    if surface.fairness.prefix is not None:
        yield ("fairness", "prefix"), "examination cannot be estimated under shares of every prefix", expected
    if surface.slots > 1 and surface.logging.sample == 0:
        yield ("logging", "sample"), "examination is estimated from sampled decisions, and there are none", "above 0"


def advice(surface: Surface) -> Iterator[str]:
    """What to think about in a surface without mistakes."""
    if surface.examination == "estimated":
        yield (
            f"examination: estimated from the {surface.logging.sample:.1%} of decisions that are sampled (logging.sample): some "
            f"thousands of them, and as many times more as the policy's slates are always the same"
        )
