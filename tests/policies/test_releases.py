"""The way of a candidate: which step leads where, what each is called against, and how tests against one policy are numbered."""

from collections.abc import Callable

import numpy as np
import pytest

from policies import releases
from policies.errors import Rejected
from policies.evaluation.gate import spent
from policies.experiments.assignment import NOBODY, choose, split_of
from policies.experiments.document import Guardrail
from policies.releases import Released, Stage, Terms

TERMS = Terms(objective="click", share=0.1)
Step = Callable[[Released], Released]
STEPS: dict[str, Step] = {
    "watch": lambda one: releases.watched(one, 2.0),
    "canary": lambda one: releases.tried(one, None, 3.0),
    "promote": lambda one: releases.promoted(one, {"outcome": "promote"}, 4.0),
    "abort": lambda one: releases.aborted(one, "because", 5.0),
    "rollback": lambda one: releases.rolled_back(one, "because", 6.0),
}
ALLOWED = {
    "apprentice": {"watch": "shadow", "canary": "canary", "promote": "live", "abort": "aborted"},
    "shadow": {"canary": "canary", "promote": "live", "abort": "aborted"},
    "canary": {"canary": "canary", "promote": "live", "abort": "aborted"},
    "live": {"rollback": "aborted"},
    "aborted": {},
}


def begun(before: Released | None = None, candidate: str = "new", stage: Stage = "apprentice") -> Released:
    return releases.started(before or Released(), "home", candidate, "old", stage, TERMS, 1.0)


def at(stage: str) -> Released:
    path = {
        "apprentice": [],
        "shadow": ["watch"],
        "canary": ["canary"],
        "live": ["promote"],
        "aborted": ["abort"],
    }[stage]
    found = begun()
    for name in path:
        found = STEPS[name](found)
    return found


@pytest.mark.parametrize("stage", list(ALLOWED))
@pytest.mark.parametrize("name", list(STEPS))
def test_steps_lead_where_they_may(stage: str, name: str) -> None:
    before = at(stage)
    wanted = ALLOWED[stage].get(name)
    if wanted is None:
        with pytest.raises(Rejected) as error:
            STEPS[name](before)
        assert error.value.status == 409
        return
    after = STEPS[name](before)
    assert after.release is not None
    assert after.release.stage == wanted


def test_promotion_is_what_is_served_and_goes_back() -> None:
    live = at("live")
    assert (live.live, live.before) == ("new", ["old"])
    again = releases.promoted(
        releases.started(live, "home", "newer", "new", "shadow", TERMS, 9.0), None, 10.0, forced=True
    )
    assert again.release is not None
    assert (again.live, again.before, again.release.forced) == ("newer", ["old", "new"], True)
    back = releases.rolled_back(again, "trouble", 11.0)
    assert (back.live, back.before) == ("new", ["old"])
    assert back.release is not None
    assert (back.release.stage, back.release.reason) == ("aborted", "trouble")
    assert releases.rolled_back(back, "", 12.0).live == "old"
    assert [one.candidate for one in again.history] == ["new"]


def test_every_test_against_a_live_policy_spends_less() -> None:
    """Gate and canary of each candidate take a number of their own: together they spend no more than α."""
    numbers, found = [], Released()
    for candidate in ("a", "b", "c"):
        found = begun(found, candidate)
        found = releases.tried(found, 0.2, 3.0)
        found = releases.tried(found, 0.3, 3.5)  # another share is another test
        assert found.release is not None
        numbers += [found.release.gate, found.release.trial - 1, found.release.trial]
        found = releases.aborted(found, "", 5.0)
    assert numbers == list(range(1, 10))
    assert sum(spent(0.05, number) for number in numbers) < 0.05


def test_a_canary_is_sticky_and_has_its_share() -> None:
    first = releases.canary_of(at("canary"))
    assert first is not None
    assert releases.canary_of(at("shadow")) is None
    buckets = np.frombuffer(first.buckets, np.uint8)
    assert ((buckets == 1).mean(), (buckets == NOBODY).sum()) == (0.1, 0)
    split = split_of(first)
    arms = {unit: choose([split], unit, None, {}, 9.0) for unit in map(str, range(500))}
    assert all(choice is not None and choice == choose([split], unit, None, {}, 99.0) for unit, choice in arms.items())
    given = sum(choice is not None and choice.arm == "candidate" for choice in arms.values())
    assert 25 < given < 80  # 50, four standard errors: 27
    other = releases.canary_of(releases.tried(at("canary"), 0.1, 4.0))
    assert other is not None
    assert other.buckets != first.buckets


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"share": 0.0}, "$.terms.share"),
        ({"rate": 1.5}, "$.terms.rate"),
        ({"alpha": float("nan")}, "$.terms.alpha"),
        ({"margin": float("inf")}, "$.terms.margin"),
        ({"window": "soon"}, "$.terms.window"),
        ({"watch": 0}, "$.terms.watch"),
        ({"weighting": "none"}, "$.terms.weighting"),
        ({"planned": 1}, "$.terms.planned"),
        ({"guardrails": {"hate": Guardrail(0.1)}}, "$.terms.guardrails.hate.min_effect"),
    ],
)
def test_terms_that_cannot_be_are_named(changes: dict[str, object], at: str) -> None:
    with pytest.raises(Rejected) as error:
        releases.checked(Terms(**changes))  # type: ignore[arg-type]  # what a document may say
    assert error.value.at == at


def test_one_release_at_a_time_and_never_of_what_is_served() -> None:
    with pytest.raises(Rejected, match="apprentice: abort it first"):
        begun(begun(), "another")
    with pytest.raises(Rejected, match="compared with"):
        begun(candidate="old")
    with pytest.raises(Rejected, match="begins as"):
        begun(stage="live")
