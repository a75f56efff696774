"""A replica's own copy of the state record, from which it starts when the state store is away (`semantics.md` 18)."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from policies.errors import Corrupt, Unavailable
from streaming.durable import replace_file, sweep
from streaming.ports import Versioned

_MAGIC = b"slatewise-state-1\n"
_DIGEST_BYTES = 32
_decode = msgspec.msgpack.Decoder(tuple[int, list[tuple[int, str, str, bytes | None]]]).decode


class Snapshot:
    """One file: the version reached and the entries up to it, with their hash."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def save(self, version: int, entries: Iterable[Versioned]) -> None:
        """Replace the snapshot in one step, durable on return. Raises Unavailable when the disk refuses."""
        body = msgspec.msgpack.encode((version, [(e.version, e.kind, e.key, e.value) for e in entries]))
        try:
            replace_file(self._path, _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() + body)
            sweep(self._path.parent, f"{self._path.name}.*")
        except OSError as error:
            raise Unavailable(f"snapshot {self._path}: {error}") from error

    def load(self) -> tuple[int, list[Versioned]]:
        """(version, entries); (0, []) when none was saved. Raises Corrupt('snapshot'), Unavailable."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0, []
        except OSError as error:
            raise Unavailable(f"snapshot {self._path}: {error}") from error
        start = len(_MAGIC) + _DIGEST_BYTES
        digest, body = data[len(_MAGIC) : start], data[start:]
        if not data.startswith(_MAGIC) or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
            raise Corrupt("snapshot", f"{self._path} is not what was written")
        version, entries = _decode(body)
        return version, [Versioned(*entry) for entry in entries]
