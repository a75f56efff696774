"""What linear_thompson publishes, against formulas written out; and that rare rewards do not collapse it."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import slate
from policies.algorithm import Learner, Problem
from policies.algorithms import linear_thompson
from policies.algorithms.linear_thompson import LinearThompson
from policies.errors import Corrupt
from policies.features import Encoder
from policies.ridge import columns, effects, phi
from policies.ridge_fitting import learner as learner_of
from policies.ridge_posterior import ALPHA, BASE, GRID, Posterior
from policies.surface import Category, FeatureSpec, Number, Objective, Vector
from policies.types import F64, Arrays, Changes, DrawSettings
from tests.contracts.algorithm_contract import PROBLEM, START, TWO, evidence

CLICK = {"click": Objective(kind="click", range=(0, 1))}


def learned(problem: Problem, *batches: Changes, **options: Any) -> Arrays:
    learner: Learner = learner_of(LinearThompson(**options), problem)
    for batch in batches:
        learner.learn(batch)
    return learner.arrays()


def written_out(problem: Problem, batch: Changes, prior: float) -> tuple[F64, F64, F64, float]:
    """(θ (D, o), A, Ψ (o, o), log evidence up to a constant) from the rows, one formula after the other."""
    x = phi(problem, batch.context, batch.items, batch.slots)
    w, r = batch.weights[:, None], batch.rewards_after
    precision = np.where(effects(columns(problem)), prior, BASE)
    A = np.diag(precision) + x.T @ (w * x)
    theta = np.linalg.solve(A, x.T @ (w * r))
    spans = [o.range[1] - o.range[0] for o in problem.objectives.values() if o.range]
    scatter = 2 * np.diag(np.square(spans) / 4) + r.T @ (w * r) - (x.T @ (w * r)).T @ theta
    alpha = ALPHA + w.sum() / 2
    v = np.array(list(problem.weights.values()))
    evidence = np.log(precision).sum() / 2 - np.linalg.slogdet(A)[1] / 2 - alpha * np.log(v @ scatter @ v)
    return theta, A, scatter / (2 * alpha), float(evidence)


def posterior(problem: Problem, batch: Changes, prior: float | None = None) -> Posterior:
    sums = learned(problem, batch)
    S, B, Y, n = (np.asarray(sums[name], float) for name in ("S", "B", "Y", "n"))
    spans = [o.range[1] - o.range[0] for o in problem.objectives.values() if o.range]
    grid = GRID if prior is None else np.array([prior])
    return Posterior(S, B, Y, float(n[0]), effects(columns(problem)), np.diag(np.square(spans) / 4), grid)


def test_draws_have_the_mean_and_covariance_of_the_posterior() -> None:
    """Two objectives: Θ to the last digits (draws come in opposite pairs), Ψ ⊗ A⁻¹ within 4 standard errors of 40,000 draws."""
    batch, m = evidence(3, objectives=2), 40_000
    theta, A, noise, _ = written_out(TWO, batch, 4.0)
    drawn = posterior(TWO, batch, 4.0).draws(np.ones(1), m, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=2), theta.T, atol=1e-12)
    flat = (drawn - theta.T[:, :, None]).reshape(-1, m)
    found, wanted = flat @ flat.T / m, np.kron(noise, np.linalg.inv(A))
    error = np.sqrt((wanted**2 + np.outer(np.diag(wanted), np.diag(wanted))) / (m / 2))  # m/2 independent pairs
    assert (
        np.abs((found - wanted) / error).max() < 4.5
    )  # 40² entries of a symmetric matrix: 4 s.e. a test, 4.5 for the largest


def test_the_prior_is_weighed_by_its_evidence() -> None:
    """Shares over the grid equal those of the evidence computed with dense determinants."""
    for problem, batch in ((PROBLEM, evidence(3)), (TWO, evidence(4, objectives=2))):
        logs = np.array([written_out(problem, batch, prior)[3] for prior in GRID])
        wanted = np.exp(logs - logs.max())
        np.testing.assert_allclose(
            posterior(problem, batch).shares(np.array(list(problem.weights.values()))), wanted / wanted.sum(), rtol=1e-8
        )


def test_scores_are_expected_rewards_in_slot_zero() -> None:
    """The pool's mean score of a candidate is θᵀφ with the slot one-hot set to slot 0."""
    batch = evidence(3)
    theta = written_out(PROBLEM, batch, 4.0)[0]
    config = LinearThompson(prior=4.0)
    arrays = linear_thompson.publish(config, PROBLEM, learned(PROBLEM, batch), START, 1).arrays
    scores = linear_thompson.reference(config, PROBLEM, arrays, {"items": batch.items[:5], "context": batch.context[0]})
    x = phi(PROBLEM, np.repeat(batch.context[:1], 5, axis=0), batch.items[:5], np.zeros(5, np.int64))
    np.testing.assert_allclose(scores.mean(axis=1), (x @ theta)[:, 0], atol=1e-5)


