"""A replica's own copy of the state record, from which it starts when the state store is away (`semantics.md` 18)."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from struct import Struct

import msgspec

from policies.errors import Corrupt, Unavailable
from streaming.durable import replace_file, sweep
from streaming.ports import Versioned

_MAGIC = b"slatewise-state-2\n"
_DIGEST_BYTES = 32
_PIECE = 500  # entries: encoding a piece holds the interpreter, and requests with it, for a fraction of a millisecond
_HEAD, _SIZE = Struct("<Q"), Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, str, str, bytes | None]]).decode


class Snapshot:
    """One file: the version reached and the entries up to it in pieces, each with its length, and the hash of it all."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def save(self, version: int, entries: Iterable[Versioned]) -> None:
        """Replace the snapshot in one step, durable on return. Raises Unavailable when the disk refuses."""
        body = b"".join(_body(version, entries))
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
        (version,), at, entries = _HEAD.unpack_from(body), _HEAD.size, []
        while at < len(body):
            (size,) = _SIZE.unpack_from(body, at)
            at += _SIZE.size + size
            entries += [Versioned(*entry) for entry in _decode(body[at - size : at])]
        return version, entries


def _body(version: int, entries: Iterable[Versioned]) -> Iterator[bytes]:
    yield _HEAD.pack(version)
    rest = iter(entries)
    while piece := [(entry.version, entry.kind, entry.key, entry.value) for entry in islice(rest, _PIECE)]:
        encoded = _encode(piece)
        yield _SIZE.pack(len(encoded))
        yield encoded
