"""Slates, tails and sequences: by hand, against closed forms, and against exact marginals."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from policies.errors import Rejected
from policies.evaluation.anytime import martingale
from policies.evaluation.diagnostics import diagnose, weights_of
from policies.evaluation.estimators import ESTIMATORS
from policies.evaluation.intervals import delta
from policies.evaluation.logged import Logged
from policies.evaluation.marginals import GROUPS, Replay, pairs, replayed, slate_weight, stacked
from policies.evaluation.sequences import SEQUENCES, Trajectories, simplex_minimum
from policies.slate import draw, uniforms
from policies.types import F64, I64, DrawSettings, Slate

# Two decisions of two slots; w = (2, 1/2) and (1, 0); W = (2, 1) and (1, 0).
TWO = Logged(
    rewards=np.array([[1.0, 2.0], [3.0, 1.0]]),
    behaviour=np.array([[0.25, 0.5], [0.5, 0.5]]),
    target=np.array([[0.5, 0.25], [0.5, 0.0]]),
    present=np.ones((2, 2), bool),
    units=np.arange(2),
    times=np.arange(2.0),
    predicted=np.array([[0.5, 1.0], [1.0, 1.0]]),
    expected=np.array([[1.0, 0.5], [2.0, 1.0]]),
)


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("slate_ips", {}, (1 * 3 + 0) / 2),
        ("rips", {}, (2 * 1 + 1 * 2 + 1 * 3 + 0) / 2),
        # W_{t−1}e_t + W_t(r_t − q_t): 1 + 2·½,  2·½ + 1·1;  2 + 1·2,  1·1 + 0
        ("cascade_dr", {}, (2 + 2 + 4 + 1) / 2),
        ("cvar", {"tail": 1.0}, 3.0),  # the second decision weighs nothing
    ],
)
def test_by_hand(name: str, options: dict[str, float], value: float) -> None:
    assert ESTIMATORS[name](TWO, **options).value == pytest.approx(value)


def test_marginal_weights_by_hand() -> None:
    marginals = stacked(
        [
            replayed(np.array([0, 1]), *2 * (replay_of([[0, 1]] * 10),)),
            replayed(np.array([1, 0]), *2 * (replay_of([[1, 0]] * 10),)),
        ],
        slots=2,
    )
    assert marginals.slot == pytest.approx(np.ones((2, 2)))
    told = replace(marginals, slot=np.array([[2.0, 0.5], [1.0, 3.0]]), slate=np.array([1.5, 2.5]))
    log = replace(TWO, marginals=replace(told, slot_error=np.full((2, 2), 0.1), slate_error=np.array([0.1, 0.2])))
    found = ESTIMATORS["iips"](log)
    assert found.value == pytest.approx((2 + 1 + 3 + 3) / 2)
    assert found.monte_carlo_error == pytest.approx(math.hypot(0.3, 0.4) / 2)
    whole = ESTIMATORS["pseudo_inverse"](log)
    assert whole.value == pytest.approx((1.5 * 3 + 2.5 * 4) / 2)
    assert whole.monte_carlo_error == pytest.approx(math.hypot(0.3, 0.8) / 2)
    assert delta(whole).width > delta(replace(whole, monte_carlo_error=0.0)).width
    assert (weights_of(log, "marginal") == told.slot).all()
    assert diagnose(log, "marginal").design_ess == pytest.approx(2)


def replay_of(slates: list[list[int]], n: int = 2) -> Replay:
    """Slates of a policy that is sure of each."""
    items = np.array(slates)
    return Replay(items, np.stack([np.eye(n)[items[group::GROUPS]].sum(axis=0) for group in range(GROUPS)]))


def test_the_pseudo_inverse_of_independent_slots_is_known() -> None:
    """Slots drawn independently: q_πᵀ Γ† 1_s = 1 + Σ_t (π_t/β_t − 1) (Swaminathan et al. 2017, example 4)."""
    rng = np.random.default_rng(0)
    beta, pi = rng.dirichlet(np.ones(4), 3), rng.dirichlet(np.ones(4), 3)
    slates = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)
    gamma = pairs(slates, 4, np.prod(beta[np.arange(3), slates], axis=1))
    for slate in slates[::7]:
        closed = 1 + (pi[np.arange(3), slate] / beta[np.arange(3), slate] - 1).sum()
        assert slate_weight(slate, gamma, pi) == pytest.approx(closed)


def drawn(seed: int, temperature: float, count: int) -> list[Slate]:
    """Slates of three of six candidates by the real draw."""
    scores = np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32)
    settings = DrawSettings(head="softmax", floor=0.1, temperature=temperature)
    return [draw(scores, 3, uniforms(b"replay", f"{seed}-{i}", "slate", 3), settings, full=True) for i in range(count)]


def exactly(temperature: float) -> tuple[I64, F64]:
    """Every slate (120, 3) with its chance, by the law of `policies.slate`: a softmax with a floor, without repeats."""
    scores = np.random.default_rng(0).normal(size=6).astype(np.float32)
    slates = np.array(list(itertools.permutations(range(6), 3)))
    chances = np.ones(len(slates))
    for i, slate in enumerate(slates):
        for t, item in enumerate(slate):
            left = np.setdiff1d(np.arange(6), slate[:t])
            odds = np.exp(scores / temperature)
            chances[i] *= 0.9 * odds[item] / odds[left].sum() + 0.1 / len(left)
    return slates, chances


def test_replayed_slates_of_the_real_draw_find_the_marginals() -> None:
    """Against all slates written out: weights lie within 4.5 of their own Monte Carlo errors from the truth."""
    logged = drawn(1, 1.0, 12)
    behaviour, target = Replay.of(drawn(2, 1.0, 2_000)), Replay.of(drawn(3, 0.5, 2_000))
    found = stacked([replayed(slate.items, behaviour, target) for slate in logged], slots=3)
    gamma, other = (pairs(slates, 6, chances) for slates, chances in (exactly(1.0), exactly(0.5)))
    beta, pi = (each.diagonal().reshape(3, 6) for each in (gamma, other))
    for i, slate in enumerate(logged):
        at = np.arange(3), slate.items
        assert (np.abs(found.slot[i] - pi[at] / beta[at]) <= 4.5 * found.slot_error[i] + 1e-5).all()
        assert abs(found.slate[i] - slate_weight(slate.items, gamma, pi)) <= 4.5 * found.slate_error[i] + 0.01
    assert (found.slot_error[:, 0] < 1e-9).all()  # the first slot's marginal needs no replay
    assert (found.slate_error > 0).all()
    assert (found.missed < 1e-3).all()


def test_replays_that_do_not_fit_are_refused() -> None:
    fit = replay_of([[0, 1]] * 10)
    with pytest.raises(Rejected, match="full distributions"):
        Replay.of([replace(slate, distributions=None) for slate in drawn(0, 1.0, 3)])
    with pytest.raises(Rejected, match="at least 10"):
        replayed(np.array([0, 1]), replay_of([[0, 1]] * 9), fit)
    with pytest.raises(Rejected, match="same candidates"):
        replayed(np.array([0, 1]), fit, replay_of([[0, 1]] * 10, n=3))
    with pytest.raises(Rejected, match="could not have shown"):
        replayed(np.array([1, 0]), fit, fit)
    alone = stacked(2 * [replayed(np.array([0, 1]), fit, fit, paired=False)], slots=2)
    assert ESTIMATORS["iips"](replace(TWO, marginals=alone)).value == pytest.approx(TWO.totals.mean())
    with pytest.raises(Rejected, match="Pairs of slots"):
        ESTIMATORS["pseudo_inverse"](replace(TWO, marginals=alone))
    bad = stacked([replayed(np.array([0, 1]), fit, fit)], slots=2)
    with pytest.raises(Rejected, match="finite weights"):
        ESTIMATORS["iips"](replace(TWO, marginals=bad))


def test_a_tail_by_hand() -> None:
    """Rewards 0, 1, 2, 3 with weights 1, 1, 2, 0: the worst half is 0 and 1."""
    w = np.array([[1.0], [1.0], [2.0], [0.0]])
    log = Logged(np.arange(4.0)[:, None], np.full((4, 1), 0.4), 0.4 * w, np.ones((4, 1), bool), np.arange(4), np.arange(4.0))  # fmt: skip
    for tail, value, eta in ((0.5, 0.5, 1.0), (0.25, 0.0, 0.0), (1.0, 1.25, 2.0), (0.75, (0 + 1 + 2) / 3, 2.0)):
        found = ESTIMATORS["cvar"](log, tail=tail)
        assert found.value == pytest.approx(value)
        assert found.details["quantile"] == eta
    with pytest.raises(Rejected, match="share of decisions"):
        ESTIMATORS["cvar"](log, tail=1.5)


# Two states, two decisions, three steps: decision 1 in state 1 pays; decision 1 leads to state 1. Each state and step one-hot.
T, TO, PAYS = 3, np.array([0.2, 0.8]), np.array([[0.0, 0.2], [0.3, 1.0]])
BETA, PI = np.array([[0.5, 0.5], [0.6, 0.4]]), np.array([[0.3, 0.7], [0.1, 0.9]])
GAMMA = 0.9


def value_of(policy: F64) -> float:
    v = np.zeros(2)
    for _ in range(T):
        ahead = GAMMA * (TO * v[1] + (1 - TO) * v[0])  # by decision
        v = (policy * (PAYS + ahead)).sum(axis=1)
    return float(v.mean())  # either state first


def lived(rng: np.random.Generator, n: int, ends: bool = False) -> Trajectories:
    """n trajectories of the behaviour; with `ends` some are cut off after the first or second step, whatever they did."""
    state = rng.integers(2, size=n)
    rewards, behaviour, target = np.zeros((n, T)), np.ones((n, T)), np.ones((n, T))
    features, mean = np.zeros((n, T, T * 4)), np.zeros((n, T, T * 4))
    rows, length = np.arange(n), rng.integers(1, T + 1, n) if ends else np.full(n, T)
    for t in range(T):
        act = (rng.random(n) < BETA[state, 1]).astype(int)
        behaviour[:, t], target[:, t] = BETA[state, act], PI[state, act]
        rewards[:, t] = rng.random(n) < PAYS[state, act]
        features[rows, t, 4 * t + 2 * state + act] = 1
        for a in range(2):
            mean[rows, t, 4 * t + 2 * state + a] = PI[state, a]
        state = (rng.random(n) < TO[act]).astype(int)
    present = np.arange(T) < length[:, None]
    empty = {"rewards": 0.0, "behaviour": 1.0, "target": 1.0}
    filled = {"rewards": rewards, "behaviour": behaviour, "target": target}
    cut = {name: np.where(present, values, empty[name]) for name, values in filled.items()}
    steps = Logged(
        **cut, present=present, units=rows, times=rows.astype(float), features=features, expected_features=mean
    )
    return Trajectories(steps, GAMMA)


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_find_the_dynamic_program_s_value(name: str) -> None:
    found = SEQUENCES[name](lived(np.random.default_rng(1), 30_000), **({"ridge": 1e-6} if name == "fqe" else {}))
    error = delta(found).width / (2 * 1.96)
    assert 0 < error < 0.05
    assert abs(found.value - value_of(PI)) < 4 * error
    assert abs(value_of(BETA) - value_of(PI)) > 4 * error  # the log's own value would be caught
    assert found.contributions.mean() == pytest.approx(found.value)


@pytest.mark.parametrize(("name", "options"), [("pdis", {}), ("wpdis", {}), ("fqe", {"ridge": 1e-6})])
def test_intervals_of_sequences_cover(name: str, options: dict[str, float]) -> None:
    """100 logs of 300 trajectories: 95% intervals cover in 95%, within 4 standard errors. (magic's leave its model's error out.)"""
    rng = np.random.default_rng(2)
    covered = [value_of(PI) in delta(SEQUENCES[name](lived(rng, 300), **options)) for _ in range(100)]
    assert np.mean(covered) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 100)


HAND = Trajectories(replace(TWO, predicted=None, expected=None), 0.5)


def test_sequences_by_hand() -> None:
    assert SEQUENCES["pdis"](HAND).value == pytest.approx((2 * 1 + 0.5 * 1 * 2 + 1 * 3 + 0) / 2)
    # step 0: (2·1 + 1·3)/3;  step 1: (1·2 + 0)/1
    assert SEQUENCES["wpdis"](HAND).value == pytest.approx(5 / 3 + 0.5 * 2)


def with_features(phi: F64, mean: F64) -> Trajectories:
    return replace(HAND, steps=replace(HAND.steps, features=phi, expected_features=mean))


def test_fqe_by_hand() -> None:
    """One feature, 1 for every step, E_π 1 = 1: A = Σ (1 − γ·[not last]) + λ = 2·½ + 2·1 + 1, b = Σ r."""
    ones = np.ones((2, 2, 1))
    found = SEQUENCES["fqe"](with_features(ones, ones))
    assert found.value == pytest.approx(7 / 4)


def test_magic_by_hand() -> None:
    """No features: all models are 0, so g_j is wpdis cut after step j; x from the formula itself."""
    nothing = np.zeros((2, 2, 1))
    found = SEQUENCES["magic"](with_features(nothing, nothing))
    wpdis, first = (
        SEQUENCES["wpdis"](HAND),
        SEQUENCES["wpdis"](Trajectories(replace(HAND.steps, rewards=HAND.steps.rewards * [1, 0]), 0.5)),
    )
    off = np.stack([np.zeros(2), first.contributions - first.value, wpdis.contributions - wpdis.value], axis=1)
    g, around = np.array([0.0, first.value, wpdis.value]), delta(wpdis, level=0.9)
    bias = np.maximum(0, around.low - g) + np.maximum(0, g - around.high)
    M = off.T @ off / 4 + np.outer(bias, bias)
    x = np.array([found.details["model_share"], 0.0, found.details["weights_share"]])
    x[1] = 1 - x.sum()
    assert x @ g == pytest.approx(found.value)
    shares = np.random.default_rng(0).dirichlet(np.full(3, 0.5), 20_000)  # no point of the simplex does better
    assert x @ M @ x <= np.einsum("ij,jk,ik->i", shares, M, shares).min() + 1e-9


def test_the_minimum_on_a_simplex_is_known() -> None:
    """Of a diagonal matrix x_j ∝ 1/M_jj; of two correlated ones a corner."""
    assert simplex_minimum(np.diag([1.0, 2.0, 4.0])) == pytest.approx(np.array([4, 2, 1]) / 7, abs=1e-6)
    assert simplex_minimum(np.array([[1.0, 1.5], [1.5, 4.0]])) == pytest.approx([1, 0], abs=1e-6)


def test_a_trajectory_is_a_slate_of_steps() -> None:
    """What ends early has no more reward; diagnostics and intervals of prefixes read the steps as they are."""
    short = lived(np.random.default_rng(5), 2_000, ends=True)
    found = SEQUENCES["pdis"](replace(short, discount=1.0))
    assert found.value == pytest.approx(ESTIMATORS["rips"](short.steps).value)
    assert found.value in martingale(short.steps, (0.0, 1.0), "prefix")
    assert diagnose(short.steps, "prefix").weights_ok
    for each in SEQUENCES.values():
        assert math.isfinite(each(short).value)


@pytest.mark.parametrize("name", SEQUENCES)
def test_bad_trajectories_are_named(name: str) -> None:
    good = lived(np.random.default_rng(0), 20)
    hole = np.array(good.steps.present)
    hole[3, 0] = False
    bad = [
        (replace(good, discount=0.0), "$.discount"),
        (replace(good, discount=1.1), "$.discount"),
        (replace(good, discount=math.nan), "$.discount"),
        (replace(good, steps=good.steps.rows(slice(0, 0))), "$.rewards"),
        (replace(good, steps=replace(good.steps, behaviour=0 * good.steps.behaviour)), "$.behaviour"),
        (replace(good, steps=replace(good.steps, target=np.nan * good.steps.target)), "$.target"),
        (replace(good, steps=replace(good.steps, present=hole)), "$."),
    ]
    for trajectories, at in bad:
        with pytest.raises(Rejected) as refused:
            SEQUENCES[name](trajectories)
        assert refused.value.at.startswith(at)
    with pytest.raises(Rejected, match="no option"):
        SEQUENCES[name](good, tau=1.0)
    if SEQUENCES[name].needs:
        with pytest.raises(Rejected, match="needs features"):
            SEQUENCES[name](replace(good, steps=replace(good.steps, features=None, expected_features=None)))
