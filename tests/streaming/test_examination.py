"""Examination from the document to what learners are taught: given, or estimated and recorded beside the document."""

import numpy as np
import pytest

from policies.errors import Rejected
from policies.surface import Fairness, Logging, PolicySpec, Prefix, Rule
from streaming import adjusting
from streaming.adapters.memory import MemoryState
from streaming.adjusting import Adjustments
from streaming.configuration import Compiled, ConfigInvalid, Configs, compile_surface, parse, publish_surface
from tests.streaming.joining import EPOCH0, UNIT, Ports, TallyConfigs, decision, drain, feedback, surface
from tests.streaming.test_plain import both

GIVEN = [1.0, 0.5, 0.25]


def told(configs: Configs, compiled: Compiled) -> Ports:
    """Plain decisions and clicks on every slot, and a few that only the general path takes."""
    ports = Ports(configs)
    for i in range(30):
        made = decision(compiled, f"{UNIT}-{i}", EPOCH0 + i)
        ports.append(made, at=EPOCH0 + i)
        if i % 2:
            ports.append(feedback(made.decision_id, EPOCH0 + i, slot=i % 3, value=2.0, feedback_id=f"f{i}"))
        if i % 5 == 0:
            ports.append(feedback(made.decision_id, EPOCH0 + i, kind="shown", slots=[0, 1], feedback_id=f"s{i}"))
    return ports


def test_both_paths_teach_alike() -> None:
    configs = TallyConfigs()
    compiled = configs.add(surface(examination=GIVEN))
    both(told(configs, compiled), 7, 100)


def test_learners_are_taught_attraction() -> None:
    """Weights of slots, and rewards of what they would have earned had they been looked at, over the reward of silence."""
    sums = []
    for examination in ("none", GIVEN):
        configs = TallyConfigs()
        compiled = configs.add(surface(examination=examination))
        shard = told(configs, compiled).shard()
        drain(shard)
        [arrays] = shard.statistics().arrays.values()
        sums.append(arrays)
    plain, examined = sums
    shown = np.array([30, 30, 25])  # of five decisions the last slot was never seen, and not heard of
    assert plain["S"][0, 0] == pytest.approx(0.5 * shown.sum())
    assert examined["S"][0, 0] == pytest.approx(0.5 * shown @ GIVEN)
    silence = 0.25
    clicks = plain["B"][0, 1] / 0.5 - silence * shown.sum()
    assert examined["B"][0, 1] / 0.5 == pytest.approx(silence * shown @ GIVEN + clicks)
    assert clicks == pytest.approx(1.75 * 15)


def test_what_cannot_be_is_named() -> None:
    for wrong, at in (
        ({"examination": [1.0, 0.5]}, "examination"),
        ({"examination": [1.0, 0.5, 0.0]}, "examination[2]"),
        ({"examination": "estimated", "rules": [Rule(cap=1, by="new")]}, "rules[0].cap"),
        ({"examination": "estimated", "fairness": Fairness(prefix=Prefix("new"))}, "fairness.prefix"),
        ({"examination": "estimated", "logging": Logging(0.0)}, "logging.sample"),
        (
            {"examination": GIVEN, "policies": {"ts": PolicySpec("logistic_thompson", objective="like")}},
            "policies.ts.algorithm",
        ),
    ):
        with pytest.raises(ConfigInvalid) as refused:
            compile_surface(surface(**wrong))
        assert at in str(refused.value).replace("$.", ""), refused.value


TEXT = """
surface: home
slots: 3
objectives: {click: {kind: click}}
policies: {ts: {algorithm: linear_thompson}}
"""


def test_it_is_written_as_words_or_numbers() -> None:
    plain = compile_surface(parse(TEXT, "f")[0])
    given = compile_surface(parse(TEXT + "examination: [1, 0.5, 0.25]", "f")[0])
    assert given.surface.slot_examination == GIVEN
    assert given.policies["ts"].key != plain.policies["ts"].key
    assert compile_surface(parse(TEXT + "examination: none", "f")[0]).hash == plain.hash
    asked = compile_surface(parse(TEXT + "examination: estimated", "f")[0])
    assert (asked.surface.slot_examination, asked.policies["ts"].key) == (None, plain.policies["ts"].key)
    with pytest.raises(ConfigInvalid, match="examination"):
        parse(TEXT + "examination: guessed", "f")
    with pytest.raises(ConfigInvalid, match="examination"):
        parse(TEXT + "examination: [1, x, 2]", "f")


def test_what_is_recorded_acts_whatever_the_document_says_and_survives_edits() -> None:
    state, configs = MemoryState(), Configs()
    [document] = parse(TEXT + "examination: estimated\nexamined: [1, 1, 1]", "f")
    before = publish_surface(state, document)
    adjusting.record(state, "home", Adjustments(1.0, GIVEN), 0)
    with pytest.raises(Rejected):
        adjusting.record(state, "home", Adjustments(2.0, [1.0, 1.0, 1.0]), 0)  # somebody was first
    after = publish_surface(state, document)
    assert publish_surface(state, document) == after != before  # again: the same version
    publish_surface(state, parse(TEXT.replace("slots: 3", "slots: 2") + "examination: estimated", "f")[0])
    configs.follow(state)
    compiled = configs.current("home")
    assert compiled is not None
    assert compiled.surface.slot_examination == GIVEN[:2]
    publish_surface(state, parse(TEXT.replace("slots: 3", "slots: 4") + "examination: estimated", "f")[0])
    configs.follow(state)
    wider = configs.current("home")
    assert wider is not None
    assert wider.surface.slot_examination is None  # of a fourth slot nothing is known
