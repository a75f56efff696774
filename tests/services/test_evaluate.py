"""`slatewise evaluate`: logs of every format, every kind of target, and nothing wrong that passes in silence."""

import csv
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from evaluation_setup import ITEMS, chance, made, served_log

from policies.errors import Rejected
from policies.evaluation.conditionals import conditionals
from policies.features import Encoder
from policies.registry import ALGORITHMS
from policies.slate import draw
from policies.surface import Diversity, FeatureSpec, Number, Rule, Seen
from services.cli import main
from services.evaluation import bernoulli, dsjson, tabular
from services.evaluation.decisions import Log
from services.evaluation.evaluating import evaluate
from services.evaluation.fitting import fitted
from services.evaluation.resolving import Asked, after_training, asked_for, read, share_split
from services.evaluation.targets import KNOWN, Scored, Uniform
from services.settings import Settings
from services.wiring import open_log, open_state
from streaming.events import Decision, decode, encode

DECISIONS = 500
WRONG = 7  # the item that is drawn most


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return served_log(tmp_path_factory.mktemp("served") / "data", DECISIONS)


def run(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["evaluate", *map(str, words)])


def told(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["estimator"]: line for line in found["estimates"]}


def read_all(settings: Settings, asked: Asked, **more: Any) -> Log:
    fixed = {"data": None, "surface": None, "since": None, "until": None, "sampled": False, "unsettled": True}
    return read(str(settings.data), "experiences", asked, **{**fixed, **more})


# our own log


def test_the_logged_bundle_is_its_own_target_with_every_weight_one(served: Settings) -> None:
    """Distributions are recomputed from bundle and log alone: the catalogue for what was not sampled, pins as they were."""
    found = told(served.data, "--policy", "home/home-ts", "--unsettled")
    for line in found["estimates"]:
        if line["estimator"] == "ips":
            assert line["value"] == pytest.approx(found["baseline"]["value"], rel=1e-12)
            assert line["diagnostics"]["largest"] == pytest.approx(1.0, rel=1e-12)
            assert line["diagnostics"]["design_ess"] == pytest.approx(DECISIONS)
    assert found["rejected"]["counts"] == {}
    assert found["log"]["decisions"] == DECISIONS
    assert found["calibration"]["ok"]


@pytest.mark.parametrize("name", ["uniform", "home/other", "greedy"])
def test_estimates_are_within_four_errors_of_what_the_law_of_clicks_says(served: Settings, name: str) -> None:
    """What slot-wise estimators mean: the target's item at each slot, after the slots that were logged."""
    asked = asked_for(name, data=served.data, config=None)
    log = read_all(served, asked)
    assert asked.target is not None
    wanted = []
    for i, one in enumerate(log.decisions):
        likes = np.array([[chance(item, ("ios", "web")[i % 2], slot) for item in ITEMS] for slot in one.slots])
        wanted.append(float((asked.target.conditionals(one) * likes).sum()))
    found = evaluate(log, asked.target, "click")
    truth = float(np.mean(wanted))
    for line in found.lines:
        if line.name in ("ips", "snips", "dr", "sndr"):
            assert line.estimate is not None
            assert line.interval is not None
            error = line.interval.width / 2 / 1.96
            assert abs(line.estimate.value - truth) <= 4 * error, line.name
            assert error < 0.08


def test_a_target_through_one_draw_is_followed_along_the_logged_slate(served: Settings) -> None:
    """`other` draws whole slates: its conditionals are those of the real draw wherever that goes the same way."""
    asked = asked_for("home/other", data=served.data, config=None)
    target = asked.target
    assert isinstance(target, Scored)
    assert target.served.settings.head == "one_draw"
    rng = np.random.default_rng(0)
    for one in read_all(served, asked).decisions[:20]:
        scores = target.served.scores(target._inputs(one))
        made = draw(scores, 3, rng.random(3), target.served.settings, pins=one.pins, full=True)
        along = conditionals(scores, made.slots.tolist(), made.items.tolist(), target.served.settings, pins=one.pins)
        assert np.array_equal(along, made.distributions)


