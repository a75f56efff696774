"""The draw: the compiled and the readable version are one law, and the law keeps its bounds."""

import hashlib
import math
from dataclasses import fields
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.errors import Corrupt
from policies.reranking.within import ACTED, PASSED_OVER, Constraint, Within, packed
from policies.slate import HEADS, draw, reference, uniforms, warm
from policies.slate_fast import fill
from policies.types import DrawSettings, Slate


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm()


BIG = [(60, 256, 8), (24, 256, 6), (60, 8, 8), (24, 1, 5)]  # where few draws look again, many, all
SMALL = [(n, m, k) for n in (0, 1, 2, 3, 7) for m in (1, 8, 256) for k in (0, 1, 4)]
SIZES = BIG * 8 + SMALL


@st.composite
def requests(draw_: st.DrawFn) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one draw, up to what is degenerate: no candidate, no slot, one draw, all tied, all masked, ε = 1."""
    n, m, k = draw_(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    scores = rng.normal(size=(n, m))
    scores += draw_(st.sampled_from([0.0, 1.0, 30.0])) * rng.normal(size=(n, 1))  # concentrated pools: many look again
    levels = draw_(st.sampled_from([0.0, 0.5, 2.0, math.inf]))  # of a grid that makes ties; 0 = all tied
    scores = scores if levels == math.inf else np.round(scores * levels)
    if draw_(st.booleans()):
        scores[n // 2 :] = scores[: n - n // 2]  # twins: tied in every draw, also where only few have to look again
    settings = DrawSettings(
        head=draw_(st.sampled_from(sorted(HEADS))),
        floor=draw_(st.sampled_from([0.0, 1e-6, 0.02, 0.5, 1.0])),
        max_share=draw_(st.sampled_from([0.01, 0.1, 0.5, 1.0])),
        temperature=draw_(st.sampled_from([1e-3, 1.0, 1e3])),
    )
    rules: dict[str, Any] = {}
    if draw_(st.booleans()):
        rules["boosts"] = rng.normal(size=n)
    if masking := draw_(st.sampled_from(["", "same", "every slot", "none"])):
        allowed = rng.random((k, n)) < {"same": 0.7, "every slot": 0.5, "none": 0.0}[masking]
        rules["masks"] = np.broadcast_to(allowed[:1], (k, n)) if masking == "same" else allowed
    if count := draw_(st.integers(0, min(n, k, 3))):
        slots, rows = rng.permutation(k)[:count], rng.permutation(n)[:count]
        rules["pins"] = dict(zip(slots.tolist(), rows.tolist(), strict=True))
    if k and draw_(st.booleans()):
        rules["within"] = some_constraints(rng, n, k)
    u = rng.random(k)
    u[rng.random(k) < 0.2] = draw_(st.sampled_from([0.0, 1.0 - 2.0**-53]))
    return (scores.astype(np.float32), k, u, settings), rules


def some_constraints(rng: np.random.Generator, n: int, k: int) -> Within | None:
    """Up to five constraints of any sort, many of which cannot be kept together, and diversity in half of the cases."""
    constraints = []
    for i in range(rng.integers(0, 6)):
        op: Any = rng.choice(["mask", "most", "least", "spacing"])
        limits = {
            "mask": np.zeros(k),
            "most": np.full(k, rng.integers(0, 4)) if rng.random() < 0.7 else np.arange(k) // 2 + 1,
            "least": np.where(np.arange(k) == k - 1, rng.integers(0, 4), 0)
            if rng.random() < 0.7
            else np.arange(k) // 2,
            "spacing": np.full(k, rng.integers(0, 5)),
        }
        codes = rng.integers(-1, rng.integers(1, 5), n)
        constraints.append(Constraint(f"{op} {i}", op, codes, limits[op].astype(np.int64)))
    diverse: dict[str, Any] = {}
    if rng.random() < 0.5:
        diverse["mmr"] = rng.choice([0.0, 0.5, 3.0]), rng.normal(size=(n, 3)).astype(np.float32)
        diverse["coverage"] = [(rng.random(), rng.integers(-1, 4, n)) for _ in range(rng.integers(0, 3))]
    return packed(constraints, n, k, **diverse)


@settings(max_examples=400, deadline=None)  # not on the machine's speed
@given(requests(), st.booleans())
@example(((np.zeros((100, 256), np.float32), 10, np.zeros(10), DrawSettings()), {}), True)  # ties of more than 16
def test_the_fast_and_the_readable_draw_agree_bit_for_bit(request: Any, full: bool) -> None:
    arguments, rules = request
    assert_same(draw(*arguments, **rules, full=full), reference(*arguments, **rules, full=full))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_twins_agree_also_where_few_draws_look_again(head: Any) -> None:
    """Every candidate has a twin, tied with it in every draw: the case a miscount of ties hides in (planted and seen)."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = np.repeat(rng.normal(size=(30, 256)), 2, axis=0).astype(np.float32)
        arguments = scores, 8, rng.random(8), DrawSettings(head=head, max_share=0.5)
        assert_same(draw(*arguments, full=True), reference(*arguments, full=True))


