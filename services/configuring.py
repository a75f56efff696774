"""Applies a folder of surface documents to the state record, once for each content (`semantics.md` 19).

Surfaces that a folder brought are managed by it: the control API refuses to edit them. Without a folder, a service that
has never been configured gets the quickstart surface, which nobody manages.
"""

from importlib.resources import as_file, files
from pathlib import Path

import msgspec
from msgspec import Struct

from policies.surface import Surface, content_hash
from streaming.configuration import load_folder, publish_surface
from streaming.ports import State

KIND, KEY = "config-folder", "default"


class Applied(Struct, frozen=True):
    """What the last applied folder was."""

    hash: str
    surfaces: list[str]
    managed: bool = True


def apply_folder(state: State, folder: Path) -> bool:
    """Publish every surface of a folder when it differs from the last one applied. Raises ConfigInvalid."""
    return _apply(state, load_folder(folder), managed=True)


def apply_quickstart(state: State) -> bool:
    """Publish the quickstart surface unless the state record already holds a configuration."""
    if applied(state) is not None or any(entry.kind == "surface" for entry in state.read()):
        return False
    return _apply(state, quickstart(), managed=False)


def quickstart() -> list[Surface]:
    """The surfaces that come with the package."""
    with as_file(files("services") / "quickstart") as folder:
        return load_folder(folder)


def applied(state: State) -> Applied | None:
    entry = state.get(KIND, KEY)
    return msgspec.json.decode(entry.value, type=Applied) if entry and entry.value else None


def _apply(state: State, surfaces: list[Surface], *, managed: bool) -> bool:
    digest = content_hash([msgspec.to_builtins(surface) for surface in surfaces])
    last = applied(state)
    if last is not None and last.hash == digest and last.managed == managed:
        return False
    for surface in surfaces:
        publish_surface(state, surface)
    names = [surface.surface for surface in surfaces]
    state.put([(KIND, KEY, msgspec.json.encode(Applied(digest, names, managed)))])
    return True
