"""Sessions from the command: cut as trainers cut them, weighed step by step, goals counted once; and what is no log of sessions."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from evaluation_setup import made
from scoring_setup import CALM, decisions, publish
from training_setup import GOALS, WITH_GOALS, registered

from policies.errors import Rejected
from policies.surface import Logging, PolicySpec, Surface
from services.cli import main
from services.evaluation.decisions import Log, LoggedDecision, Placed, Rejections
from services.evaluation.episodes import episodes
from services.evaluation.resolving import asked_for, read
from services.evaluation.stepping import Walk
from services.evaluation.targets import Scored
from services.keys import KEY_BYTES, Keys
from services.scoring.service import Scoring
from services.settings import Settings
from services.wiring import open_bundles, open_claims, open_log, open_state
from streaming.configuration import Configs
from streaming.events import Decision, Feedback, Goal, encode, unit_hash
from streaming.publish import Publisher
from streaming.spool import Spool

ITEMS = [{"id": f"item-{i}", "features": {"price": 10 * i / 3, "genre": "jazz"}} for i in range(4)]
SESSIONS, GOES_ON, WARM = 200, 0.6, 23
POLICIES = {
    "home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.6}),
    "other": PolicySpec("linear_thompson", objective="click", options={"floor": 0.3}),
}
SURFACE = made(slots=1, policies=POLICIES, logging=Logging(1.0))
AGENTS = made(
    slots=2,
    policies={"agent": PolicySpec("with_goals", objective="click", options={"floor": 0.3, "goal_steps": 2})},
    live="agent",
    logging=Logging(1.0),
)


def chance(item: int, hour: int) -> float:
    """P(click): dearer items more, and who has just clicked more."""
    return 0.1 + 0.1 * item + 0.4 * (hour == WARM)


class House:
    """A data folder that is really served: people ask in sessions, click, and are warm after a click."""

    def __init__(self, folder: Path, surface: Surface) -> None:
        self.settings = Settings.load({}, data=folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("server.key", "salt.default"):
            (folder / name).write_bytes(bytes(KEY_BYTES))
        self.state, self.bundles = open_state(self.settings), open_bundles(self.settings)
        trains = "agent" in surface.policies
        self.configs = self.published(surface) if trains else publish(self.state, self.bundles, surface, examples=200)
        self.made = 0
        self.scoring = Scoring(
            state=self.state,
            claims=open_claims(self.settings),
            bundles=self.bundles,
            spool=Spool(folder / "spool", quota_bytes=1 << 30),
            keys=Keys.load(folder),
            patience=CALM,
        )
        self.scoring.start()

    def published(self, surface: Surface) -> Configs:
        """Two bundles of an agent with goals; the second is what it points to."""
        from streaming.configuration import publish_surface

        publish_surface(self.state, surface)
        configs = Configs()
        configs.follow(self.state)
        publisher, compiled = Publisher(self.bundles, configs, 1), configs.current("home")
        assert compiled is not None
        policy = compiled.policies["agent"]
        self.agents = []
        for seed in (0, 1):
            ready = WITH_GOALS.publish(policy.config, policy.problem, {}, time.time(), seed)
            found = publisher.publish(policy, (), {}, time.time(), ready=ready).manifest
            assert found is not None
            self.agents.append(found.bundle)
        return configs

    def ask(self, unit: str, session: str, hour: int) -> list[int]:
        """Rows that were shown."""
        self.made += 1
        own = unit_hash(unit, bytes(KEY_BYTES))
        request = {
            "surface": "home",
            "unit": unit,
            "session": session,
            "decision_id": f"{own}-{self.made}",  # as the service's own, but the same in every run
            "context": {"device": "ios", "hour": hour},
            "candidates": ITEMS,
        }
        answer = msgspec.json.decode(self.scoring.decide(msgspec.json.encode(request)))
        return [int(one["id"][-1]) for one in answer["slate"]]

    def live(self, sessions: int, seed: int) -> None:
        """Sessions of 1, 2, 3 … decisions, all in the log."""
        rng, clicks = np.random.default_rng(seed), []
        for i in range(sessions):
            hour = 0
            while True:
                shown = self.ask(f"user-{i % 100}", f"session-{i}", hour)
                clicked = [rng.random() < chance(item, hour) for item in shown]
                clicks.append(clicked)
                hour = WARM if any(clicked) else 0
                if rng.random() > GOES_ON:
                    break
        self.scoring.close()
        self.append(decisions(self.settings.data), clicks)

    def append(self, records: list[Decision], clicks: list[list[bool]]) -> None:
        events = []
        for record, clicked in zip(records, clicks, strict=True):
            events.append((record.unit.encode(), encode(record)))
            for slot, heard in enumerate(clicked):
                if heard:
                    said = Feedback(
                        decision_id=record.decision_id,
                        unit=record.unit,
                        at=record.at,
                        feedback_id=f"c{slot}",
                        kind="click",
                        slot=slot,
                    )
                    events.append((record.unit.encode(), encode(said)))
        open_log(self.settings).append(events)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    house = House(tmp_path_factory.mktemp("sequences") / "data", SURFACE)
    house.live(SESSIONS, 1)
    return house.settings


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Sessions under goals."""
    with registered(WITH_GOALS):
        house = House(tmp_path_factory.mktemp("goals") / "data", AGENTS)
        house.live(40, 2)
        yield house


