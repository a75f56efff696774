"""`slatewise replay`: loaders, references and streams on small data made here; the same on the public data where it lies."""

import csv
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from policies.types import F64, Arrays
from services.replay import jester, jester_run, learned, logged, regret
from services.replay.command import command
from services.replay.datasets import VARIABLE, located
from services.replay.drive import InProcess
from streaming.configuration import Compiled

NOW = 1_790_000_000.0


def ratings_of(people: int, others: int, seed: int = 0) -> F64:
    """(people + others, 100) ratings of a rank-2 world; the others, who come first, rated about half."""
    rng = np.random.default_rng(seed)
    taste, jokes = rng.normal(size=(people + others, 2)), rng.normal(size=(100, 2))
    ratings = np.clip(4 * taste @ jokes.T + rng.normal(size=100) + rng.normal(size=(people + others, 100)), -9.99, 9.99)
    holes = rng.random(ratings.shape) < np.linspace(0.1, 0.8, 100)
    holes[others:] = False
    ratings[holes] = np.nan
    return ratings


def write_jester(folder: Path, ratings: F64) -> None:
    (folder / "jester").mkdir(parents=True)
    with (folder / "jester/jester5k.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user", "joke", "rating"])
        for user, joke in np.argwhere(~np.isnan(ratings)):
            table.writerow([user, joke, f"{ratings[user, joke]:.2f}"])


def write_hillstrom(folder: Path, rows: int = 120) -> None:
    rng = np.random.default_rng(3)
    (folder / "hillstrom").mkdir(parents=True)
    with (folder / "hillstrom/hillstrom.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "recency",
                "history_segment",
                "history",
                "mens",
                "womens",
                "zip_code",
                "newbie",
                "channel",
                "segment",
                "visit",
                "conversion",
                "spend",
            ]
        )
        for _ in range(rows):
            visit = int(rng.random() < 0.4)
            bought = int(visit and rng.random() < 0.5)
            action = logged.HILLSTROM_ACTIONS[rng.integers(3)]
            zone, channel = rng.choice(["Rural", "Surburban", "Urban"]), rng.choice(["Phone", "Web", "Multichannel"])
            history = round(float(rng.gamma(2, 100)), 2)
            mens, newbie = int(rng.integers(2)), int(rng.integers(2))
            spend = round(30.5 * bought, 2)
            table.writerow(
                [rng.integers(1, 13), "x", history, mens, 1 - mens, zone, newbie, channel, action, visit, bought, spend]
            )