def test_weights_between_objectives_are_exact_at_request_time() -> None:
    """Σ = v Ψ vᵀ: scores under request weights have the moments of a policy that learned the weighted sum alone."""
    batch, v = evidence(3, objectives=2), np.array([0.7, -0.2])
    config = LinearThompson(prior=4.0, draws=4096)
    arrays = linear_thompson.publish(config, TWO, learned(TWO, batch), START, 1).arrays
    asked = {"items": batch.items[:4], "context": batch.context[0], "weights": v.astype(np.float32)}
    scores = linear_thompson.reference(config, TWO, arrays, asked).astype(float)
    theta, A, noise, _ = written_out(TWO, batch, 4.0)
    x = phi(TWO, np.repeat(batch.context[:1], 4, axis=0), batch.items[:4], np.zeros(4, np.int64))
    np.testing.assert_allclose(scores.mean(axis=1), x @ theta @ v, atol=1e-5)
    width = config.spread * np.sqrt(np.einsum("nd,dn->n", x, np.linalg.solve(A, x.T)) * (v @ noise @ v))
    np.testing.assert_allclose(scores.std(axis=1), width, rtol=4 / np.sqrt(4096))


def test_one_objective_of_two_is_the_model_of_that_one() -> None:
    batch = evidence(3, objectives=2)
    alone = replace(TWO, weights={"watch": 0.1})
    arrays = linear_thompson.publish(LinearThompson(prior=4.0), alone, learned(alone, batch), START, 1).arrays
    assert arrays["pool"].ndim == 2
    theta = written_out(TWO, batch, 4.0)[0]
    d = PROBLEM.encoder.item_size
    first = 1 + PROBLEM.encoder.context_size + PROBLEM.slots
    np.testing.assert_allclose(arrays["pool"].mean(axis=1), 0.1 * theta[first : first + d, 1], atol=1e-5)


# slates


def slates(seed: int, count: int, k: int, make: Any, items: int = 2) -> Changes:
    """`count` slates of k random items of dimension `items`; make(rng, items (count, k, d)) → rewards (count, k)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, k, items))
    n = count * k
    return Changes(
        context=np.zeros((n, 0), np.float32),
        items=x.reshape(n, items).astype(np.float32),
        slots=np.tile(np.arange(k), count),
        slates=np.repeat(np.arange(count), k),
        times=np.full(n, START),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=make(rng, x).reshape(n, 1),
        item_hashes=np.zeros(n, np.uint64),
        propensities=np.ones(n),
    )


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.8])
def test_correlation_inside_slates_is_found_and_weighs_them_down(rho: float) -> None:
    problem = Problem(Encoder(FeatureSpec(items={"x": Vector(size=2)})), CLICK, {"click": 1.0}, 5)

    def rewards(rng: np.random.Generator, x: F64) -> Any:
        common = rng.normal(size=(len(x), 1)) * np.sqrt(rho)
        return x[:, :, 0] + common + rng.normal(size=x.shape[:2]) * np.sqrt(1 - rho)

    sums = learned(problem, slates(1, 2_000, 5, rewards))
    result = linear_thompson.publish(LinearThompson(), problem, sums, START, 1)
    assert abs(result.diagnostics["rho"] - rho) < 0.03
    assert result.slot_weight == pytest.approx(1 / (1 + 4 * result.diagnostics["rho"]))


def test_position_is_not_read_as_quality() -> None:
    """The better item always sits at the bottom, where nobody looks; its effect is found all the same."""
    problem = Problem(Encoder(FeatureSpec(items={"x": Number(min=-1, max=1)})), CLICK, {"click": 1.0}, 3)

    def rewards(rng: np.random.Generator, x: F64) -> Any:
        x[:, :, 0] = np.clip(rng.normal(size=x.shape[:2]) * 0.3 + np.array([-0.5, 0, 0.5]), -1, 1)
        return np.array([0.9, 0.5, 0.1]) + 0.2 * x[:, :, 0] + rng.normal(size=x.shape[:2]) * 0.1

    rng_free = slates(1, 500, 3, rewards, items=1)
    batch = replace(rng_free, items=_x_of(rewards))
    arrays = linear_thompson.publish(LinearThompson(), problem, learned(problem, batch), START, 1).arrays
    assert arrays["pool"].mean() == pytest.approx(0.2, abs=0.05)


def _x_of(rewards: Any) -> Any:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 3, 1))
    rewards(rng, x)
    return x.reshape(-1, 1).astype(np.float32)


def test_an_item_is_not_credited_with_the_contexts_it_is_shown_to() -> None:
    """Item a is shown to generous people, b to others; per person they are equal."""
    encoder = Encoder(
        FeatureSpec(context={"generous": Number(min=-1, max=1)}, items={"id": Category(values=["a", "b"])})
    )
    problem = Problem(encoder, CLICK, {"click": 1.0}, 1)
    rng = np.random.default_rng(3)
    generous = rng.uniform(-1, 1, 2_000)
    shown = np.where(rng.random(2_000) < (1 + generous) / 2, "a", "b")
    batch = replace(
        slates(
            1, 2_000, 1, lambda rng, x: 0.5 + 0.4 * generous[:, None] + 0.05 * rng.normal(size=x.shape[:2]), items=1
        ),
        context=np.stack([encoder.context({"generous": g}) for g in generous]),
        items=encoder.rows([{"id": i} for i in shown], "$"),
    )
    arrays = linear_thompson.publish(LinearThompson(), problem, learned(problem, batch), START, 1).arrays
    a, b = arrays["pool"].mean(axis=1)[:2]
    assert abs(a - b) < 0.02


# sums that are hard to invert, or no sums at all


def test_rounding_below_zero_is_no_obstacle() -> None:
    """Huge weights learned and taken back leave a matrix that is not quite positive; draws stay near the prior's."""
    batch = evidence(3)
    heavy = replace(batch, weights=batch.weights * 1e12)
    back = replace(heavy, present_before=heavy.present_after, rewards_before=heavy.rewards_after,
                   present_after=heavy.present_before, rewards_after=heavy.rewards_before)  # fmt: skip
    sums = learned(PROBLEM, heavy, back)
    assert np.linalg.eigvalsh(sums["S"]).min() < -1e-6
    pool = linear_thompson.publish(LinearThompson(prior=1.0), PROBLEM, sums, START, 1).arrays["pool"]
    assert np.isfinite(pool).all()
    assert np.abs(pool).max() < 1e3


