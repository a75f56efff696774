"""One measured number a row, with its floor and its budget where it has one: a table for people, JSON for machines."""

import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

PATHS = ("--data", "--out", "--log", "--keep")  # options that name them


@dataclass(frozen=True)
class Row:
    """name; value in unit; floor in the same unit; budget: the most (`at_most`) or least that is promised, in words and as met or not."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    budget: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None


@dataclass
class Report:
    """What one run measured, where and on which commit."""

    title: str
    command: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
        of_floor: bool = False,
        note: str = "",
    ) -> Row:
        """Record a number. With `of_floor` the bound holds for value / floor, else for the value itself."""
        measured = value / floor if of_floor and floor else value
        times = " × floor" if of_floor else f" {unit}"
        budget, met = "", None
        if at_most is not None:
            budget, met = f"≤ {at_most:g}{times}", measured <= at_most
        if at_least is not None:
            budget, met = f"≥ {at_least:g}{times}", measured >= at_least
        row = Row(name, value, unit, floor, budget, met, note)
        self.rows.append(row)
        return row

    def note(self, line: str) -> None:
        self.notes.append(line)

    def show(self, console: Console) -> None:
        table = Table(title=self.title)
        for column in ("measured", "value", "unit", "floor", "ratio", "budget", "met"):
            table.add_column(column, justify="right" if column in ("value", "floor", "ratio") else "left")
        for row in self.rows:
            table.add_row(*_cells(row))
        console.print(table)
        for line in self.notes:
            console.print(line, markup=False)

    def json(self) -> bytes:
        document = {
            "title": self.title,
            "command": self.command,
            **provenance(),
            "rows": [{**asdict(row), "ratio": row.ratio} for row in self.rows],
            "notes": self.notes,
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=1)

    def markdown(self) -> str:
        where = provenance()
        lines = [
            f"# {self.title}",
            "",
            f"`{self.command}` · {where['date']} · commit {where['commit']} · {where['machine']}",
            "",
            "| measured | value | unit | floor | ratio | budget | met |",
            "|---|---:|---|---:|---:|---|---|",
            *("| " + " | ".join(_cells(row)) + " |" for row in self.rows),
            "",
            *(f"- {line}" for line in self.notes),
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path, name: str) -> list[Path]:
        """Dated markdown and JSON in a folder."""
        return write(folder, name, self.markdown(), self.json())


def write(folder: Path, name: str, markdown: str, document: bytes) -> list[Path]:
    """<folder>/<date>-<name>.md and .json; a run of the same day takes the place of the earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [dated(folder, name, "md"), dated(folder, name, "json")]
    paths[0].write_text(markdown, encoding="utf-8")
    paths[1].write_bytes(document + b"\n")
    return paths


def dated(folder: Path, name: str, suffix: str) -> Path:
    return folder / f"{datetime.now(UTC):%Y-%m-%d}-{name}.{suffix}"


def typed() -> str:
    """The command as typed, without the paths of this machine."""
    words = sys.argv[1:]
    kept = [w for i, w in enumerate(words) if w not in PATHS and words[i - 1 : i] not in [[path] for path in PATHS]]
    return shlex.join(["slatewise", *kept])


def provenance() -> dict[str, Any]:
    """When, which commit (with + when the tree had changes), what machine."""
    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
        commit += "+" if dirty.stdout.strip() else ""
    except (OSError, subprocess.CalledProcessError):  # installed without git or outside a checkout
        commit = "unknown"
    machine = f"{psutil.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}"
    return {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "commit": commit, "machine": machine}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {None: "", True: "yes", False: "NO"}[row.met]
    name = f"{row.name} ({row.note})" if row.note else row.name
    return name, _number(row.value), row.unit, _number(row.floor), ratio, row.budget, met
