"""The command line: quick to answer, names mistakes, ends with the right code."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from services import releases as releasing
from services.cli import ELSEWHERE, main
from services.configuring import apply_quickstart
from services.epochs import take_epoch
from services.settings import Settings
from services.wiring import open_bundles, open_dead_letters, open_state
from streaming.configuration import Configs
from streaming.ports import DeadLetter
from streaming.publish import Publisher

HEAVY = ("numpy", "numba", "onnx", "onnxruntime", "fastapi", "ray", "torch", "pandas")


def slatewise(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from services.cli import main;"
        "said = CliRunner().invoke(main, ['--help']).output;"
        f"print(said, [name for name in {HEAVY} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.rstrip().endswith("[]")
    for name in [*main.commands, *ELSEWHERE]:
        assert f"  {name}" in ended.stdout


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_commands_of_other_rooms_are_found(name: str) -> None:
    ended = slatewise(name, "--help")
    assert ended.exit_code == 0, ended.output
    assert "Usage" in ended.output


def test_validate_says_nothing_is_wrong() -> None:
    ended = slatewise("validate", str(Path(main.callback.__code__.co_filename).parent / "quickstart"))
    assert ended.exit_code == 0, ended.output
    assert "home: 2 policies, live home-ts" in ended.output


def test_validate_names_every_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("surface: a\nslots: ten\nlive: nobody\ncolour: blue\n")
    ended = slatewise("validate", str(tmp_path))
    assert ended.exit_code == 1
    for said in ("a.yaml:2", "a.yaml:3", "a.yaml:4", "colour"):
        assert said in ended.output
    assert slatewise("validate", str(tmp_path / "a.yaml")).exit_code == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert slatewise("validate", str(empty)).exit_code == 1


def test_up_refuses_a_broken_configuration_before_it_starts_anything(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("surface: a\nlive: nobody\n")
    ended = slatewise("up", "--config", str(tmp_path), "--data", str(tmp_path / "data"))
    assert ended.exit_code == 1
    assert "nobody" in ended.output


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    ended = slatewise("up", "--data", str(tmp_path), "--http", "0.0.0.0:80")
    assert ended.exit_code == 1
    assert "SLATEWISE_HTTP" in ended.output
    assert "Traceback" not in ended.output


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, list[str]]:
    """A data folder with two bundles of a policy."""
    monkeypatch.setattr(releasing, "SEEN_SECONDS", 0.0)  # no learning service runs here
    settings = Settings.load({}, data=tmp_path)
    state, configs = open_state(settings), Configs()
    apply_quickstart(state)
    configs.follow(state)
    compiled = configs.current("home")
    assert compiled is not None
    publisher = Publisher(open_bundles(settings), configs, take_epoch(state))
    made = [publisher.publish(compiled.policies["home-ts"], [], {0: 0}, 1_000.0).manifest for _ in range(2)]
    return settings, [manifest.bundle for manifest in made if manifest is not None]


def test_bundles_are_inspected_verified_rolled_back(published: tuple[Settings, list[str]]) -> None:
    settings, (first, second) = published
    data = ("--data", str(settings.data))
    assert msgspec.json.decode(slatewise("bundle", "inspect", *data).output)["home/home-ts"]["bundle"] == second
    assert msgspec.json.decode(slatewise("bundle", "inspect", first, *data).output)["number"] == 0
    assert "is what it claims to be" in slatewise("bundle", "verify", "home/home-ts", *data).output
    assert slatewise("bundle", "rollback", "home/home-ts", "--to", first, *data).exit_code == 0
    shown = msgspec.json.decode(slatewise("bundle", "inspect", *data).output)
    assert shown["home/home-ts"] == {"bundle": first, "held": True}
    assert slatewise("bundle", "resume", "home/home-ts", *data).exit_code == 0
    ended = slatewise("bundle", "resume", "home/home-ts", *data)
    assert (ended.exit_code, "not held" in ended.output) == (1, True)


def test_a_flipped_byte_is_found(published: tuple[Settings, list[str]]) -> None:
    settings, (_, second) = published
    graph = next((settings.data / "bundles" / "graphs").iterdir())
    spoilt = bytearray(graph.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    graph.write_bytes(spoilt)
    ended = slatewise("bundle", "verify", second, "--data", str(settings.data))
    assert ended.exit_code == 1
    assert "hash" in ended.output


def test_dead_letters_are_listed(tmp_path: Path) -> None:
    letters = open_dead_letters(Settings.load({}, data=tmp_path))
    letters.put([DeadLetter(0, 7, "too_late", "an hour", b"k", b"v"), DeadLetter(1, 2, "conflict", "", b"k", b"v")])
    said = slatewise("dead-letters", "list", "--data", str(tmp_path)).output
    assert "0:7 too_late an hour" in said
    assert "1  conflict" in said


def test_studies_are_named_for_whoever_runs_them_all() -> None:
    from services.studies.command import STUDIES, command

    assert CliRunner().invoke(command, ["--names"]).output.split() == list(STUDIES)
