"""Files that are whole or absent, whatever is killed: written beside, flushed, renamed, and the folder flushed too."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

WRITING = ".writing"  # the end of the name of what is being written


def replace_file(path: Path, data: bytes, *, after_ns: int | None = None) -> None:
    """Put `data` at `path` in one step, durable on return. Raises OSError.

    With `after_ns` the file's time of change is later than that, so two versions never look the same to `stat`.
    """
    make_folder(path.parent)
    beside, handle = _begin(path)
    try:
        write_all(handle, data)
        if after_ns is not None:
            changed = max(os.fstat(handle).st_mtime_ns, after_ns + 1)
            os.utime(handle, ns=(changed, changed))
        os.fsync(handle)
        os.rename(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            beside.unlink()
        raise
    finally:
        os.close(handle)
    flush_folder(path.parent)


def _begin(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, open and locked, so that `sweep` leaves it alone."""
    while True:
        beside = path.parent / f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{WRITING}"
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return beside, handle
        os.close(handle)  # swept between the two lines above: again, under another name


def write_all(handle: int, data: bytes) -> None:
    """os.write until nothing is left."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def make_folder(folder: Path) -> None:
    """A folder that is there after a power cut, and so are its parents."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, pattern: str = "*") -> None:
    """Remove what writers that were killed left half-written in a folder."""
    for left in folder.glob(pattern + WRITING):
        with suppress(OSError):  # gone meanwhile, or locked by a writer that is alive
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)
