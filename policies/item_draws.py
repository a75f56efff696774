"""Standard normals of an item and a draw that nobody stores: looked up by hash, in a graph as in numpy.

    z(item, draw) = Σ_{b < 4} T[b, (byte b of the item's key + turn_b) mod 256, draw],   T ~ N(0, 1/4)

Tabulation hashing with normal entries (Pătraşcu & Thorup, J. ACM 2012, have it with bits). One item's draws are N(0, 1) exactly,
whatever the key; two items share a row with chance 1/256 a byte, so their correlation is 1/256 on average. Draws come in
opposite pairs, so their mean is 0. The table is a constant of the graph; a publish takes another `turn`, which gives every
item other rows. A table of items times draws would be gigabytes for a million items; this one is a megabyte, and covers items
that came after the publish.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from policies import graphs
from policies.types import F32, F64, I64, Arrays

if TYPE_CHECKING:
    from onnx import NodeProto

BYTES, VALUES = 4, 256
SEED = 20_211_104  # of the table: any will do, and it must never change under a bundle


def keys_of(hashes: NDArray[np.uint64]) -> I64:
    """The graph input `item_keys` (n,): hashes of item ids as whole numbers of at least 0."""
    return (hashes >> np.uint64(1)).astype(np.int64)


def turn(seed: int) -> I64:
    """(4,) what a publish of this seed turns the bytes by."""
    return np.random.default_rng([seed, 2]).integers(VALUES, size=BYTES)


@lru_cache(maxsize=4)  # a process has one or two numbers of draws
def table(draws: int, size: int = 1) -> F32:
    """T (4 · 256, draws · size): `size` normals for every draw."""
    pairs = -(-draws // 2)
    half = np.random.default_rng(SEED).standard_normal((BYTES * VALUES, pairs, size)) / np.sqrt(BYTES)
    both = np.concatenate([half, -half], axis=1)[:, :draws]
    made = np.ascontiguousarray(both.reshape(BYTES * VALUES, draws * size), np.float32)
    made.flags.writeable = False
    return made


def rows(keys: I64, turned: I64) -> I64:
    """Rows (n, 4) of the table that items of these keys add up."""
    places = keys[:, None] // VALUES ** np.arange(BYTES) % VALUES
    return (places + turned) % VALUES + VALUES * np.arange(BYTES)


def normals(keys: I64, turned: I64, draws: int, size: int = 1) -> F64:
    """z (n, draws · size)."""
    return np.asarray(table(draws, size)[rows(keys, turned)].sum(axis=1, dtype=np.float64))


def nodes(keys: str, output: str, prefix: str = "z") -> Iterable["NodeProto"]:
    """Graph nodes from `keys` i64[n] to z (n, draws · size) named `output`, over the arrays of `constants` and `turn`."""
    steps = (
        ("Unsqueeze", [keys, "z_last"], "column"),
        ("Div", [f"{prefix}_column", "z_powers"], "shifted"),
        ("Mod", [f"{prefix}_shifted", "z_values"], "byte"),
        ("Add", [f"{prefix}_byte", "turn"], "moved"),
        ("Mod", [f"{prefix}_moved", "z_values"], "turned"),
        ("Add", [f"{prefix}_turned", "z_starts"], "places"),
        ("Gather", ["z_table", f"{prefix}_places"], "each"),
    )
    for kind, sources, name in steps:
        yield graphs.node(kind, sources, f"{prefix}_{name}")
    yield graphs.node("ReduceSum", [f"{prefix}_each", "z_last"], output, keepdims=0)


def constants(draws: int, size: int = 1) -> Arrays:
    """What `nodes` reads besides the input `turn` (4,)."""
    return {
        "z_last": graphs.whole(1),
        "z_powers": graphs.whole(*(VALUES**b for b in range(BYTES))),
        "z_values": graphs.whole(VALUES),
        "z_starts": graphs.whole(*(VALUES * b for b in range(BYTES))),
        "z_table": table(draws, size),
    }
