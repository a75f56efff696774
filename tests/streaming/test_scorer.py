"""Running graphs: swapping arrays needs no session, and a request keeps the arrays it started with."""

import threading

import numpy as np
import pytest

from policies.algorithms import linear_thompson
from policies.errors import Corrupt
from policies.types import Arrays
from streaming.scorer import Scorer, score
from tests.contracts.algorithm_contract import PROBLEM, TWO, published, query

ALGORITHM = linear_thompson.ALGORITHM
GRAPH = ALGORITHM.graph(ALGORITHM.config(), PROBLEM).SerializeToString()


def pool(seed: int) -> Arrays:
    return published(ALGORITHM, seed=seed)


def test_one_session_scores_any_bundle_of_its_graph() -> None:
    scorer, asked = Scorer(GRAPH), query(PROBLEM, {})
    for seed in (1, 2):
        wanted = ALGORITHM.reference(ALGORITHM.config(), PROBLEM, pool(seed), asked)
        np.testing.assert_allclose(scorer.bind(pool(seed)).scores(asked), wanted, atol=1e-5)
        np.testing.assert_array_equal(scorer.scores(asked, pool(seed)), score(GRAPH, pool(seed), asked))


def test_a_bound_scorer_does_not_see_what_happens_to_the_arrays_it_was_given() -> None:
    arrays, asked = {name: array.copy() for name, array in pool(1).items()}, query(PROBLEM, {})
    bound = Scorer(GRAPH).bind(arrays)
    before = bound.scores(asked)
    for array in arrays.values():
        array[:] = 0
    np.testing.assert_array_equal(bound.scores(asked), before)


def test_scores_come_back_one_array_a_call() -> None:
    """The draw works on them in place of a copy: a later request must not overwrite them."""
    bound = Scorer(GRAPH).bind(pool(1))
    first = bound.scores(query(PROBLEM, {}, seed=1))
    held = first.copy()
    second = bound.scores(query(PROBLEM, {}, seed=2))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, held)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous


def test_bundles_are_scored_side_by_side_by_threads() -> None:
    scorer, asked = Scorer(GRAPH), query(PROBLEM, {})
    bound = [scorer.bind(pool(seed)) for seed in range(4)]
    wanted = [one.scores(asked) for one in bound]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(200) if not np.array_equal(bound[i].scores(asked), wanted[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_inputs_beyond_the_graphs_are_ignored_and_missing_ones_named() -> None:
    bound = Scorer(GRAPH).bind(pool(1) | {"item_hashes": np.zeros(3, np.uint64)})
    asked = query(PROBLEM, {})
    assert bound.inputs == ("items", "context")
    bound.scores(asked | {"goal": np.zeros(2, np.float32)})
    with pytest.raises(KeyError, match="context"):
        bound.scores({"items": asked["items"]})


def test_weights_are_an_input_where_there_are_several_objectives() -> None:
    graph = ALGORITHM.graph(ALGORITHM.config(), TWO).SerializeToString()
    assert set(Scorer(graph).inputs) == {"items", "context", "weights"}
    assert set(Scorer(graph).changing) == {"base", "pool", "crosses"}


@pytest.mark.parametrize("graph", [b"", b"not a graph", GRAPH[: len(GRAPH) // 2]])
def test_a_graph_that_does_not_load_is_corrupt(graph: bytes) -> None:
    with pytest.raises(Corrupt) as caught:
        Scorer(graph)
    assert caught.value.reason == "format"
