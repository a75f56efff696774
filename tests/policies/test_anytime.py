"""Confidence sequences, the gate, the canary and convergence: by hand, in any pieces, and wrong no more often than they say."""

import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Rejected
from policies.evaluation import anytime, betting, confidence, gate
from policies.evaluation.convergence import convergence
from policies.evaluation.logged import Logged, one_slot
from policies.types import F64

ALPHA = 0.05


def test_evidence_by_hand() -> None:
    state = confidence.update(confidence.start(guess=0.5), np.array([2.0, 0.0, 1.0]))
    # predicted: 0.5, min(1, 2.5/2) = 1, 2.5/3
    assert state.scatter == pytest.approx(1.5**2 + 1.0 + (1 - 2.5 / 3) ** 2)
    assert state.total == 3
    assert state.count == 3


def test_the_boundary_is_where_the_mixture_reaches_its_level() -> None:
    for scatter in (0.0, 3.0, 1e3, 1e7):
        b = confidence.boundary(np.array(scatter), ALPHA)
        mixture = np.exp(confidence.LAMBDAS * b - confidence.PSI * scatter).mean()
        assert mixture == pytest.approx(1 / ALPHA, rel=1e-6)


def test_a_bet_by_hand() -> None:
    state = betting.update(betting.start(), np.array([1.0, 3.0]))
    nu = betting.GRID
    first = np.ones_like(nu) + np.clip((0.5 - nu) / (0.25 + (0.5 - nu) ** 2), 0, 0.5 / nu) * (1 - nu)
    edge = 0.75 - nu  # μ̂ = 1.5/2, σ̂² = (0.25 + 0.25)/2
    second = 1 + np.clip(edge / (0.25 + edge**2), 0, 0.5 / nu) * (3 - nu)
    assert state.log_capital == pytest.approx(np.log(first * second))


@settings(deadline=None)  # the first compiles
@given(st.lists(st.floats(0, 50), min_size=1, max_size=60), st.data())
def test_pieces_do_not_matter(numbers: list[float], data: st.DataObject) -> None:
    x = np.array(numbers)
    at = data.draw(st.integers(0, len(x)))
    for start, update in ((confidence.start, confidence.update), (betting.start, betting.update)):
        whole = update(start(), x)  # type: ignore[operator]  # each its own state
        pieces = update(update(start(), x[:at]), x[at:])  # type: ignore[operator]
        for each in fields(whole):
            assert getattr(pieces, each.name) == pytest.approx(getattr(whole, each.name), rel=1e-9, abs=1e-9)


def test_what_is_not_counted_is_not_there() -> None:
    rng = np.random.default_rng(2)
    x, counted = rng.random((3, 50)), rng.random((3, 50)) < 0.5
    state = confidence.update(confidence.start((3,)), x, counted)
    for row in range(3):
        alone = confidence.update(confidence.start(), x[row][counted[row]])
        assert state.scatter[row] == pytest.approx(alone.scatter)
        assert confidence.lower(state, ALPHA)[row] == pytest.approx(confidence.lower(alone, ALPHA))


def weighted(rng: np.random.Generator, runs: int, n: int) -> F64:
    """w r with mean 0.3 and weights up to 10."""
    w = np.where(rng.random((runs, n)) < 0.05, 10.0, 0.5 / 0.95)
    return np.where(rng.random((runs, n)) < 0.3, w, 0.0)


BOUNDS = [
    ("empirical_bernstein", lambda x: confidence.lower(confidence.update(confidence.start(x.shape[:1]), x), ALPHA)),
    ("betting", lambda x: betting.lower(betting.update(betting.start(x.shape[:1]), x), ALPHA)),
]


@pytest.mark.parametrize(("name", "bound"), BOUNDS, ids=[name for name, _ in BOUNDS])
def test_wrong_at_any_look_no_more_often_than_said(name: str, bound: Callable[[F64], F64]) -> None:
    """200 sequences looked at up to 20 times up to 1,000: at most α of them ever wrong (4 standard errors), and not useless."""
    x = weighted(np.random.default_rng(7), 200, 1_000)
    wrong = np.zeros(200, bool)
    for n in range(50, 1_001, 50 if name == "empirical_bernstein" else 190):
        wrong |= bound(x[:, :n]) > 0.3
    assert wrong.mean() <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / 200)
    assert np.median(bound(x)) > 0.15


