"""What `/ops` and `GET /v1/overview` show: traffic and reward from the log, latency and freshness from scoring's metrics,
bundles and holds from the stores. Whatever is away is left out and named in `missing`."""

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from policies.errors import SlatewiseError
from services.control import health
from services.control.window import Window
from services.exposition import Exposition, quantile
from services.releases import Releases, holds
from streaming.configuration import Configs
from streaming.ports import DeadLetters

log = logging.getLogger("slatewise.control")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every scrape
RECENT_SECONDS = 30.0  # quantiles are of what happened in the last so many seconds
TURN_SECONDS = 1.0
STALE_SECONDS = 5 * TURN_SECONDS


class Overview:
    """Follows log and metrics in a thread of its own, answers from memory."""

    def __init__(
        self, releases: Releases, configs: Configs, dead: DeadLetters, sources: Mapping[str, tuple[str, int]]
    ) -> None:
        self._releases, self._configs, self._dead = releases, configs, dead
        self._window = Window(releases.events, configs)
        self._sources, self._http = sources, httpx.Client(timeout=2.0)
        self._answered = dict.fromkeys(sources, -math.inf)
        self._scrapes: deque[tuple[float, Exposition]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overview", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._http.close()

    def report(self) -> dict[str, Any]:
        scrape, surfaces = self.scrape, {}
        for name in self._configs.surfaces():
            bundles = [line | {"draws": health.draws(scrape, name, line["policy"])} for line in self.policies(name)]
            surfaces[name] = {**self._window.report(name), "bundles": bundles, "goals": health.goals(scrape, name)}
        fresh = scrape is not None
        return {
            "at": time.time(),
            "surfaces": surfaces,
            "scoring": self._numbers() if fresh else None,
            "dead_letters": self._dead.count(),
            "missing": [name for name, at in self._answered.items() if time.time() - at >= STALE_SECONDS],
        }

    def refused(self, surface: str, policy: str) -> float:
        """Bundles of a policy that scoring has refused, as of the last scrape."""
        if not self._scrapes:
            return 0.0
        newest = self._scrapes[-1][1].by("swap_total", "outcome", surface=surface, policy=policy)
        return sum(count for outcome, count in newest.items() if outcome not in ("swapped", "unavailable"))

    @property
    def scrape(self) -> Exposition | None:
        """The newest numbers; None: nobody has answered lately."""
        latest = self._scrapes[-1] if self._scrapes else None
        return latest[1] if latest is not None and time.time() - latest[0] < STALE_SECONDS else None

    def stream(self) -> dict[str, Any]:
        """How far each part of the stream is behind. Raises Unavailable."""
        return {
            "at": time.time(),
            **health.stream(self.scrape, self._releases.events),
            "dead_letters": self._dead.count(),
        }

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The newest decisions, the newest first."""
        return self._window.recent(limit)

    def policies(self, surface: str) -> list[dict[str, Any]]:
        """Every policy of a surface with the bundle it points to."""
        compiled = self._configs.current(surface)
        if compiled is None:
            return []
        pointers, held = self._releases.bundles.pointers(), holds(self._releases.state)
        found = []
        for name in dict.fromkeys([*compiled.surface.policies, compiled.surface.fallback]):
            pointer = f"{surface}/{name}"
            entry: dict[str, Any] = {
                "policy": name,
                "algorithm": compiled.policies[name].algorithm.name,
                "live": name == (self._configs.live(compiled) or compiled.surface.fallback),
                "bundle": pointers.get(pointer),
                "held": pointer in held,
            }
            try:
                manifest = self._releases.read(pointer).manifest if pointer in pointers else None
            except SlatewiseError as error:
                entry["error"] = str(error)
            else:
                if manifest is not None:
                    entry |= {
                        "number": manifest.number,
                        "created_at": manifest.created_at,
                        "slot_weight": manifest.slot_weight,
                        "diagnostics": manifest.diagnostics,
                    }
            found.append(entry)
        return found

    def _numbers(self) -> dict[str, Any]:
        newest, oldest = self._scrapes[-1][1], self._scrapes[0][1]
        seconds = max(self._scrapes[-1][0] - self._scrapes[0][0], 1e-9)

        def recent(name: str, q: float) -> float | None:
            return quantile(newest.buckets(name), q, oldest.buckets(name))

        requests = newest.total("decide_requests_total") - oldest.total("decide_requests_total")
        return {
            "decisions_total": newest.total("decide_requests_total"),
            "decisions_per_second": max(requests, 0.0) / seconds if len(self._scrapes) > 1 else 0.0,
            "feedback": newest.by("feedback_events_total", "outcome"),
            "latency_seconds": {
                "p50": recent("decide_latency_seconds", 0.5),
                "p99": recent("decide_latency_seconds", 0.99),
            },
            "freshness_seconds": {"p50": recent("freshness_seconds", 0.5), "p95": recent("freshness_seconds", 0.95)},
            "spool_bytes": newest.total("spool_bytes"),
            "published": newest.total("publish_total", outcome="published"),
        }

    def _run(self) -> None:
        while not self._stop.wait(TURN_SECONDS):
            try:
                self._configs.follow(self._releases.state)
                while self._window.follow() and not self._stop.is_set():
                    pass
                self._scrape()
            except SlatewiseError as error:  # a store is away: the page says what it has
                log.warning("overview", extra={"error": str(error)})

    def _scrape(self) -> None:
        parts, now = [], time.time()
        for name, source in self._sources.items():
            for host in _addresses(*source):
                with suppress(httpx.HTTPError):  # `report` names who is missing
                    text = self._http.get(f"http://{host}:{source[1]}/metrics").raise_for_status().text
                    parts.append(Exposition.parse(text))
                    self._answered[name] = now
        if not parts:
            return
        self._scrapes.append((now, Exposition.together(parts)))
        while len(self._scrapes) > 2 and self._scrapes[0][0] < now - RECENT_SECONDS:
            self._scrapes.popleft()


def _addresses(host: str, port: int) -> list[str]:
    """Every address of a host: a headless service of Kubernetes has one a replica. None where the name is not known now."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(f"[{to[0]}]" if family == socket.AF_INET6 else str(to[0]) for family, *_, to in found))