def write_obd(folder: Path, rows: int = 90, items: int = 6) -> None:
    rng = np.random.default_rng(4)
    users = [f"user_feature_{i}" for i in range(4)]
    for behaviour in ("random", "bts"):
        here = folder / "obd" / behaviour / "all"
        here.mkdir(parents=True)
        with (here / "item_context.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["", "item_id", *(f"item_feature_{i}" for i in range(4))])
            for item in range(items):
                table.writerow([item, item, rng.normal(), f"a{item % 2}", f"b{item % 3}", "c"])
        with (here / "all.csv").open("w", newline="") as file:
            table = csv.writer(file)
            affinity = [f"user-item_affinity_{i}" for i in range(items)]
            table.writerow(["", "timestamp", "item_id", "position", "click", "propensity_score", *users, *affinity])
            chances = np.full(items, 1 / items) if behaviour == "random" else rng.dirichlet(np.full(items, 3.0))
            for row in range(rows):
                item = rng.choice(items, p=chances)
                seen = [f"u{i}-{rng.integers(3)}" for i in range(4)]
                at = f"2019-11-{24 + row // 50} 00:{row % 50:02}:34.5+00:00"
                click_ = int(rng.random() < 0.2)
                table.writerow(
                    [row, at, item, rng.integers(1, 4), click_, chances[item], *seen, *rng.random(items).round(2)]
                )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small data sets in the public ones' formats."""
    folder = tmp_path_factory.mktemp("data")
    write_jester(folder, ratings_of(60, 120))
    write_hillstrom(folder)
    write_obd(folder)
    return folder


@pytest.fixture(scope="module")
def world(small: Path) -> jester.JesterWorld:
    return jester.world(small)


# -- where data lies -------------------------------------------------------------------------------------------------


def test_a_data_set_is_found_by_argument_or_variable(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(click.ClickException, match=f"--data DIR or {VARIABLE}=DIR"):
        located(None, "jester/jester5k.csv")
    assert located(small, "jester/jester5k.csv").is_file()
    monkeypatch.setenv(VARIABLE, str(small))
    assert located(None, "jester/jester5k.csv") == small / "jester/jester5k.csv"
    with pytest.raises(click.ClickException, match=r"Coat shopping data .*there is no"):
        located(None, "coat/test.ascii")


# -- jester ----------------------------------------------------------------------------------------------------------


def test_jester_features_know_nothing_of_the_people(world: jester.JesterWorld) -> None:
    """Ratings of the arms by the world's own people change rewards and nothing a request could know."""
    ratings = ratings_of(60, 120)
    other = ratings.copy()
    other[np.ix_(np.arange(120, 180), world.arms)] = np.random.default_rng(9).uniform(-9, 9, (60, 80))
    one, two = jester.from_ratings(ratings), jester.from_ratings(other)
    for name in ("asked", "arms", "taste", "embedding", "popularity"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.rewards, two.rewards)


def test_jester_world_has_the_stated_shapes(world: jester.JesterWorld) -> None:
    assert (len(world.asked), len(world.arms), world.others) == (20, 80, 120)
    assert world.taste.shape == (60, 8)
    assert world.embedding.shape == (80, 8)
    assert world.rewards.shape == (60, 80)
    assert 0.0 <= world.rewards.min() <= world.rewards.max() <= 1.0
    answered = (~np.isnan(ratings_of(60, 120)[:120])).sum(axis=0)
    assert answered[world.asked].min() >= answered[world.arms].max()  # those that the others rated most


def test_references_are_ordered_and_held_out_people_are_not_in_the_stream(world: jester.JesterWorld) -> None:
    people = regret.split(60, 20, seed=1)
    assert set(people.stream) | set(people.held_out) == set(range(60))
    assert not set(people.stream) & set(people.held_out)
    known = regret.references(world, people, 5)
    means = {name: values.mean() for name, values in known.held_out.items()}
    assert means["uniform"] < means["fixed"] < means["ridge"]
    best = np.sort(world.rewards[people.stream].mean(axis=0))[-5:].mean()
    assert known.stream["fixed"].mean() == pytest.approx(best)


def test_share_closed_and_intervals_of_known_values() -> None:
    rng = np.random.default_rng(5)
    fixed = rng.random(400)
    ridge = fixed + 0.2
    half = regret.share_closed(fixed + 0.1, fixed, ridge)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    noisy = rng.normal(size=400)
    found = regret.mean_interval(noisy)
    standard_error = noisy.std() / 20
    assert found.value == pytest.approx(noisy.mean())
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    np.testing.assert_allclose(regret.cumulative_regret([1.0, 0.0], np.array([1.0, 1.0])), [0.0, 1.0])


def test_jester_is_learned_in_process(world: jester.JesterWorld, tmp_path: Path) -> None:
    """Slates through log, join, learner and publish beat uniform on people never learned from; deferred ones stay unlearned."""
    people = regret.split(60, 20, seed=1)
    known = regret.references(world, people, 5)
    driver = InProcess(jester.surface(5), jester_run.items(world), tmp_path)
    run = jester_run.drive(world, people, driver, passes=2, batch=10, repeats=2, seed=1)
    assert len(run.earned) == 80
    assert sorted(run.served) == [0, 1, 2]
    assert sorted(run.people) == sorted([*people.stream, *people.stream])
    assert run.served[2].mean() > known.held_out["uniform"].mean() + 0.05
    examples = [n for shard in driver._shards for n in shard.statistics().examples.values()]
    assert sum(examples) % (80 * 5) == 0  # the stream's slots for each learner, none of the held-out people's
    told = jester_run.summary(run, people, known, 2)
    text = jester_run.markdown(told, "slatewise replay jester", ["small"], "picture.png")
    assert "share of the gap" in text
    jester_run.plot(run, people, known, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


# -- logged data -----------------------------------------------------------------------------------------------------


def read_logged(small: Path, name: str) -> logged.Logged:
    if name == "hillstrom":
        return logged.hillstrom(small / "hillstrom/hillstrom.csv")
    here = small / "obd" / name / "all"
    return logged.obd(here / "all.csv", here / "item_context.csv", name, "all")


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("name", ["random", "bts", "hillstrom"])
def test_logged_data_joins_wholly_and_sums_equal_the_raw_rows(
    small: Path, tmp_path: Path, name: str, keep_time: bool
) -> None:
    data = read_logged(small, name)
    done = learned.replay(data, tmp_path / "log", time.time(), keep_time)
    told = sum(int(np.count_nonzero(values)) for values in data.outcomes.values())
    assert (done.decisions, done.joined_decisions) == (len(data), len(data))
    assert (done.feedback, done.joined_feedback) == (told, told)
    assert done.dead == {}
    assert done.examples == len(data)
    assert max(done.off.values()) < 1e-9


def test_sums_of_other_rows_are_told_apart(small: Path, tmp_path: Path) -> None:
    """The comparison can fail: one reward more in the raw rows and the sums no longer agree."""
    data = read_logged(small, "random")
    clicks = data.outcomes["click"].copy()
    clicks[np.flatnonzero(clicks == 0)[0]] = 1.0
    right = learned.direct

    def wrong(rows: logged.Logged, compiled: Compiled) -> Arrays:
        return right(replace(rows, outcomes={"click": clicks}), compiled)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learned, "direct", wrong)
        done = learned.replay(data, tmp_path / "log", time.time())
    assert done.off["S"] < 1e-9 < done.off["B"]


def test_times_are_shifted_to_end_now_or_kept(small: Path) -> None:
    data = read_logged(small, "random")
    times, document = logged.shifted(data, NOW)
    assert times.max() == NOW - logged.CLICK_DELAY_SECONDS
    np.testing.assert_allclose(np.diff(times), np.diff(data.times))
    assert float(document["correctable"][:-1]) * 86400 > NOW - times.min()
    kept, document = logged.shifted(data, NOW, keep_time=True)
    np.testing.assert_array_equal(kept, data.times)
    assert float(document["correctable"][:-1]) * 86400 > NOW - kept.min()


def test_inverse_propensity_values_are_those_of_hand(small: Path) -> None:
    data = read_logged(small, "bts")
    found = learned.values(data)
    weights = 1.0 / 6 / data.propensity
    assert found["click: uniform by IPS"] == pytest.approx((weights * data.outcomes["click"]).mean())
    assert found["mean 1/p"] == pytest.approx((1 / data.propensity).mean())


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["obd", "--campaign", "all"], "obd"),
        (["hillstrom", "--keep-time"], "hillstrom"),
        (["jester", "--in-process", "--passes", "1", "--held-out", "20", "--repeats", "1"], "jester-in-process"),
        (
            [
                "streams",
                "--stream",
                "digits",
                "--seeds",
                "2",
                "--rounds",
                "60",
                "--player",
                "linear_thompson",
                "--player",
                "vw squarecb",
            ],
            "streams",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_every_command_runs_on_small_data_and_writes_its_table(
    small: Path, tmp_path: Path, words: list[str], written: str
) -> None:
    done = CliRunner().invoke(command, [*words, "--data", str(small), "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = sorted(path.name[11:] for path in tmp_path.iterdir())
    assert {f"{written}.md", f"{written}.json"} <= set(found)
    text = next(tmp_path.glob("*.md")).read_text()
    assert "commit" in text
    assert str(small) not in text  # no path of this machine in what is kept


def test_a_missing_data_set_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    done = CliRunner().invoke(command, ["jester"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: Jester 5k")
    assert CliRunner().invoke(command, ["streams", "--stream", "none"]).output.startswith("Error: no stream none")


@pytest.mark.slow  # a real service
def test_jester_over_http(small: Path, tmp_path: Path) -> None:
    words = ["jester", "--passes", "1", "--held-out", "20", "--repeats", "1", "--rate", "0"]
    done = CliRunner().invoke(command, [*words, "--data", str(small), "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {path.name[11:] for path in tmp_path.iterdir()} == {"jester.md", "jester.json", "jester.png"}


# -- the public data -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # real data
def test_public_jester_is_what_its_readme_says(datasets: Path) -> None:
    world = jester.world(datasets)
    assert (world.others, len(world.rewards)) == (3_527, 1_473)
    known = regret.references(world, regret.split(1_473, 473, 0), 5)
    means = {name: values.mean() for name, values in known.held_out.items()}
    assert means["uniform"] < means["fixed"] < means["ridge"]


@pytest.mark.slow  # real data
def test_public_logs_join_wholly(datasets: Path, tmp_path: Path) -> None:
    here = datasets / "obd/random/all"
    data = logged.obd(here / "all.csv", here / "item_context.csv", "random", "all")
    done = learned.replay(data, tmp_path / "log", time.time())
    assert (done.joined_decisions, done.joined_feedback, done.dead) == (10_000, 38, {})
    assert max(done.off.values()) < 1e-9
    assert done.values["mean 1/p"] == pytest.approx(80.0)
