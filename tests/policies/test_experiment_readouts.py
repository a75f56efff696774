"""Effects, intervals, sample ratio, corrections, power and interleaving, against hand-computed cases and fixed-seed worlds."""

import math

import numpy as np
import pytest

from policies.errors import Rejected
from policies.experiments.bayesian import posterior
from policies.experiments.correction import corrected
from policies.experiments.document import Allocation, Analysis, Arm, Experiment, Guardrail, Metrics
from policies.experiments.effects import Effect, adjusted, effect, ratio, stratified
from policies.experiments.fixed import fixed
from policies.experiments.interleaving import credit, preference, team_draft
from policies.experiments.mismatch import p_value
from policies.experiments.power import detectable, units_needed
from policies.experiments.readout import Readout, Units, readout
from policies.experiments.sequential import LEAST, half_width, mixture, sequential
from policies.types import F64

Z = 1.959963984540054


def test_an_effect_by_hand() -> None:
    found = effect(np.array([0.0, 1.0, 2.0]), np.array([2.0, 4.0]))
    assert found is not None
    assert (found.value, found.variance, found.units) == (2.0, 1 / 3 + 2 / 2, 5)
    assert found.sd == pytest.approx(math.sqrt((2 * 1 + 1 * 2) / 3))
    assert found.relative == 2.0
    assert effect(np.zeros(5), np.zeros(5)) is None
    assert effect(np.array([1.0]), np.array([2.0, 3.0])) is None


def test_the_fixed_interval_by_hand() -> None:
    found = Effect(0.2, 0.01, 200, 1.0, 1.2, 1.0, 100)
    interval = fixed(found, 0.05)
    assert (interval.low, interval.high) == (pytest.approx(0.2 - Z * 0.1), pytest.approx(0.2 + Z * 0.1))
    assert interval.p == pytest.approx(0.0455, abs=1e-4)
    assert fixed(Effect(0.2, 0.01, 40, 1.0, 1.2, 1.0, 20), 0.05).low == -math.inf


def test_the_sequential_interval_by_hand() -> None:
    """V = τ² = 0.01: half² = 2·.01·2·log(√2/.05); and it is tightest where it was planned."""
    assert half_width(0.01, 0.01, 0.05) == pytest.approx(math.sqrt(0.04 * math.log(math.sqrt(2) / 0.05)))
    planned = mixture(0.01, 0.05)
    widths = {factor: half_width(0.01, planned * factor, 0.05) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)}
    assert min(widths, key=lambda factor: widths[factor]) == 1.0
    found = Effect(half_width(0.01, planned, 0.05), 0.01, 200, 0.0, 0.0, 1.0, 100)
    at_bound = sequential(found, 200, 0.05)
    assert (at_bound.low, at_bound.p) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.05))
    assert sequential(Effect(9.0, 0.01, 2 * LEAST, 0.0, 9.0, 1.0, LEAST - 1), 200, 0.05).p == 1.0


def test_looking_all_the_time_is_paid_for() -> None:
    """500 worlds without effect, looked at 60 times: the mixture keeps its α, the textbook's interval does not."""
    rng = np.random.default_rng(3)
    ever, naive = 0, 0
    for _ in range(500):
        totals = rng.exponential(size=(2, 3000))
        looks = [effect(totals[0, :n], totals[1, :n]) for n in range(LEAST, 3001, 50)]
        ever += any(sequential(look, 6000, 0.05).p < 0.05 for look in looks)
        naive += any(fixed(look, 0.05).p < 0.05 for look in looks)
    assert ever / 500 < 0.05
    assert naive / 500 > 0.2


def test_a_ratio_is_linearised() -> None:
    numerators, denominators = np.array([1.0, 4.0, 1.0]), np.array([1.0, 2.0, 1.0])
    values = ratio(numerators, denominators)
    assert values.mean() == pytest.approx(6 / 4)
    assert values.tolist() == pytest.approx([1.5 - 0.5 / (4 / 3), 1.5 + 1.0 / (4 / 3), 1.5 - 0.5 / (4 / 3)])
    assert not len(ratio(np.zeros(3), np.zeros(3)))
    rng = np.random.default_rng(1)
    found = []
    for _ in range(2000):
        visits = rng.poisson(rng.gamma(2, 5, 400)) + 1.0
        clicks = rng.binomial(visits.astype(int), rng.beta(1, 4, 400)).astype(float)
        found.append((ratio(clicks, visits).mean(), ratio(clicks, visits).var(ddof=1) / 400))
    means, variances = np.array(found).T
    assert variances.mean() == pytest.approx(means.var(), rel=0.13)  # 4 standard errors of a variance of 2,000


