"""Long histories in few rows: which are kept, and that attention over them is near attention over all."""

import numpy as np

from policies.hashed import thinned
from policies.types import F32, F64


def lived(h: int, d: int = 32, tastes: int = 12, seed: int = 0) -> F32:
    """Items of a few kinds, h interactions with them at random."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(tastes, d))
    return (kinds[rng.integers(tastes, size=h)] + 0.3 * rng.normal(size=(h, d))).astype(np.float32)


def attended(rows: F32, asks: F64) -> F64:
    """(a, d): softmax attention of asks (a, d) over rows (h, d)."""
    z = asks @ rows.T.astype(float) / np.sqrt(rows.shape[1])
    share = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(share / share.sum(axis=1, keepdims=True) @ rows)


def test_all_are_kept_until_they_are_too_many() -> None:
    for h in (0, 1, 9, 10):
        assert thinned(lived(h), 6, 4) is None


def test_the_newest_stay_and_of_the_others_one_of_each_group() -> None:
    """In the order of time, each once; what is newer says nothing about which of the others stay; without any newest too."""
    history = lived(33)
    kept = thinned(history, 6, 4)
    assert kept is not None
    assert kept[4:].tolist() == list(range(27, 33))
    assert (np.diff(kept) > 0).all()
    changed = history.copy()
    changed[30] = 9.0
    np.testing.assert_array_equal(thinned(changed, 6, 4), kept)
    changed[:27] = history[26::-1]
    assert not np.array_equal(thinned(changed, 6, 4), kept)
    bare = thinned(history, 0, 4)
    assert bare is not None
    assert len(bare) == 4


def test_every_kind_has_its_share() -> None:
    """Two kinds, a tenth and nine tenths, far apart: of 40 rows 3 to 5 are of the rare one, whichever interactions these were; of 40
    at random it is 0 to 9."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rare = rng.permutation(400) < 40
        kinds = rng.normal(size=(2, 16))
        history = (kinds[rare.astype(int)] + 0.05 * rng.normal(size=(400, 16))).astype(np.float32)
        kept = thinned(history, 0, 40)
        assert kept is not None
        assert 3 <= rare[kept].sum() <= 5


def test_attention_over_the_rows_is_near_that_over_all() -> None:
    """1,792 interactions in 64 rows, twelve histories: nearer than over 64 at random, or the last 64, by a fifth at least; in units of
    how far attention is from the plain mean."""
    far: list[list[float]] = [[], [], []]
    for seed in range(12):
        rng, history = np.random.default_rng(seed), lived(1_792, tastes=40, seed=seed)
        asks = rng.normal(size=(50, 32))
        exact = attended(history, asks)
        unit = np.linalg.norm(exact - history.mean(axis=0))
        ours, some = thinned(history, 0, 64), rng.choice(len(history), 64, replace=False)
        for found, rows in zip(far, (ours, some, slice(-64, None)), strict=True):
            found.append(float(np.linalg.norm(attended(history[rows], asks) - exact) / unit))
    ours_far, drawn, last = (float(np.mean(found)) for found in far)
    assert ours_far < 0.4
    assert ours_far < 0.8 * min(drawn, last)