def test_an_interval_that_forgets_looking_is_caught() -> None:
    """A textbook bound under such looks is wrong far more often than α; ours on the same numbers is not."""
    x = (np.random.default_rng(7).random((500, 1_000)) < 0.3).astype(float)
    textbook, ours = np.zeros(500, bool), np.zeros(500, bool)
    for n in range(50, 1_001, 50):
        part = x[:, :n]
        textbook |= part.mean(axis=1) - 1.645 * part.std(axis=1) / math.sqrt(n) > 0.3
        ours |= BOUNDS[0][1](part) > 0.3
    assert ours.mean() < ALPHA < ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / 500) < textbook.mean()


def test_the_average_is_bounded_when_the_mean_drifts() -> None:
    """Falling means: never above the average so far, though above what the mean is now."""
    rng = np.random.default_rng(9)
    means = np.linspace(0.9, 0.1, 4_000)
    x = (rng.random((300, 4_000)) < means).astype(float)
    low = confidence.lower(confidence.update(confidence.start((300,)), x), ALPHA)
    assert (low > means.mean()).mean() <= ALPHA
    assert np.median(low) > means[-1]


def test_running_value_of_several_policies() -> None:
    """Live metrics: behaviour, uniform and greedy on the decisions of one policy, hour by hour."""
    rng = np.random.default_rng(4)
    behaviour, pays = np.array([0.7, 0.2, 0.1]), np.array([0.6, 0.3, 0.1])
    targets = np.array([behaviour, [1 / 3] * 3, [1.0, 0.0, 0.0]])
    state = anytime.begin((3,))
    for _ in range(20):
        items = rng.choice(3, 500, p=behaviour)
        rewards = (rng.random(500) < pays[items]).astype(float)
        state = anytime.update(state, targets[:, items] / behaviour[items], rewards)
    found = anytime.bounds(state)
    truth = targets @ pays
    assert ((found.low <= truth) & (truth <= found.high)).all()
    assert ((found.low <= found.estimate) & (found.estimate <= found.high)).all()
    assert (found.high - found.low < 0.25).all()
    assert found.count.tolist() == [10_000] * 3
    nothing = anytime.bounds(anytime.begin((1,)))
    assert (nothing.low, nothing.high) == (0, 1)
    assert np.isnan(nothing.estimate).all()


