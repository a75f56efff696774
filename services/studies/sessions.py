"""`slatewise study sessions`: agents end to end on the real stack, with their trainer killed in the middle.

People of `session_world` ask for slates over HTTP and say over HTTP what they did. Kafka carries it, shards and the trainer on Ray learn
from it, bundles are published, pass the gate and are swapped in while people go on. First everybody gets the slates of the behaviour of
`guardrails` (a linear Thompson policy, which learns too): agents begin with random weights and learn from its log, and nobody
is asked to bear with them yet. Then an experiment splits the people between four policies: uniform slates (the floor), the
behaviour, a two-stage constrained actor-critic, and one in Lagrangian mode whose thresholds are the behaviour's likes and
hates as simulated beforehand. All of them learn from everybody, as far as they learn.

In the middle the trainer's process is killed with SIGKILL. At the end its recorded order is gone through again, from nothing
and beside it, and what it had come to is compared to the last bit: weights, both moments of the optimiser, replay, open sequences.
"""

import io
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from policies.types import F64
from policies.worlds.session_world import NAMED, OBJECTIVES, SessionWorld
from services.client import Slatewise
from services.learning.retracing import Trained
from services.studies.guardrails_ways import JUDGED, STRENGTHS, behaviour
from services.studies.sessions_people import Lived, Shown, crowd
from services.studies.sessions_site import AGENTS, ARMS, SURFACE, Site
from services.studies.study import Study
from streaming.retraining import differences

LATER = 1_000_000  # number of the first cohort that is not counted, after the time was over
BEFORE = 2_000_000  # … and of the first that comes before the experiment
WORLD = 1  # one of those `guardrails` reports, none that anything was chosen on
Z95 = 1.959964
OPTIMISER = ("mean.", "square.", "step.")  # how Adam's state is named among a trainer's arrays


@dataclass(frozen=True)
class Size:
    """`before` seconds of people who all get the behaviour's slates, then `seconds` of people, in `blocks`; the trainer is killed after
    `killed` of them. Horizon and session timeout are the surface's."""

    before: float = 90.0
    seconds: float = 400.0
    people: int = 75
    steps: int = 20
    blocks: int = 12
    killed: float = 0.45
    nodes: int = 2
    horizon: float = 3.0
    timeout: float = 15.0


QUICK = Size(before=1.0, seconds=4.0, people=24, steps=5, blocks=2, killed=0.5, nodes=1, horizon=0.5, timeout=2.0)
LOOK_SECONDS = 0.5
RESUME_SECONDS = 120.0  # that people go on, if they must, until another trainer has published


@dataclass
class Death:
    """Of the trainer, in seconds since the crowd began; NaN: not yet. `entries`: recorded then; `checkpoint`: of these, how many the
    newest checkpoint had; `resumed`: the first checkpoint of its successor."""

    at: float = math.nan
    pid: int = 0
    entries: int = 0
    checkpoint: int = 0
    bundle: str = ""
    followed: float = math.nan
    published: float = math.nan
    resumed: Trained | None = None

    @property
    def over(self) -> bool:
        return not math.isnan(self.published) and self.resumed is not None


@dataclass
class Watching:
    """Kills the trainer when it is time, and notes what becomes of it; called between slates, looks at most every `LOOK_SECONDS`."""

    site: Site
    when: float
    death: Death = field(default_factory=Death)
    began: float = field(default_factory=time.monotonic)
    _next: float = 0.0

    def __call__(self) -> None:
        death, now = self.death, time.monotonic() - self.began
        if now < self._next or death.over:
            return
        self._next = now + LOOK_SECONDS
        if math.isnan(death.at):
            if now >= self.when and self._trains():
                death.entries, death.checkpoint = self.site.entries(), self.site.checkpoint().entries
                death.bundle = self.site.bundles()[f"{SURFACE}/agent"]
                death.pid, death.at = self.site.kill_trainer(), now
            return
        if math.isnan(death.followed):
            if set(self.site.trainers()) - {death.pid}:
                death.followed = now
                death.bundle = self.site.bundles()[f"{SURFACE}/agent"]  # the one before may have left another
            return
        if math.isnan(death.published) and self.site.bundles()[f"{SURFACE}/agent"] != death.bundle:
            death.published = now
        if death.resumed is None:
            newest = self.site.checkpoint()
            if newest.entries > death.entries:
                death.resumed = newest

    def _trains(self) -> bool:
        return self.site.checkpoint().entries > 0