def test_without_the_catalogue_only_sampled_decisions_can_be_asked(served: Settings, tmp_path: Path) -> None:
    files = tmp_path / "files.parquet"
    exported = CliRunner().invoke(
        main, ["export", "--format", "parquet", "--out", str(files), "--unsettled", "--data", str(served.data)]
    )
    assert exported.exit_code == 0, exported.output
    bare = tmp_path / "bare"  # bundles and versions, but no items
    served_log(bare, 0, catalogue=False)
    words = (files, "--policy", "home/other", "--data", bare)
    refused = run(*words)
    assert refused.exit_code == 1
    assert "only the ids of the candidates" in refused.output
    part = told(*words, "--sampled")
    assert 0.4 * DECISIONS < part["log"]["decisions"] < 0.6 * DECISIONS
    whole = told(files, "--policy", "home/other", "--data", served.data)
    assert whole["log"]["decisions"] == DECISIONS
    assert by_name(whole)["ips"]["value"] == pytest.approx(
        by_name(told(served.data, "--policy", "home/other", "--unsettled"))["ips"]["value"], rel=1e-12
    )


def test_decisions_whose_items_were_written_since_are_counted_and_left_out(tmp_path: Path) -> None:
    settings = served_log(tmp_path / "data", 60)
    changed = {"id": ITEMS[0], "features": {"price": 1.0, "genre": "rock"}}
    open_state(settings).put([("item", ITEMS[0], msgspec.json.encode(changed))])
    found = told(settings.data, "--policy", "home/other", "--unsettled")
    counts = found["rejected"]["counts"]
    assert set(counts) == {"features_changed"}
    assert found["log"]["decisions"] + counts["features_changed"] == 60
    assert any("features_changed" in warning for warning in found["warnings"])


def test_decisions_that_have_not_settled_are_no_log_yet(served: Settings) -> None:
    result = run(served.data, "--policy", "uniform")
    assert result.exit_code == 1
    assert "--unsettled adds those" in result.output