def test_what_cannot_be_a_weight_or_a_reward_is_named() -> None:
    for weight in (np.nan, np.inf, -0.1):
        with pytest.raises(Rejected, match="Weights"):
            anytime.update(anytime.begin(), np.array([weight]), np.array([0.5]))
    for reward in (np.nan, 1.1, -0.1):
        with pytest.raises(Rejected, match="scaled"):
            anytime.update(anytime.begin(), np.array([1.0]), np.array([reward]))
    for bad in ((0.0, math.inf), (1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(Rejected, match="range"):
            anytime.scaled(np.zeros(1), bad)
    r, outside = anytime.scaled(np.array([-5.0, 30.0, 90.0]), (0.0, 60.0))
    assert r.tolist() == [0, 0.5, 1]
    assert outside == 2


def played(rng: np.random.Generator, n: int, behaviour: F64, target: F64, pays: F64, start: float = 0.0) -> Logged:
    items = rng.choice(len(pays), n, p=behaviour)
    rewards = (rng.random(n) < pays[items]).astype(float)
    return one_slot(
        rewards, items, np.tile(behaviour, (n, 1)), np.tile(target, (n, 1)), times=start + np.arange(n, dtype=float)
    )


SPREAD = np.array([0.4, 0.3, 0.3])
PAYS = np.array([0.2, 0.5, 0.5])


@pytest.mark.parametrize("method", ["betting", "empirical_bernstein"])
def test_martingale_interval_in_the_reward_s_own_units(method: anytime.Method) -> None:
    log = played(np.random.default_rng(1), 3_000, SPREAD, np.array([0.2, 0.5, 0.3]), PAYS)
    unit = anytime.martingale(log, (0.0, 1.0), method=method)
    assert 0.44 in unit
    assert unit.width < 0.2
    moved = replace(log, rewards=10 + 60 * log.rewards)
    assert anytime.martingale(moved, (10.0, 70.0), method=method).low == pytest.approx(10 + 60 * unit.low)
    assert anytime.martingale(moved, (10.0, 70.0), method=method).high == pytest.approx(10 + 60 * unit.high)


def test_two_slots_with_a_slot_missing() -> None:
    """β = π: the value is the mean total, also where some decisions have one slot only."""
    rng = np.random.default_rng(6)
    n = 4_000
    present = np.stack([np.ones(n, bool), rng.random(n) < 0.5], axis=1)
    p = np.where(present, 0.5, 1.0)
    rewards = np.where(present, 5.0 + (rng.random((n, 2)) < 0.4), 0.0)
    log = Logged(rewards, p, p, present, np.arange(n), np.arange(n, dtype=float))
    found = anytime.martingale(log, (5.0, 6.0))
    assert log.totals.mean() in found
    assert found.width < 0.2


CLICK = gate.Gate(bounds=(0.0, 1.0), trained_through=-1.0)


def judged(settings: gate.Gate, *logs: Logged) -> gate.Verdict:
    state = gate.begin(1)
    for log in logs:
        state = gate.judge(settings, state, log)
    return gate.verdict(settings, state)


def test_the_gate_by_hand() -> None:
    log = one_slot(np.array([1.0, 0.5]), np.array([0, 1]), np.array([[0.5, 0.5]] * 2), np.array([[0.75, 0.25]] * 2))
    found = judged(CLICK, log)
    assert found.estimate == pytest.approx((0.5 * 1 - 0.5 * 0.5) / 2)
    assert found.design_ess == pytest.approx(2 / 1.25)
    assert found.outcome == "insufficient"
    assert found.offers == "canary"
    assert found.low >= -1


def test_a_better_candidate_is_promoted_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(0)
    logs = [played(rng, 1_000, SPREAD, np.array([0.0, 0.5, 0.5]), PAYS, 1_000.0 * hour) for hour in range(6)]
    better = judged(CLICK, *logs)
    assert better.outcome == "promote"
    assert 0 < better.low < 0.12 < 0.3
    assert better.decisions == 6_000
    assert "logged period" in better.estimates
    same = judged(CLICK, *(replace(log, target=log.behaviour, design=np.ones((1_000, 1))) for log in logs))
    assert same.outcome == "wait"
    assert same.estimate == 0
    assert judged(replace(CLICK, margin=0.13), *logs).outcome == "wait"
    costs = judged(replace(CLICK, lower_is_better=True), *logs)
    assert costs.outcome == "wait"
    assert costs.estimate == pytest.approx(-better.estimate, abs=0.05)


def test_what_the_candidate_learned_from_is_left_out() -> None:
    log = played(np.random.default_rng(0), 1_000, SPREAD, np.array([0.0, 0.5, 0.5]), PAYS)
    found = judged(replace(CLICK, trained_through=599.0), log)
    assert (found.decisions, found.learned_from) == (400, 600)
    assert found.estimate == pytest.approx(judged(CLICK, log.rows(slice(600, None))).estimate)
    nothing = judged(replace(CLICK, trained_through=1e9), log)
    assert (nothing.outcome, nothing.decisions) == ("insufficient", 0)


def test_a_log_without_support_or_distributions_is_insufficient() -> None:
    log = played(np.random.default_rng(0), 5_000, SPREAD, np.array([0.0, 0.5, 0.5]), PAYS)
    assert judged(CLICK, log).outcome == "promote"
    assert judged(CLICK, replace(log, design=None)).outcome == "insufficient"
    beyond = np.array(log.design)
    beyond[7] = np.inf
    assert judged(CLICK, replace(log, design=beyond)).outcome == "insufficient"


def test_candidates_share_the_risk() -> None:
    assert sum(gate.spent(0.05, j) for j in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    log = played(np.random.default_rng(0), 5_000, SPREAD, np.array([0.0, 0.5, 0.5]), PAYS)
    lows = [judged(replace(CLICK, candidate=j), log).low for j in (1, 2, 20)]
    assert lows == sorted(lows, reverse=True)
    with pytest.raises(Rejected, match="numbered from 1"):
        gate.spent(0.05, 0)
    with pytest.raises(Rejected, match="importance weights"):
        judged(replace(CLICK, weighting="none"), log)


CANARY = gate.Canary(share=0.5, bounds=(0.0, 1.0))


def test_the_canary_by_hand() -> None:
    state = gate.compare(CANARY, gate.open_canary(), np.array([True, False]), np.array([1.0, 0.5]))
    # r̂ = ½, then (½ + 1)/2 = ¾;  d = (1 − ½)/½ = 1, then −(½ − ¾)/½ = ½
    assert float(gate.differences(CANARY, state)[0]) == pytest.approx((1 + 0.5) / 2)
    beyond = gate.compare(CANARY, state, np.array([True, False]), np.array([7.0, 0.5]))
    assert gate.concluded(CANARY, beyond).outside == 1


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_canary_finds_what_it_was_sized_for(share: float) -> None:
    """60 canaries of the stated size each: a better one promoted in 80% (4 standard errors), a worse one never, and found."""
    rng = np.random.default_rng(3)
    canary = replace(CANARY, share=share)
    size = gate.canary_size(0.1, 0.25, canary)
    assert size is not None
    for uplift, outcome in ((0.1, 0), (-0.1, 1)):
        sent = rng.random((60, size)) < share
        rewards = (rng.random((60, size)) < 0.5 + uplift * sent).astype(float)
        state = gate.compare(canary, gate.open_canary((60,)), sent, rewards)
        _, low, high = gate.differences(canary, state)
        found = (low > 0, high < 0)
        assert found[outcome].mean() >= 0.8 - 4 * math.sqrt(0.16 / 60)
        assert not found[1 - outcome].any()


def test_a_canary_that_cannot_be_is_refused() -> None:
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(Rejected, match="share"):
            gate.Canary(share, (0.0, 1.0))
    assert gate.canary_size(0.0, 0.25, CANARY) is None
    assert gate.canary_size(1e-9, 0.25, CANARY) is None


def test_canary_verdicts() -> None:
    rng = np.random.default_rng(8)
    sent = rng.random(4_000) < 0.5
    for uplift, outcome in ((0.2, "promote"), (-0.2, "worse"), (0.0, "wait")):
        rewards = (rng.random(4_000) < 0.5 + uplift * sent).astype(float)
        found = gate.concluded(CANARY, gate.compare(CANARY, gate.open_canary(), sent, rewards))
        assert found.outcome == outcome
        assert found.low < uplift < found.high
        assert "canary" in found.estimates


def test_convergence_by_hand() -> None:
    found = convergence(np.array([[1.0, 0.0], [0.0, 0.5], [2.0, 2.0], [3.0, 1.0]]))
    assert found.leader == 0
    assert found.probability_best == pytest.approx([(1 + 0 + 0.5 + 1) / 4, 1.5 / 4])
    assert found.probability == pytest.approx(2.5 / 4)
    assert found.expected_loss == pytest.approx(0.5 / 4)


def test_convergence_of_two_normals() -> None:
    """P(A > B) and E(B − A)⁺ of two normals are known: Φ(δ/s) and s φ(δ/s) − δ Φ(−δ/s)."""
    draws = np.random.default_rng(0).normal([0.1, 0.0], [0.1, 0.1], size=(200_000, 2))
    found = convergence(draws)
    s = math.sqrt(0.02)
    z = 0.1 / s
    phi, tail = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(z / math.sqrt(2))
    assert found.probability == pytest.approx(1 - tail, abs=4 * 0.5 / math.sqrt(200_000))
    assert found.expected_loss == pytest.approx(s * phi - 0.1 * tail, rel=0.03)
    for bad in (np.zeros((0, 2)), np.zeros(3), np.array([[np.nan, 1.0]])):
        with pytest.raises(Rejected):
            convergence(bad)