@settings(deadline=None)
@given(requests())
def test_distributions_keep_every_promise(request: Any) -> None:
    (scores, k, u, settings), rules = request
    slate = draw(scores, k, u, settings, **rules, full=True)
    n = len(scores)
    means = (scores + rules.get("boosts", np.zeros(n)).astype(np.float32)[:, None]).astype(float).mean(axis=1)
    pins = rules.get("pins", {})
    taken = set(pins.values())
    assert slate.distributions is not None
    filled = dict(zip(slate.slots.tolist(), range(k), strict=False))
    for t in range(k):
        allowed = [c for c in range(n) if c not in taken and ("masks" not in rules or rules["masks"][t, c])]
        less = np.zeros(n)
        if rules.get("within"):
            shown = {int(s): int(row) for s, row in zip(slate.slots, slate.items, strict=True) if s < t}
            allowed, less = narrowed(rules["within"], t, allowed, shown, pins)
        if t in pins:
            i = filled[t]
            assert slate.pinned[i]
            assert (slate.items[i], slate.propensities[i], slate.greedy[i]) == (pins[t], 1.0, pins[t])
            assert slate.distributions[i, pins[t]] == slate.distributions[i].sum() == 1.0
        elif not allowed:
            assert t not in filled  # shortage: a gap, and later pins are still filled
        else:
            i, R = filled[t], len(allowed)
            p = slate.distributions[i]
            assert not slate.pinned[i]
            assert slate.remaining[i] == R
            assert p.sum() == pytest.approx(1.0, abs=1e-12)
            assert set(np.flatnonzero(p)) <= set(allowed)
            assert p[slate.items[i]] == slate.propensities[i] > 0
            assert min(p[allowed]) >= settings.max_share * settings.floor / R * (1 - 1e-12)
            left = means - less
            assert left[slate.greedy[i]] == pytest.approx(max(left[allowed]), rel=1e-6, abs=1e-5)
            exactly = np.flatnonzero(p)[left[np.flatnonzero(p)] >= max(left[allowed]) - 1e-5]
            assert 1.0 - p[exactly].sum() <= settings.max_share + 1e-9
            taken.add(int(slate.items[i]))
    assert len(set(slate.items.tolist())) == len(slate.items)


