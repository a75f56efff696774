"""iips and pseudo_inverse from the command: slates replayed by the bundle that drew them, or a refusal that says why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from evaluation_setup import chance, made, served_log
from scoring_setup import publish

from policies.evaluation.marginals import Replay
from policies.slate import uniforms
from policies.surface import Diversity, Logging, PolicySpec, Rule
from services.cli import main
from services.evaluation.bundled import Bundled
from services.evaluation.resolving import asked_for, read, replaying
from services.settings import Settings
from services.wiring import open_bundles, open_state

DECISIONS, REPLAYS = 60, 120
SURFACE = made(
    policies={
        "home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.7}),
        "other": PolicySpec("linear_thompson", objective="click", options={"floor": 0.3, "head": "one_draw"}),
    }
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return served_log(tmp_path_factory.mktemp("replays") / "data", DECISIONS, SURFACE)


def run(settings: Settings, *words: object) -> Result:
    fixed = (settings.data, "--unsettled", "--estimator", "iips", "--estimator", "pseudo_inverse")
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["evaluate", *map(str, (*fixed, *words))])


def told(settings: Settings, *words: object) -> dict[str, Any]:
    result = run(settings, *words, "--replays", REPLAYS, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["estimator"]: line for line in found["estimates"]}


def test_the_logged_bundle_weighs_one_in_every_slot(served: Settings) -> None:
    found = told(served, "--policy", "home/home-ts")
    iips, whole = by_name(found)["iips"], by_name(found)["pseudo_inverse"]
    assert found["log"]["decisions"] == DECISIONS
    assert iips["value"] == pytest.approx(found["baseline"]["value"], rel=1e-12)
    assert iips["monte_carlo_error"] == pytest.approx(0.0, abs=1e-12)
    assert whole["value"] == pytest.approx(found["baseline"]["value"], abs=5 * whole["monte_carlo_error"])
    assert whole["monte_carlo_error"] > 0


@pytest.mark.parametrize("name", ["uniform", "home/other", "greedy"])
def test_estimates_are_within_four_errors_of_whole_slates_value(served: Settings, name: str) -> None:
    """The law of clicks looks at a slot's own item: both estimators mean the value of whole slates of the target."""
    asked = asked_for(name, data=served.data, config=None)
    fixed = {"data": None, "surface": None, "since": None, "until": None, "sampled": False, "unsettled": True}
    log = read(str(served.data), "experiences", asked, whole=True, **fixed)  # type: ignore[arg-type]  # by name
    assert asked.target is not None
    again = replaying(log, served.data, REPLAYS, 0)
    wanted = []
    for i, one in enumerate(log.decisions):
        law = asked.target.law(one, again.logged(one))
        slots = Replay.of(law.slates(uniforms(b"truth", str(i), "replay", 3 * 100).reshape(100, 3))).slots
        likes = [[chance(item, ("ios", "web")[i % 2], slot) for item in one.candidates] for slot in range(3)]
        wanted.append(float((slots * np.array(likes)).sum()))
    found = told(served, "--policy", name)
    for line in by_name(found).values():
        error = (line["asymptotic"]["high"] - line["asymptotic"]["low"]) / 2 / 1.96
        assert abs(line["value"] - np.mean(wanted)) <= 4 * error, line["estimator"]
        assert 0 < line["monte_carlo_error"] < error < 0.4
        assert line["finite_sample"] is None
        assert "replays" in line["finite_sample_refused"]


def test_the_error_of_replays_is_in_table_and_page(served: Settings, tmp_path: Path) -> None:
    words = ("--policy", "home/other", "--replays", REPLAYS)
    out = tmp_path / "page.html"
    table = run(served, *words, "--html", out)
    assert table.exit_code == 0, table.output
    error = f"{by_name(told(served, '--policy', 'home/other'))['iips']['monte_carlo_error']:.2g}"
    assert "± Monte Carlo" in table.output
    assert error in table.output
    assert f"<td>{error}</td>" in out.read_text()
    alone = CliRunner().invoke(
        main, ["evaluate", str(served.data), "--unsettled", "--estimator", "iips", *map(str, words), "--json"]
    )
    assert by_name(json.loads(alone.stdout)) == {"iips": by_name(told(served, "--policy", "home/other"))["iips"]}
    without = CliRunner(env={"COLUMNS": "200"}).invoke(
        main, ["evaluate", str(served.data), "--unsettled", "--policy", "uniform"]
    )
    assert "only by name" in without.output
    assert "Monte Carlo" not in without.output


