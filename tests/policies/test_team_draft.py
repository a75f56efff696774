"""Team draft of policies that draw: the logged propensities are those of the whole procedure, coins and all."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from policies.evaluation.conditionals import Along, conditionals
from policies.experiments.team_draft import FIRST, NOBODY, SECOND, Side, drafted
from policies.reranking.acting import Ready
from policies.reranking.within import OPS, Within
from policies.types import F64, DrawSettings

N, M = 4, 8
MOST_TRIES = 1_000  # to meet every slate; none is rare here


def sides(second: str = "one_draw", **more: Any) -> tuple[Side, Side]:
    rng = np.random.default_rng(3)
    one, other = (rng.normal(size=(N, M)).astype(np.float32) for _ in range(2))
    ready = Ready(**more)
    settings = DrawSettings(floor=0.5), DrawSettings(head=second, floor=0.6, max_share=0.8)  # type: ignore[arg-type]
    return Side(one, settings[0], ready), Side(other, settings[1], ready)


def by_hand(pair: tuple[Side, Side], rows: tuple[int, ...], k: int, pins: dict[int, int]) -> float:
    """The chance of a slate: summed over every way the coins can fall, of each picking from its own distribution."""
    slots = list(range(k))
    own = [
        conditionals(s.scores, slots, rows, s.settings, pins=pins, asked=k, **s.ready.arguments)[range(k), rows]
        for s in pair
    ]
    free = [slot for slot in slots if slot not in pins]
    total = 0.0
    for coins in product((FIRST, SECOND), repeat=(len(free) + 1) // 2):
        chance = 0.5 ** len(coins)
        for place, slot in enumerate(free):
            begins = coins[place // 2]
            chance *= own[begins if place % 2 == 0 else 1 - begins][slot]
        total += chance
    return total


MASKS = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
CAP = Within(  # of candidates 0 and 1 at most one
    np.array([OPS["most"]]), np.array([[0, 0, -1, -1]]), np.array([[1, 1, 1]]), np.zeros(1), np.zeros((0, N), np.int64), np.zeros((0, N), np.float32)
)  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], dict[int, int]]] = {
    "two heads": ("one_draw", {}, {}),
    "softmax, boosted": ("softmax", {"boosts": np.array([0.0, 0.5, -0.5, 0.0])}, {}),
    "masks": ("inverse_gap", {"masks": MASKS}, {}),
    "a pin in the middle": ("draws", {}, {1: 2}),
    "a cap inside the slate": ("draws", {"within": CAP}, {}),
}


def slates(pair: tuple[Side, Side], pins: dict[int, int], k: int = 3) -> dict[tuple[int, ...], tuple[float, float]]:
    """Every slate that can be → (the product of what was logged, the chance by hand)."""
    found: dict[tuple[int, ...], tuple[float, float]] = {}
    rng = np.random.default_rng(4)
    for _ in range(MOST_TRIES):
        made = drafted(pair, k, rng.random(k), rng.random(2), pins)
        rows = tuple(made.slate.items.tolist())
        if rows not in found:
            found[rows] = made.slate.joint, by_hand(pair, rows, k, pins)
            if sum(logged for logged, _ in found.values()) > 1.0 - 1e-9:
                break
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_is_logged_is_the_chance_of_the_slate(case: str) -> None:
    head, more, pins = CASES[case]
    found = slates(sides(head, **more), pins)
    for rows, (logged, chance) in found.items():
        assert logged == pytest.approx(chance, rel=1e-12), rows
    assert sum(logged for logged, _ in found.values()) == pytest.approx(1.0, abs=1e-12)  # and all of them were met
    assert len(found) > 3
    if case == "a cap inside the slate":
        assert not any({0, 1} <= set(rows) for rows in found)


def test_that_each_picks_half_of_the_time_would_be_seen() -> None:
    """Planted: after the first pick the other one's turn is no longer a coin, so an even mixture is not the chance."""
    pair = sides()
    wrong = 0
    for rows in permutations(range(N), 2):
        own = [conditionals(s.scores, [0, 1], rows, s.settings)[range(2), rows] for s in pair]
        even = float(np.prod([0.5 * own[0][t] + 0.5 * own[1][t] for t in range(2)]))
        wrong += even != pytest.approx(by_hand(pair, rows, 2, {}), rel=1e-3)
    assert wrong > N


def test_every_item_is_drawn_as_often_as_is_logged() -> None:
    """Of every slot and item, z of what was drawn against the distributions, at 4.5 standard errors of 12 of them."""
    pair, rng, k, runs = sides(), np.random.default_rng(5), 3, 800
    surplus, variance = np.zeros((k, N)), np.zeros((k, N))
    teams = np.zeros(k)
    for _ in range(runs):
        made = drafted(pair, k, rng.random(k), rng.random(2))
        assert made.slate.distributions is not None
        p: F64 = made.slate.distributions
        assert p.sum(axis=1) == pytest.approx(1.0)
        surplus -= p
        surplus[range(k), made.slate.items] += 1
        variance += p * (1 - p)
        teams += made.teams
    assert np.abs(surplus / np.sqrt(variance)).max() < 4.5
    assert np.abs(teams / runs - 0.5).max() < 4.5 * 0.5 / np.sqrt(runs)  # no slot favours a policy


def test_a_slate_is_drawn_again_from_who_picked_what() -> None:
    rng = np.random.default_rng(6)
    for case, (head, more, pins) in CASES.items():
        pair, u = sides(head, **more), rng.random(3)
        made = drafted(pair, 3, u, rng.random(2), pins)
        again = drafted(pair, 3, u, made.teams, pins)
        assert (again.slate.items.tolist(), again.teams) == (made.slate.items.tolist(), made.teams), case
        assert again.slate.propensities.tobytes() == made.slate.propensities.tobytes()
        assert [team == NOBODY for team in made.teams] == made.slate.pinned.tolist()


def test_with_fewer_candidates_than_slots_the_slate_is_shorter() -> None:
    made = drafted(sides(), 6, np.full(6, 0.5), np.full(3, 0.1))
    assert sorted(made.slate.items.tolist()) == [0, 1, 2, 3]
    assert made.slate.propensities[-1] == 1.0
    assert made.own.shape == (2, 4)


def test_one_policy_along_a_slate_is_what_it_is_along_its_own() -> None:
    side = sides("one_draw")[1]
    rows = [2, 0, 3]
    along, found = Along(side.scores, 3, side.settings), []
    for slot, row in enumerate(rows):
        p = along.at(slot)
        assert p is not None
        found.append(p.copy())
        assert along.took(slot, row)
        assert along.remaining == N - slot
    np.testing.assert_array_equal(np.array(found), conditionals(side.scores, [0, 1, 2], rows, side.settings))