def narrowed(
    within: Within, t: int, allowed: list[int], shown: dict[int, int], pins: dict[int, int]
) -> tuple[list[int], Any]:
    """Who may come at slot t and what it loses, said once more in the words of the documentation."""
    minima: list[int] = []
    everybody = allowed
    ahead = {s: row for s, row in pins.items() if s > t}
    for line, op in enumerate(within.ops):
        codes, limits = within.codes[line], within.limits[line]
        if op == 0:
            passing = [c for c in allowed if codes[c] < 0]
        elif op == 1:
            passing = [
                c
                for c in allowed
                if codes[c] < 0
                or all(
                    1 + sum(codes[row] == codes[c] for s, row in (shown | ahead).items() if s <= until) <= limits[until]
                    for until in [t, *ahead]
                )
            ]
        elif op == 3:
            passing = [
                c
                for c in allowed
                if codes[c] < 0
                or all(abs(s - t) >= limits[t] for s, row in (shown | ahead).items() if codes[row] == codes[c])
            ]
        else:
            passing = [
                c
                for c in allowed
                if all(
                    missing(within, [*minima, line], until, {t: c}, shown, ahead, everybody)
                    for until in range(t, within.limits.shape[1])
                )
            ]
        if passing:
            allowed = passing
            minima += [line] if op == 2 else []
    less = np.zeros(len(within.codes.T) if len(within.codes) else within.vectors.shape[1] or within.covers.shape[1])
    if within.weights[0]:
        cosines = within.vectors.astype(float).T @ within.vectors[:, list(shown.values())].astype(float)
        less += within.weights[0] * np.maximum(cosines.max(axis=1, initial=0.0), 0.0)
    for weight, codes in zip(within.weights[1:], within.covers, strict=True):
        less += weight * ((codes < 0) | np.isin(codes, codes[list(shown.values())]))
    return allowed, less


def missing(
    within: Within,
    lines: list[int],
    until: int,
    now: dict[int, int],
    shown: dict[int, int],
    ahead: dict[int, int],
    everybody: list[int],
) -> bool:
    """Whether the slots after t, up to `until`, suffice for what minima lack once `now` is shown."""
    (t, c), total = next(iter(now.items())), 0
    for line in lines:
        member = within.codes[line] >= 0
        had = sum(member[row] for s, row in (shown | ahead).items() if s <= until)
        lacks = max(0, min(within.limits[line, until] - had, sum(member[everybody])))
        total += max(0, lacks - int(member[c]))
    return total <= sum(s not in ahead for s in range(t + 1, until + 1))


@settings(deadline=None)
@given(requests(), st.randoms(use_true_random=False))
def test_permuting_candidates_permutes_the_distribution(request: Any, shuffler: Any) -> None:
    (scores, k, _, settings), rules = request
    order = list(range(len(scores)))
    shuffler.shuffle(order)
    moved: dict[str, Any] = {}
    if "boosts" in rules:
        moved["boosts"] = rules["boosts"][order]
    if "masks" in rules:
        moved["masks"] = rules["masks"][:, order]
    if within := rules.get("within"):
        codes, covers = within.codes[:, order], within.covers[:, order] if len(within.covers) else within.covers
        vectors = within.vectors[:, order] if len(within.vectors) else within.vectors
        moved["within"] = replace(within, codes=codes, covers=covers, vectors=vectors)
    if "pins" in rules:
        moved["pins"] = {slot: order.index(row) for slot, row in rules["pins"].items()}
    u = np.zeros(k)
    straight = draw(scores, k, u, settings, **rules, full=True)
    shuffled = draw(scores[order], k, u, settings, **moved, full=True)
    assert straight.distributions is not None
    assert shuffled.distributions is not None
    assert_same_prefixes(straight, shuffled, np.array(order, int), exact=settings.head != "one_draw")


def assert_same_prefixes(straight: Slate, shuffled: Slate, order: Any, exact: bool) -> None:
    """Slot by slot as long as both drew the same items: the same probabilities, to the bit where sums are of integers."""
    assert straight.distributions is not None
    assert shuffled.distributions is not None
    for i, (p, q) in enumerate(zip(straight.distributions, shuffled.distributions, strict=False)):
        np.testing.assert_allclose(p[order], q, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-15)
        if straight.items[i] != order[shuffled.items[i]]:
            break


@pytest.mark.parametrize("max_share", [1.0, 0.2])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_conditionals_multiply_to_the_joint(head: Any, max_share: float) -> None:
    """Every slate of 3 out of 4 is drawn on a grid of uniforms; the joints, one a slate, sum to one."""
    scores = np.random.default_rng(5).normal(size=(4, 8)).astype(np.float32)
    settings = DrawSettings(head=head, floor=0.1, max_share=max_share)
    joints = {}
    for slate in permutations(range(4), 3):
        found = forced(scores, slate, settings)
        assert found.joint == pytest.approx(math.prod(found.propensities.tolist()), rel=1e-15)
        joints[slate] = found.joint
    assert sum(joints.values()) == pytest.approx(1.0, abs=1e-12)
    if head == "one_draw":  # exact Thompson for slates: one draw of the pool fills every slot
        for slate, joint in joints.items():
            assert joint == pytest.approx(one_draw_joint(scores, slate, settings), rel=1e-12)


