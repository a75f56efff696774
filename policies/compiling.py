"""How loops become machine code: one way for the draw and for everything that runs inside it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Machine code, kept on disk between processes; IEEE arithmetic as written."""
    return cast(Function, numba.njit(cache=True, error_model="numpy")(function))


def compiled_beside(function: Function) -> Function:
    """As `compiled`, and the interpreter runs other threads meanwhile: for a batch, whose reader fetches the next one. Not
    for a decision: it would have to wait for the interpreter again."""
    return cast(Function, numba.njit(cache=True, error_model="numpy", nogil=True)(function))


def plain(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """Contiguous, aligned, writable: other layouts would be other types to the compiler, and compile anew in a request."""
    return array if array.flags.carray else np.array(array, order="C")
