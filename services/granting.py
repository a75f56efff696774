"""Keys made and revoked, in one step with the audit of it. What is told about a key never holds its token or hash."""

from typing import Any

import msgspec

from policies.errors import Rejected
from services.access import KIND, Key, keys_in, make
from services.audit import Change, entry
from streaming.ports import State


def create(
    state: State,
    who: str,
    name: str,
    scopes: list[str],
    *,
    tenant: str,
    rate: float | None = None,
    expires_at: float | None = None,
    now: float,
) -> tuple[dict[str, Any], str]:
    """(what is told, token). Raises Rejected, Unavailable."""
    key, token = make(name, scopes, tenant=tenant, rate=rate, expires_at=expires_at, now=now)
    change = Change(now, who, "create", f"key/{key.id}", None, told(key))
    state.put([(KIND, key.id, msgspec.json.encode(key)), entry(change)])
    return told(key), token


def revoke(state: State, who: str, key_id: str, *, tenant: str, now: float) -> dict[str, Any]:
    """Revoke for ever; repeating it changes nothing. Raises Rejected(404), Unavailable."""
    held = state.get(KIND, key_id)
    key = msgspec.json.decode(held.value, type=Key) if held is not None and held.value is not None else None
    if held is None or key is None or key.tenant != tenant:
        raise Rejected(f"No key {key_id[:64]!r}", at="$.id", code="unknown_key", status=404)
    if key.revoked_at is not None:
        return told(key)
    revoked = msgspec.structs.replace(key, revoked_at=now)
    change = Change(now, who, "revoke", f"key/{key_id}", told(key), told(revoked))
    state.put([(KIND, key_id, msgspec.json.encode(revoked)), entry(change)], held.version)
    return told(revoked)


def listed(state: State, tenant: str) -> list[dict[str, Any]]:
    """Every key of a tenant, the revoked ones too. Raises Unavailable."""
    return [told(key) for key in keys_in(state, tenant)]


def told(key: Key) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(key)
    del plain["hash"]
    return plain