def run(settings: Settings, *words: object) -> Result:
    fixed = ("evaluate", settings.data, "--unsettled", *words)
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [*map(str, fixed)])


def told(settings: Settings, *words: object) -> dict[str, Any]:
    result = run(settings, "--sequences", *words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["estimator"]: line for line in found["estimates"]}


def log_of(settings: Settings, name: str) -> tuple[Log, Any]:
    asked = asked_for(name, data=settings.data, config=None)
    fixed = {"data": None, "surface": None, "since": None, "until": None, "sampled": False, "unsettled": True}
    return read(str(settings.data), "experiences", asked, **fixed), asked.target  # type: ignore[arg-type]  # by name


def value(log: Log, target: Any, discount: float) -> float:
    """Of a session, by dynamic programming over the two states; the target's shares are those it says in each."""
    by_state: dict[float, np.ndarray] = {}
    for one in log.decisions:
        assert one.context is not None
        by_state.setdefault(float(one.context[-1]), target.conditionals(one)[0])
    cold, warm = (by_state[key] for key in sorted(by_state))
    clicks = np.array([[chance(item, hour) for item in range(4)] for hour in (0, WARM)])
    r = (np.stack([cold, warm]) * clicks).sum(axis=1)
    follows = discount * GOES_ON * np.stack([1 - r, r], axis=1)
    return float(np.linalg.solve(np.eye(2) - follows, r)[0])


@pytest.mark.parametrize(("name", "discount"), [("uniform", 1.0), ("home/other", 0.8)])
def test_sessions_are_worth_what_the_dynamic_program_says(lived: Settings, name: str, discount: float) -> None:
    truth = value(*log_of(lived, name), discount)
    found = told(lived, "--policy", name, "--discount", discount)
    assert set(by_name(found)) == {"pdis", "wpdis", "fqe", "magic"}
    for name, line in by_name(found).items():
        sure = by_name(found)["wpdis"] if name == "magic" else line  # its own leaves out the error of its model
        error = (sure["asymptotic"]["high"] - sure["asymptotic"]["low"]) / 2 / 1.96
        assert abs(line["value"] - truth) <= 4 * error, name
        assert 0 < error < 0.25 * truth
        assert "overlap" in line["finite_sample_refused"]
    assert found["baseline"]["value"] == pytest.approx(value(*log_of(lived, "home/home-ts"), discount), abs=0.25)
    weights = found["sessions"]["weights"]
    assert weights["going"][0] == SESSIONS
    assert weights["going"] == sorted(weights["going"], reverse=True)
    assert weights["ess"][0] > weights["ess"][-1] > 10
    assert all(abs(mean - 1) < 0.5 for mean in weights["mean"])


def test_the_logged_policy_weighs_one_at_every_step(lived: Settings) -> None:
    found = told(lived, "--policy", "home/home-ts")
    assert by_name(found)["pdis"]["value"] == pytest.approx(found["baseline"]["value"], rel=1e-9)
    assert found["sessions"]["weights"]["ess"] == pytest.approx([SESSIONS] * len(found["sessions"]["weights"]["ess"]))
    greedy = told(lived, "--policy", "greedy", "--estimator", "pdis")
    assert greedy["sessions"]["weights"]["zero"][-1] > 0.3
    first = told(lived, "--policy", "home/home-ts", "--steps", 1)
    assert first["sessions"]["cut"] > 0
    assert len(first["sessions"]["weights"]["going"]) == 1
    assert first["baseline"]["value"] < found["baseline"]["value"]


