"""Named values in bounded memory: the least recently written goes when it is full; committed in pieces, told by name.

A value lives in a slot, a piece is a run of slots: a commit rewrites the pieces in which something changed, whatever the
number of names. Which value was written when is not committed: after a restart the order begins anew.
"""

from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec
import numpy as np

from policies.types import Arrays

V = TypeVar("V", float, bytes)
_encode = msgspec.msgpack.Encoder().encode


class Ledger(Generic[V]):
    """`prefix` begins the keys of its pieces; `piece` is their number of slots, `limit` that of all."""

    def __init__(self, prefix: str, kind: type[V], *, limit: int, piece: int) -> None:
        self._prefix, self._limit, self._piece = prefix, limit, piece
        self._decode = msgspec.msgpack.Decoder(list[tuple[str, kind]]).decode  # type: ignore[valid-type]  # a type parameter's value
        self._values: dict[str, V] = {}  # least recently written first
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = []
        self._free: list[int] = []
        self._dirty: set[int] = set()
        self._changed: dict[str, None] = {}
        self.forgotten = 0  # values that went because it was full

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str) -> V | None:
        return self._values.get(name)

    def put(self, name: str, value: V) -> None:
        slot = self._slots.get(name)
        if slot is None:
            if len(self._values) >= self._limit:
                self.take(next(iter(self._values)))
                self.forgotten += 1
            if not self._free:
                self._free.append(len(self._names))
                self._names.append(None)
            slot = self._slots[name] = self._free.pop()
            self._names[slot] = name
        else:
            del self._values[name]  # written last from now on
        self._values[name] = value
        self._touch(name, slot)

    def take(self, name: str) -> None:
        """Forget a name."""
        if self._values.pop(name, None) is not None:
            slot = self._slots.pop(name)
            self._names[slot] = None
            self._free.append(slot)
            self._touch(name, slot)

    def changes(self) -> dict[str, V | None]:
        """What has changed since the last `told`, as it is now; None for what is gone."""
        return {name: self._values.get(name) for name in self._changed}

    def values(self) -> dict[str, V]:
        return dict(self._values)

    def told(self) -> None:
        """Everybody has been told of all changes."""
        self._changed = {}

    def keys(self) -> list[str]:
        """Of all pieces."""
        return [f"{self._prefix}{number}" for number in range(-(-len(self._names) // self._piece))]

    def piece(self, key: str) -> Arrays:
        return {"rows": self._rows(int(key.removeprefix(self._prefix)))}

    def pieces(self) -> dict[str, Arrays]:
        """Pieces with changes since the last `committed`."""
        return {key: self.piece(key) for key in [f"{self._prefix}{number}" for number in sorted(self._dirty)]}

    def committed(self) -> None:
        self._dirty = set()

    def restore(self, pieces: Mapping[str, Arrays], *, keep: bool = True) -> None:
        """What was committed, in place of what is there; everything counts as told. Without `keep` the next commit empties it."""
        self._values, self._slots, self._names, self._free = {}, {}, [], []
        self._dirty, self._changed = set(), {}
        if not keep:
            self._dirty = {int(key.removeprefix(self._prefix)) for key in pieces}
            return
        found = {int(key.removeprefix(self._prefix)): piece["rows"] for key, piece in pieces.items()}
        for number in range(max(found, default=-1) + 1):
            rows = self._decode(found[number].tobytes()) if number in found else []
            for name, value in rows:
                self._slots[name] = len(self._names)
                self._names.append(name)
                self._values[name] = value
            while len(self._names) < (number + 1) * self._piece:
                self._free.append(len(self._names))
                self._names.append(None)

    def _rows(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        names = self._names[number * self._piece : (number + 1) * self._piece]
        return np.frombuffer(_encode([(name, self._values[name]) for name in names if name is not None]), np.uint8)

    def _touch(self, name: str, slot: int) -> None:
        self._dirty.add(slot // self._piece)
        self._changed[name] = None