def forced(scores: Any, slate: tuple[int, ...], settings: DrawSettings) -> Slate:
    """The draw of exactly this slate, by uniforms chosen in the middle of each item's share."""
    u = np.zeros(len(slate))
    for t, item in enumerate(slate):
        found = draw(scores, len(slate), u, settings, full=True)
        assert found.distributions is not None
        u[t] = found.distributions[t, :item].sum() + found.distributions[t, item] / 2
    return draw(scores, len(slate), u, settings)


def one_draw_joint(scores: Any, slate: tuple[int, ...], settings: DrawSettings) -> float:
    """mean_z Π_t q_t(z) from the definition; the cap's α_t is read from the draw."""
    alphas = forced(scores, slate, settings).alphas
    total = 0.0
    for z in range(scores.shape[1]):
        product, remaining = 1.0, list(range(len(scores)))
        for t, item in enumerate(slate):
            best = max(remaining, key=lambda c: scores[c, z])
            greedy = max(remaining, key=lambda c: scores[c].astype(float).mean())
            q = (1 - settings.floor) * (item == best) + settings.floor / len(remaining)
            product *= alphas[t] * q + (1 - alphas[t]) * (item == greedy)
            remaining.remove(item)
        total += product
    return total / scores.shape[1]


def test_known_answers() -> None:
    """Three candidates, four draws, by hand."""
    scores = np.array([[3, 3, 0, 0], [1, 1, 2, 0], [0, 0, 0, 0]], np.float32)  # wins: 2 + 1/3, 1 + 1/3, 1/3 of 4
    p = draw(scores, 1, np.zeros(1), DrawSettings(floor=0.0), full=True).distributions
    np.testing.assert_allclose(p, [[7 / 12, 4 / 12, 1 / 12]], rtol=1e-15)
    p = draw(scores, 1, np.zeros(1), DrawSettings(floor=0.3), full=True).distributions
    np.testing.assert_allclose(p, [[0.7 * 7 / 12 + 0.1, 0.7 * 4 / 12 + 0.1, 0.7 / 12 + 0.1]], rtol=1e-15)
    slate = draw(scores, 1, np.zeros(1), DrawSettings(floor=0.0, max_share=0.25), full=True)
    np.testing.assert_allclose(slate.alphas, [0.25 / (5 / 12)], rtol=1e-15)
    np.testing.assert_allclose(slate.distributions, [[0.75, 0.2, 0.05]], rtol=1e-15)
    p = draw(scores, 1, np.zeros(1), DrawSettings("softmax", floor=0.0, temperature=0.5), full=True).distributions
    weights = np.exp(np.array([1.5, 1.0, 0.0]) / 0.5)
    np.testing.assert_allclose(p, [weights / weights.sum()], rtol=1e-11)
    p = draw(scores, 1, np.zeros(1), DrawSettings("inverse_gap", floor=0.0, temperature=0.5), full=True).distributions
    np.testing.assert_allclose(p, [[1 - 1 / 4 - 1 / 6, 1 / (3 + 0.5 / 0.5), 1 / (3 + 1.5 / 0.5)]], rtol=1e-11)
    p = draw(scores, 1, np.zeros(1), DrawSettings(floor=0.0), boosts=np.array([0.0, 0.0, 9.0]), full=True).distributions
    np.testing.assert_array_equal(p, [[0.0, 0.0, 1.0]])


