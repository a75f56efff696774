"""The tables of `docs/sizing.md`, out of the measurements in `docs/evidence`: `python -m services.bench.sizing` writes them anew.

The page names the files its numbers are from, so a newer measurement changes nothing in it until somebody asks for that; a test
compares what is written with what those files say.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

PAGE, EVIDENCE = Path("docs/sizing.md"), Path("docs/evidence")
PARTS = (
    "bench",
    "bench-algorithms",
    "bench-catalogue",
    "bench-rules",
    "bench-agents",
    "bench-sizes",
)
BEGIN, END = "<!-- sizing: {files} -->", "<!-- end of sizing -->"
_BLOCK = re.compile(r"<!-- sizing: ([^>]*) -->\n.*<!-- end of sizing -->", re.DOTALL)
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]  # part → row's name → row


def read(folder: Path, files: list[str]) -> Rows:
    """Rows of the named files, by part."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for file in files:
        document = msgspec.json.decode((folder / file).read_bytes())
        found[_part(file)] = {row["name"].strip(): row for row in document["rows"]}
    return found


def newest(folder: Path) -> list[str]:
    """The newest file of each part."""
    found = {_part(path.name): path.name for path in sorted(folder.glob("*-bench*.json"))}
    return [found[part] for part in PARTS]


def tables(rows: Rows) -> str:
    """What a decision, an event, a publish, a unit and an item cost, as measured, and what a core does of each."""
    learn, sizes = rows["bench"], rows["bench-sizes"]

    def value(part: str, name: str) -> float:
        return float(rows[part][name]["value"])

    lines = ["| a decision (100 candidates, 10 slots, 32 item features) | CPU |", "|---|---:|"]
    lines += [
        f"| `{name.partition(', ')[2]}`, in process, by id | {_micro(value('bench-algorithms', name))} |"
        for name in rows["bench-algorithms"]
        if name.startswith("decide in process, ")
    ]
    lines += [
        f"| `linear_thompson`, features of every candidate in the request, as columns | {_micro(value('bench', 'decide in process, inline columns'))} |",
        f"| … as rows | {_micro(value('bench', 'decide in process, inline rows'))} |",
        f"| all rules, diversity and fairness at once | {_micro(value('bench-rules', 'decide in process, 100 candidates and 10 slots, all rules, diversity and fairness'))} |",
        f"| 1,000 candidates and 50 slots | {_micro(value('bench-rules', 'decide in process, 1,000 candidates and 50 slots, no rules'))} |",
    ]
    for count in ("2,000", "100,000", "1,000,000"):
        cost = value("bench-catalogue", f"decide in process, candidates omitted, {count} items, all eligible, 10 slots")
        lines.append(f"| candidates left out, catalogue of {count} | {cost:.1f} ms |")
    for name in rows["bench-agents"]:
        if name.startswith("decide in process, "):
            lines.append(f"| `{name.partition(', ')[2]}` | {_micro(value('bench-agents', name))} |")
    lines += ["", "| a scoring worker (one core), answered over HTTP | |", "|---|---:|"]
    for name in ("by id", "inline columns", "inline rows"):
        lines.append(f"| decisions/s, 8 connections, {name} | {value('bench', f'1 worker, 8 conn., {name}'):,.0f} |")
    lines += [
        f"| decisions/s of two workers, 8 connections, by id | {value('bench', '2 workers, 8 conn., by id'):,.0f} |",
        f"| decisions/s of one worker with all of `up` on the same two cores | {value('bench', 'the whole of up, 1 worker, 8 conn., by id'):,.0f} |",
        f"| memory, with a catalogue of 10,000 items | {value('bench', 'memory of a scoring worker, 1 worker'):.0f} MB |",
        "",
        "| learning (a decision and its feedback, two learning policies a surface) | |",
        "|---|---:|",
    ]
    lines += [
        f"| CPU a decision, {name.partition(', ')[2]} | {_micro(value('bench', name))} |"
        for name in learn
        if name.startswith("joined and learned, ") and "durable" not in name
    ]
    lines += [
        f"| decisions/s of one shard, durable, SQLite | {value('bench', 'joined and learned, durable'):,.0f} |",
        f"| records/s of one shard over Kafka (`kafka-python`) | {value('bench', 'joined and learned over kafka-python'):,.0f} |",
        f"| a publish of a policy (47 columns, 256 draws), median | {value('bench', 'publish, median'):.0f} ms |",
    ]
    for name in rows["bench-agents"]:
        if name.startswith("trained, "):
            lines.append(f"| {name}: transitions a second of CPU | {value('bench-agents', name):,.0f} |")
    lines += ["", "| what is kept | bytes |", "|---|---:|"]
    lines += [f"| {name}{_note(row)} | {float(row['value']):,.0f} |" for name, row in sizes.items()]
    return "\n".join(lines)


def page(text: str, folder: Path, files: list[str] | None = None) -> str:
    """The page with its tables as the files say; of the files it names, or others."""
    found = _BLOCK.search(text)
    if found is None:
        raise ValueError(f"no {BEGIN} … {END}")
    named = files or found[1].split()
    block = f"{BEGIN.format(files=' '.join(named))}\n{tables(read(folder, named))}\n{END}"
    return text[: found.start()] + block + text[found.end() :]


def _part(file: str) -> str:
    return Path(file).stem[len("2026-01-01-") :]


def _micro(value: float) -> str:
    return f"{value / 1e3:.1f} ms" if value >= 2_000 else f"{value:.0f} µs"


def _note(row: Mapping[str, Any]) -> str:
    return f" ({row['note']})" if row.get("note") else ""


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), EVIDENCE, newest(EVIDENCE)), encoding="utf-8")
