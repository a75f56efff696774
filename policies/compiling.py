"""How loops become machine code: one way for the draw and for everything that runs inside it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Machine code, kept on disk between processes; IEEE arithmetic as written."""
    return cast(Function, numba.njit(cache=True, error_model="numpy")(function))


def compiled_beside(function: Function) -> Function:
    """As `compiled`, and the interpreter runs other threads meanwhile: for a batch, whose reader fetches the next one. Not
    for a decision: it would have to wait for the interpreter again."""
    return cast(Function, numba.njit(cache=True, error_model="numpy", nogil=True)(function))
