"""What the baselines publish, against their formulas written out from the rows."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies.algorithm import Addend, Algorithm, Problem
from policies.algorithms.bootstrap import Bootstrap, resampled
from policies.algorithms.logistic_thompson.learner import log_odds, unit
from policies.features import Encoder
from policies.linear_graph import folded
from policies.registry import ALGORITHMS
from policies.ridge import columns, effects, phi, sums_of
from policies.ridge_posterior import ALPHA, BASE
from policies.types import F64, Arrays, Changes
from tests.contracts.algorithm_contract import CATALOGUE, PROBLEM, START, TWO, evidence, same, trained

LAMBDA = 4.0


def dense(problem: Problem, batch: Changes) -> tuple[F64, F64, F64]:
    """(Θ (D, o), A, Ψ (o, o)) of ridge regression with λ = 4."""
    x = phi(problem, batch.context, batch.items, batch.slots)
    w, r = batch.weights[:, None], batch.rewards_after
    A = np.diag(np.where(effects(columns(problem)), LAMBDA, BASE)) + x.T @ (w * x)
    theta = np.linalg.solve(A, x.T @ (w * r))
    spans = [o.range[1] - o.range[0] for o in problem.objectives.values() if o.range]
    scatter = 2 * np.diag(np.square(spans) / 4) + r.T @ (w * r) - (x.T @ (w * r)).T @ theta
    return theta, A, scatter / (2 * ALPHA + w.sum())


def asked(problem: Problem) -> tuple[dict[str, Any], F64]:
    """A query under weights of its own, and φ (n, D) of its candidates in slot 0."""
    inputs: dict[str, Any] = {"context": evidence(3).context[0], "items": CATALOGUE.encoded}
    inputs["weights"] = np.array([0.7, -0.2][: len(problem.objectives)], np.float32)
    n = len(CATALOGUE.encoded)
    return inputs, phi(problem, np.repeat(inputs["context"][None], n, axis=0), inputs["items"], np.zeros(n, np.int64))


def scores(name: str, problem: Problem, batch: Changes, **options: Any) -> F64:
    algorithm = ALGORITHMS[name]
    config = algorithm.config(**options)
    made = algorithm.publish(config, problem, trained(algorithm, config, problem, batch).arrays(), START, 7)
    return algorithm.reference(config, problem, made.arrays, asked(problem)[0]).astype(float)


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", ["epsilon_greedy", "softmax", "squarecb"])
def test_the_mean_is_the_score(name: str, objectives: int) -> None:
    problem, batch = (PROBLEM, TWO)[objectives - 1], evidence(3, objectives=objectives)
    inputs, x = asked(problem)
    v = inputs["weights"].astype(float) if objectives == 2 else np.ones(1)
    found = scores(name, problem, batch, prior=LAMBDA)
    np.testing.assert_allclose(found[:, 0], x @ dense(problem, batch)[0] @ v, atol=1e-5)


@pytest.mark.parametrize("objectives", [1, 2])
def test_linucb_credits_what_is_not_known(objectives: int) -> None:
    """Θᵀφ + α √(vᵀΨv φᵀA⁻¹φ), also under weights of a request."""
    problem, batch = (PROBLEM, TWO)[objectives - 1], evidence(3, objectives=objectives)
    inputs, x = asked(problem)
    v = inputs["weights"].astype(float) if objectives == 2 else np.ones(1)
    theta, A, noise = dense(problem, batch)
    width = np.sqrt(np.einsum("nd,dn->n", x, np.linalg.solve(A, x.T)) * (v @ noise @ v))
    for alpha in (0.0, 1.0, 2.5):
        found = scores("linucb", problem, batch, prior=LAMBDA, alpha=alpha)
        np.testing.assert_allclose(found[:, 0], x @ theta @ v + alpha * width, atol=2e-5)


def test_gamma_grows_with_what_was_learned_and_has_no_unit() -> None:
    """γ = γ₀ n^ρ / span: of nothing γ₀, and rewards a hundred times larger leave γ · gap as it was."""
    algorithm, batch = ALGORITHMS["squarecb"], evidence(3)
    config = algorithm.config(gamma_scale=3.0, gamma_exponent=0.25)  # type: ignore[call-arg] - its own options
    assert algorithm.publish(config, PROBLEM, {}, START, 1).temperature == 1 / 3
    sums = trained(algorithm, config, PROBLEM, batch).arrays()
    made = algorithm.publish(config, PROBLEM, sums, START, 1)
    assert made.temperature == pytest.approx(1 / (3 * batch.weights.sum() ** 0.25))
    hundred = msgspec.structs.replace(PROBLEM.objectives["click"], range=(0.0, 100.0))
    larger = replace(PROBLEM, objectives={"click": hundred})
    big = replace(batch, rewards_after=100 * batch.rewards_after)
    other = algorithm.publish(config, larger, trained(algorithm, config, larger, big).arrays(), START, 1)
    assert other.temperature == pytest.approx(100 * (made.temperature or 0))


# resampling


def test_resampling_is_poisson_and_a_function_of_the_decision() -> None:
    """Mean and variance 1 within 4 standard errors; slots of a decision share their count, decisions and replicates do not."""
    batch = evidence(1, slates=2_000)
    v = resampled(batch, 16)
    assert np.array_equal(v[::3], v[1::3])
    each = v[::3].ravel()
    assert abs(each.mean() - 1) < 4 / np.sqrt(len(each))
    assert abs(each.var() - 1) < 4 * np.sqrt(3 / len(each))  # the fourth central moment of Poisson(1) is 4
    assert np.abs(np.corrcoef(v[::3].T) - np.eye(16)).max() < 4.5 / np.sqrt(2_000)  # the largest of 120 pairs
    assert abs(np.corrcoef(v[:-3:3, 0], v[3::3, 0])[0, 1]) < 4 / np.sqrt(2_000)
    corrected = replace(batch.part(300, 600), present_before=np.ones(300), rewards_after=np.zeros((300, 1)))
    assert np.array_equal(resampled(corrected, 16), v[300:600])
    assert np.array_equal(resampled(batch, 4), v[:, :4])


def test_replicates_are_ridge_sums_of_resampled_rows() -> None:
    batch = evidence(3)
    sums = trained(ALGORITHMS["bootstrap"], Bootstrap(replicates=3), PROBLEM, batch).arrays()
    x = phi(PROBLEM, batch.context, batch.items, batch.slots)
    for k, v in enumerate(resampled(batch, 3).T):
        w = (batch.weights * v)[:, None]
        np.testing.assert_allclose(sums["replicate_S"][k], x.T @ (w * x), atol=1e-9)
        np.testing.assert_allclose(sums["replicate_B"][k], x.T @ (w * batch.rewards_after), atol=1e-9)


def test_replicates_differ_as_much_as_the_posterior_does() -> None:
    """With as much evidence as prior, and much more, the columns' spread is the posterior's within a quarter, on average."""
    for slates in (40, 1_000):
        batch = evidence(3, slates=slates)
        _, x = asked(PROBLEM)
        _, A, noise = dense(PROBLEM, batch)
        wanted = np.sqrt(np.einsum("nd,dn->n", x, np.linalg.solve(A, x.T)) * noise[0, 0])
        found = scores("bootstrap", PROBLEM, batch, prior=LAMBDA, replicates=64).std(axis=1)
        assert abs(np.log(found / wanted).mean()) < 0.25


def test_another_number_of_replicates_keeps_what_was_learned() -> None:
    algorithm, batch = ALGORITHMS["bootstrap"], evidence(3)
    old, new = Bootstrap(replicates=3), Bootstrap(replicates=5)
    with pytest.raises(ValueError, match="3 replicates"):
        trained(algorithm, new, PROBLEM).load(trained(algorithm, old, PROBLEM, batch).arrays())
    addend = Addend(PROBLEM, trained(algorithm, old, PROBLEM, batch).arrays())
    assert algorithm.carry is not None
    carried = algorithm.carry(new, PROBLEM, trained(algorithm, new, PROBLEM).arrays(), [addend], START)
    np.testing.assert_allclose(carried["replicate_S"], addend.arrays["replicate_S"][[0, 1, 2, 0, 1]])
    assert algorithm.publish(new, PROBLEM, carried, START, 1).diagnostics["examples"] == batch.weights.sum()


# logistic


def clicks(seed: int, n: int, base: float, size: float) -> tuple[Changes, F64]:
    """n one-slot examples of a logistic model with log odds `base` and effects of this size, and their φ (n, D)."""
    rng = np.random.default_rng(seed)
    encoder = PROBLEM.encoder
    one = Changes(
        context=rng.normal(size=(n, encoder.context_size)).astype(np.float32),
        items=rng.normal(size=(n, encoder.item_size)).astype(np.float32),
        slots=np.zeros(n, np.int64),
        slates=np.arange(n),
        times=START + np.arange(n),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=np.zeros((n, 1)),
        item_hashes=np.zeros(n, np.uint64),
        propensities=np.ones(n),
    )
    x = phi(ALONE, one.context, one.items, one.slots)
    theta = rng.normal(size=x.shape[1]) * size / np.sqrt(x.shape[1])
    theta[0] = base
    clicked = rng.random(n) < 1 / (1 + np.exp(-x @ theta))
    return replace(one, rewards_after=clicked[:, None].astype(float)), x


ALONE = replace(PROBLEM, slots=1)
LOGISTIC: Algorithm = ALGORITHMS["logistic_thompson"]


def maximum(x: F64, r: F64, prior: float, middle: float) -> tuple[F64, F64]:
    """(θ, Hessian) of the log posterior by Newton's method over all rows."""
    precision, start = np.where(effects(columns(ALONE)), prior, BASE), np.zeros(x.shape[1])
    start[0] = middle
    theta = start.copy()
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ theta))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + np.diag(precision)
        theta = theta + np.linalg.solve(hessian, x.T @ (r - p) - precision * (theta - start))
    return theta, hessian


