"""What a study found: tables with floors beside every number, for people and for machines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table as Sheet

from policies.types import F64
from services.bench.report import dated, provenance, write

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Table:
    """Rows as wide as `columns`; numbers stay numbers, and are rounded only when shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass
class Study:
    """One run of a study. `notes` say what was varied, what was not tuned, and by how much a target was missed and why.

    picture  a PNG, written beside the table; empty: there is none
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    picture: bytes = b""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self.tables.append(Table(title, columns, rows))

    def note(self, line: str) -> None:
        self.notes.append(line)

    def show(self, console: Console) -> None:
        for table in self.tables:
            sheet = Sheet(title=table.title)
            for column in table.columns:
                sheet.add_column(column)
            for row in table.rows:
                sheet.add_row(*map(said, row))
            console.print(sheet)
        for line in self.notes:
            console.print(line, markup=False)

    def markdown(self, command: str) -> str:
        where = provenance()
        lines = [
            f"# {self.title}",
            "",
            f"`{command}` · {where['date']} · commit {where['commit']} · {where['machine']}",
        ]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", "| " + " | ".join(table.columns) + " |"]
            lines.append("|" + "---|" * len(table.columns))
            lines += ["| " + " | ".join(map(said, row)) + " |" for row in table.rows]
        return "\n".join([*lines, "", *(f"- {line}" for line in self.notes)]) + "\n"

    def json(self, command: str) -> bytes:
        tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables]
        document = {
            "title": self.title,
            "command": command,
            **provenance(),
            "tables": tables,
            "notes": self.notes,
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=1)

    def write(self, folder: Path, name: str, command: str) -> list[Path]:
        """Dated markdown and JSON in a folder, and the picture."""
        paths = write(folder, name, self.markdown(command), self.json(command))
        if self.picture:
            paths.append(dated(folder, name, "png"))
            paths[-1].write_bytes(self.picture)
            with paths[0].open("a", encoding="utf-8") as file:
                file.write(f"\n![{self.title}]({paths[-1].name})\n")
        return paths


def said(cell: Cell) -> str:
    """A cell as people read it."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "**no**"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def interval(values: F64, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of independent seeds' results (n,), by Student's t. One seed has no interval: (mean, nan, nan)."""
    from scipy import stats  # comes with the packages that studies want anyway

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def with_interval(values: F64) -> str:
    """`0.123 [0.101, 0.145]`."""
    mean, low, high = interval(values)
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def proportion(hits: int, runs: int) -> tuple[float, float, float]:
    """(share, low, high) of independent runs: Wilson's 95% interval, which also says something of 0 and of all."""
    share, z = hits / runs, 1.96
    centre = (share + z**2 / (2 * runs)) / (1 + z**2 / runs)
    half = z / (1 + z**2 / runs) * ((share * (1 - share) + z**2 / (4 * runs)) / runs) ** 0.5
    return share, max(0.0, centre - half), min(1.0, centre + half)
