"""`slatewise replay`: public data through the loop. Full information over HTTP, logged data into a log of its own, streams beside peers."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from services.bench import report
from services.bench.serving import running
from services.replay.datasets import located

DATA = click.option("--data", type=click.Path(path_type=Path), help="Folder of the data sets [SLATEWISE_DATASETS].")
OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder for dated markdown, JSON and pictures.")
TEACH = click.option(
    "--algorithm",
    "teach",
    default="linear_thompson",
    show_default=True,
    help="Taught from the logs, its options at their defaults.",
)
LOG = click.option(
    "--log",
    type=click.Path(path_type=Path),
    help="Folder to keep what was learned in, one of its own for each data set: `slatewise up --data FOLDER/…` starts from it.",
)
CAMPAIGNS, BEHAVIOURS = ("all", "men", "women"), ("random", "bts")


@click.group()
def command() -> None:
    """Drive the service with public data, or replay logged data into a log."""


@command.command()
@DATA
@OUT
@click.option(
    "--passes", type=click.IntRange(1), default=10, show_default=True, help="Passes over the stream's people."
)
@click.option(
    "--rate", type=float, default=100.0, show_default=True, help="Decisions a second over HTTP; 0: no pacing."
)
@click.option("--batch", type=click.IntRange(1, 256), default=10, show_default=True, help="Decisions a request.")
@click.option("--held-out", type=click.IntRange(1), default=473, show_default=True, help="People never learned from.")
@click.option(
    "--repeats", type=click.IntRange(1), default=4, show_default=True, help="Decisions for each held-out person."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and the order of people.")
@click.option(
    "--url", help="A service that runs already, with the surface of --print-surface; default: one of its own."
)
@click.option("--in-process", is_flag=True, help="The same rooms without a server.")
@click.option("--print-surface", is_flag=True, help="Print the surface document and end.")
def jester(
    data: Path | None,
    out: Path | None,
    passes: int,
    rate: float,
    batch: int,
    held_out: int,
    repeats: int,
    seed: int,
    url: str | None,
    in_process: bool,
    print_surface: bool,
) -> None:
    """Slates of five of 80 jokes for people known by 20 others: regret, held-out people, share of the gap closed."""
    from services.replay import jester as source
    from services.replay import jester_run, regret
    from services.replay.drive import InProcess, OverHttp

    surface = source.surface(jester_run.SLATE)
    if print_surface:
        import yaml

        click.echo(yaml.safe_dump(surface, sort_keys=False), nl=False)
        return
    world = source.world(data)
    if held_out >= len(world.rewards) - regret.FOLDS:
        raise click.ClickException(f"--held-out {held_out} leaves no stream of {len(world.rewards)} people")
    split = regret.split(len(world.rewards), held_out, seed)
    known = regret.references(world, split, jester_run.SLATE)
    said = _say()
    with ExitStack() as stack:
        if in_process:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slatewise-replay-")))
            driver: Any = InProcess(surface, jester_run.items(world), folder)
            how = "the rooms of the service in one process, a publish after every batch"
        else:
            where = url or stack.enter_context(running([surface])).url
            driver = OverHttp(where, "jester", jester_run.items(world))
            stack.callback(driver.close)
            how = f"the running service over HTTP, learning inline in its own process, {rate:g} decisions a second"
        run = jester_run.drive(
            world,
            split,
            driver,
            passes=passes,
            batch=batch,
            repeats=repeats,
            seed=seed,
            pace=_no_pace if in_process else _pace(rate),
            heard=said,
        )
    told = jester_run.summary(run, split, known, passes)
    settings = [
        f"{how}; feedback after each batch of {batch}; seed {seed}; {passes} pass(es)",
        f"{len(world.rewards)} people rated all jokes: {len(split.stream)} are the stream, {held_out} are held out; "
        f"features come from the {world.others} others alone",
        f"context: ratings of the {len(world.asked)} jokes the others rated most often, folded into 8 dimensions; items: the "
        "others' mean rating and rank-8 factors; crosses: taste × factors; reward of each shown joke (rating + 10) / 20",
        "linear_thompson with its default options; values are means over the five jokes of a slate, as served, exploration "
        "included; ridge has the same features and every rating of the stream's people; intervals: bootstrap over people, 95%",
        "from the second pass on the stream's people have been met before; the ridge of a person of the stream never met that "
        "person, so only held-out people compare like with like",
        f"a held-out person is decided for {repeats} times (`defer`, never shown: nothing is learned from it)",
    ]
    text = jester_run.markdown(told, report.typed(), settings, None)
    if out:
        name = "jester-in-process" if in_process else "jester"
        out.mkdir(parents=True, exist_ok=True)
        picture = report.dated(out, name, "png")
        jester_run.plot(run, split, known, picture)
        text = jester_run.markdown(told, report.typed(), settings, picture.name)
        _written(report.write(out, name, text, jester_run.document(told, report.typed(), settings)))
    click.echo(text)


@command.command()
@DATA
@OUT
@click.option("--campaign", type=click.Choice(CAMPAIGNS), multiple=True, help="Default: all of them.")
@click.option("--behaviour", type=click.Choice(BEHAVIOURS), multiple=True, help="Default: both.")
@LOG
@TEACH
@click.option("--keep-time", is_flag=True, help="Keep the data's own times instead of ending now.")
def obd(
    data: Path | None,
    out: Path | None,
    campaign: tuple[str, ...],
    behaviour: tuple[str, ...],
    log: Path | None,
    teach: str,
    keep_time: bool,
) -> None:
    """Open Bandit Dataset: logged impressions with their propensities as decisions and feedback in a log of their own."""
    from services.replay.logged import obd as read

    sets = []
    for b in behaviour or BEHAVIOURS:
        for c in campaign or CAMPAIGNS:
            file = located(data, f"obd/{b}/{c}/{c}.csv")
            sets.append((f"obd {b}/{c}", read(file, file.parent / "item_context.csv", b, c)))
    _replay_logged(sets, "obd", out, log, keep_time, teach)


@command.command()
@DATA
@OUT
@LOG
@TEACH
@click.option("--keep-time", is_flag=True, help="Keep the data's own times instead of ending now.")
def hillstrom(data: Path | None, out: Path | None, log: Path | None, teach: str, keep_time: bool) -> None:
    """Hillstrom's randomised e-mails: 64,000 one-slot decisions and three kinds of feedback in a log of their own."""
    from services.replay.logged import hillstrom as read

    _replay_logged(
        [("hillstrom", read(located(data, "hillstrom/hillstrom.csv")))], "hillstrom", out, log, keep_time, teach
    )


