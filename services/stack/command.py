"""`slatewise stack`: Kafka, Redis and a Ray cluster on this machine, and the service on them, until interrupted.

What a production installation has on many machines, on one and without Docker: to see it, to develop against it, to
break it. The folder keeps the log, the bundles and the keys, so the next start goes on where this one ended.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from services.settings import Settings

DATA = Path(".slatewise") / "stack"


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA, show_default=True, help="Folder of everything.")
@click.option("--config", type=click.Path(path_type=Path), help="Folder of surface documents.")
@click.option("--http", help="host:port of the scoring service.")
@click.option("--control-http", help="host:port of the control service.")
@click.option("--workers", type=int, help="Scoring processes that share the port.")
@click.option("--confluent", is_flag=True, help="Speak to Kafka by confluent-kafka instead of kafka-python.")
@click.option("--nodes", type=click.IntRange(1), default=2, show_default=True, help="Ray nodes.")
def command(data: Path, confluent: bool, nodes: int, **flags: Any) -> None:
    """Run Kafka, Redis, Ray and the service on this machine. Needs Java 17 and redis-server; Maven for the first start."""
    from services.lifetime import listen_again, stopping
    from services.supervisor import Supervisor, prepare
    from services.telemetry import configure_logs

    stop = stopping()
    with standing(data.absolute(), nodes, confluent=confluent) as urls:
        settings = Settings.load(None, data=data / "host", **urls, **flags)
        configure_logs("stack", settings.log_level)
        listen_again()  # Ray takes the signals for itself
        prepare(settings)
        for name, url in urls.items():
            click.echo(f"SLATEWISE_{name.upper()}={url}", err=True)
        click.echo(f"decisions  http://{settings.http}/docs\noperations http://{settings.control_http}/ops", err=True)
        Supervisor(settings, stop=stop).run()


@contextlib.contextmanager
def standing(folder: Path, nodes: int = 2, *, confluent: bool = False) -> Iterator[dict[str, Any]]:
    """Settings of a stack that runs, as Settings.load takes them. Raises Unavailable, naming what is not installed."""
    from services.stack.kafka import Broker, missing
    from services.stack.ray import RayNodes
    from services.stack.redis import RedisServer

    lacking = missing()
    if lacking:
        raise click.ClickException(f"the stack {lacking}")
    with Broker(folder / "kafka") as kafka, RedisServer(folder / "redis") as redis, RayNodes(nodes) as ray:
        yield {
            "log": f"kafka{'+confluent' if confluent else ''}://{kafka.bootstrap}",
            "state": redis.url,
            "bundles": (folder / "bundles").as_uri(),
            "ray": ray.url,
        }