def test_a_bundle_is_not_judged_on_what_it_was_trained_on(served: Settings) -> None:
    asked = asked_for("home/other", data=served.data, config=None)
    log = read_all(served, asked)
    ends = {p: 1 + max(one.place[1] for one in log.decisions if one.place and one.place[0] == p) for p in range(4)}
    halves = {p: end // 2 for p, end in ends.items()}
    fresh = after_training(log, halves)
    assert 0 < len(fresh) < len(log)
    assert all(one.place is not None and one.place[1] >= halves[one.place[0]] for one in fresh.decisions)
    assert any("trained on" in note for note in fresh.notes)
    with pytest.raises(Rejected, match="trained on all"):
        after_training(log, ends)


def test_rules_of_the_logged_draw_hold_for_the_target_too(tmp_path: Path) -> None:
    """At most one item of each genre but the last, and diversity: what acted is in the sampled records."""
    rules = [Rule(cap=1, by="genre"), Rule(seen=Seen("1h"))]  # nobody can be asked who has seen what: it is skipped
    ruled = made(slots=2, rules=rules, diversity=Diversity(mmr=0.5))
    settings = served_log(tmp_path / "data", 200, ruled, pins=False)
    refused = run(settings.data, "--policy", "uniform", "--unsettled")
    assert refused.exit_code == 1
    assert "rules acted" in refused.output
    own = told(settings.data, "--policy", "home/home-ts", "--unsettled", "--sampled")
    assert [note for note in own["notes"] if "at the logged counters" in note and "(seen)" in note]
    assert 60 < own["log"]["decisions"] < 140
    assert by_name(own)["rips"]["value"] == pytest.approx(own["baseline"]["value"], rel=1e-12)
    assert by_name(own)["rips"]["diagnostics"]["largest"] == pytest.approx(1.0, rel=1e-12)
    log = read_all(settings, asked_for("uniform", data=None, config=None), sampled=True)
    for one in log.decisions:
        law = Uniform().conditionals(one)
        other = [i for i in range(len(ITEMS)) if i % 2 != one.rows[0] % 2]
        assert law[1, other].tolist() == [0.25] * 4
        assert law[0].tolist() == [1 / 8] * 8
    words = ["--format", "parquet", "--unsettled", "--data", str(settings.data), "--out", str(tmp_path / "x.parquet")]
    assert CliRunner().invoke(main, ["export", *words]).exit_code == 0
    files = told(tmp_path / "x.parquet", "--policy", "home/home-ts", "--data", settings.data, "--sampled")
    assert by_name(files) == by_name(own)


def test_files_from_before_a_column_was_added_are_read(served: Settings, tmp_path: Path) -> None:
    words = ["--format", "parquet", "--unsettled", "--data", str(served.data), "--out", str(tmp_path / "x.parquet")]
    assert CliRunner().invoke(main, ["export", *words]).exit_code == 0
    table = pq.read_table(tmp_path / "x.parquet").drop_columns(["acted", "within"])
    (tmp_path / "old").mkdir()
    pq.write_table(table, tmp_path / "old" / "x.parquet")
    before = told(tmp_path / "old", "--policy", "uniform", "--data", served.data)
    assert by_name(before) == by_name(told(tmp_path / "x.parquet", "--policy", "uniform", "--data", served.data))


# policies of a config folder


CONFIG = """
surface: home
slots: 3
features:
  context: {device: {type: category, values: [ios, web]}}
  items: {price: {type: number, min: 0, max: 10}, genre: {type: category, values: [jazz, rock]}}
  cross: [[device, genre]]
objectives: {click: {kind: click, range: [0, 1]}}
policies:
  fresh: {algorithm: linear_thompson, objective: click, floor: 0.1}
  as-given: {algorithm: given_order, floor: 0.5}
live: fresh
"""


def test_a_policy_is_fitted_on_the_first_part_and_judged_on_the_rest(served: Settings, tmp_path: Path) -> None:
    (tmp_path / "home.yaml").write_text(CONFIG)
    words = (served.data, "--config", tmp_path, "--unsettled")
    found = told(*words, "--policy", "fresh", "--train-share", 0.6)
    assert f"fitted on {DECISIONS * 3 // 5} decisions" in found["target"]
    assert found["log"]["decisions"] == DECISIONS * 2 // 5
    uniform = told(served.data, "--policy", "uniform", "--unsettled", "--train-share", 0.6)
    assert uniform["log"]["decisions"] == DECISIONS * 2 // 5
    assert uniform["baseline"] == found["baseline"]
    better = by_name(found)["dr"]["asymptotic"]["low"]
    assert better > by_name(uniform)["dr"]["value"]  # it has learned who likes what
    assert told(*words, "--policy", "home/as-given")["log"]["decisions"] == DECISIONS


@pytest.fixture(scope="module")
def whole(served: Settings, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The log in the encoding of the config folder."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "home.yaml").write_text(CONFIG)
    return read_all(served, asked_for("fresh", data=None, config=folder))


ONE_PASS = sorted(n for n, a in ALGORITHMS.items() if a.learner and not a.trainer and set(a.inputs) <= KNOWN)


@pytest.mark.parametrize("algorithm", ONE_PASS)
def test_every_algorithm_that_learns_in_one_pass_can_be_fitted_and_asked(
    whole: Log, tmp_path: Path, algorithm: str
) -> None:
    (tmp_path / "home.yaml").write_text(CONFIG.replace("algorithm: linear_thompson", f"algorithm: {algorithm}"))
    asked = asked_for("fresh", data=None, config=tmp_path)
    first, rest = share_split(whole, 0.2)
    law = fitted(asked, first).conditionals(rest.decisions[1])
    assert law.shape == (3, len(ITEMS))
    assert law.sum(axis=1) == pytest.approx(np.ones(3))
    assert (law > 0).sum(axis=1).tolist() == [8, 7, 6]  # its floor


def test_a_policy_is_fitted_with_what_its_surface_says_of_examination(whole: Log, tmp_path: Path) -> None:
    first, rest = share_split(whole, 0.2)
    laws = []
    for examination in ("none", "[1, 0.5, 0.25]"):
        (tmp_path / "home.yaml").write_text(f"{CONFIG}\nexamination: {examination}\n")
        laws.append(fitted(asked_for("fresh", data=None, config=tmp_path), first).conditionals(rest.decisions[1]))
    assert np.abs(laws[0] - laws[1]).max() > 0.01


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (("price:", "cost:"), (), "without the column"),
        (("click: {kind", "buy: {kind"), (), "learns buy"),
        (("slots: 3", "slots: 2"), (), "3 slots, the surface 2"),
        (("linear_thompson", "linear_tompson"), (), "linear_thompson"),
        (("floor: 0.1", "flor: 0.1"), (), "flor"),
        (("", ""), ("--train-share", 1.5), "between 0 and 1"),
        (("", ""), ("--policy", "nobody"), "home/as-given, home/fresh"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    served: Settings, tmp_path: Path, change: tuple[str, str], words: tuple[object, ...], said: str
) -> None:
    text = CONFIG.replace(*change).replace(
        "objective: click,", "" if change[0].startswith("click") else "objective: click,"
    )
    (tmp_path / "home.yaml").write_text(text)
    result = run(served.data, "--unsettled", "--config", tmp_path, "--policy", "fresh", *words)
    assert result.exit_code == 1
    assert said in result.output


# planted faults


def planted(settings: Settings, folder: Path, factor: float) -> Path:
    """The sampled decisions of a log whose service states a propensity of one item that is `factor` times the true one, and
    spreads the rest over the others: distributions that sum to one, and were not drawn from."""
    made = Settings.load({}, data=folder)
    folder.mkdir(parents=True)
    open_state(made).put([(entry.kind, entry.key, entry.value) for entry in open_state(settings).read(0)])
    log, records = open_log(settings), []
    for partition in range(log.partitions):
        for record in log.read(partition, 0, 100_000):
            event = decode(record.value)
            if isinstance(event, Decision):
                if event.sample is None:
                    continue
                p = np.frombuffer(event.sample.distributions).reshape(len(event.slots), -1).copy()
                rest = np.delete(p, WRONG, axis=1)
                moved = p[:, WRONG] * (1 - factor) * (rest.sum(axis=1) > 0)
                p += (
                    moved[:, None]
                    * p
                    / np.maximum(rest.sum(axis=1), 1e-300)[:, None]
                    * (np.arange(len(ITEMS)) != WRONG)
                )
                p[:, WRONG] -= moved
                event = msgspec.structs.replace(
                    event,
                    propensities=p[np.arange(len(p)), event.rows].tolist(),
                    sample=msgspec.structs.replace(event.sample, distributions=p.tobytes()),
                )
            records.append((record.key, encode(event)))
    open_log(made).append(records)
    return folder


def test_a_wrong_propensity_in_a_real_log_is_caught_by_the_command(served: Settings, tmp_path: Path) -> None:
    right = told(planted(served, tmp_path / "right", 1.0), "--policy", "uniform", "--unsettled")
    wrong = told(planted(served, tmp_path / "wrong", 0.7), "--policy", "uniform", "--unsettled")
    assert right["calibration"]["ok"]
    assert not any("propensities" in warning for warning in right["warnings"])
    assert not wrong["calibration"]["ok"]
    assert ITEMS[WRONG] in wrong["calibration"]["arm"]
    assert any("not what was drawn from" in warning for warning in wrong["warnings"])


@pytest.mark.parametrize("p", [0.0, -0.1, 1.5, float("inf")])
def test_impossible_propensities_are_counted_and_used_by_nobody(p: float, tmp_path: Path) -> None:
    lines = [cb(i) for i in range(20)]
    lines[3]["_label_probability"] = p
    lines[3]["p"] = []
    lines[3]["a"] = [1]
    file = write(tmp_path, lines)
    text = file.read_text().replace("Infinity", "1e999")
    file.write_text(text)
    found = told(file, "--policy", "uniform")
    assert sum(found["rejected"]["counts"].values()) == 1
    assert found["log"]["decisions"] == 19
    assert all(np.isfinite(line["value"]) for line in found["estimates"] if "value" in line)


# Vowpal Wabbit


def cb(i: int, n: int = 3) -> dict[str, Any]:
    """A contextual bandit event as Vowpal Wabbit's own service writes it, fields in its order."""
    drawn = i % n
    p = [0.6 if drawn == 0 else 0.2, *[0.6 if a == 0 else 0.2 for a in range(n) if a != drawn]]
    return {
        "_label_cost": -1.0 if drawn == 1 else 0.0,
        "_label_probability": p[0],
        "_label_Action": drawn + 1,
        "_labelIndex": drawn,
        "o": [],
        "Timestamp": f"2021-07-29T10:{i // 60:02d}:{i % 60:02d}.9990000Z",
        "Version": "1",
        "EventId": f"event-{i}",
        "a": [drawn + 1, *[a + 1 for a in range(n) if a != drawn]],
        "c": {"User": {"price": i % 5}, "_multi": [{"Item": {"id": f"a{a}", "cost": a}} for a in range(n)]},
        "p": p,
        "VWState": {"m": "N/A"},
    }


def write(folder: Path, lines: list[Any]) -> Path:
    file = folder / "log.dsjson"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def test_contextual_bandit_lines_give_the_value_by_hand(tmp_path: Path) -> None:
    found = told(write(tmp_path, [cb(i) for i in range(30)]), "--policy", "uniform")
    assert by_name(found)["ips"]["value"] == pytest.approx((10 / 30) * (1 / 3) / 0.2)
    assert "needs a --range" in by_name(found)["ips"]["finite_sample_refused"]
    bounded = told(tmp_path / "log.dsjson", "--policy", "uniform", "--range", "0", "1")
    interval = by_name(bounded)["ips"]["finite_sample"]
    assert interval["low"] < by_name(found)["ips"]["value"] < interval["high"]
    assert run(tmp_path / "log.dsjson", "--policy", "uniform", "--range", "1", "0").exit_code == 1
    assert found["baseline"]["value"] == pytest.approx(1 / 3)
    greedy = told(tmp_path / "log.dsjson", "--policy", "greedy")
    assert by_name(greedy)["ips"]["value"] == 0.0  # the likeliest action never paid
    assert by_name(greedy)["ips"]["diagnostics"]["mean_weight"] == pytest.approx((10 / 30) / 0.6)


def test_slates_weigh_the_whole_reward_by_the_whole_slate(tmp_path: Path) -> None:
    line = {
        "_label_cost": -2.0,
        "_outcomes": [{"_a": 1, "_p": 0.8}, {"_a": [0, 1], "_p": [0.6, 0.4]}],
        "EventId": "s-1",
        "Timestamp": "2021-07-29T10:00:00.000Z",
        "Version": "1",
        "c": {
            "shared": 1.0,
            "_multi": [
                {"_slot_id": 0, "f": 1},
                {"_slot_id": 0, "f": 2},
                {"_slot_id": 0},
                {"_slot_id": 1},
                {"_slot_id": 1},
            ],
            "_slots": [{"g": 1}, {"g": 2}],
        },
        "VWState": {"m": "N/A"},
    }
    log = dsjson.read_dsjson(write(tmp_path, [line, {**line, "EventId": "s-2"}, line]))
    assert dict(log.rejected.counts) == {"duplicate": 1}
    one = log.decisions[0]
    assert one.rows.tolist() == [1, 3]
    assert one.rewards.ravel().tolist() == [0.0, 2.0]
    uniform = Uniform().conditionals(one)
    assert uniform.tolist() == [[1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 0, 0.5, 0.5]]
    assert one.distributions is None  # the first slot says its own action's share only
    found = told(tmp_path / "log.dsjson", "--policy", "uniform")
    by = by_name(found)
    assert by["slate_ips"]["value"] == pytest.approx(2.0 * (1 / 3) * 0.5 / (0.8 * 0.6))
    assert by["rips"]["value"] == pytest.approx(by["slate_ips"]["value"])
    assert "one reward for the whole slate" in by["ips"]["refused"]
    assert run(tmp_path / "log.dsjson", "--policy", "uniform", "--estimator", "snips").exit_code == 1


BROKEN = {
    "broken_line": ["{", '"text"', '{"c": 3}', '{"_label_cost": "x", "c": {"_multi": [{}]}}', "\xff"],
    "not_a_decision": [{"EventId": "x"}, {"RewardValue": 1.0, "EventId": "y"}, {"c": {"a": 1}}],
    "never_shown": [cb(100) | {"_skipLearn": True}],
    "no_label": [cb(101) | {"_label_cost": None}, cb(102) | {"_label_Action": None, "a": [], "p": []}],
    "bad_slate": [cb(103) | {"_label_Action": 9}, cb(104) | {"a": [7, 1, 2]}],
    "bad_propensity": [cb(105) | {"_label_probability": 0.0, "p": [], "a": []}, cb(106) | {"p": [-0.2, 0.6, 0.6]}],
    "bad_distribution": [cb(107) | {"_label_probability": 0.5}],
    "duplicate": [cb(1)],
}


def test_broken_lines_are_counted_by_reason_with_the_first_place(tmp_path: Path) -> None:
    wrong = [line for lines in BROKEN.values() for line in lines]
    file = write(tmp_path, [*[cb(i) for i in range(10)], *wrong, "", "  "])
    found = told(file, "--policy", "uniform")
    assert found["rejected"]["counts"] == {reason: len(lines) for reason, lines in BROKEN.items()}
    assert found["rejected"]["first"]["broken_line"] == "line 11"
    assert found["log"]["decisions"] == 10
    assert "17 records set aside" in " ".join(found["warnings"])


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        ([], (), "No decision of the log can be used"),
        (["{"], (), "1 broken_line (first: line 1)"),
        ([cb(0) | {"pdrop": 0.5}], (), "thinned by its rewards"),
        ([cb(0)], ("--estimator", "ipz"), "No estimator 'ipz'; there are"),
        ([cb(0)], ("--alpha", "2"), "between 0 and 1"),
        ([cb(0)], ("--objective", "click"), "no objective 'click'; it has reward"),
        ([cb(0)], ("--policy", "best"), "No policy 'best'; there are uniform"),
        ([cb(0)], ("--policy", "bernoulli_ts"), "Open Bandit Dataset"),
        ([{k: v for k, v in cb(0).items() if k not in ("a", "p")}], ("--policy", "greedy"), "greedy_unknown"),
    ],
)
def test_what_gives_no_number_says_why(tmp_path: Path, lines: list[Any], words: tuple[str, ...], said: str) -> None:
    result = run(write(tmp_path, lines), "--policy", "uniform", *words)
    assert result.exit_code == 1
    assert said in result.output


