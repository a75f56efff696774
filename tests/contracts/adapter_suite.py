"""Suites of checks, each run over every adapter of a port; the test's id names both: `SqliteLog-values_come_back`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

P = TypeVar("P")
Check = Callable[["Adapter[Any]", Path], None]


@dataclass(frozen=True)
class Adapter(Generic[P]):
    """How to open an adapter on what lies in a folder. `durable`: opening again finds what was there."""

    name: str
    open: Callable[[Path], P]
    durable: bool = True


@dataclass
class Suite(Generic[P]):
    """Checks of one port; a check that needs durability is not run on adapters without it."""

    adapters: list[Adapter[P]]
    checks: list[tuple[Check, bool]] = field(default_factory=list)

    def check(self, function: Check) -> Check:
        self.checks.append((function, False))
        return function

    def check_durable(self, function: Check) -> Check:
        self.checks.append((function, True))
        return function

    def parametrize(self) -> pytest.MarkDecorator:
        runs = [
            pytest.param(adapter, check, id=f"{adapter.name}-{check.__name__}")
            for adapter in self.adapters
            for check, durable in self.checks
            if adapter.durable or not durable
        ]
        return pytest.mark.parametrize(("adapter", "check"), runs)
