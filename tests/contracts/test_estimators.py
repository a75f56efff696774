"""Every promise of `estimator_contract`, kept by every estimator of the registry; and planted faults, caught by it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies.errors import Rejected
from policies.evaluation.estimate import Estimate, Estimator
from policies.evaluation.estimators import ESTIMATORS, estimator
from tests.contracts.estimator_contract import APART, CHECKS, known, refusals


def promises() -> Iterator[Any]:
    for each in ESTIMATORS.values():
        for name, promise in CHECKS.items():
            yield pytest.param(promise, each, id=f"{each.name}-{name}")


@pytest.mark.parametrize(("promise", "each"), list(promises()))
def test_promise(promise: Any, each: Estimator) -> None:
    promise(each)


@pytest.mark.parametrize("each", ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_bad_input_is_named(each: Estimator) -> None:
    _, log = known(each)
    for what, bad, at in refusals(log):
        with pytest.raises(Rejected) as refused:
            each(bad)
        assert refused.value.at.startswith(at), what


@pytest.mark.parametrize("each", ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_what_it_needs_is_named(each: Estimator) -> None:
    _, log = known(each)
    for need in each.needs:
        gone = {
            "model": ("predicted", "expected"),
            "features": ("features", "expected_features"),
            "marginals": ("marginals",),
        }[need]
        with pytest.raises(Rejected, match=f"needs {need}"):
            each(replace(log, **dict.fromkeys(gone)))


@pytest.mark.parametrize("each", ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_it_says_what_it_is(each: Estimator) -> None:
    assert each.assumption
    assert each.formula
    assert each.source
    assert estimator(each.name) is each


@pytest.mark.parametrize("each", [e for e in ESTIMATORS.values() if e.options], ids=lambda e: e.name)
def test_options_are_looked_at(each: Estimator) -> None:
    _, log = known(each)
    for option in each.options:
        for value in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(Rejected) as refused:
                each(log, **{option: value})
            assert refused.value.at == f"$.{option}"
    with pytest.raises(Rejected, match="no option 'lambda_'"):
        each(log, lambda_=1.0)


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(Rejected, match=r"No estimator 'ipw'; there are .*ips"):
        estimator("ipw")


def test_what_the_log_could_not_show_is_counted() -> None:
    log = APART.population(1)
    assert log.design is not None
    beyond = replace(log, design=np.where(np.arange(len(log))[:, None] < 3, np.inf, log.design))
    assert ESTIMATORS["ips"](beyond).details["unsupported"] == 3


def faulty(fault: str) -> Estimator:
    def function(logged: Any) -> Estimate:
        if fault == "forgets to weigh":
            logged = replace(logged, target=logged.behaviour)
        found = ESTIMATORS["ips"].function(logged)
        if fault == "does not average":
            return replace(found, parts=(*found.parts, *found.parts))
        return found

    return replace(ESTIMATORS["ips"], function=function)


@pytest.mark.parametrize("fault", ["forgets to weigh", "does not average"])
def test_faults_are_caught(fault: str) -> None:
    with pytest.raises(AssertionError):
        CHECKS["gives_the_known_answer"](faulty(fault))
