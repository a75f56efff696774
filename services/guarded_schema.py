"""What an OpenAPI document says of the door before each route: the keys it takes, and how it refuses.

The scopes written down are those that the door itself asks for (`scope_of`), so that the document cannot say otherwise. While no key
is configured everything is open: then a key is optional (`{}` among the alternatives), as OpenAPI spells it.
"""

from collections.abc import Callable
from typing import Any

SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: sw_<id>_<secret>"},
    "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key"},
}
METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
REFUSALS = {
    "401": "No key, or none that is valid here",
    "403": "The key's scopes do not reach here, or it is another tenant's",
    "408": "The request took too long to arrive",
    "413": "The body is too large",
}
# of every refusal, of both services
ERROR_BODY = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "at"],
            "properties": {name: {"type": "string"} for name in ("code", "message", "at")},
        }
    },
}
AT_THE_DOOR, OF_BODIES = ("401", "403"), ("408", "413")


def guarded(
    document: dict[str, Any], scope_of: Callable[[str, str], str | None], error: dict[str, Any], *, closed: bool
) -> dict[str, Any]:
    """The document, and what the door does, added in place.

    scope_of  the scope that (method, path) asks for; None: open to all
    error     schema of an error's body
    closed    a key is configured, so one is needed
    """
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    for path, operations in document["paths"].items():
        for method in METHODS:
            operation = operations.get(method)
            if operation is None:
                continue
            scope = scope_of(method.upper(), path)
            said = OF_BODIES if "requestBody" in operation else ()
            if scope is not None:
                optional: list[dict[str, list[str]]] = [] if closed else [{}]
                operation["security"] = [*optional, *({name: [scope]} for name in SCHEMES)]
                said = (*AT_THE_DOOR, *said)
            for status in said:
                operation["responses"].setdefault(status, _refused(status, error))
    return document


def _refused(status: str, error: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"description": REFUSALS[status], "content": {"application/json": {"schema": error}}}
    if status == "401":
        made["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer"}}
    return made
