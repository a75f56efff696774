"""Secrets of one installation: the server key that seeds every draw, and a salt a tenant that hides unit ids.

Lost keys cannot be replaced: without the salt a unit's hash changes, without the server key no logged draw can be
recomputed. They are made once, readable by the owner alone, and belong into the backup of the data directory.
"""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from policies.errors import Unavailable

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """server  seeds the uniforms of every draw;   salts  tenant → key of `unit_hash`"""

    server: bytes
    salts: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def load(cls, data_dir: Path, tenants: tuple[str, ...] = ("default",)) -> "Keys":
        """Read the keys under a data directory, making those that are missing. Raises Unavailable when one is damaged."""
        data_dir.mkdir(parents=True, exist_ok=True)
        salts = {tenant: _secret(data_dir / f"salt.{tenant}") for tenant in tenants}
        return cls(_secret(data_dir / "server.key"), salts)

    def salt(self, tenant: str = "default") -> bytes:
        return self.salts[tenant]


def _secret(path: Path) -> bytes:
    """The secret in a file. Processes that start together all end with the one that was linked first."""
    if not path.exists():
        own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(own, path)
        except FileExistsError:
            pass  # another process was first; its secret is the one
        finally:
            own.unlink()
    secret = path.read_bytes()
    if len(secret) != KEY_BYTES:
        raise Unavailable(f"{path.name} holds {len(secret)} bytes, not {KEY_BYTES}: restore it from the backup")
    return secret