def test_table_and_page_show_the_steps(lived: Settings, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = run(lived, "--policy", "uniform", "--estimator", "wpdis", "--html", out)
    assert result.exit_code == 0, result.output
    for said in ("weights by step", "of an episode", "mean discounted reward of a session", "weight 0"):
        assert said in result.output
    text = out.read_text()
    assert "Weights by step" in text
    assert "weight of a step" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--estimator", "pdis", "--estimator", "ips"), "run them apart"),
        (("--sequences", "--sampled"), "holes in sessions"),
        (("--sequences", "--replays", 100), "of single decisions"),
        (("--sequences", "--estimator", "pdiz"), "there are pdis, wpdis, fqe, magic"),
        (("--sequences", "--discount", 1.5), "above 0 and at most 1"),
        (("--discount", 0.5), "say --sequences too"),
        (("--sequences", "--since", "2999-01-01"), "No episode of the log"),
    ],
)
def test_what_gives_no_number_says_why(lived: Settings, words: tuple[object, ...], said: str) -> None:
    result = run(lived, "--policy", "uniform", *words)
    assert result.exit_code == 1
    assert said in result.output


def test_logs_that_name_no_sessions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.dsjson"
    line = {"_label_cost": -1.0, "_label_probability": 0.5, "_label_Action": 1, "a": [1, 2], "p": [0.5, 0.5]}
    line |= {"EventId": "e", "Timestamp": "2021-07-29T10:00:00Z", "c": {"_multi": [{}, {}]}}
    file.write_text(json.dumps(line))
    result = CliRunner().invoke(main, ["evaluate", str(file), "--policy", "uniform", "--sequences"])
    assert result.exit_code == 1
    assert "does not say which decisions were one person's" in result.output


# how a log is cut


def logged(*placed: Placed) -> Log:
    def one(said: Placed) -> LoggedDecision:
        empty = np.zeros(0)
        made = (said.decision_id, said.unit, said.at, ["a"], empty.astype(int), empty.astype(int), empty, empty)
        return LoggedDecision(*made, empty.astype(bool), empty.astype(bool))  # type: ignore[arg-type]  # of no slots

    usable = [one(said) for said in placed if not said.reason]
    return Log("experiences", "home", usable, Rejections(), ("click",), placed=list(placed))


def placed(name: str, at: float, session: str = "s", unit: str = "u", reason: str = "", due: float = 10.0) -> Placed:
    return Placed(name, unit, session, at, at + due, 100.0, 0, int(10 * at), reason)


def cut(*given: Placed, **more: Any) -> tuple[list[str], dict[str, int]]:
    found, counts = episodes(logged(*given), **more)
    return ["".join(one.decision_id for one in episode) for episode in found], dict(+counts)


LATER = placed("z", 1_000.0, unit="w")


def test_sessions_end_by_another_one_or_by_their_timeout() -> None:
    assert cut(placed("a", 1), placed("b", 2), placed("c", 3, "t"), LATER) == (["ab", "c"], {"open": 1})
    assert cut(placed("a", 1), placed("b", 100), placed("c", 201), LATER) == (["ab", "c"], {"open": 1})
    assert cut(placed("a", 1), placed("b", 2, unit="v"), placed("c", 3), LATER) == (["ac", "b"], {"open": 1})
    assert cut(placed("a", 1), placed("b", 2), LATER, unsettled=True) == (["ab", "z"], {})


def test_what_was_not_seen_is_no_step_and_what_cannot_be_used_breaks_an_episode() -> None:
    assert cut(placed("a", 1), placed("b", 2, reason="never_shown"), placed("c", 3), LATER) == (["ac"], {"open": 1})
    broken = placed("b", 2, reason="bad_propensity")
    assert cut(placed("a", 1), broken, placed("c", 3), placed("d", 4, "t"), LATER) == (["d"], {"open": 1, "broken": 1})


