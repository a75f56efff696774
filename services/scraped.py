"""`/metrics` of processes that answer nothing else: learning and settling, where each has a container of its own.

On one machine they share the data folder with scoring, which gives out the metrics of all; then there is no listener here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from policies.errors import Rejected
from services.settings import PREFIX, Settings


@contextmanager
def scraped(settings: Settings) -> Iterator[None]:
    """Metrics of this process, and of all that share its folder, at `metrics_http` while the block runs.

    After `telemetry.share`. Raises Rejected when the address is taken.
    """
    if settings.metrics_address is None:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server  # after `telemetry.share`, see there
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped library
    host, port = settings.metrics_address
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise Rejected(f"{settings.metrics_http}: {error.strerror}", at=f"{PREFIX}METRICS_HTTP") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
