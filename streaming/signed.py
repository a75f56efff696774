"""A bundle store whose manifests are signed: what someone else put there is refused, however well its hashes fit.

    signatures/<bundle>.sig   keyed BLAKE2b-256 of the manifest's name and bytes

A manifest names every other file of a bundle by its hash, so one signature is enough. What it does not tell is which of the
signed bundles a pointer should name: who can write pointers can go back to an earlier one, as a rollback does.
"""

import hashlib
import hmac
from typing import Any

from policies.errors import Corrupt, Unavailable
from streaming.ports import Bundles

MANIFESTS = "manifests/"


class SignedBundles:
    """`key` signs what is put and is asked for by what is got; 32 bytes or more."""

    def __init__(self, store: Bundles, key: str) -> None:
        self._store = store
        self._key = hashlib.blake2b(key.encode(), digest_size=64, person=b"bundle-sign").digest()

    def __getattr__(self, name: str) -> Any:
        """What adapters offer beside the port."""
        return getattr(self._store, name)

    def put(self, name: str, data: bytes) -> None:
        if name.startswith(MANIFESTS):
            self._store.put(_file(name), self._signature(name, data))
        self._store.put(name, data)

    def get(self, name: str) -> bytes:
        """Raises Corrupt('signature') as well."""
        data = self._store.get(name)
        if name.startswith(MANIFESTS):
            try:
                found = self._store.get(_file(name))
            except Unavailable:
                raise Corrupt("signature", f"{name} is not signed") from None
            if not hmac.compare_digest(found, self._signature(name, data)):
                raise Corrupt("signature", f"{name} was not signed with our key")
        return data

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        self._store.point(policy, bundle, epoch)

    def pointers(self) -> dict[str, str]:
        return self._store.pointers()

    def epochs(self) -> dict[str, int]:
        return self._store.epochs()

    def names(self, folder: str) -> list[str]:
        return self._store.names(folder)

    def remove(self, name: str) -> None:
        """The manifest first: a signature alone names nothing."""
        self._store.remove(name)
        if name.startswith(MANIFESTS):
            self._store.remove(_file(name))

    def _signature(self, name: str, data: bytes) -> bytes:
        return hashlib.blake2b(name.encode() + b"\0" + data, digest_size=32, key=self._key).hexdigest().encode()


def _file(manifest: str) -> str:
    return f"signatures/{manifest.removeprefix(MANIFESTS).removesuffix('.json')}.sig"
