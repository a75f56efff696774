"""Trainers compute in one thread, whatever the machine has and whoever set it otherwise.

Sums of floats depend on how they are divided. In two threads the same recorded order came to other last bits than in one, so a
replay on another machine would have said that its trainer was wrong. Several learners are how training uses several cores.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


def one_thread(call: Callable[Given, Made]) -> Callable[Given, Made]:
    """A call during which torch computes in one thread; needs torch when it is called."""

    @wraps(call)
    def called(*given: Given.args, **named: Given.kwargs) -> Made:
        import torch  # not where policies are only served

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call(*given, **named)
        finally:
            torch.set_num_threads(before)

    return called
