"""Bundles in a folder: content-addressed files, and one small file with every policy's pointer."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from policies.errors import Corrupt, Unavailable
from streaming.adapters.rules import checked_name, refuse_outrun
from streaming.durable import WRITING, make_folder, replace_file, sweep

_Pointers = dict[str, tuple[str, int]]  # policy → (bundle, epoch)
_decode = msgspec.json.Decoder(_Pointers).decode


class FileBundles:
    """Several processes may write; pointers move one at a time, under a lock.

    A change of pointers is seen by `stat`: the file is new and its time of change has grown. Disk errors are Unavailable.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        self._file = self._root / "pointers.json"
        with _available():
            make_folder(self._root)
        self._swept = False
        # one value: threads share this adapter
        self._seen: tuple[tuple[int, int, int] | None, dict[str, str]] = (
            None,
            {},
        )

    def put(self, name: str, data: bytes) -> None:
        """A name that holds these bytes already is left alone; one that a fault has changed is mended."""
        path = self._path(name)
        with _available():
            if not self._swept:
                sweep(self._root, "**/*")
                self._swept = True
            with suppress(FileNotFoundError):
                if path.read_bytes() == data:
                    return
            replace_file(path, data)

    def get(self, name: str) -> bytes:
        with _available():
            return self._path(name).read_bytes()

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        with _available(), self._moving():
            pointers, changed_ns = self._read()
            refuse_outrun(epoch, pointers.get(policy, ("", epoch))[1])
            pointers[policy] = (bundle, epoch)
            replace_file(self._file, msgspec.json.encode(pointers), after_ns=changed_ns)

    def pointers(self) -> dict[str, str]:
        with _available():
            try:
                now = os.stat(self._file)
            except FileNotFoundError:
                return {}
            of = (now.st_ino, now.st_mtime_ns, now.st_size)
            seen, pointers = self._seen
            if of != seen:
                pointers = {policy: bundle for policy, (bundle, _) in self._read()[0].items()}
                self._seen = of, pointers
            return dict(pointers)

    def epochs(self) -> dict[str, int]:
        with _available():
            return {policy: epoch for policy, (_, epoch) in self._read()[0].items()}

    def names(self, folder: str) -> list[str]:
        path = self._path(folder)
        with _available(), suppress(FileNotFoundError), os.scandir(path) as found:  # a million names in a second or two
            return sorted(f"{folder}/{one.name}" for one in found if one.is_file() and not one.name.endswith(WRITING))
        return []

    def remove(self, name: str) -> None:
        with _available():
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

    def _read(self) -> tuple[_Pointers, int]:
        """The pointers and when they last changed, in ns: (nothing, 0) before the first."""
        try:
            with self._file.open("rb") as file:
                return _decode(file.read()), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return {}, 0
        except msgspec.MsgspecError as error:
            raise Corrupt("pointers", f"{self._file}: {error}") from None

    @contextmanager
    def _moving(self) -> Iterator[None]:
        handle = os.open(self._root / "pointers.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable(f"no bundle file {error.filename}") from None
    except OSError as error:
        raise Unavailable(f"bundles: {error}") from error
