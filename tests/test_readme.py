"""The README tells the truth: its commands exist, its algorithm table is the registry's, its folders are there."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from click.testing import CliRunner

from policies.registry import ALGORITHMS
from services.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def algorithm_table() -> str:
    rows = ["| algorithm | model | merges | source |", "|---|---|---|---|"]
    for name, algorithm in ALGORITHMS.items():
        if "epochs" in algorithm.traits:
            merges = "within an epoch"
        elif algorithm.trainer:
            merges = "trained in one recorded order"
        else:
            merges = "yes" if "merges" in algorithm.traits else "nothing to learn"
        rows.append(f"| `{name}` | {algorithm.summary} | {merges} | {algorithm.source} |")
    return "\n".join(rows)


def test_the_table_of_algorithms_is_the_registry() -> None:
    found = re.search(r"<!-- algorithms -->\n(.*?)\n<!-- /algorithms -->", README, re.S)
    assert found
    assert found[1] == algorithm_table(), "paste this into the README:\n" + algorithm_table()


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert named
    assert named <= targets


def test_every_slatewise_command_named_exists() -> None:
    named = set(
        re.findall(
            r"\bslatewise ((?:up|[a-z-]+)(?: (?:jester|obd|hillstrom|streams|inspect|verify|rollback|list))?)\b",
            "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", README, re.S)),
        )
    )
    assert named
    for command in named:
        result = CliRunner().invoke(main, [*command.split(), "--help"])
        assert result.exit_code == 0, (command, result.output)


def test_every_folder_of_the_map_exists() -> None:
    folders = re.findall(r"^\| `([a-z./]+/)` \|", README, re.M)
    assert len(folders) >= 5
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder


def test_the_configuration_shown_is_valid(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(surface: .*?)```", README, re.S)
    assert shown
    assert yaml.safe_load(shown[1])
    (tmp_path / "home.yaml").write_text(shown[1])
    result = CliRunner().invoke(main, ["validate", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_scoring_needs_neither_ray_nor_torch() -> None:
    code = "import services.scoring.serve, sys; print([m for m in ('ray', 'torch', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
