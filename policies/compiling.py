"""How loops become machine code: one way for the draw and for everything that runs inside it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Machine code, kept on disk between processes; IEEE arithmetic as written."""
    return cast(Function, numba.njit(cache=True, error_model="numpy")(function))