def published_theta(sums: Arrays, **options: Any) -> F64:
    """Draws (D, m) of θ, put together from the arrays of a publish."""
    config = LOGISTIC.config(prior=LAMBDA, spread=1.0, draws=2_000, **options)  # type: ignore[call-arg] - its own options
    arrays = LOGISTIC.publish(config, ALONE, sums, START, 1).arrays
    group, rank = folded(ALONE.encoder).place.T
    return np.concatenate([arrays["base"][0], arrays["pool"][0], arrays["crosses"][0][group, rank]]).astype(float)


@pytest.mark.parametrize(("base", "size"), [(0.0, 1.0), (-3.0, 1.5)])
def test_one_pass_in_epochs_finds_what_newton_finds_in_many(base: float, size: float) -> None:
    """6,000 examples seen once, 200 at a time: θ within half a posterior standard deviation (root mean square) of the maximum
    of the exact posterior, where one linearisation at the mean reward is more than one away; and as spread as it is."""
    batch, x = clicks(1, 6_000, base, size)
    config = LOGISTIC.config(prior=LAMBDA)  # type: ignore[call-arg] - its own option
    learner = trained(LOGISTIC, config, ALONE, *(batch.part(i, i + 200) for i in range(0, 6_000, 200)))
    once = trained(LOGISTIC, LOGISTIC.config(first_epoch=10_000), ALONE, batch)  # type: ignore[call-arg] - its own option
    sums = learner.arrays()
    middle = float(log_odds(sums_of(sums), 1.0)[0])
    theta, hessian = maximum(x, batch.rewards_after[:, 0], LAMBDA, middle)
    sd = np.sqrt(np.diag(np.linalg.inv(hessian)))
    drawn, crude = published_theta(sums), published_theta(once.arrays())

    def off(found: F64) -> float:
        return float(np.sqrt(np.mean(((found.mean(axis=1) - theta) / sd) ** 2)))

    assert sums["epoch"][0] >= 6
    assert off(drawn) < 0.5
    assert off(crude) > 1.2
    np.testing.assert_allclose(np.median(drawn.std(axis=1) / sd), 1, atol=0.15)


