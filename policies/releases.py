"""The way of a candidate to being a surface's live policy, step by step. Pure; the time is an argument.

    apprentice ─► shadow ─► canary ─► live          from each of the first three: promoted, or aborted
                                        └► rolled back: what was live before is live again

apprentice, shadow   the baseline is served, and on a share of its decisions the candidate says how likely it would have
                     drawn the same slate: the promotion gate rests on that (`evaluation.gate`)
canary               the candidate answers for a share of the units, who stay with it
live                 it is what the surface serves: this state wins over `live:` of the document

Each test of a candidate against one live policy, by gate or canary, takes a number: the j-th spends α·6/(π²j²), so all of
them together promote what is not better with probability α at most, ever.
"""

from typing import Any, Literal, NoReturn

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from policies.errors import Rejected
from policies.evaluation.estimate import Weighting
from policies.experiments.assignment import BUCKETS, allocated, empty
from policies.experiments.document import Allocation, Analysis, Arm, Experiment, Guardrail, Metrics, Trial
from policies.surface import seconds

Stage = Literal["apprentice", "shadow", "canary", "live", "aborted"]
WATCHED: tuple[Stage, ...] = ("apprentice", "shadow")  # the candidate is drawn beside the baseline
OPEN: tuple[Stage, ...] = (*WATCHED, "canary")
KEPT = 50  # releases of a surface that are remembered
CANDIDATE, LIVE = "candidate", "live"  # arms of a canary


class Terms(Struct, frozen=True, forbid_unknown_fields=True):
    """How a candidate will be judged, said before anything is looked at.

    objective     of the surface, with a `range`; None: the live policy's, else the first
    margin        reward a decision (the whole slate) by which it must be better; negative: not worse by more than that
    weighting     of the gate: `slot` (ips), `prefix` (rips) or `slate`
    rate          share of the baseline's decisions on which the candidate is drawn beside it
    share         of the units that the canary gives to it
    window        how long a unit of the canary is counted from its first exposure
    guardrails    metric → least effect a unit: below it, established, the canary ends by itself
    planned       units at which the guardrails' intervals are tightest
    max_fallback  share of its decisions, of the last 200, that may fall back because it has no bundle or failed
    watch         how long a promoted candidate is watched for that
    """

    objective: str | None = None
    alpha: float = 0.05
    margin: float = 0.0
    weighting: Weighting = "slot"
    rate: float = 0.25
    share: float = 0.05
    window: str | float = "1h"
    guardrails: dict[str, Guardrail] = {}
    planned: int = 10_000
    max_fallback: float = 0.05
    watch: str | float = "1h"


class Release(Struct, frozen=True):
    """One candidate's way. `gate` and `trial`: numbers of its tests against the baseline (0: not begun); `run`: of this stage,
    unique in the surface, so that no evidence is taken for another's; began, since: epoch seconds, of the release and the stage.
    """

    surface: str
    candidate: str
    baseline: str
    stage: Stage
    terms: Terms
    run: int
    began: float
    since: float
    gate: int = 0
    trial: int = 0
    forced: bool = False
    reason: str = ""
    verdict: dict[str, Any] | None = None

    @property
    def objective(self) -> str:
        """Said at the start, whatever the document leaves out."""
        assert self.terms.objective is not None
        return self.terms.objective


class Released(Struct, frozen=True):
    """What releases have made of a surface. `live` None: what its document says; `before`: what was live, the newest last;
    `tests`: live policy → tests that candidates have taken against it."""

    live: str | None = None
    before: list[str | None] = []
    release: Release | None = None
    tests: dict[str, int] = {}
    runs: int = 0
    history: list[Release] = []


def checked(terms: Terms) -> Terms:
    """The terms themselves. Raises Rejected, naming the field."""
    ranges = {"alpha": (0.0, 0.5), "rate": (0.0, 1.0), "share": (0.0, 0.5), "max_fallback": (0.0, 1.0)}
    for name, (low, high) in ranges.items():
        value = getattr(terms, name)
        if not low < value <= high:
            raise Rejected(f"Expected a number above {low:g} and at most {high:g}, got {value:g}", at=f"$.terms.{name}")
    if not np.isfinite(terms.margin):
        raise Rejected("Expected a finite number", at="$.terms.margin")
    if terms.weighting not in ("slot", "prefix", "slate"):
        raise Rejected("A gate rests on weights of slot, prefix or slate", at="$.terms.weighting")
    for name in ("window", "watch"):
        if seconds(getattr(terms, name), f"$.terms.{name}") <= 0:
            raise Rejected("Expected a duration above 0", at=f"$.terms.{name}")
    if terms.planned < 4:
        raise Rejected(f"Expected at least 4 units, got {terms.planned}", at="$.terms.planned")
    for name, guardrail in terms.guardrails.items():
        if not guardrail.min_effect <= 0:
            raise Rejected("Expected a number of at most 0", at=f"$.terms.guardrails.{name}.min_effect")
    return terms


