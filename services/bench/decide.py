"""One decision in process, stage by stage, beside its floor: `Scoring.decide` from request bytes to answer bytes, spool written.

Ours and the floor take turns in short chunks, so that both meet the same machine; the ratio is of their medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.bench.floors import DecideFloor
from services.bench.report import Report
from services.bench.requests import FORMS, bodies, items, surface
from services.keys import Keys
from services.scoring.service import STAGES, Scoring
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_bundles, open_claims, open_spool, open_state
from streaming.configuration import Configs, from_json, publish_surface
from streaming.publish import Publisher

BUDGET, CHUNK = 2.0, 200


def measure(report: Report, chunks: int = 15) -> None:
    """Microseconds a decision, each form of candidates; the stages of the form by id."""
    with tempfile.TemporaryDirectory(prefix="slatewise-bench-") as folder, DecideFloor() as floor:
        telemetry = Telemetry()
        scoring = scoring_in(Path(folder), telemetry)
        asked = bodies()
        taken: dict[str, list[float]] = {"floor": [], **{form: [] for form in FORMS}}
        series = {stage: telemetry.series("decide_stage_seconds", stage) for stage in STAGES}
        stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
        requests = {form: bodies(form) for form in FORMS}
        timed(lambda i: floor(asked[i % len(asked)]), CHUNK)  # compiles
        for _ in range(chunks):
            taken["floor"].append(timed(lambda i: floor(asked[i % len(asked)]), CHUNK))
            for form in FORMS:
                given = requests[form]
                for values in series.values():
                    values.clear()
                taken[form].append(timed(lambda i, given=given: scoring.decide(given[i % len(given)]), CHUNK))  # type: ignore[misc]  # bound early
                if form == FORMS[0]:
                    for stage, values in series.items():
                        stages[stage].append(1e6 * statistics.fmean(values))
            scoring.tick()
        base = statistics.median(taken["floor"])
        for form in FORMS:
            budget = BUDGET if form == FORMS[0] else None
            report.add(
                f"decide in process, {form}",
                statistics.median(taken[form]),
                "µs",
                floor=base,
                at_most=budget,
                of_floor=True,
            )
        for stage in STAGES:
            report.add(f"  stage {stage}", statistics.median(stages[stage]), "µs", note="by id")
        scoring.close()


def scoring_in(data: Path, telemetry: Telemetry, algorithm: str = "linear_thompson") -> Scoring:
    """The scoring service without HTTP on a fresh folder: surface, catalogue and a bundle of the prior in place, warm.

    The policy is an algorithm with its default options, which linear_thompson's of `surface()` are.
    """
    document = surface()
    document["policies"]["bench-ts"] = {"algorithm": algorithm, "objective": "click"}
    return scoring_of(data, telemetry, document)


def scoring_of(data: Path, telemetry: Telemetry, document: dict[str, Any]) -> Scoring:
    """The same for any surface `home` with a policy `bench-ts`."""
    return started(settings_in(data), [document], items(), telemetry=telemetry)


def settings_in(data: Path) -> Settings:
    """Of a service that no run of a bench fills."""
    return Settings.load(environ={}, data=data, spool_bytes=8 << 30)


def started(
    settings: Settings, documents: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]], **wired: Any
) -> Scoring:
    """The scoring service without HTTP on a fresh folder, the prior of `bench-ts` and of the fallback of each surface published.

    `wired`: what else it is made with.
    """
    state, bundles, configs = open_state(settings), open_bundles(settings), Configs()
    for document in documents:
        publish_surface(state, from_json(msgspec.json.encode(document)))
    configs.follow(state)
    if items:
        state.put([("item", str(item["id"]), msgspec.json.encode(item)) for item in items])
    publisher = Publisher(bundles, configs, 1)
    for compiled in configs.answering():
        for name in ("bench-ts", compiled.surface.fallback):
            publisher.publish(compiled.policies[name], [], {}, time.time())
    scoring = Scoring(
        state=state,
        claims=open_claims(settings),
        bundles=bundles,
        spool=open_spool(settings),
        keys=Keys.load(settings.data),
        **wired,
    )
    scoring.start()
    return scoring


def timed(work: Callable[[int], object], count: int) -> float:
    """Microseconds a call."""
    start = time.perf_counter()
    for i in range(count):
        work(i)
    return 1e6 * (time.perf_counter() - start) / count
