"""Jester through the loop: a stream of people in passes, held-out people in between, regret beside its references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.types import F64, I64
from services.bench.report import provenance
from services.replay.drive import Asked, Driver, Item
from services.replay.jester import JesterWorld
from services.replay.regret import References, Split, cumulative_regret, mean_interval, share_closed

SLATE, KIND = 5, "rating"


@dataclass
class Run:
    """earned: mean reward of each slate of the stream, in order, and who it was for; served: (held out,) after a number of passes."""

    earned: list[float] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    served: dict[int, F64] = field(default_factory=dict)


def items(world: JesterWorld) -> list[Item]:
    return [Item(name, world.features(arm)) for arm, name in enumerate(world.ids)]


def drive(
    world: JesterWorld,
    split: Split,
    driver: Driver,
    *,
    passes: int,
    batch: int,
    repeats: int,
    seed: int,
    pace: Callable[[int], None] = lambda decisions: None,
    heard: Callable[[str], None] = lambda line: None,
) -> Run:
    """`passes` times all people of the stream in an order of the pass; held-out people after the first and the last.

    pace     called with the number of decisions so far before each batch; may wait
    repeats  decisions for each held-out person, to average over the draw
    """
    arm = {name: i for i, name in enumerate(world.ids)}
    run = Run()
    run.served[0] = _held_out(world, split.held_out, driver, arm, repeats)
    for done in range(passes):
        order = np.random.default_rng([seed, 17, done]).permutation(split.stream)
        for start in range(0, len(order), batch):
            people = order[start : start + batch]
            pace(len(run.earned))
            slates = driver.decide([Asked(f"person-{u}", world.context(int(u))) for u in people])
            rewards = [
                [float(world.rewards[u, arm[i]]) for i in slate] for u, slate in zip(people, slates, strict=True)
            ]
            driver.tell(KIND, rewards)
            run.earned += [float(np.mean(r)) for r in rewards]
            run.people += [int(u) for u in people]
        heard(f"pass {done + 1}: mean reward {np.mean(run.earned[-len(order) :]):.4f}")
        if done + 1 in (1, passes):
            driver.settle()
            run.served[done + 1] = _held_out(world, split.held_out, driver, arm, repeats)
            heard(f"pass {done + 1}: held-out people {run.served[done + 1].mean():.4f}")
    return run


def _held_out(world: JesterWorld, people: I64, driver: Driver, arm: dict[str, int], repeats: int) -> F64:
    """Mean reward by person of what is served, its exploration included; nothing is learned from it."""
    total = np.zeros(len(people))
    for _ in range(repeats):
        for start in range(0, len(people), 100):
            asked = people[start : start + 100]
            slates = driver.decide([Asked(f"person-{u}", world.context(int(u)), learn=False) for u in asked])
            total[start : start + 100] += [
                float(np.mean([world.rewards[u, arm[i]] for i in slate]))
                for u, slate in zip(asked, slates, strict=True)
            ]
    return total / repeats


def summary(run: Run, split: Split, known: References, passes: int) -> dict[str, Any]:
    """Every number of the report, with 95% intervals over people."""
    place = {int(u): i for i, u in enumerate(split.stream)}
    where = np.array([place[u] for u in run.people])
    n = len(split.stream)
    ends = sorted({1, passes})
    regret = {
        f"pass {p}": {
            name: float((values[where[(p - 1) * n : p * n]] - run.earned[(p - 1) * n : p * n]).sum())
            for name, values in known.stream.items()
        }
        for p in ends
    }
    online = {}
    for p in ends:
        earned = np.empty(n)
        earned[where[(p - 1) * n : p * n]] = run.earned[(p - 1) * n : p * n]
        online[f"pass {p}"] = mean_interval(earned)
    return {
        "held_out": {
            **{name: mean_interval(values) for name, values in known.held_out.items()},
            **{f"served after pass {p}": mean_interval(run.served[p]) for p in sorted(run.served)},
        },
        "share_of_gap_closed": {
            f"after pass {p}": share_closed(run.served[p], known.held_out["fixed"], known.held_out["ridge"])
            for p in ends
        },
        "stream": {**{name: mean_interval(values) for name, values in known.stream.items()}, **online},
        "regret_sum": regret,
    }


def markdown(told: dict[str, Any], command: str, settings: Sequence[str], picture: str | None) -> str:
    where = provenance()
    lines = [
        "# Jester: slates of five through the loop",
        "",
        f"`{command}` · {where['date']} · commit {where['commit']} · {where['machine']}",
        "",
        *(f"- {line}" for line in settings),
        "",
        "| held-out people | mean reward of a slate, 95% interval |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in told["held_out"].items()),
        "",
        "| share of the gap from the best fixed slate to full-information ridge that is closed (held-out people) | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in told["share_of_gap_closed"].items()),
        "",
        "| people of the stream | mean reward of a slate, 95% interval |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in told["stream"].items()),
        "",
        "| summed regret of a pass, against | uniform | best fixed slate | ridge |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {r['uniform']:.1f} | {r['fixed']:.1f} | {r['ridge']:.1f} |"
            for name, r in told["regret_sum"].items()
        ),
    ]
    if picture:
        lines += ["", f"![regret by decision]({picture})"]
    return "\n".join(lines) + "\n"


def document(told: dict[str, Any], command: str, settings: Sequence[str]) -> bytes:
    content = {"command": command, **provenance(), "settings": settings, **told}
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def plot(run: Run, split: Split, known: References, path: Path) -> None:
    """Cumulative regret by decision against each reference; needs matplotlib (the replay extra)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    place = {int(u): i for i, u in enumerate(split.stream)}
    where = np.array([place[u] for u in run.people])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for name, values in known.stream.items():
        left.plot(cumulative_regret(run.earned, values[where]), label=f"against {name}")
    left.axhline(0.0, color="grey", linewidth=0.8)
    for end in range(len(split.stream), len(run.earned), len(split.stream)):
        left.axvline(end, color="grey", linewidth=0.4, linestyle=":")
    left.set(title="people of the stream, dotted: a pass", xlabel="decision", ylabel="cumulative regret")
    left.legend()
    bars = {"uniform": known.held_out["uniform"], "best fixed": known.held_out["fixed"]}
    bars |= {f"served, pass {p}": run.served[p] for p in sorted(run.served)} | {"ridge": known.held_out["ridge"]}
    found = [mean_interval(values) for values in bars.values()]
    errors = [[i.value - i.low for i in found], [i.high - i.value for i in found]]
    right.bar(list(bars), [i.value for i in found], yerr=errors, color="tab:blue", alpha=0.7)
    right.set(title="held-out people, 95% intervals", ylabel="mean reward of a slate", ylim=(0.5, None))
    right.set_xticks(range(len(bars)), list(bars), rotation=20, ha="right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
