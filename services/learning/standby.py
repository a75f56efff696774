"""A learning service that was superseded: it does nothing, and takes over when nobody seems to learn any more.

Two services that both insist would fence each other for ever, so the older one waits. That the newer one is there shows in its
uploads: when records keep waiting in the log and no upload moves for `TAKEOVER_SECONDS`, it is gone (or as good as).
A takeover that was wrong costs a restart from the newest upload, and no record.
"""

import logging
import threading
import time

from policies.errors import Corrupt, Unavailable
from streaming.ports import Bundles, Log
from streaming.uploads import Uploads

log = logging.getLogger("slatewise.learning")
LOOK_SECONDS = 1.0
TAKEOVER_SECONDS = 300.0  # longer than any upload waits, and than most shards need to rebuild their joins


def stand_by(
    store: Bundles,
    events: Log,
    stop: threading.Event,
    *,
    look_seconds: float = LOOK_SECONDS,
    takeover_seconds: float = TAKEOVER_SECONDS,
) -> None:
    """Returns when it is time to take over, or to stop."""
    readers = [Uploads(store, partition, 0) for partition in range(events.partitions)]
    seen: dict[str, str] = {}
    since = time.monotonic()
    while not stop.wait(look_seconds):
        try:
            moved, waiting = store.pointers(), _waiting(readers, events)
        except (Unavailable, Corrupt):  # whoever learns now has the same trouble
            since = time.monotonic()
            continue
        if moved != seen or not waiting:
            seen, since = moved, time.monotonic()
        elif time.monotonic() - since > takeover_seconds:
            log.warning("takes over", extra={"silent_seconds": takeover_seconds})
            return


def _waiting(readers: list[Uploads], events: Log) -> bool:
    """Whether the log has records that no upload knows."""
    newest = [reader.newest() for reader in readers]
    return any(events.end(p)[0] > (found.offset if found else 0) for p, found in enumerate(newest))