TITLES = {"watch": "Watch, seconds", "like": "Likes", "hate": "Hates"}
NAMES = {"random": "random (floor)", "behaviour": "behaviour", "agent": "two-stage", "held": "Lagrangian"}


@dataclass(frozen=True)
class Run:
    """What a run left behind. `before`: slates before the experiment; `thresholds`: of the Lagrangian; `differs`: what was compared → names of arrays in which it is not the same."""

    before: Lived
    lived: Lived
    thresholds: dict[str, float]
    death: Death
    final: Trained
    differs: dict[str, list[str]]
    records: int
    seconds: float


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    size = QUICK if quick else Size()
    return told(play(size, WORLD), size)


def play(size: Size, seed: int) -> Run:
    """One run. Raises Unavailable, naming what the stack lacks; TimeoutError when something did not come back."""
    world, began = SessionWorld(seed), time.monotonic()
    usual = world.simulate(behaviour(world, seed).policy, 1_500, 30, JUDGED)[0].per_decision
    thresholds = dict(zip(NAMED[1:], usual[1:].round(3).tolist(), strict=True))
    with (
        tempfile.TemporaryDirectory(prefix="slatewise-sessions-", ignore_cleanup_errors=True) as folder,
        Site.start(Path(folder), world, size.nodes, size.horizon, size.timeout, thresholds) as site,
        Slatewise(site.host.url, timeout=60.0) as client,
    ):
        before = crowd(client, world, size.people, size.steps, size.before, lambda: None, first=BEFORE)
        site.split()
        watch = Watching(site, size.killed * size.seconds)
        lived = crowd(client, world, size.people, size.steps, size.seconds, watch)
        until, number = time.monotonic() + RESUME_SECONDS, LATER
        while not watch.death.over:  # more people, who are not counted, until the successor has shown itself
            if time.monotonic() > until:
                raise TimeoutError(f"no trainer went on: {watch.death}")
            crowd(client, world, min(size.people, 20), 2, 0.0, watch, first=number)
            number += 2
            time.sleep(LOOK_SECONDS)
        site.host.stop()
        final, uploaded, resumed = site.checkpoint(), site.upload(), watch.death.resumed
        assert resumed is not None  # the death is over
        same = uploaded.entries == final.entries  # not where the actor was ended while it uploaded
        differs = {
            "the successor's first checkpoint, and the order up to it replayed": site.replay(resumed),
            "the last checkpoint, and the whole order replayed": site.replay(final),
            "the upload as an empty disk begins with it, and what was trained": (
                differences(final.statistics, uploaded.statistics) if same else site.replay(uploaded)
            ),
        }
        return Run(before, lived, thresholds, watch.death, final, differs, site.records(), time.monotonic() - began)


# what a run says


