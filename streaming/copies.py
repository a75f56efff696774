"""A replica's own copies of the state record and of the bundles it serves: what it starts from when all else is down."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from policies.errors import Unavailable
from streaming.kept import KeptBundles, KeptState, Standing


class Copies:
    """The copies of one host. Of its workers one keeps them, the one that holds the folder's lock."""

    def __init__(self, folder: Path, state: KeptState, bundles: KeptBundles) -> None:
        self._folder, self._state, self._bundles = folder, state, bundles
        self._holder: int | None = None

    @property
    def standing(self) -> dict[str, Standing]:
        return {"state": self._state.standing, "bundles": self._bundles.standing}

    def keep(self, served: Mapping[str, str]) -> None:
        """Bring them up to date, each as far as its store answers. Raises Unavailable, Corrupt."""
        if not self._hold():
            return
        try:
            self._bundles.keep(served)
        finally:
            self._state.keep()

    def close(self) -> None:
        if self._holder is not None:
            os.close(self._holder)
            self._holder = None

    def _hold(self) -> bool:
        if self._holder is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise Unavailable(f"copies {self._folder}: {error}") from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            self._holder = handle
        return True