def test_a_target_outside_the_support_is_refused_or_said(tmp_path: Path) -> None:
    """The third action is never drawn: a uniform target has a third of its probability there."""
    lines = []
    for i in range(40):
        drawn = i % 2
        lines.append(cb(drawn) | {"EventId": f"e{i}", "a": [drawn + 1, 2 - drawn, 3], "p": [0.5, 0.5, 0.0]})
        lines[-1]["_label_probability"] = 0.5
    file = write(tmp_path, lines)
    refused = run(file, "--policy", "uniform")
    assert refused.exit_code == 1
    assert "33.33% of the probability of uniform lies on items that the log could not have drawn" in refused.output
    found = told(file, "--policy", "uniform", "--partial-support")
    assert found["support"]["outside"] == pytest.approx(1 / 3)
    assert by_name(found)["ips"]["diagnostics"]["unsupported"] == 40
    assert by_name(found)["ips"]["diagnostics"]["design_ess"] == 0
    assert "outside the log's support" in " ".join(found["warnings"])


def test_our_own_export_gives_the_same_estimates_as_the_log(served: Settings, tmp_path: Path) -> None:
    file = tmp_path / "log.dsjson"
    words = ["--format", "dsjson", "--out", str(file), "--unsettled", "--data", str(served.data)]
    assert CliRunner().invoke(main, ["export", *words]).exit_code == 0
    for name, more in (("uniform", []), ("home/other", ["--sampled"])):  # features of all are in sampled records alone
        ours = told(served.data, "--policy", name, "--unsettled", *more)
        theirs = told(file, "--policy", name, "--data", served.data, *more)
        assert theirs["rejected"]["counts"] == {}
        assert theirs["log"]["decisions"] == ours["log"]["decisions"]
        for estimator in ("ips", "snips", "rips", "slate_ips"):
            line, mine = by_name(theirs)[estimator], by_name(ours)[estimator]
            assert line["value"] == pytest.approx(mine["value"], rel=1e-9)
            assert line["asymptotic"]["low"] == pytest.approx(mine["asymptotic"]["low"], rel=1e-6)
    refused = run(file, "--policy", "home/other", "--data", served.data)
    assert "only the ids of the candidates" in refused.output