def test_inverse_gaps_know_how_many_are_left_and_share_the_first_place() -> None:
    """By hand: two tied for the best of four share what is left; after a pick, ∣R∣ and the best are those of what remains."""
    scores = np.array([[1.0], [1.0], [0.5], [0.0]], np.float32)
    settings = DrawSettings("inverse_gap", floor=0.0, temperature=0.1)
    found = draw(scores, 3, np.array([0.0, 0.0, 0.99]), settings, full=True)
    low, lowest = 1 / (4 + 5), 1 / (4 + 10)
    np.testing.assert_allclose(found.distributions[0], [(1 - low - lowest) / 2] * 2 + [low, lowest], rtol=1e-11)  # type: ignore[index] - asked for
    low, lowest = 1 / (3 + 5), 1 / (3 + 10)
    np.testing.assert_allclose(found.distributions[1], [0, 1 - low - lowest, low, lowest], rtol=1e-11)  # type: ignore[index] - asked for
    np.testing.assert_allclose(found.distributions[2], [0, 0, 1 - 1 / (2 + 5), 1 / (2 + 5)], rtol=1e-11)  # type: ignore[index] - asked for
    never = DrawSettings("inverse_gap", floor=0.0, temperature=1e-320)  # a gap beyond every float
    np.testing.assert_array_equal(draw(scores, 1, np.zeros(1), never, full=True).distributions, [[0.5, 0.5, 0, 0]])


def test_a_pin_overrules_its_mask_and_leaves_gaps_where_candidates_run_out() -> None:
    slate = draw(
        np.zeros((3, 1), np.float32),
        5,
        np.full(5, 0.5),
        DrawSettings(),
        pins={4: 1},
        masks=np.array([[1, 0, 1]] * 5) > 0,
    )
    assert slate.slots.tolist() == [0, 1, 4]
    assert slate.items[2] == 1
    assert slate.pinned.tolist() == [False, False, True]
    assert slate.remaining.tolist() == [2, 1, 1]


def test_other_layouts_of_the_same_numbers_are_the_same_draw() -> None:
    """Read-only, strided or unaligned arrays: what a request sends must not reach the compiler as a new type."""
    scores = np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)
    raw = np.frombuffer(b"x" + scores.tobytes(), np.float32, offset=1).reshape(scores.shape)
    frozen = scores.copy()
    frozen.flags.writeable = False
    u, settings = np.full(3, 0.5), DrawSettings()
    for layout in (np.asfortranarray(scores), raw, frozen, np.repeat(scores, 2, axis=1)[:, ::2]):
        assert_same(draw(layout, 3, u, settings), draw(scores, 3, u, settings))
    draw(scores[:, :1], 3, np.full(6, 0.5)[::2], DrawSettings("softmax", floor=0, max_share=1, temperature=1))
    within = packed([Constraint("cap", "most", np.zeros(9, np.int64), np.full(3, 2))], 9, 3)
    draw(scores, 3, u, settings, within=within)
    draw(scores, 3, u, settings, within=packed([], 9, 3, mmr=(1.0, scores[::-1])))
    assert len(fill.signatures) == 1  # type: ignore[attr-defined]  # numba's


@pytest.mark.parametrize("version", [draw, reference])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_corrupt(version: Any, wrong: float) -> None:
    scores = np.zeros((3, 9), np.float32)
    scores[2, 8] = wrong
    with pytest.raises(Corrupt) as caught:
        version(scores, 1, np.zeros(1), DrawSettings(), masks=np.array([[True, True, False]]))  # even where masked
    assert caught.value.reason == "nan_scores"


@pytest.mark.parametrize("version", [draw, reference])
@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": np.zeros((3, 4))},
        {"scores": np.zeros((3, 0), np.float32)},
        {"scores": np.zeros(3, np.float32)},
        {"k": -1},
        {"k": 3},
        {"u": np.array([0.5, 1.0])},
        {"u": np.array([0.5, math.nan])},
        {"u": np.array([-0.1, 0.5])},
        {"u": np.zeros(2, np.float32)},
        {"settings": DrawSettings(head="best")},  # type: ignore[arg-type]
        {"settings": DrawSettings(floor=1.1)},
        {"settings": DrawSettings(floor=math.nan)},
        {"settings": DrawSettings(max_share=0.0)},
        {"settings": DrawSettings(temperature=0.0)},
        {"settings": DrawSettings(temperature=math.inf)},
        {"boosts": np.zeros(2)},
        {"boosts": np.array([0.0, math.nan, 0.0])},
        {"masks": np.ones((2, 2), bool)},
        {"masks": np.ones((2, 3))},
        {"pins": {2: 0}},
        {"pins": {0: 3}},
        {"pins": {0: -1}},
        {"pins": {0: 1, 1: 1}},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_named(version: Any, wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "scores": np.zeros((3, 4), np.float32),
        "k": 2,
        "u": np.zeros(2),
        "settings": DrawSettings(),
    }
    version(**right)
    with pytest.raises(ValueError, match=r".+"):
        version(**(right | wrong))


