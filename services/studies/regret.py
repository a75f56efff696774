"""Every one-slot algorithm of ours beside Vowpal Wabbit and MABWiser, on the same rounds: who wins where.

Three worlds that know what a choice is worth (`policies.worlds.one_slot`), and public data: jokes, coats, e-mails, digits. A seed
makes a world or shuffles the data; every player of a seed sees the same rounds. A seed's mean over its rounds is one observation, and
intervals are Student's t over seeds. Every player runs the one configuration it has by default; nothing was tuned on any of these.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from policies.types import F64
from policies.worlds.one_slot import WORLDS
from services.replay.ours import Slatewise
from services.replay.peers import PEERS, Player, play
from services.replay.quality import MARGIN
from services.replay.streams import STREAMS, Stream
from services.studies.study import Cell, Study, interval, with_interval

OURS = (
    "linear_thompson",
    "logistic_thompson",
    "bootstrap",
    "linucb",
    "squarecb",
    "epsilon_greedy",
    "softmax",
    "popular",
)
EVERY = 25  # our decisions a bundle: a publish a second where 25 decisions are made in one
FORGETS = "linear_thompson, half_life 200 s"  # the one row that is not a default, and takes part in no verdict
ROUNDS = {
    "linear": 1_000,
    "clicks": 2_000,
    "drift": 1_000,
    "jester": 1_473,
    "coat": 400,
    "hillstrom": 5_000,
    "digits": 800,
}
JOKES = 10  # of the 80 on offer in a round: MABWiser asks each of its models, 12 ms a round for all

WHY = {  # what the other rows of the table say about a loss to the best peer
    "drift": "the default forgets nothing, and what people want turns round: the row with a half-life, the option for this, earns most of all here",
    "coat": "five hundred columns of user × coat from 400 rounds: sampling explores them longer than bounds or means do",
    "hillstrom": "a third of 5,000 rounds is too few to tell 2% of a visit rate of 17%",
    "digits": "ten arms that share nothing: one shared model, sampled or not, explores longer than ten models of their own; "
    "and a bundle every 25 decisions is a thirtieth of all rounds",
}

Make = Callable[[int], Stream]
Players = dict[str, Callable[[Stream, int], Player]]


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`quick`: two seeds of 50 rounds in the worlds alone."""
    count = seeds or (2 if quick else 10)
    players: Players = {name: partial(Slatewise, name=name, every=EVERY) for name in OURS}
    players |= PEERS
    study = Study("Regret of one-slot algorithms, beside Vowpal Wabbit and MABWiser")
    found: dict[str, dict[str, F64]] = {}
    floors: dict[str, dict[str, F64]] = {}
    for name, make in (worlds(50) if quick else worlds() | public(data)).items():
        extra: Players = {FORGETS: _forgetting} if name == "drift" else {}
        found[name], floors[name] = played(make, players | extra, range(count))
    _tables(study, found, floors)
    for line in [*_notes(count, quick), *missed(study.tables[0].rows)]:
        study.note(line)
    return study


