"""The image and the compose file, by the linters of their trades; and what the scoring image must not carry."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    return shutil.which(name, path=TOOLS) or name


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_is_what_compose_reads() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_services_are_built_from_targets_that_are_there() -> None:
    targets = {
        line.split(" AS ")[1]
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("FROM") and " AS " in line
    }
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    built = {one["build"]["target"] for one in compose["services"].values() if "build" in one}
    assert built == {"scoring", "learning", "control"}
    assert built <= targets


def test_scoring_installs_neither_torch_nor_ray() -> None:
    stage = (DEPLOY / "Dockerfile").read_text().split("AS build-scoring")[1].split("FROM")[0]
    assert '".[stores,confluent]"' in stage
    assert "learning" not in stage
    assert "agents" not in stage