def test_partitions_with_points_of_their_own_add_up() -> None:
    """Four partitions of 1,500 each, every one with its own epochs: merged, the same model as that of one partition."""
    batch, x = clicks(2, 6_000, -1.0, 1.0)
    config = LOGISTIC.config(prior=LAMBDA)  # type: ignore[call-arg] - its own option
    parts = [trained(LOGISTIC, config, ALONE, _rows(batch, np.arange(p, 6_000, 4))).arrays() for p in range(4)]
    assert LOGISTIC.merge is not None
    assert min(part["epoch"][0] for part in parts) >= 4
    theta, hessian = maximum(x, batch.rewards_after[:, 0], LAMBDA, -1.0)
    sd = np.sqrt(np.diag(np.linalg.inv(hessian)))
    together = published_theta(LOGISTIC.merge(parts)).mean(axis=1)
    assert np.sqrt(np.mean(((together - theta) / sd) ** 2)) < 1.0
    alone = published_theta(parts[0]).mean(axis=1)
    assert np.sqrt(np.mean(((alone - theta) / sd) ** 2)) > 1.0  # a quarter of the evidence


def _rows(changes: Changes, rows: Any) -> Changes:
    taken = {name: getattr(changes, name)[rows] for name in Changes.__slots__ if name != "delays"}
    return Changes(**{**taken, "slates": np.arange(len(rows))})


