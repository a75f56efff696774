"""p-values of several comparisons, adjusted: each may be compared with α as if it were alone.

holm  P(any false discovery) ≤ α, whatever depends on what (Holm 1979)
bh    expected share of false discoveries ≤ α, under independence or positive dependence (Benjamini and Hochberg 1995)
"""

from typing import Literal

import numpy as np

from policies.types import F64


def corrected(p: F64, method: Literal["holm", "bh"]) -> F64:
    """Adjusted p-values (n,) in the order given."""
    n = len(p)
    if not n:
        return p
    order = np.argsort(p, kind="stable")
    ranked = p[order]
    if method == "holm":
        found = np.maximum.accumulate(ranked * np.arange(n, 0, -1))
    else:
        found = np.minimum.accumulate((ranked * n / np.arange(1, n + 1))[::-1])[::-1]
    after = np.empty(n)
    after[order] = np.minimum(found, 1.0)
    return after
