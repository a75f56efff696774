"""Replay: the last transitions a trainer was given, as named arrays in one ring."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from policies.types import I64, Arrays

Columns = Mapping[str, NDArray[np.generic]]


class Replay:
    """At most `capacity` rows, the oldest overwritten first. Which rows are read is the caller's draw.

    Columns keep the widest shape they were given so far: narrower rows are padded with zeros, at the end of every axis
    except those named in `front`, whose axis 1 is padded in front (histories end with the newest).
    """

    def __init__(self, capacity: int, front: frozenset[str] = frozenset()) -> None:
        self.capacity, self._front = capacity, front
        self._columns: dict[str, NDArray[np.generic]] = {}
        self.added = 0  # rows ever

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, columns: Columns) -> None:
        """Rows in order; all columns have as many."""
        rows = len(next(iter(columns.values())))
        skipped = max(0, rows - self.capacity)
        start = (self.added + skipped) % self.capacity
        first = min(rows - skipped, self.capacity - start)  # so many before the ring begins anew
        for name, value in columns.items():
            self._fit(name, value)
            held = self._columns[name]
            new = self._padded(name, value[skipped:], held.shape[1:])
            held[start : start + first], held[: len(new) - first] = new[:first], new[first:]
        self.added += rows

    def rows(self, chosen: I64) -> Arrays:
        """Copies of rows, numbered 0 … len − 1 in no particular order of age."""
        return {name: value.take(chosen, axis=0) for name, value in self._columns.items()}

    def newest(self, count: int) -> Arrays:
        """The last rows added, oldest first."""
        return self.rows(np.arange(max(0, self.added - min(count, len(self))), self.added) % self.capacity)

    def arrays(self) -> Arrays:
        """Everything `load` needs. Copies, so that they stand still."""
        held = {f"replay.{name}": value[: len(self)].copy() for name, value in self._columns.items()}
        return held | {"replay_added": np.array([self.added])}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._columns = {}
        self.added = 0
        held = {n.removeprefix("replay."): a for n, a in arrays.items() if n.startswith("replay.")}
        if held:
            self.add(held)
        self.added = int(arrays["replay_added"][0])

    def _fit(self, name: str, value: NDArray[np.generic]) -> None:
        held = self._columns.get(name)
        if held is None:
            self._columns[name] = np.zeros((self.capacity, *value.shape[1:]), value.dtype)
            return
        wanted = tuple(max(a, b) for a, b in zip(held.shape[1:], value.shape[1:], strict=True))
        if wanted != held.shape[1:]:
            self._columns[name] = self._padded(name, held, wanted)

    def _padded(self, name: str, value: NDArray[np.generic], wanted: tuple[int, ...]) -> NDArray[np.generic]:
        missing = [w - v for w, v in zip(wanted, value.shape[1:], strict=True)]
        if not any(missing):
            return value
        pads = [(m, 0) if i == 0 and name in self._front else (0, m) for i, m in enumerate(missing)]
        return np.pad(value, [(0, 0), *pads])