@command.command()
@DATA
@OUT
@click.option("--stream", "names", type=str, multiple=True, help="jester, coat, hillstrom, digits; default: all.")
@click.option(
    "--seeds", type=click.IntRange(2), default=10, show_default=True, help="Shuffles, the same for every player."
)
@click.option("--first-seed", type=int, default=0, show_default=True)
@click.option("--rounds", type=click.IntRange(10), default=12_000, show_default=True, help="Most rounds of a shuffle.")
@click.option("--every", type=click.IntRange(1), default=10, show_default=True, help="Our decisions a bundle.")
@click.option("--player", "players", type=str, multiple=True, help="Only these; default: us, uniform and all peers.")
def streams(
    data: Path | None,
    out: Path | None,
    names: tuple[str, ...],
    seeds: int,
    first_seed: int,
    rounds: int,
    every: int,
    players: tuple[str, ...],
) -> None:
    """One-slot streams of public data: us beside Vowpal Wabbit and MABWiser, one default configuration each."""
    from services.replay import quality
    from services.replay.peers import PEERS
    from services.replay.streams import STREAMS

    known = [quality.OURS, *PEERS]
    for kind, asked, there in (("stream", names, list(STREAMS)), ("player", players, known)):
        if unknown := set(asked) - set(there):
            raise click.ClickException(f"no {kind} {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    chosen = [p for p in known if not players or p in players]
    results, verdicts = [], []
    said = _say()
    for name in names or STREAMS:
        found = quality.measure(
            STREAMS[name](data),
            range(first_seed, first_seed + seeds),
            chosen,
            every=every,
            rounds=rounds,
            heard=said,
        )
        results += found
        if quality.OURS in chosen and set(chosen) - {quality.OURS, "uniform"}:
            verdicts.append(quality.verdict(found))
    settings = (
        f"{seeds} seeds from {first_seed}, at most {rounds} rounds each, the same shuffles for every player; ours: "
        f"linear_thompson with its default options, a bundle every {every} decisions; peers: their documented defaults, "
        "learning after every decision. Mean over all rounds of a seed; intervals over seeds (Student's t)."
    )
    Console().print(quality.table(results))
    text = quality.markdown(results, verdicts, report.typed(), settings)
    if out:
        _written(report.write(out, "streams", text, quality.document(results, verdicts, report.typed(), settings)))
    click.echo(text)


def _replay_logged(
    sets: list[tuple[str, Any]], name: str, out: Path | None, log: Path | None, keep_time: bool, teach: str
) -> None:
    import msgspec

    from services.replay import learned

    where = report.provenance()
    text = [
        f"# Logged data replayed: {name}",
        "",
        f"`{report.typed()}` · {where['date']} · commit {where['commit']}",
        "",
    ]
    text += [
        "Times "
        + ("kept" if keep_time else "shifted so that the data ends now")
        + f"; a log of its own; {teach} learns.",
        "",
    ]
    document: dict[str, Any] = {"command": report.typed(), **where}
    with tempfile.TemporaryDirectory(prefix="slatewise-replay-") as folder:
        for title, logged in sets:
            done = learned.replay(
                logged, (log or Path(folder)) / title.replace("/", "-").replace(" ", "-"), time.time(), keep_time, teach
            )
            text += learned.lines(title, done)
            document[title] = learned.plain(done)
    if out:
        _written(report.write(out, name, "\n".join(text), msgspec.json.format(msgspec.json.encode(document), indent=1)))
    click.echo("\n".join(text))


def _pace(rate: float) -> Callable[[int], None]:
    """Waits before the n-th decision until its time has come."""
    start = time.monotonic()

    def wait(decisions: int) -> None:
        if rate > 0:
            time.sleep(max(0.0, start + decisions / rate - time.monotonic()))

    return wait


def _no_pace(decisions: int) -> None:
    """Nothing learns beside us: there is nobody to wait for."""


def _say() -> Callable[[str], None]:
    start = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - start:6.1f} s  {line}", err=True)

    return say


def _written(paths: list[Path]) -> None:
    for path in paths:
        click.echo(f"wrote {path}", err=True)