def missed(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """A line for each row of `Who wins where` in which linear_thompson is not shown to be within 2% of the best peer."""
    return [
        f"missed on {name}: {OURS[0]} − {peer} is {difference} %" + (f"; {WHY[str(name)]}" if name in WHY else "")
        for name, peer, difference, fine, *_ in rows
        if not fine
    ]


def worlds(rounds: int | None = None) -> dict[str, Make]:
    """Streams of the worlds: one of its own for every seed."""

    def make(name: str, seed: int) -> Stream:
        made = WORLDS[name](seed, rounds or ROUNDS[name])
        every = np.tile(np.arange(len(made.arms)), (len(made.context), 1))
        return Stream(name, made.context, made.arms, every, made.rewards, worth=made.expected)

    return {name: partial(make, name) for name in WORLDS}


def public(data: Path | None) -> dict[str, Make]:
    """Streams of public data: another order for every seed."""

    def make(name: str, whole: Stream, seed: int) -> Stream:
        shuffled = whole.shuffled(seed, ROUNDS[name])
        return shuffled.offered(seed, JOKES) if name == "jester" else shuffled

    return {name: partial(make, name, STREAMS[name](data)) for name in ("jester", "coat", "hillstrom", "digits")}


def played(make: Make, players: Players, seeds: Sequence[int]) -> tuple[dict[str, F64], dict[str, F64]]:
    """(means by player (seeds,), floors by name (seeds,))."""
    means: dict[str, list[float]] = {name: [] for name in players}
    floors: dict[str, list[float]] = {}
    for seed in seeds:
        stream = make(seed)
        for name, value in floors_of(stream).items():
            floors.setdefault(name, []).append(value)
        for name, player in players.items():
            means[name].append(float(np.mean(play(stream, player(stream, seed)))))
    return {n: np.array(v) for n, v in means.items()}, {n: np.array(v) for n, v in floors.items()}


def floors_of(stream: Stream) -> dict[str, float]:
    """What could have been earned: by chance, by one order of the arms for everybody, by knowing every round.

    The order is by mean reward over the stream, known only afterwards. Where only the logged action's reward is known, nobody
    knows the best of a round.
    """
    worth = stream.rewards if stream.worth is None else stream.worth
    K = len(stream.arms)
    known = ~np.isnan(worth)
    arms = stream.candidates[known]
    times = np.bincount(arms, minlength=K)
    mean = np.bincount(arms, worth[known], K) / np.maximum(times, 1)
    best = mean[stream.candidates].argmax(axis=1)[:, None]
    floors = {
        "uniform": float(worth.mean() if stream.logged is None else mean[times > 0].mean()),
        "best constant": float(np.nanmean(np.take_along_axis(worth, best, 1))),
    }
    if stream.logged is None:
        floors["oracle"] = float(worth.max(axis=1).mean())
    return floors


def compared(ours: F64, peer: F64) -> tuple[float, float, float, bool]:
    """(difference in % of the peer, low, high, whether not inferior by 2%), seed by seed."""
    middle, low, high = (100 * part / float(peer.mean()) for part in interval(ours - peer))
    return middle, low, high, bool(interval(ours - (1 - MARGIN) * peer)[1] >= 0)


def best_peer(means: dict[str, F64]) -> str:
    return max((name for name in PEERS if name != "uniform"), key=lambda name: float(means[name].mean()))


def _tables(study: Study, found: dict[str, dict[str, F64]], floors: dict[str, dict[str, F64]]) -> None:
    rows: list[list[Cell]] = []
    for name, means in found.items():
        peer = best_peer(means)
        middle, low, high, fine = compared(means[OURS[0]], means[peer])
        winner = max(OURS, key=lambda player: float(means[player].mean()))
        better = compared(means[winner], means[peer])
        claim, best = (
            f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{better[0]:+.1f} [{better[1]:+.1f}, {better[2]:+.1f}]",
        )
        rows.append([name, peer, claim, fine, winner, best])
    columns = ["stream", "best peer", f"{OURS[0]} − it, %", "not inferior by 2%", "our best", "it − best peer, %"]
    study.table("Who wins where", columns, rows)

    shown = [*OURS, *(name for name in PEERS)]
    table: list[list[Cell]] = [[player, *(with_interval(found[name][player]) for name in found)] for player in shown]
    if "drift" in found:
        table.append([FORGETS, *(with_interval(found[n][FORGETS]) if n == "drift" else None for n in found)])
    for floor in ("uniform", "best constant", "oracle"):
        cells: list[Cell] = [float(floors[n][floor].mean()) if floor in floors[n] else None for n in found]
        table.append([f"floor: {floor}", *cells])
    study.table("Mean worth of a round", ["player", *found], table)

    against: list[list[Cell]] = []
    for player in OURS:
        cells = []
        for means in found.values():
            middle, low, high, fine = compared(means[player], means[best_peer(means)])
            cells.append(f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]{'' if fine else ' *'}")
        against.append([player, *cells])
    study.table("Ours − the best peer of the stream, % (* not shown to be within 2%)", ["player", *found], against)

    left: list[list[Cell]] = []
    for player in shown:
        cells = []
        for name, means in found.items():
            span = floors[name]["oracle"] - floors[name]["uniform"] if "oracle" in floors[name] else None
            cells.append(None if span is None else with_interval(100 * (floors[name]["oracle"] - means[player]) / span))
        left.append([player, *cells])
    study.table("Regret, % of what uniform choice loses to the oracle", ["player", *found], left)


def _forgetting(stream: Stream, seed: int) -> Slatewise:
    return Slatewise(stream, seed, every=EVERY, options={"half_life": "200s"})


def _notes(count: int, quick: bool) -> list[str]:
    return [
        f"{count} seeds; rounds a seed: "
        + ("50 of each world" if quick else ", ".join(f"{n} {rounds}" for n, rounds in ROUNDS.items())),
        f"ours: a bundle every {EVERY} decisions that were heard about; the peers learn after every decision, which is to their "
        "advantage",
        "the best peer is chosen by its mean over these seeds, which is to its advantage; 'our best' is chosen likewise, so its "
        "interval flatters it: the column of linear_thompson is the claim, the rest says what the others are good for",
        "worlds are judged by what a choice is worth in the mean, data by the reward itself; the oracle of data knows each round's "
        f"rewards beforehand, which no policy can; jester offers {JOKES} of its 80 jokes in a round; hillstrom is rejection "
        "replay, so a third of its rounds counts",
        f"{FORGETS!r} is the one row that is not a default (a round is a second): what the option is for; it takes part in no verdict",
    ]