def test_raw_features_are_found_in_any_namespace_and_missed_aloud(tmp_path: Path) -> None:
    file = write(tmp_path, [cb(i) for i in range(10)])
    encoder = Encoder(FeatureSpec(context={"price": Number(0, 4)}, items={"cost": Number(0, 2)}))
    log = dsjson.read_dsjson(file, encoder)
    assert log.decisions[3].context is not None
    assert log.decisions[3].context.tolist() == [0.5]
    matrix = log.decisions[3].matrix
    assert matrix is not None
    assert matrix.ravel().tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(Rejected, match="no feature 'prize'"):
        dsjson.read_dsjson(file, Encoder(FeatureSpec(context={"prize": Number(0, 4)})))


# public data


def test_the_open_bandit_quickstart_is_reproduced_to_the_digit(datasets: Path) -> None:
    found = told(datasets / "obd/random/all", "--policy", "bernoulli_ts", "--estimator", "ips")
    with (datasets / "obd/bts/all/all.csv").open(newline="") as file:
        truth = float(np.mean([float(row["click"]) for row in csv.DictReader(file)]))
    value = by_name(found)["ips"]["value"]
    assert f"{value:.6f}" == "0.004553"
    assert f"{abs(value - truth) / truth:.6f}" == "0.084019"
    assert found["calibration"]["ok"]
    assert found["warnings"] == []


