"""Bundles in any store that fsspec opens: `s3://bucket/folder`, `gs://`, `abfs://`, `sftp://`, `memory://`, …

    <root>/<name>                        immutable files, named by their content
    <root>/pointers/<generation>.json    policy → (bundle, epoch), all of them; the greatest generation counts

Object stores have neither rename nor lock, but those of the large providers create a file only if it is not there, in one
step. So a move reads the newest generation, checks the epoch and creates the next; whoever comes second reads again. A file
is there whole or not at all on object stores; elsewhere one half-written is told by its hash, and mended by its size, and
only one process may move pointers (in folders `FileBundles` has no such limits).

The bucket, or root folder, has to exist: a wrong name is an error, not a new bucket. Credentials and endpoints are fsspec's
and the provider's own (`AWS_ENDPOINT_URL`, `FSSPEC_S3_…`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
import msgspec
from fsspec.core import url_to_fs

from policies.errors import Corrupt, Rejected, Unavailable
from streaming.adapters.rules import checked_name, refuse_outrun

_Pointers = dict[str, tuple[str, int]]  # policy → (bundle, epoch)
_decode = msgspec.json.Decoder(_Pointers).decode
_POINTERS = "pointers"
_GENERATIONS = 16  # kept: a reader between listing and reading is not overtaken by that many moves
_ATTEMPTS = 50  # for a move against others that move at the same time


class FsspecBundles:
    """Several processes may write; pointers move one at a time.

    clock         monotonic seconds
    poll_seconds  `pointers` asks the store at most so often: a listing is a request that costs money
    options       the filesystem's own, beside what its environment says
    Raises Rejected for a URL that this installation cannot open.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        poll_seconds: float = 0.25,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        made = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {"use_listings_cache": False}
        try:
            fs, root = url_to_fs(url, **(made | dict(options or {})))
        except (ImportError, ValueError, TypeError) as error:
            raise Rejected(f"Cannot open {url!r}: {error}", at="SLATEWISE_BUNDLES", code="unknown_store") from None
        self._fs: fsspec.AbstractFileSystem = fs
        self._root = str(root).rstrip("/")
        self._clock, self._poll_seconds = clock, poll_seconds
        self._seen: tuple[int, _Pointers] = 0, {}  # generation and its pointers, one value: threads share this adapter
        self._asked: float | None = None

    def put(self, name: str, data: bytes) -> None:
        """A name that holds as many bytes already is left alone: its content is in its name."""
        path = self._path(name)
        with _available():
            with suppress(FileNotFoundError):
                self._fs.invalidate_cache(path)
                if self._fs.info(path).get("size") == len(data):
                    return
            self._write(path, data)

    def get(self, name: str) -> bytes:
        path = self._path(name)
        with _available():
            return bytes(self._fs.cat_file(path))

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        with _available():
            for _ in range(_ATTEMPTS):
                generation, pointers = self._newest()
                refuse_outrun(epoch, pointers.get(policy, ("", epoch))[1])
                moved = pointers | {policy: (bundle, epoch)}
                try:
                    self._write(self._file(generation + 1), msgspec.json.encode(moved), mode="create")
                except FileExistsError:  # another one moved a pointer meanwhile
                    continue
                self._seen = generation + 1, moved
                self._forget(generation + 1 - _GENERATIONS)
                return
        raise Unavailable(f"bundles: {_ATTEMPTS} others moved pointers first")

    def pointers(self) -> dict[str, str]:
        now = self._clock()
        if self._asked is None or now - self._asked >= self._poll_seconds:
            with _available():
                self._seen = self._newest()
            self._asked = now
        return {policy: bundle for policy, (bundle, _) in self._seen[1].items()}

    def epochs(self) -> dict[str, int]:
        with _available():
            return {policy: epoch for policy, (_, epoch) in self._newest()[1].items()}

    def names(self, folder: str) -> list[str]:
        path = self._path(folder)
        with _available():
            return [f"{folder}/{name}" for name in self._list(path)]

    def remove(self, name: str) -> None:
        path = self._path(name)
        with _available(), suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked_name(name)}"

    def _file(self, generation: int) -> str:
        return f"{self._root}/{_POINTERS}/{generation:016d}.json"

    def _newest(self) -> tuple[int, _Pointers]:
        """(generation, pointers); (0, nothing) before the first move."""
        for _ in range(_ATTEMPTS):
            found = [int(name[:16]) for name in self._list(f"{self._root}/{_POINTERS}") if name[:16].isdigit()]
            if not found:
                return 0, {}
            newest = max(found)
            seen = self._seen
            if newest == seen[0]:
                return seen
            try:
                return newest, _decode(self._fs.cat_file(self._file(newest)))
            except FileNotFoundError:  # overtaken: list again
                continue
            except msgspec.MsgspecError as error:
                raise Corrupt("pointers", f"{self._file(newest)}: {error}") from None
        raise Unavailable("bundles: pointers move faster than they can be read")

    def _forget(self, generation: int) -> None:
        if generation > 0:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._file(generation))

    def _list(self, path: str) -> list[str]:
        """Names of the files in a folder, sorted; of none where there is no such folder."""
        self._fs.invalidate_cache(path)
        try:
            found = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")

    def _write(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        try:
            self._fs.pipe_file(path, data, mode=mode)
        except FileNotFoundError:  # a filesystem with real folders, or no such bucket
            if not self._fs.exists(self._root):
                raise
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data, mode=mode)


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except (Corrupt, Rejected, Unavailable):
        raise
    except FileNotFoundError as error:
        raise Unavailable(f"no bundle file {error.filename or error}") from None
    except Exception as error:
        raise Unavailable(f"bundles: {error}") from error
