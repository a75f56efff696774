"""Files of one owner in a bundle store, under a pointer: written, pointed to, and removed when nobody can be reading them.

<folder>/<epoch>-<hash>.<kind>      never written twice; the epoch keeps an owner that was replaced from removing
                                    what its successor has written
pointer "<folder>" → manifest       moved last, refused to an older epoch
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from policies.errors import Corrupt, Unavailable
from policies.types import Arrays
from streaming.ports import Bundles

MANIFEST = "json"


class Shelf:
    """`named` says which files a manifest that somebody else wrote needs, itself among them; it may raise Unavailable, Corrupt."""

    def __init__(self, store: Bundles, folder: str, epoch: int, named: Callable[[str], Iterable[str]]) -> None:
        self._store, self._folder, self._epoch, self._named = store, folder, epoch, named
        self._kept: list[set[str]] = []  # files of our last manifests, newest last
        self._swept = False

    def pointed(self) -> str | None:
        """The newest manifest's name, by whomever; None before the first. Raises Unavailable."""
        return self._store.pointers().get(self._folder)

    def get(self, name: str) -> bytes:
        """A file as it was written. Raises Unavailable, Corrupt('upload')."""
        data = self._store.get(name)
        if _hash(data) not in name:
            raise Corrupt("upload", f"{name} is not what was written")
        return data

    def put(self, data: bytes, kind: str) -> str:
        """Write a file; its name. Nobody reads it before a manifest that names it is pointed to."""
        name = f"{self._folder}/{self._epoch}-{_hash(data)}.{kind}"
        self._store.put(name, data)
        return name

    def point(self, manifest: bytes, files: Iterable[str]) -> None:
        """Make a manifest the newest, with the files it names. Raises Unavailable, Rejected('fenced')."""
        replaced = self.pointed()
        name = self.put(manifest, MANIFEST)
        self._store.point(self._folder, name, self._epoch)
        self._kept.append({name, *files})
        if not self._swept:
            self._sweep(replaced)
        if len(self._kept) > 2:  # the one before may be being read by a successor
            gone = self._kept.pop(0)
            for old in sorted(gone.difference(*self._kept)):
                self._store.remove(old)

    def _sweep(self, replaced: str | None) -> None:
        """Once: what owners before us have left, but for the upload that ours replaced. No successor's is older than ours."""
        kept = set().union(*self._kept)
        if replaced is not None:
            kept.add(replaced)
            with suppress(Unavailable, Corrupt):  # spoilt: nobody can go on from it
                kept |= set(self._named(replaced))
        for name in self._store.names(self._folder):
            epoch = name.rpartition("/")[2].partition("-")[0]
            if name not in kept and epoch.isdigit() and int(epoch) < self._epoch:
                self._store.remove(name)
        if replaced is not None:
            self._kept.insert(0, kept - self._kept[-1])
        self._swept = True


def packed(statistics: Mapping[str, Arrays]) -> bytes:
    """Arrays by key and name as one .npz, without pickle."""
    named = {f"{key}/{name}": array for key, arrays in statistics.items() for name, array in arrays.items()}
    with io.BytesIO() as file:
        np.savez(file, allow_pickle=False, **named)
        return file.getvalue()


def unpacked(name: str, data: bytes) -> list[tuple[str, str, NDArray[np.generic]]]:
    """(key, array name, array) of each. Raises Corrupt('upload')."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return [(*_split(full), file[full]) for full in file.files]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Corrupt("upload", f"{name}: {error}") from None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _split(full: str) -> tuple[str, str]:
    key, _, name = full.rpartition("/")
    return key, name
