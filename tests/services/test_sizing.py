"""The sizing guide says what was measured: its tables are those of the files it names, and so are the numbers drawn from them."""

from pathlib import Path

import pytest

from services.bench.report import Report
from services.bench.sizes import measure
from services.bench.sizing import newest, page, read

ROOT = Path(__file__).parents[2]
EVIDENCE, TEXT = ROOT / "docs" / "evidence", (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")


def named() -> list[str]:
    return TEXT.split("<!-- sizing: ")[1].split(" -->")[0].split()


def test_the_tables_are_those_of_the_files_they_name() -> None:
    assert page(TEXT, EVIDENCE) == TEXT
    changed = TEXT.replace(" µs |", " ms |", 1)
    assert page(changed, EVIDENCE) != changed  # a number that nobody measured would be seen
    assert {file[11:] for file in newest(EVIDENCE)} == {file[11:] for file in named()}
    with pytest.raises(ValueError, match="sizing"):
        page("no block", EVIDENCE)


def test_what_is_concluded_follows_from_what_was_measured() -> None:
    sizes = read(EVIDENCE, named())["bench-sizes"]
    record = sizes["decision in the spool and the log"]["value"]
    row = sizes["decision open in a shard's checkpoint"]["value"]
    assert (1 << 30) / record == pytest.approx(280_000, rel=0.05)
    assert 1_000 * record * 7 * 86_400 / 1e12 == pytest.approx(2.3, abs=0.1)
    assert pytest.approx(17e6, rel=0.05) == 100 * 2 * 86_400
    assert 100 * 2 * 86_400 * row / 1e9 == pytest.approx(4.3, abs=0.3)


def test_bytes_are_counted_alike_everywhere() -> None:
    """Today's code against the table: what grew by a tenth is to be measured, and said, anew."""
    report = Report("sizes", "test")
    measure(report, 600, 2_000)
    found = {row.name: row.value for row in report.rows}
    said = {name: row["value"] for name, row in read(EVIDENCE, named())["bench-sizes"].items()}
    assert found.keys() == said.keys()
    for name in ("decision in the spool and the log", "feedback in the log", "profile of a unit", "item in the record"):
        assert found[name] == pytest.approx(said[name], rel=0.1), name
    by_pages = ("checkpoint", "memory")  # nothing of a few rows
    assert all(value > 0 for name, value in found.items() if not any(word in name for word in by_pages))