def test_epochs_end_where_they_end_however_the_log_was_batched() -> None:
    """Rewards known at once: the same points from one batch as from many, with a half-life too."""
    batch = evidence(3, slates=200)
    for options in ({}, {"half_life": "6h"}):
        config = LOGISTIC.config(**options)
        whole = trained(LOGISTIC, config, PROBLEM, batch)
        pieces = trained(LOGISTIC, config, PROBLEM, *(batch.part(i, min(i + 51, 600)) for i in range(0, 600, 51)))
        same(whole.arrays(), pieces.arrays(), 1e-8)
        assert whole.arrays()["epoch"][0] >= 3


def test_expansions_are_carried_to_another_schema() -> None:
    """An item feature goes and an objective comes: what epochs learned of the rest stays, and the new one starts at its default."""
    spec = PROBLEM.encoder.spec
    items = {name: feature for name, feature in spec.items.items() if name != "new"}
    new = replace(TWO, encoder=Encoder(msgspec.structs.replace(spec, items=items)))
    config, batch = LOGISTIC.config(), evidence(3, slates=200)
    learned = trained(LOGISTIC, config, PROBLEM, batch).arrays()
    assert learned["epoch"][0] >= 3
    assert LOGISTIC.carry is not None
    carried = LOGISTIC.carry(config, new, trained(LOGISTIC, config, new).arrays(), [Addend(PROBLEM, learned)], START)
    was, kept = columns(PROBLEM), columns(new)
    rows = [was.index(name) for name in kept]
    scale = np.abs(learned["A"]).max()
    np.testing.assert_allclose(carried["A"][0], learned["A"][0][np.ix_(rows, rows)], atol=1e-9 * scale)
    np.testing.assert_allclose(carried["b"][:, 0], learned["b"][rows, 0], atol=1e-9 * scale)
    p = unit(new).objectives["watch"].default
    made = LOGISTIC.publish(config, new, carried, START, 1)
    inputs: dict[str, Any] = {"context": batch.context[0], "weights": np.array([0, 1], np.float32)}
    inputs["items"] = new.encoder.rows([{"genre": "jazz"}, {"price": 3.0}], "$")
    watched = LOGISTIC.reference(config, new, made.arrays, inputs)
    assert np.abs(watched.mean(axis=1) / 60 - p).max() < 0.05


# what is written in a configuration


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("epsilon_greedy", {"floor": 1.5}, "<= 1"),
        ("epsilon_greedy", {"head": "softmax"}, "head"),
        ("epsilon_greedy", {"draws": 64}, "draws"),
        ("softmax", {"temperature": 0}, "> 0"),
        ("softmax", {"head": "draws"}, "head"),
        ("linucb", {"alpha": -1}, ">= 0"),
        ("squarecb", {"gamma_scale": 0}, "> 0"),
        ("squarecb", {"gamma_exponent": 2}, "<= 1"),
        ("squarecb", {"temperature": 0.5}, "temperature"),
        ("bootstrap", {"replicates": 1}, ">= 2"),
        ("logistic_thompson", {"spread": -0.1}, ">= 0"),
        ("logistic_thompson", {"first_epoch": 0}, ">= 1"),
        ("linucb", {"half_life": "soon"}, "duration"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(options, ALGORITHMS[name].config)
