"""Settings out of environment and flags, and what is refused."""

from pathlib import Path

import pytest

from policies.errors import Rejected
from services.settings import Settings, address, path_of


def test_flags_win_over_the_environment() -> None:
    environ = {"SLATEWISE_HTTP": "127.0.0.1:1", "SLATEWISE_WORKERS": "3", "SLATEWISE_DATA": "/tmp/x"}
    settings = Settings.load(environ, http="127.0.0.1:2", workers=None)
    assert settings.http_address == ("127.0.0.1", 2)
    assert settings.workers == 3
    assert settings.log_path == Path("/tmp/x/log.sqlite")


def test_a_child_process_gets_the_same_settings() -> None:
    settings = Settings.load({}, data="some/where", config="conf", ray="inline", log="sqlite:////var/log.sqlite")
    assert settings.data.is_absolute()
    assert Settings.load(settings.environment()) == settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP", "8080"),
        ("HTTP", "127.0.0.1:99999"),
        ("HTTP", "0.0.0.0:8080"),
        ("CONTROL_HTTP", "example.org:80"),
        ("METRICS_HTTP", "0.0.0.0:8082"),
        ("METRICS_FROM", "scoring"),
        ("WORKERS", "two"),
        ("WORKERS", "0"),
        ("ACK", "never"),
        ("RAY", "cluster"),
        ("LOG", "redis://127.0.0.1:6379"),
        ("LOG", "log.sqlite"),
        ("STATE", "kafka://127.0.0.1:9092"),
        ("BUNDLES", "some/folder"),
        ("EXPERIENCES", "some/folder"),
        ("RETENTION_SECONDS", "a week"),
        ("DERIVE", "maybe"),
        ("ESTIMATES", "maybe"),
        ("DRIFT", "maybe"),
    ],
)
def test_what_is_wrong_is_named(variable: str, value: str) -> None:
    with pytest.raises(Rejected) as refused:
        Settings.load({f"SLATEWISE_{variable}": value})
    assert refused.value.at == f"SLATEWISE_{variable}"


def test_an_unknown_setting_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="colour"):
        Settings.load({}, colour="blue")


def test_three_urls_make_it_production() -> None:
    """What stays on the host stays under `data`; the record moves to Kafka with the log."""
    environ = {"SLATEWISE_LOG": "kafka://127.0.0.1:9092", "SLATEWISE_STATE": "redis://127.0.0.1:6379/0"}
    settings = Settings.load(environ, data="/tmp/x", keys="/etc/slatewise", bundles="s3://bucket/slatewise")
    assert settings.on_kafka
    assert settings.on_redis
    assert settings.spool_path == Path("/tmp/x/spool")
    assert settings.keys_path == Path("/etc/slatewise")
    assert Settings.load({}, data="/tmp/x").keys_path == Path("/tmp/x")


def test_addresses_and_urls() -> None:
    assert address("[::1]:80", "$") == ("::1", 80)
    assert address("localhost:80", "$") == ("localhost", 80)
    assert path_of("sqlite:///a/b.sqlite", "sqlite", "$") == Path("a/b.sqlite")
    assert path_of("sqlite:////a/b.sqlite", "sqlite", "$") == Path("/a/b.sqlite")
    assert path_of("file:///a/b", "file", "$") == Path("/a/b")
    assert path_of("", "file", "$") is None
    for url in ("kafka://host:9092", "sqlite://x", "sqlite:///"):
        with pytest.raises(Rejected, match="sqlite:///path"):
            path_of(url, "sqlite", "$")
