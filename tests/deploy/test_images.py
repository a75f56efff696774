"""The image and the compose file, by the linters of their trades; and what the scoring image must not carry."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from services.settings import PREFIX, Settings

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


def test_every_service_of_compose_takes_the_settings_it_is_given(tmp_path: Path) -> None:
    """As compose would fill them in: by default, and with a tenant and a proxy of one's own."""
    given = {"SLATEWISE_TENANT": "shop", "SLATEWISE_OPS_USER_HEADER": "X-Forwarded-User"}
    given |= {"SLATEWISE_OPS_PROXIES": "10.1.0.0/16", "SLATEWISE_ADMIN_KEY": "an-admin-key-of-more-than-32-characters"}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    ours = {name: one["environment"] for name, one in compose["services"].items() if "build" in one}
    assert ours.keys() == {"scoring", "forwarder", "learning", "settle", "control"}
    for environ in ({"SLATEWISE_ADMIN_KEY": given["SLATEWISE_ADMIN_KEY"]}, given):
        for name, said in ours.items():
            filled = {key: _filled(str(value), environ) for key, value in said.items()}
            found = Settings.load(filled)
            assert {key.removeprefix(PREFIX).lower() for key in filled} <= set(Settings.__dataclass_fields__)
            assert found.tenant == environ.get("SLATEWISE_TENANT", "default"), name
            people = environ.get("SLATEWISE_OPS_USER_HEADER", "") if name == "control" else ""
            assert found.ops_user_header == people, name


def test_prometheus_and_the_ops_page_reach_every_process_that_counts() -> None:
    """Each service of compose has a data folder of its own, so each gives out its own metrics."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    environ = {"SLATEWISE_ADMIN_KEY": "an-admin-key-of-more-than-32-characters"}
    found = {
        name: Settings.load({key: _filled(str(value), environ) for key, value in one["environment"].items()})
        for name, one in compose.items()
        if "build" in one and name != "forwarder"  # which counts nothing
    }
    listening = {
        name: (own.metrics_address or (own.control_address if name == "control" else own.http_address))[1]
        for name, own in found.items()
    }
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [targets] = prometheus["scrape_configs"][0]["static_configs"]
    assert sorted(targets["targets"]) == sorted(f"{name}:{port}" for name, port in listening.items())
    assert dict(found["control"].metrics_sources.values()) == {k: v for k, v in listening.items() if k != "control"}
    folders = [
        volume
        for one in compose.values()
        for volume in one.get("volumes", [])
        if volume.endswith(":/var/lib/slatewise")
    ]
    assert len(folders) == len(set(folders)) + 1  # scoring and its forwarder


def _filled(text: str, environ: dict[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?complaint}` as compose fills them in."""

    def one(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert kind == ":-" or name in environ, rest
        return environ.get(name) or rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", one, text)


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
    assert '".[stores,confluent,otel]"' in stage
    assert "learning" not in stage
    assert "agents" not in stage