@dataclass(frozen=True)
class Mean:
    """An estimate with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.value - Z95 * self.error:.4g}, {self.value + Z95 * self.error:.4g}]"


def rates(shown: Sequence[Shown]) -> list[Mean]:
    """(3,) watch, likes and hates a slate: ratios of sums, errors between people (linearised), whose slates hang together."""
    people: dict[tuple[int, int], F64] = {}
    for one in shown:
        found = people.setdefault((one.cohort, one.person), np.zeros(4))
        found += np.append(one.rewards, 1.0)
    totals = np.array(list(people.values())).reshape(-1, 4)
    slates = totals[:, 3]
    if len(totals) < 2:
        return [Mean(math.nan, math.nan)] * 3
    found_rates = totals[:, :3].sum(axis=0) / slates.sum()
    off = (totals[:, :3] - found_rates * slates[:, None]) / slates.mean()
    errors = off.std(axis=0, ddof=1) / math.sqrt(len(totals))
    return [Mean(float(rate), float(error)) for rate, error in zip(found_rates, errors, strict=True)]


def lives(shown: Sequence[Shown]) -> Mean:
    """Watch a person, over all their slates."""
    people: dict[tuple[int, int], float] = {}
    for one in shown:
        people[one.cohort, one.person] = people.get((one.cohort, one.person), 0.0) + float(one.rewards[0])
    values = np.array(list(people.values()))
    if len(values) < 2:
        return Mean(math.nan, math.nan)
    return Mean(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def against(one: Mean, other: Mean) -> str:
    """Relative change of two independent estimates, delta method."""
    change = one.value / other.value - 1
    error = math.hypot(one.error / other.value, one.value * other.error / other.value**2)
    return f"{100 * change:+.1f} % [{100 * (change - Z95 * error):+.1f}, {100 * (change + Z95 * error):+.1f}]"


def in_blocks(shown: Sequence[Shown], blocks: int) -> list[list[Shown]]:
    """By the time slates were shown, in equal spans."""
    last = max(one.at for one in shown) * (1 + 1e-9)
    found: list[list[Shown]] = [[] for _ in range(blocks)]
    for one in shown:
        found[int(one.at / last * blocks)].append(one)
    return found


def of(shown: Sequence[Shown], arm: str) -> list[Shown]:
    return [one for one in shown if one.arm == arm]


def told(found: Run, size: Size) -> Study:
    study = Study("End to end on the real stack: session_world over HTTP, Kafka, Redis and Ray")
    shown, death = found.lived.shown, found.death
    blocks = in_blocks(shown, size.blocks)
    for place, name in enumerate(NAMED):
        rows: list[list[Any]] = []
        for block in blocks:
            seen = [one.at for one in block]
            cells = [str(rates(of(block, arm))[place]) for arm in ARMS]
            bundles = len({one.bundle for one in block if one.policy in AGENTS})
            span = f"{min(seen):.0f} to {max(seen):.0f}" if seen else ""
            rows.append([span, len(block), bundles, *cells])
        study.table(
            f"{TITLES[name]} a slate, by time",
            ["seconds", "slates", "bundles of the agents drawn from", *(NAMES[arm] for arm in ARMS)],
            rows,
        )
    late = [one for block in blocks[-max(1, size.blocks // 3) :] for one in block]
    whole = whole_lives(shown, min(one.at for one in late))
    settled = {arm: [lives(of(whole, arm)), *rates(of(late, arm))] for arm in ARMS}
    study.table(
        "The last third of the time",
        ["policy", "watch, seconds a person", "watch a slate", "likes a slate", "hates a slate", "slates"],
        [[NAMES[arm], *map(str, values), len(of(late, arm))] for arm, values in settled.items()],
    )
    study.table(
        "The last third, against the behaviour beside it",
        [
            "policy",
            "watch a person",
            "watch a slate",
            "likes a slate (guardrail: not below)",
            "hates a slate (not above)",
        ],
        [
            [NAMES[arm], *(against(one, other) for one, other in zip(settled[arm], settled["behaviour"], strict=True))]
            for arm in ("random", *AGENTS)
        ],
    )
    study.table(
        "Lagrangian: the last fifth of the time, beside its thresholds",
        ["objective", "threshold", "wanted", "a slate", "share of the threshold", "held in the mean"],
        [row for name in found.thresholds for row in [held(found, name)]],
    )
    lines: list[list[Any]] = [
        ["killed, seconds since the beginning", death.at],
        ["entries recorded by then", death.entries],
        ["… of these in the newest checkpoint: the others were applied again", death.checkpoint],
        ["another process sat there after, seconds", death.followed - death.at],
        ["its first bundle was pointed to after, seconds", death.published - death.at],
        ["entries in its first checkpoint", death.resumed.entries if death.resumed else None],
        ["entries at the end", found.final.entries],
        *([f"answers meanwhile: {mode}", count] for mode, count in sorted(meanwhile(found).items())),
    ]
    study.table("The trainer's process, killed with SIGKILL", ["what", "value"], lines)
    arrays = [name for held in found.final.statistics.values() for name in held]
    study.table(
        "To the last bit",
        ["compared", "arrays", "of these the optimiser's", "that differ", "same"],
        [
            [what, len(arrays), sum(name.startswith(OPTIMISER) for name in arrays), len(names), not names]
            for what, names in found.differs.items()
        ],
    )
    _notes(study, found, size)
    study.picture = drawn(blocks, death)
    return study


def held(found: Run, name: str) -> list[Any]:
    """What the Lagrangian's arm had of an objective in the last fifth of the time, beside its threshold."""
    shown, place, threshold = found.lived.shown, NAMED.index(name), found.thresholds[name]
    since = 0.8 * max(one.at for one in shown)
    had = rates([one for one in of(shown, "held") if one.at >= since])[place]
    least = OBJECTIVES[name].better == "higher"
    share = Mean(had.value / threshold, had.error / threshold)
    kept = had.value >= threshold if least else had.value <= threshold
    return [name, threshold, "at least" if least else "at most", str(had), str(share), bool(kept)]


def whole_lives(shown: Sequence[Shown], since: float) -> list[Shown]:
    """Of people who came in this time: their lives from the first slate to the last."""
    came: dict[int, float] = {}
    for one in shown:
        came[one.cohort] = min(came.get(one.cohort, math.inf), one.at)
    return [one for one in shown if came[one.cohort] >= since]


