"""Suites of checks, each run over every adapter of a port; the test's id names both: `SqliteLog-values_come_back`."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

P = TypeVar("P")
Check = Callable[["Adapter[Any]", Path], None]


@dataclass(frozen=True)
class Adapter(Generic[P]):
    """How to open an adapter on what lies in a folder.

    durable    opening again finds what was there
    own_clock  the store counts time by itself: it cannot be handed in
    at_once    what one writes another sees with its next look, and not only soon
    examples   histories that Hypothesis makes for it: fewer where each needs something remote to be made first
    """

    name: str
    open: Callable[[Path], P]
    durable: bool = True
    own_clock: bool = False
    at_once: bool = True
    examples: int = 40


def run(adapter: Adapter[Any], check: Check, folder: Path) -> None:
    """Run one check, and close what it opened."""
    with ExitStack() as opened:

        def opening(place: Path) -> Any:
            found = adapter.open(place)
            if hasattr(found, "close"):
                opened.callback(found.close)
            return found

        check(replace(adapter, open=opening), folder)


@dataclass
class Suite(Generic[P]):
    """Checks of one port; a check that needs a trait is not run on adapters without it."""

    adapters: list[Adapter[P]]
    checks: list[tuple[Check, str]] = field(default_factory=list)

    def check(self, function: Check) -> Check:
        self.checks.append((function, ""))
        return function

    def check_durable(self, function: Check) -> Check:
        self.checks.append((function, "durable"))
        return function

    def check_given_clock(self, function: Check) -> Check:
        self.checks.append((function, "given_clock"))
        return function

    def parametrize(self) -> pytest.MarkDecorator:
        runs = [
            pytest.param(adapter, check, id=f"{adapter.name}-{check.__name__}")
            for adapter in self.adapters
            for check, trait in self.checks
            if (trait != "durable" or adapter.durable) and (trait != "given_clock" or not adapter.own_clock)
        ]
        return pytest.mark.parametrize(("adapter", "check"), runs)