def test_cuped_removes_what_was_known_and_no_more() -> None:
    rng = np.random.default_rng(2)
    known = [rng.normal(size=4000) for _ in range(2)]
    totals = [0.8 * x + 0.6 * rng.normal(size=4000) + shift for x, shift in zip(known, (0.0, 0.1), strict=True)]
    after, left = adjusted(totals, known)
    assert left == pytest.approx(1 - 0.64, abs=0.03)
    found = effect(*after)
    assert found is not None
    assert abs(found.value - 0.1) < 4 * math.sqrt(found.variance)
    assert found.variance < 0.4 * effect(*totals).variance  # type: ignore[union-attr]  # two arms that vary
    same, nothing = adjusted(totals, [np.zeros(4000), np.zeros(4000)])
    assert nothing == 1.0
    assert same[0] is totals[0]


def test_times_of_other_shares_are_compared_for_themselves() -> None:
    """A better second week with more treatment: pooled, the week is taken for the treatment."""
    first = effect(np.array([0.0, 1.0] * 400), np.array([0.0, 1.0] * 100))
    second = effect(np.array([2.0, 3.0] * 100), np.array([2.0, 3.0] * 400))
    both = stratified([first, second, None])
    assert both is not None
    assert both.value == 0.0
    assert both.variance == pytest.approx((first.variance + second.variance) / 4)  # type: ignore[union-attr]  # both vary
    pooled = effect(np.array([0.0, 1.0] * 400 + [2.0, 3.0] * 100), np.array([0.0, 1.0] * 100 + [2.0, 3.0] * 400))
    assert pooled is not None
    assert pooled.value == pytest.approx(1.2)


def test_the_posterior_by_hand() -> None:
    """Prior variance 0.01 and V 0.01: half of the estimate, half of the variance."""
    found = posterior(Effect(0.2, 0.01, 200, 0.0, 0.2, 1.0, 100), 0.1, 0.05)
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(2 * Z * math.sqrt(0.005))
    assert found.chance == pytest.approx(0.9214, abs=1e-4)
    draws = np.random.default_rng(0).normal(0.1, math.sqrt(0.005), 1_000_000)
    assert found.loss_ship == pytest.approx(np.maximum(-draws, 0).mean(), rel=0.02)
    assert found.loss_keep == pytest.approx(np.maximum(draws, 0).mean(), rel=0.01)


def test_a_mismatch_is_found_and_not_cried() -> None:
    half = [{"a": 0.5, "b": 0.5}]
    assert p_value([{"a": 51_000, "b": 49_000}], half) < 0.001
    assert p_value([{"a": 50_150, "b": 49_850}], half) == 1.0
    assert p_value([{"a": 30, "b": 10}], [{"a": 0.3, "b": 0.1}]) == 1.0  # shares need not fill the layer
    assert p_value([{"a": 10, "b": 1}], [{"a": 0.5, "b": 0.0}]) < 1e-300  # units where none may be
    assert p_value([{"a": 5_000, "b": 5_000}, {"a": 1_000, "b": 3_000}], [half[0], {"a": 0.25, "b": 0.75}]) == 1.0
    rng, cried = np.random.default_rng(4), 0
    for _ in range(400):
        seen = np.cumsum(rng.random(5000) < 0.5)[249::250]
        looks = [(int(a), 250 * (i + 1) - int(a)) for i, a in enumerate(seen)]
        cried += any(p_value([{"a": a, "b": b}], half) < 0.05 for a, b in looks)
    assert cried / 400 < 0.05


def test_corrections_by_hand() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert corrected(p, "holm").tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected(p, "bh").tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert not len(corrected(np.empty(0), "holm"))
    assert corrected(np.array([0.9, 0.8]), "holm").max() == 1.0


def test_power() -> None:
    needed = units_needed(0.1, 1.0, alpha=0.05, power=0.8, method="fixed")
    assert needed == 3140  # 4·(1.95996 + 0.84162)²/0.01, as every table has it
    assert detectable(needed, 1.0, alpha=0.05, power=0.8, method="fixed") == pytest.approx(0.1, rel=1e-3)
    always = units_needed(0.1, 1.0, alpha=0.05, power=0.8, method="sequential")
    assert 1.3 < always / needed < 2.2
    assert units_needed(0.1, 1.0, alpha=0.05, power=0.8, method="fixed", correlation=0.6) == math.ceil(0.64 * 3139.55)
    for wrong in ({"sd": 0.0}, {"power": 1.0}, {"correlation": 1.0}, {"alpha": 0.0}, {"effect": 0.0}):
        said = {"effect": 0.1, "sd": 1.0, "alpha": 0.05, "power": 0.8, **wrong}
        with pytest.raises(Rejected):
            units_needed(said.pop("effect"), said.pop("sd"), method="fixed", **said)


