"""Assignment: sticky, uniform, independent between layers, and moved no more than shares need."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Rejected
from policies.experiments import course
from policies.experiments.assignment import (
    BUCKETS,
    NOBODY,
    Buckets,
    allocated,
    bucket,
    choose,
    empty,
    in_order,
    split_of,
)
from policies.experiments.document import Arm, Condition, Experiment, Metrics, Trial

FREE = np.zeros(BUCKETS, bool)
UNITS = [f"{i:016x}" for i in range(20_000)]


def experiment(name: str = "ts", **changes: object) -> Experiment:
    said = {
        "experiment": name,
        "surface": "home",
        "arms": {"control": Arm("given_order", 0.5), "treatment": Arm("home-ts", 0.5)},
        "metrics": Metrics("click"),
    }
    return Experiment(**{**said, **changes})  # type: ignore[arg-type]  # fields of one document


def running(name: str = "ts", others: tuple[Trial, ...] = (), **changes: object) -> Trial:
    trial = course.drafted(experiment(name, **changes), others, 0.0)
    return trial if trial.status == "running" else course.started(trial, others, 0.0)


def counts(table: Buckets) -> dict[int, int]:
    return dict(zip(*(found.tolist() for found in np.unique(table, return_counts=True)), strict=True))


def test_a_units_arm_is_sticky_and_follows_the_shares() -> None:
    split = split_of(running())
    arms, again = (
        [choice.arm for unit in UNITS if (choice := choose((split,), unit, None, {}, now))] for now in (1.0, 2.0)
    )
    assert arms == again
    assert len(arms) == len(UNITS)
    share = arms.count("treatment") / len(arms)
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(arms))


def test_buckets_are_uniform_and_layers_independent() -> None:
    """χ² of 100 × cells, at 4 standard deviations of its distribution."""
    first = np.array([bucket(unit, "ranking") for unit in UNITS])
    second = np.array([bucket(unit, "fairness") for unit in UNITS])
    table = np.zeros((10, 10))
    np.add.at(table, (first * 10 // BUCKETS, second * 10 // BUCKETS), 1)
    chi = float(((table - len(UNITS) / 100) ** 2).sum() / (len(UNITS) / 100))
    assert chi < 99 + 4 * np.sqrt(2 * 99)
    same = np.zeros((10, 10))  # the fault this would find: one salt for all layers
    np.add.at(same, (first * 10 // BUCKETS, first * 10 // BUCKETS), 1)
    assert float(((same - len(UNITS) / 100) ** 2).sum() / (len(UNITS) / 100)) > 99 + 4 * np.sqrt(2 * 99)


@settings(max_examples=40, deadline=None)
@given(
    before=st.lists(st.integers(0, 25), min_size=2, max_size=4),
    after=st.lists(st.integers(0, 25), min_size=2, max_size=4),
)
def test_other_shares_move_only_what_they_must(before: list[int], after: list[int]) -> None:
    after = (after + [0] * len(before))[: len(before)]
    first = allocated("ts", [share / 100 for share in before], empty(), FREE)
    second = allocated("ts", [share / 100 for share in after], first, FREE)
    assert counts(second).get(NOBODY, 0) == BUCKETS - 100 * sum(after)
    for arm, (was, now) in enumerate(zip(before, after, strict=True)):
        stay = int(((first == arm) & (second == arm)).sum())
        assert stay == 100 * min(was, now)  # an arm keeps all it may keep


def test_experiments_of_a_layer_share_no_unit() -> None:
    one = running("one", arms={"a": Arm("x", 0.3), "b": Arm("y", 0.3)})
    two = running("two", (one,), arms={"a": Arm("x", 0.2), "b": Arm("y", 0.2)})
    held = [np.frombuffer(trial.buckets, np.uint8) != NOBODY for trial in (one, two)]
    assert not (held[0] & held[1]).any()
    assert (held[0] | held[1]).all()
    with pytest.raises(Rejected, match="the layer has 0 left") as refused:
        running("three", (one, two), arms={"a": Arm("x", 0.1), "b": Arm("y", 0.0)})
    assert refused.value.code == "layer_full"
    free = course.stopped(one, "", 1.0)
    assert running("three", (free, two), arms={"a": Arm("x", 0.3), "b": Arm("y", 0.3)}).status == "running"


def test_the_next_experiment_does_not_inherit_arms() -> None:
    first, second = (np.frombuffer(running(name).buckets, np.uint8) for name in ("one", "two"))
    same = float((first == second).mean())
    assert abs(same - 0.5) < 4 * 0.5 / np.sqrt(BUCKETS)


def test_holdouts_come_first_and_say_so() -> None:
    ranking = split_of(running("ranking"))
    held = split_of(running("held", layer="zz", arms={"out": Arm("popular", 0.1, holdout=True), "none": Arm(share=0)}))
    splits = in_order([ranking, held])
    modes = [choice.mode for unit in UNITS[:5000] if (choice := choose(splits, unit, None, {}, 1.0))]
    assert len(modes) == 5000
    assert abs(modes.count("holdout") / 5000 - 0.1) < 4 * 0.3 / np.sqrt(5000)


@pytest.mark.parametrize(
    ("said", "value", "meets"),
    [
        ("ios", "ios", True),
        ("ios", "web", False),
        (["ios", "web"], "web", True),
        (["ios"], None, False),
        (Condition(none=["bot"]), "ios", True),
        (Condition(none=["bot"]), "bot", False),
        (Condition(min=8, max=20), 8, True),
        (Condition(min=8, max=20), 20.5, False),
        (Condition(min=8), "noon", False),
        (Condition(min=0), True, False),
    ],
)
def test_eligibility(said: object, value: object, meets: bool) -> None:
    split = split_of(running(eligible={"device": said}))
    assert (choose((split,), UNITS[0], None, {"device": value}, 1.0) is not None) is meets


def test_overrides_sessions_and_schedules() -> None:
    forced = split_of(running(overrides={UNITS[0]: "treatment"}, eligible={"device": "none"}))
    choice = choose((forced,), UNITS[0], None, {}, -5.0)
    assert choice is not None
    assert (choice.arm, choice.override) == ("treatment", True)
    by_session = split_of(running(unit="session"))
    assert choose((by_session,), UNITS[0], None, {}, 1.0) is None
    arms = {choose((by_session,), unit, "s-1", {}, 1.0) for unit in UNITS[:50]}
    assert len(arms) == 1
    timed = split_of(running(start="1970-01-01T00:01:00Z", stop="1970-01-01T00:02:00Z"))
    assert [choose((timed,), UNITS[0], None, {}, at) is not None for at in (59.0, 60.0, 119.0, 120.0)] == [
        False,
        True,
        True,
        False,
    ]


def test_the_course_is_kept() -> None:
    trial = running()
    with pytest.raises(Rejected, match="is running"):
        course.started(trial, (), 1.0)
    with pytest.raises(Rejected, match="keeps its arms"):
        course.edited(trial, experiment(arms={"control": Arm("x", 0.5), "other": Arm("y", 0.5)}), (), 1.0)
    with pytest.raises(Rejected, match="at most 1"):
        course.given(trial, {"treatment": 0.7}, (), 1.0)
    with pytest.raises(Rejected, match="No arm 'nobody'"):
        course.given(trial, {"nobody": 0.1}, (), 1.0)
    less = course.given(trial, {"treatment": 0.2}, (), 1.0)
    assert less.allocations[-1].shares == {"control": 0.5, "treatment": 0.2}
    assert (
        course.edited(less, experiment(layer="default"), (), 2.0).allocations == less.allocations
    )  # the file's 0.5 is old
    over = course.stopped(less, "seen enough", 3.0)
    for step in (lambda: course.started(over, (), 4.0), lambda: course.given(over, {}, (), 4.0)):
        with pytest.raises(Rejected, match="is stopped"):
            step()