def test_hillstrom_is_read_with_three_objectives(datasets: Path, tmp_path: Path) -> None:
    part = tmp_path / "hillstrom.csv"
    with (datasets / "hillstrom/hillstrom.csv").open() as whole:
        part.write_text("".join(islice(whole, 1_001)))
    found = told(part, "--policy", "uniform", "--objective", "visit", "--estimator", "ips")
    assert found["log"]["decisions"] == 1_000
    assert found["estimates"][0]["value"] == pytest.approx(found["baseline"]["value"])
    result = run(part, "--policy", "uniform")
    assert result.exit_code == 1
    assert "visit, conversion, spend: name one of them" in result.output


def obd_folder(folder: Path, rows: int = 60, items: int = 34) -> Path:
    """The layout of the Open Bandit Dataset, uniform over the items of campaign `men`."""
    made = folder / "random" / "men"
    made.mkdir(parents=True)
    rng = np.random.default_rng(0)
    users = [f"user_feature_{i}" for i in range(4)]
    affinities = [f"user-item_affinity_{i}" for i in range(items)]
    with (made / "item_context.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["", "item_id", "item_feature_0", "item_feature_1", "item_feature_2", "item_feature_3"])
        out.writerows([i, i, i / items, "a", "b", "c"] for i in range(items))
    with (made / "men.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["", "timestamp", "item_id", "position", "click", "propensity_score", *users, *affinities])
        for i in range(rows):
            out.writerow(
                [i, f"2019-11-24 00:00:{i % 60:02d}.5+00:00", rng.integers(items), 1 + i % 3, i % 2, 1 / items]
                + [f"u{i % 3}"] * 4
                + [0.0] * items
            )
    return made


def test_rows_of_the_open_bandit_layout_that_are_none_are_counted(tmp_path: Path) -> None:
    folder = obd_folder(tmp_path)
    file = folder / "men.csv"
    lines = file.read_text().splitlines(keepends=True)
    fields = lines[5].split(",")
    lines[5] = ",".join([*fields[:2], "99", *fields[3:]])  # no such item
    lines[6] = ",".join([*lines[6].split(",")[:3], "7", *lines[6].split(",")[4:]])  # no such position
    lines[7] = lines[7][:40] + "\n"
    lines[8] = ",".join([*lines[8].split(",")[:5], "nan", *lines[8].split(",")[6:]])
    lines[9] = ",".join(
        [*lines[9].split(",")[:5], "0.02", *lines[9].split(",")[6:]]
    )  # not uniform, as the folder claims
    file.write_text("".join(lines))
    found = told(folder, "--policy", "bernoulli_ts")
    assert found["rejected"]["counts"] == {
        "unknown_item": 1,
        "bad_position": 1,
        "broken_line": 1,
        "bad_propensity": 1,
        "bad_distribution": 1,
    }
    assert found["log"]["decisions"] == 55


def test_a_yaml_policy_reads_what_only_a_request_knew_of_all_candidates(tmp_path: Path) -> None:
    folder = obd_folder(tmp_path)
    encoder = Encoder(FeatureSpec(items={"affinity": Number(0, 1), "item_feature_0": Number(0, 1)}))
    file = folder / "men.csv"
    lines = file.read_text().splitlines(keepends=True)
    lines[1] = lines[1].rsplit(",", 2)[0] + ",1.0,0.5\n"
    file.write_text("".join(lines))
    log = tabular.read_obd(folder, encoder)
    matrix = log.decisions[0].matrix
    assert matrix is not None
    assert matrix[-3:, 0].tolist() == [-1.0, 1.0, 0.0]
    with pytest.raises(Rejected, match="no feature 'colour'"):
        tabular.read_obd(folder, Encoder(FeatureSpec(items={"colour": Number(0, 1)})))


def test_another_campaign_has_no_prior(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="all, men, women"):
        bernoulli.distribution("kids")


# the page


def test_the_page_stands_alone_and_shows_the_same_numbers(tmp_path: Path) -> None:
    file = tmp_path / "evil<b>.dsjson"
    write(tmp_path, [cb(i) for i in range(300)]).rename(file)
    out = tmp_path / "new" / "page.html"
    result = run(file, "--policy", "uniform", "--html", out)
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert text.count("<svg") == 3  # intervals, weights, calibration
    assert "evil&lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)""", text)  # nothing is loaded
    value = by_name(told(file, "--policy", "uniform"))["ips"]["value"]
    assert f"<td>{value:.6g}</td>" in text
    assert f"{value:.6g}" in result.output
    for line in ("assume:", "What is estimated"):
        assert line in result.output