def test_team_draft() -> None:
    first, second = ["a", "b", "c", "d"], ["b", "a", "e", "f"]
    slate = team_draft(first, second, 4, np.array([0.1, 0.9]))
    assert slate.items == ("a", "b", "e", "c")
    assert slate.teams == (0, 1, 1, 0)
    assert credit(slate, np.array([1.0, 0.0, 2.0, 0.0])) == (1.0, 2.0)
    assert team_draft(["a"], ["a"], 3, np.array([0.1, 0.9])).items == ("a",)
    rng = np.random.default_rng(5)
    teams = np.array([team_draft(first, second, 4, rng.random(2)).teams for _ in range(4000)])
    assert np.abs(teams.mean(axis=0) - 0.5).max() < 4 * 0.5 / math.sqrt(4000)  # no slot favours a ranking


def test_a_preference() -> None:
    credits_ = np.array([[0.0, 1.0]] * 60 + [[1.0, 0.0]] * 40 + [[0.0, 0.0]] * 50)
    found = preference(credits_)
    assert (found.share, found.slates) == (0.6, 100)
    assert found.low < 0.6 < found.high
    assert preference(np.array([[0.0, 1.0]] * 10)).low == pytest.approx(0.025**0.1)
    assert preference(np.array([[1.0, 1.0]] * 10)).p == 1.0
    assert preference(np.zeros((5, 2))).high == 1.0


# -- the readout -----------------------------------------------------------------------------------------------------

BETTER = {"click": "higher", "hate": "lower"}


def experiment(**changes: object) -> Experiment:
    said: dict[str, object] = {
        "experiment": "ts",
        "surface": "home",
        "arms": {"control": Arm("a", 0.5), "treatment": Arm("b", 0.5)},
        "metrics": Metrics("click", ["hate"], {"hate": Guardrail(-0.1)}, {"rate": ("click", "decisions")}),
        "analysis": Analysis(planned=2000),
    }
    return Experiment(**{**said, **changes})  # type: ignore[arg-type]  # fields of one document


def world(effects: tuple[float, float] = (0.0, 0.0), n: int = 2000, seed: int = 6) -> Units:
    rng = np.random.default_rng(seed)
    arms = rng.integers(0, 2, n)
    taste = rng.normal(size=n)
    before: F64 = np.column_stack([2 + taste + 0.3 * rng.normal(size=n), np.ones(n), np.full(n, 4.0)])
    totals = np.column_stack(
        [2 + taste + effects[0] * arms, 1 + rng.normal(size=n) + effects[1] * arms, np.full(n, 4.0)]
    )
    return Units(arms, np.zeros(n, np.int64), np.arange(n) < n - 100, totals, before, ["click", "hate", "decisions"])


def read(document: Experiment, units: Units) -> Readout:
    shares = {name: arm.share for name, arm in document.arms.items()}
    return readout(document, units, [Allocation(0.0, shares)], BETTER, ["learner"])  # type: ignore[arg-type]  # literals


def test_a_readout_says_what_is_there() -> None:
    found = read(experiment(), world((0.3, 0.6)))
    click, hate = found.comparisons
    assert (click.verdict, hate.verdict) == ("better", "worse")  # less hate is better, and it is turned
    assert click.low is not None
    assert click.low < 0.3 < click.high  # type: ignore[operator]  # both are bounded
    assert hate.effect is not None
    assert hate.effect < 0
    assert click.variance_left < 0.2
    assert [(one.metric, one.verdict) for one in found.guardrails] == [("hate", "breached")]
    assert sum(found.assigned.values()) == 2000
    assert sum(found.complete.values()) == 1900
    assert found.interference == ["learner"]
    assert not found.sample_ratio.mismatch


def test_no_effect_is_left_open_and_harmless() -> None:
    found = read(experiment(), world())
    assert [one.verdict for one in found.comparisons] == ["open", "open"]
    assert [one.verdict for one in found.guardrails] == ["open"]
    safe = experiment(metrics=Metrics("click", [], {"hate": Guardrail(-0.5)}))
    assert [one.verdict for one in read(safe, world()).guardrails] == ["safe"]


def test_each_method_has_its_say() -> None:
    units = world((0.3, 0.0))
    early = read(experiment(analysis=Analysis("fixed", planned=5000)), units)
    assert (early.final, early.comparisons[0].verdict) == (False, "open")
    assert read(experiment(analysis=Analysis("fixed", planned=1900)), units).comparisons[0].verdict == "better"
    belief = read(experiment(analysis=Analysis("bayesian")), units).comparisons[0]
    assert belief.chance is not None
    assert belief.chance > 0.99
    assert belief.verdict == "better"
    rate = read(experiment(metrics=Metrics("rate", ratios={"rate": ("click", "decisions")})), units).comparisons[0]
    assert rate.effect == pytest.approx(0.3 / 4, abs=0.02)


def test_nothing_is_said_of_nobody() -> None:
    empty = Units(
        *(np.empty(0, np.int64),) * 2, np.empty(0, bool), *(np.empty((0, 3)),) * 2, ["click", "hate", "decisions"]
    )
    found = read(experiment(), empty)
    assert [one.effect for one in found.comparisons] == [None, None]
    assert found.sample_ratio.p == 1.0
    assert [one.verdict for one in found.guardrails] == ["open"]