def test_the_default_is_two_thousand_replays(tmp_path: Path) -> None:
    settings = served_log(tmp_path / "data", 4)
    said = run(settings, "--policy", "uniform", "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout) == json.loads(
        run(settings, "--policy", "uniform", "--replays", 2_000, "--json").stdout
    )


def test_without_full_candidates_it_is_refused_with_counts(served: Settings, tmp_path: Path) -> None:
    files = tmp_path / "files.parquet"
    words = ["export", "--format", "parquet", "--out", str(files), "--unsettled", "--data", str(served.data)]
    assert CliRunner().invoke(main, words).exit_code == 0
    bare = served_log(tmp_path / "bare", 0, SURFACE, catalogue=False)  # the same bundles, but no items

    def evaluate(*more: object) -> Result:
        words = ["evaluate", files, "--policy", "uniform", "--estimator", "iips", "--replays", 100, *more]
        return CliRunner(env={"COLUMNS": "200"}).invoke(main, [*map(str, words)])

    assert "give their data folder with --data" in evaluate().output
    refused = evaluate("--data", bare.data)
    assert refused.exit_code == 1
    assert "decisions the log has only the ids of the candidates, and whoever replays slates reads" in refused.output
    part = evaluate("--data", served.data, "--sampled", "--json")
    assert part.exit_code == 0, part.output
    assert 0.3 * DECISIONS < json.loads(part.stdout)["log"]["decisions"] < 0.7 * DECISIONS
    line = tmp_path / "log.dsjson"
    line.write_text("")
    other = CliRunner().invoke(main, ["evaluate", str(line), "--policy", "uniform", "--estimator", "iips"])
    assert "a log of kind dsjson names none" in other.output


def test_bundles_that_are_gone_or_do_not_draw_what_was_logged_are_counted(tmp_path: Path) -> None:
    settings = served_log(tmp_path / "data", 30)
    other = publish(open_state(settings), open_bundles(settings), made(), examples=400)  # others, from more examples
    assert other.current("home") is not None
    asked = asked_for("uniform", data=settings.data, config=None)
    fixed = {"data": None, "surface": None, "since": None, "until": None, "sampled": False, "unsettled": True}
    log = read(str(settings.data), "experiences", asked, whole=True, **fixed)  # type: ignore[arg-type]  # by name
    again = replaying(log, settings.data, 100, 0)
    assert again.logged(log.decisions[0]).scores.shape[0] == 8
    newest = Bundled(settings.data).find("home/home-ts").target.served.bundle
    assert newest != log.decisions[0].bundle
    store = settings.data / "bundles"
    manifest = next(path for path in store.rglob(f"*{log.decisions[0].bundle}*") if path.is_file())
    manifest.unlink()
    gone = run(settings, "--policy", "uniform")
    assert gone.exit_code == 1
    assert "30 bundle_gone" in gone.output
    wrong = log.decisions[0]
    object.__setattr__(wrong, "bundle", newest)
    with pytest.raises(Exception, match="off") as error:
        again.logged(wrong)
    assert getattr(error.value, "code", "") == "not_replayed"


def test_rules_act_on_replayed_slates_too(tmp_path: Path) -> None:
    ruled = made(slots=2, rules=[Rule(cap=1, by="genre")], diversity=Diversity(mmr=0.5), logging=Logging(1.0))
    settings = served_log(tmp_path / "data", 20, ruled, pins=False)
    found = told(settings, "--policy", "home/home-ts")
    assert by_name(found)["iips"]["value"] == pytest.approx(found["baseline"]["value"], rel=1e-12)
    assert found["log"]["decisions"] == 20