def test_uniforms_are_a_function_of_key_decision_and_purpose() -> None:
    """Pinned numbers: a change here breaks the replay of every log."""
    u = uniforms(b"key", "0123456789abcdef-1", "slate", 20)
    digest = hashlib.blake2b(b"slate\x000123456789abcdef-1" + bytes(8), key=b"key").digest()
    assert u[0] == (int.from_bytes(digest[:8], "little") >> 11) / 2**53 == 0.6020712547064875
    assert (u[1], u[19]) == (0.7676819299508193, 0.732989507532978)
    assert u.tolist() == uniforms(b"key", "0123456789abcdef-1", "slate", 20).tolist()
    assert uniforms(b"key", "0123456789abcdef-1", "slate", 3).tolist() == u.tolist()[:3]
    others = [
        uniforms(b"other", "0123456789abcdef-1", "slate", 20),
        uniforms(b"key", "0123456789abcdef-2", "slate", 20),
        uniforms(b"key", "0123456789abcdef-1", "sample", 20),
    ]
    assert len({*u.tolist(), *(x for other in others for x in other.tolist())}) == 80
    assert uniforms(b"key", "x", "slate", 0).shape == (0,)
    with pytest.raises(ValueError, match="NUL"):
        uniforms(b"key", "x", "sl\0ate", 1)


def test_uniforms_are_uniform() -> None:
    """Mean, variance and the 16 first cells of 40,000 numbers, each within 4 standard errors; all in [0, 1)."""
    u = np.concatenate([uniforms(b"k", str(i), "slate", 10) for i in range(4_000)])
    assert 0.0 <= u.min() <= u.max() < 1.0
    assert abs(u.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / len(u))
    assert abs((u**2).mean() - 1 / 3) < 4 * math.sqrt((1 / 5 - 1 / 9) / len(u))
    cells = np.histogram(u, 16, (0, 1))[0]
    assert abs(cells - len(u) / 16).max() < 4 * math.sqrt(len(u) * 15 / 256)


def assert_same(one: Slate, other: Slate) -> None:
    for field in fields(Slate):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if a is None or b is None:
            assert a is b, field.name
        else:
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)


def slate_of(constraints: list[Constraint], k: int, n: int = 6, **more: Any) -> Slate:
    """Of candidates of which the first are the best, every uniform in the middle."""
    scores = np.repeat(-np.arange(n, dtype=np.float32)[:, None], 8, axis=1)
    within = packed(constraints, n, k, **{name: more.pop(name) for name in ("mmr", "coverage") if name in more})
    return draw(scores, k, np.full(k, 0.5), DrawSettings(floor=0.0), within=within, **more)


def of_kind(*codes: int) -> Any:
    return np.array(codes, np.int64)


def whole(value: int, k: int) -> Any:
    return np.full(k, value, np.int64)


def by_the_end(value: int, k: int) -> Any:
    return np.array([0] * (k - 1) + [value], np.int64)


def test_a_cap_counts_pins_that_come_later() -> None:
    cap = Constraint("cap", "most", of_kind(0, 0, 0, 1, 1, -1), whole(2, 4))
    assert slate_of([cap], 4).items.tolist() == [0, 1, 3, 4]
    slate = slate_of([cap], 4, pins={3: 2})
    assert slate.items.tolist() == [0, 3, 4, 2]
    assert slate.acts is not None
    assert slate.acts.tolist() == [[0, ACTED, ACTED, 0]]