def test_sums_that_are_not_finite_are_refused() -> None:
    sums = learned(PROBLEM, evidence(3))
    for name, value in (("S", np.nan), ("B", np.inf)):
        broken = {n: a.copy() for n, a in sums.items()}
        broken[name][0, 0] = value
        with pytest.raises(Corrupt, match="nonfinite"):
            linear_thompson.publish(LinearThompson(), PROBLEM, broken, START, 1)


@pytest.mark.parametrize("options", [{"half_life": "0h"}, {"half_life": -1}, {"half_life": "soon"}, {"prior": 0}, {"spread": -1}, {"floor": 2}, {"draws": 0}, {"lambda": 1}])  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, LinearThompson)


# another schema


def test_a_learner_refuses_sums_of_another_schema() -> None:
    learner = learner_of(LinearThompson(), replace(PROBLEM, slots=1))
    with pytest.raises(ValueError, match="other columns"):
        learner.load(learned(PROBLEM, evidence(3)))


def test_sums_that_do_not_belong_together_do_not_add() -> None:
    mine = learned(PROBLEM, evidence(3))
    one_slot = learned(replace(PROBLEM, slots=1), replace(evidence(3), slots=np.zeros(120, np.int64)))
    for other in (one_slot, learned(PROBLEM, evidence(3), half_life="1h")):
        with pytest.raises(ValueError, match="do not add"):
            linear_thompson.ALGORITHM.merge([mine, other])  # type: ignore[misc] - it has one


# sparse rewards


ARMS, DECISIONS, EVERY = 10, 1_000, 20


def shares_under_sparse_rewards(seed: int) -> tuple[F64, F64]:
    """Selection entropy over log n, and the best arm's share, at each publish of 1,000 decisions with 0.5% clicks in all."""
    encoder = Encoder(FeatureSpec(items={"id": Category(values=[str(i) for i in range(ARMS)])}))
    problem, config = Problem(encoder, CLICK, {"click": 1.0}, 1), LinearThompson()
    truth = np.where(np.arange(ARMS) == 3, 0.0095, 0.0045)
    items = encoder.rows([{"id": str(i)} for i in range(ARMS)], "$")
    learner, rng = learner_of(config, problem), np.random.default_rng(seed)
    entropies, best = [], []
    for number in range(DECISIONS // EVERY):
        arrays = linear_thompson.publish(config, problem, learner.arrays(), START, number).arrays
        scores = linear_thompson.reference(config, problem, arrays, {"items": items})
        drawn = slate.draw(scores, 1, rng.random(1), DrawSettings(config.head, config.floor), full=True)
        assert drawn.distributions is not None
        p = drawn.distributions[0]
        entropies.append(-(p * np.log(p)).sum() / np.log(ARMS))
        best.append(p[3])
        arm = rng.choice(ARMS, EVERY, p=p)
        one_slot = slates(0, EVERY, 1, lambda _, x: np.zeros(x.shape[:2]), items=1)
        learner.learn(
            replace(one_slot, items=items[arm], rewards_after=(rng.random(EVERY) < truth[arm]).astype(float)[:, None])
        )
    return np.array(entropies), np.array(best)


def test_rare_rewards_do_not_collapse_the_posterior() -> None:
    """Ten arms, one clicked at 0.95% and nine at 0.45%: some five clicks in 1,000 decisions, and 100 seeds of that.

    Five clicks say next to nothing about ten arms, so no arm may be decided on: selection entropy stays above a quarter of
    uniform's at every publish of every seed (as if between two arms, not one), is above half at the end of 95 of 100, and
    the best arm never falls to its floor share ε/n, from where only chance would bring it back.
    """
    floor = LinearThompson().floor / ARMS
    runs = [shares_under_sparse_rewards(seed) for seed in range(100)]
    entropies, best = (np.stack(part) for part in zip(*runs, strict=True))
    assert entropies.min() > 0.25
    assert (entropies[:, -1] > 0.5).mean() >= 0.95
    assert best.min() > floor