def started(
    before: Released, surface: str, candidate: str, baseline: str, stage: Stage, terms: Terms, now: float
) -> Released:
    """A release of a candidate, watched beside the baseline, which is served from now on. Raises Rejected(409)."""
    running = before.release
    if running is not None and running.stage in OPEN:
        raise Rejected(f"{running.candidate} is in {running.stage}: abort it first", code="running", status=409)
    if candidate == baseline:
        raise Rejected(f"{candidate} is what it would be compared with", at="$.candidate", code="same_policy")
    if stage not in WATCHED:
        raise Rejected("A release begins as apprentice or shadow", at="$.stage", code="bad_stage")
    after, number = _numbered(before, baseline)
    release = Release(surface, candidate, baseline, stage, checked(terms), after.runs, now, now, gate=number)
    return replace(after, release=release, history=_remembered(before))


def watched(before: Released, now: float) -> Released:
    """From apprentice to shadow; the evidence goes on. Raises Rejected(409)."""
    release = running(before)
    if release.stage != "apprentice":
        _refuse(release, "shadow")
    return replace(before, release=replace(release, stage="shadow", since=now))


def tried(before: Released, share: float | None, now: float) -> Released:
    """The canary, or the canary with another share: a test of its own, with units drawn anew. Raises Rejected."""
    release = running(before)
    terms = checked(replace(release.terms, share=release.terms.share if share is None else share))
    after, number = _numbered(before, release.baseline)
    made = replace(release, stage="canary", since=now, terms=terms, run=after.runs, trial=number)
    return replace(after, release=made)


def promoted(
    before: Released, verdict: dict[str, Any] | None, now: float, *, forced: bool = False, reason: str = ""
) -> Released:
    """The candidate is what the surface serves. Raises Rejected(409)."""
    release = running(before)
    made = replace(release, stage="live", since=now, forced=forced, reason=reason, verdict=verdict)
    kept = [*before.before, release.baseline][-KEPT:]
    return replace(before, live=release.candidate, before=kept, release=made)


def aborted(before: Released, reason: str, now: float, verdict: dict[str, Any] | None = None) -> Released:
    """The candidate is out; what is served stays. Raises Rejected(409)."""
    release = running(before)
    return replace(before, release=replace(release, stage="aborted", since=now, reason=reason, verdict=verdict))


def rolled_back(before: Released, reason: str, now: float) -> Released:
    """What was live before the last promotion is live again. Raises Rejected(409) when nothing was promoted."""
    if not before.before:
        raise Rejected("No candidate was promoted here", code="nothing_promoted", status=409)
    release = before.release
    if release is not None and release.stage in OPEN:
        raise Rejected(f"{release.candidate} is in {release.stage}: abort it first", code="running", status=409)
    if release is not None and release.stage == "live":
        release = replace(release, stage="aborted", since=now, reason=reason)
    return replace(before, live=before.before[-1], before=before.before[:-1], release=release)


def running(before: Released) -> Release:
    """The release that is neither live nor aborted. Raises Rejected(409)."""
    release = before.release
    if release is None or release.stage not in OPEN:
        raise Rejected("No candidate is on its way here", code="not_running", status=409)
    return release


def canary_of(released: Released) -> Trial | None:
    """The canary that runs as what it is: an experiment of two arms, sticky by unit, over those whom no other one wants."""
    release = released.release
    if release is None or release.stage != "canary":
        return None
    terms, name = release.terms, f"release:{release.surface}/{release.candidate}:{release.run}"
    shares = {LIVE: 1.0 - terms.share, CANDIDATE: terms.share}
    document = Experiment(
        experiment=name,
        surface=release.surface,
        arms={
            LIVE: Arm(policy=release.baseline, share=shares[LIVE]),
            CANDIDATE: Arm(policy=release.candidate, share=terms.share),
        },
        metrics=Metrics(release.objective, guardrails=terms.guardrails),
        layer=name,
        control=LIVE,
        learners="shared",
        analysis=Analysis(alpha=terms.alpha, window=terms.window, planned=terms.planned, cuped=False),
    )
    buckets = allocated(name, list(shares.values()), empty(), np.zeros(BUCKETS, np.bool_))
    allocations = [Allocation(release.since, shares)]
    return Trial(document, buckets.tobytes(), allocations, shares, status="running", start=release.since)


def _numbered(before: Released, baseline: str) -> tuple[Released, int]:
    number = before.tests.get(baseline, 0) + 1
    return replace(before, tests={**before.tests, baseline: number}, runs=before.runs + 1), number


def _remembered(before: Released) -> list[Release]:
    return before.history if before.release is None else [*before.history, before.release][-KEPT:]


def _refuse(release: Release, step: str) -> NoReturn:
    raise Rejected(
        f"{release.candidate} is in {release.stage}, from where there is no step to {step}",
        code="bad_stage",
        status=409,
    )