def test_a_minimum_waits_as_long_as_it_can() -> None:
    least = Constraint("quota", "least", of_kind(-1, -1, -1, -1, 0, 0), by_the_end(1, 3))
    assert slate_of([least], 3).items.tolist() == [0, 1, 4]
    two = Constraint("quota", "least", of_kind(-1, -1, -1, 0, -1, -1), by_the_end(1, 3))
    slate = slate_of([least, two], 3)
    assert slate.items.tolist() == [0, 3, 4]
    assert slate.remaining.tolist() == [6, 3, 2]
    assert slate_of([least], 3, pins={1: 5}).items.tolist() == [0, 5, 1]  # a pin may meet it


def test_spacing_looks_both_ways() -> None:
    spacing = Constraint("spacing", "spacing", of_kind(0, 0, 1, 1, 2, 2), whole(2, 4))
    assert slate_of([spacing], 4).items.tolist() == [0, 2, 1, 3]
    assert slate_of([spacing], 4, pins={1: 1}).items.tolist() == [2, 1, 3, 0]


def test_what_cannot_be_kept_together_yields_from_the_last() -> None:
    """Of four candidates all of one kind two may be shown; the third and fourth slots are filled all the same."""
    codes = of_kind(0, 0, 0, 0, -1, -1)
    seen = Constraint("seen", "mask", of_kind(-1, -1, -1, -1, 0, 0), whole(0, 4))
    cap = Constraint("cap", "most", codes, whole(2, 4))
    for constraints, items, acts in (
        ([seen, cap], [0, 1, 2, 3], [[ACTED] * 4, [0, 0, PASSED_OVER, PASSED_OVER]]),
        ([cap, seen], [0, 1, 4, 5], [[0, 0, ACTED, ACTED], [ACTED, ACTED, PASSED_OVER, PASSED_OVER]]),
    ):
        slate = slate_of(constraints, 4)
        assert slate.acts is not None
        assert slate.items.tolist() == items
        assert slate.acts.tolist() == acts
    short = slate_of([Constraint("quota", "least", of_kind(-1, -1, -1, -1, -1, 0), by_the_end(3, 4))], 4)
    assert short.items.tolist() == [0, 1, 2, 5]  # there is only one of them, and it is shown
    assert short.acts is not None
    assert short.acts.tolist() == [[0, 0, 0, PASSED_OVER]]


def test_diversity_takes_from_what_is_like_the_slots_before() -> None:
    vectors = np.array([[1, 0], [2, 0], [0, 1], [0, 3], [1, 1], [0, 0]], np.float32)
    assert slate_of([], 3, mmr=(10.0, vectors)).items.tolist() == [0, 2, 5]
    assert slate_of([], 3, mmr=(1.5, vectors)).items.tolist() == [0, 2, 1]
    assert slate_of([], 3, coverage=[(10.0, of_kind(0, 0, 0, 1, -1, 2))]).items.tolist() == [0, 3, 5]
    assert packed([], 6, 3, mmr=(0.0, vectors), coverage=[(0.0, of_kind(0, 0, 0, 1, 1, 2))]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"limits": np.zeros((1, 3), np.int64)},
        {"codes": np.zeros((1, 5), np.int64)},
        {"codes": np.zeros((2, 6), np.int64)},
        {"weights": np.zeros(2)},
        {"weights": np.array([-1.0])},
        {"weights": np.array([math.nan])},
        {"weights": np.ones(1)},
        {"weights": np.zeros(2), "covers": np.zeros((1, 5), np.int64)},
    ],
    ids=str,
)
def test_constraints_that_do_not_fit_are_named(wrong: dict[str, Any]) -> None:
    within = packed([Constraint("cap", "most", whole(0, 6), whole(1, 2))], 6, 2)
    assert within is not None
    for version in (draw, reference):
        version(np.zeros((6, 8), np.float32), 2, np.zeros(2), DrawSettings(), within=within)
        with pytest.raises(ValueError, match=r"of|must"):
            version(np.zeros((6, 8), np.float32), 2, np.zeros(2), DrawSettings(), within=replace(within, **wrong))