def test_one_that_settles_late_is_left_out_alone() -> None:
    late = placed("b", 2)._replace(number=35, due=45.0)
    assert cut(placed("a", 1), placed("c", 3), late, LATER) == (["ac"], {"open": 1, "late": 1})


def test_episodes_belong_to_when_they_began() -> None:
    given = (placed("a", 1), placed("b", 50), placed("c", 60, "t"), LATER)
    assert cut(*given, since=2.0) == (["c"], {"open": 1})
    assert cut(*given, until=55.0) == (["ab"], {})
    whole = logged(*given)
    part = whole.with_decisions([one for one in whole.decisions if one.decision_id != "a"])
    assert dict(+episodes(part)[1]) == {"open": 1, "left_out": 1}


def test_decisions_without_a_unit_are_refused_with_their_number() -> None:
    with pytest.raises(Rejected, match="1 of 2 decisions have no unit") as refused:
        cut(placed("a", 1), placed("b", 2, unit=""))
    assert refused.value.code == "no_unit"


# goals


def test_the_ratio_of_a_goal_counts_once_at_the_decision_that_drew_it(managed: House) -> None:
    """By hand, for another bundle than the one that was logged: its slots under the logged goal, and the goal where it was drawn."""
    log, _ = log_of(managed.settings, managed.agents[1])
    target = asked_for(managed.agents[0], data=managed.settings.data, config=None).target
    assert isinstance(target, Scored)
    found, _ = episodes(log, unsettled=True)
    draws = longest = 0
    for episode in found:
        walk, longest = Walk(target, modelled=False), max(longest, len(episode))
        for one in episode:
            step = walk.step(one)
            assert one.goal is not None
            own = target.under(one, one.goal.id).along()[np.arange(2), one.rows].prod()
            here = one.goal.drawn_at_decision == one.decision_id
            draws += here
            goals = (target.goals(one)[one.goal.id], one.goal.propensity) if here else (1.0, 1.0)
            assert step.target == pytest.approx(own * goals[0])
            assert step.behaviour == pytest.approx(one.propensities.prod() * goals[1])
            assert np.isnan(step.design) == here
    assert longest > 2
    assert draws == sum(-(-len(episode) // 2) for episode in found)  # one for every two decisions of a session
    same = told(managed.settings, "--policy", managed.agents[1], "--estimator", "pdis")
    assert by_name(same)["pdis"]["value"] == pytest.approx(same["baseline"]["value"], rel=1e-9)
    assert same["sessions"]["weights"]["mean"] == pytest.approx([1.0] * longest)


def test_goals_that_were_not_logged_are_summed_over(managed: House) -> None:
    """Weights of a whole stretch are those of its mean over goals, written out; a goal that it lacks has no chance."""
    log, _ = log_of(managed.settings, managed.agents[1])
    target = asked_for(managed.agents[0], data=managed.settings.data, config=None).target
    assert isinstance(target, Scored)
    episode = max(episodes(log, unsettled=True)[0], key=len)
    walk = Walk(target, modelled=False)
    steps = [walk.step(replace(one, goal=None)) for one in episode]
    for start in range(0, len(episode), 2):
        stretch = episode[start : start + 2]
        whole = 0.0
        for goal, share in target.goals(stretch[0]).items():
            whole += share * np.prod(
                [target.under(one, goal).along()[np.arange(2), one.rows].prod() for one in stretch]
            )
        assert np.prod([step.target for step in steps[start : start + 2]]) == pytest.approx(whole)
    alien = replace(episode[0], goal=Goal(GOALS + 1, 0.5, "b", episode[0].decision_id))
    assert Walk(target, modelled=False).step(alien).target == 0.0


def test_a_single_decision_of_an_agent_is_its_mean_over_goals(managed: House) -> None:
    found = json.loads(run(managed.settings, "--policy", managed.agents[0], "--estimator", "rips", "--json").stdout)
    log, target = log_of(managed.settings, managed.agents[0])
    one = log.decisions[0]
    parts = {goal: target.under(one, goal).along() for goal in range(GOALS)}
    whole = sum(share * parts[goal][[0, 1], one.rows].prod() for goal, share in target.goals(one).items())
    assert target.conditionals(one)[[0, 1], one.rows].prod() == pytest.approx(whole)
    assert by_name(found)["rips"]["diagnostics"]["mean_weight"] == pytest.approx(1.0, abs=0.5)