def meanwhile(found: Run) -> Counter[str]:
    """Mode → answers between the death and the first bundle after it."""
    death = found.death
    return Counter(one.mode for one in found.lived.shown if death.at <= one.at <= death.published)


def _notes(study: Study, found: Run, size: Size) -> None:
    lived, death = found.lived, found.death
    modes = Counter(one.mode for one in lived.shown)
    bundles = len({one.bundle for one in lived.shown if one.policy in AGENTS})
    cohorts = len({one.cohort for one in lived.shown})
    study.note(
        f"{len(lived.shown):,} slates of 4 out of 20, {lived.feedback:,} feedback accepted, {found.records:,} records in the log (people who "
        f"came after the time was over are in the log alone); answers by mode: "
        + ", ".join(f"{mode} {count:,}" for mode, count in sorted(modes.items()))
        + f". {bundles} bundles of the agents were drawn from."
    )
    study.note(
        f"World {WORLD}, {cohorts} cohorts of {size.people} people, two cohorts at a time, at most {size.steps} slates a person; arms by hash of the "
        f"person: {', '.join(f'{arm} {share:.0%}' for arm, share in ARMS.items())}. Horizon {size.horizon:g} s, session timeout "
        f"{size.timeout:g} s of real time, in which a person asks about once a second. A person is one sequence to the agent, also over "
        "their returns. Intervals: 95 %, between people; one run, one world."
    )
    study.note(
        f"Agents: settings of `guardrails` (two-stage: strengths {STRENGTHS}), chosen there on other worlds; nothing was chosen here. They "
        f"begin with random weights and learn from everybody: from {len(found.before.shown):,} slates of the behaviour in {size.before:g} "
        "seconds before the experiment, then from all four arms; the behaviour learns beside them. The Lagrangian's thresholds are what "
        "the behaviour of `guardrails` has in this world, simulated beforehand."
    )
    study.note(
        f"Stack: Kafka, Redis, a Ray cluster of {size.nodes} nodes, scoring, forwarder and learning, and the people themselves, on one "
        f"machine; {found.seconds:.0f} s in all, starting, stopping and replaying included."
    )
    study.note(
        f"Between death and the next checkpoint {max(death.entries - death.checkpoint, 0)} recorded entries were applied again. Replays read "
        "the order and the rows from the trainer's disk and the decisions from Kafka."
    )
    for arm in AGENTS:
        study.note(missed(found, size, arm))
    study.note(
        "What the intervals leave open is left open: one run of minutes is no ten seeds (`guardrails` has those)."
    )


def missed(found: Run, size: Size, arm: str) -> str:
    """What an agent is short of in the last third: above the behaviour in watch, not below it in likes, not above in hates."""
    late = [one for block in in_blocks(found.lived.shown, size.blocks)[-max(1, size.blocks // 3) :] for one in block]
    agent, usual = (rates(of(late, name)) for name in (arm, "behaviour"))
    gaps = [sign * (a.value / b.value - 1) for sign, a, b in zip((1, 1, -1), agent, usual, strict=True)]
    short = [f"{name} {100 * gap:+.1f} %" for name, gap in zip(NAMED, gaps, strict=True) if not gap >= 0]
    told = ", ".join(f"{name} {100 * gap:+.1f} %" for name, gap in zip(NAMED, gaps, strict=True))
    return f"{NAMES[arm]} against behaviour in the last third, turned so that more is better: {told}. " + (
        f"Missed in the mean: {', '.join(short)}." if short else "None is worse in the mean."
    )


def drawn(blocks: Sequence[Sequence[Shown]], death: Death) -> bytes:
    """The curves as a picture; needs matplotlib (the studies extra)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6))
    for place, (name, axis) in enumerate(zip(NAMED, axes, strict=True)):
        for arm in ARMS:
            means = [rates(of(block, arm))[place] for block in blocks]
            at = [float(np.mean([one.at for one in block])) if block else math.nan for block in blocks]
            axis.errorbar(at, [m.value for m in means], [Z95 * m.error for m in means], capsize=2, label=NAMES[arm])
        axis.axvline(death.at, color="grey", linestyle=":", label="trainer killed")
        axis.set_title(f"{TITLES[name]} a slate")
        axis.set_xlabel("seconds")
    axes[0].legend()
    figure.tight_layout()
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=100)
        pyplot.close(figure)
        return file.getvalue()
