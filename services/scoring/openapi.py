"""The OpenAPI document, handed over from the msgspec types: what is checked is what is written down."""

from collections.abc import Collection
from typing import Any

import msgspec

from services.scoring import wire

TITLE = "Slatewise scoring"
REF = "#/components/schemas/{name}"
ERROR = {"$ref": REF.format(name=wire.ErrorBody.__name__)}
TYPES = (
    wire.DecisionRequest,
    wire.DecisionAnswer,
    wire.FeedbackRequest,
    wire.FeedbackAnswer,
    wire.ShownRequest,
    wire.Item,
    wire.VersionAnswer,
    wire.ErrorBody,
)
ERRORS = {
    "400": "The body is not JSON",
    "404": "No such surface or item",
    "409": "The same id with other content",
    "413": "The body is too large",
    "422": "JSON, but not a valid request: `at` names the place",
    "429": "Over a limit: try again after Retry-After seconds",
    "503": "Not ready, draining, or the spool is full: try again after Retry-After seconds",
}


def document(version: str, surfaces: Collection[str] = (), kinds: Collection[str] = ()) -> dict[str, Any]:
    """The whole document; with the names that this service knows, so that its page can be tried out."""
    _, components = msgspec.json.schema_components(TYPES, ref_template=REF)
    if surfaces:
        components["DecisionRequest"]["properties"]["surface"]["enum"] = sorted(surfaces)
    if kinds:
        components["FeedbackRequest"]["properties"]["kind"] = {
            "anyOf": [{"type": "string", "enum": sorted(kinds)}, {"type": "null"}],
            "default": None,
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version},
        "paths": _paths(),
        "components": {"schemas": dict(components)},
    }


def _ref(kind: type) -> dict[str, Any]:
    return {"$ref": REF.format(name=kind.__name__)}


def _body(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _answer(description: str, schema: dict[str, Any], links: dict[str, Any] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {**made, "links": links} if links else made


def _errors(*statuses: str) -> dict[str, Any]:
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    made = {status: _answer(ERRORS[status], _ref(wire.ErrorBody)) for status in statuses}
    for status in ("429", "503"):
        if status in made:
            made[status]["headers"] = retry
    return made


def _paths() -> dict[str, Any]:
    decision_id = {
        "name": "decision_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }
    item_id = {
        "name": "item_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 256},
    }
    anything = {"description": "Anything else comes back as an error in its place"}
    after = {
        "shown": {
            "operationId": "shown",
            "parameters": {"decision_id": "$response.body#/decision_id"},
            "requestBody": {"key": "$response.body#/key"},
        },
        "feedback": {
            "operationId": "feedback",
            "requestBody": {"decision_id": "$response.body#/decision_id", "key": "$response.body#/key"},
        },
    }
    batch = {
        "type": "object",
        "required": ["requests"],
        "additionalProperties": False,
        "properties": {
            "requests": {
                "type": "array",
                "minItems": 1,
                "maxItems": wire.MAX_BATCH,
                "items": {"anyOf": [_ref(wire.DecisionRequest), anything]},
            }
        },
    }
    batch_answer = {
        "type": "object",
        "required": ["responses"],
        "properties": {
            "responses": {"type": "array", "items": {"anyOf": [_ref(wire.DecisionAnswer), _ref(wire.ErrorBody)]}}
        },
    }
    many = {
        "type": "array",
        "maxItems": wire.MAX_FEEDBACK,
        "items": {"anyOf": [_ref(wire.FeedbackRequest), anything]},
    }
    items = {"type": "array", "maxItems": wire.MAX_ITEMS, "items": _ref(wire.Item)}
    text = {"type": "object"}
    return {
        "/v1/decisions": {
            "post": {
                "operationId": "decide",
                "summary": "A slate with the probability it was drawn with",
                "requestBody": _body(_ref(wire.DecisionRequest)),
                "responses": {
                    "200": _answer("The slate", _ref(wire.DecisionAnswer), after),
                    **_errors("400", "404", "409", "413", "422", "429", "503"),
                },
            }
        },
        "/v1/decisions:batch": {
            "post": {
                "operationId": "decide_batch",
                "summary": "Up to 256 decisions, answered in order, each with its own error",
                "requestBody": _body(batch),
                "responses": {
                    "200": _answer("One answer or error a request", batch_answer),
                    **_errors("400", "413", "422", "429", "503"),
                },
            }
        },
        "/v1/decisions/{decision_id}/shown": {
            "post": {
                "operationId": "shown",
                "summary": "The slate, or some slots of it, was seen",
                "parameters": [decision_id],
                "requestBody": _body(_ref(wire.ShownRequest), required=False),
                "responses": {
                    "202": _answer("Kept", _ref(wire.FeedbackAnswer)),
                    **_errors("400", "413", "422", "429", "503"),
                },
            }
        },
        "/v1/feedback": {
            "post": {
                "operationId": "feedback",
                "summary": "What people did: one object, or up to 1,000",
                "requestBody": _body({"anyOf": [_ref(wire.FeedbackRequest), many]}),
                "responses": {
                    "202": _answer("Kept, but for those rejected", _ref(wire.FeedbackAnswer)),
                    **_errors("400", "413", "422", "429", "503"),
                },
            }
        },
        "/v1/items": {
            "put": {
                "operationId": "put_items",
                "summary": "Add or replace items: all of them or, when one is wrong, none",
                "requestBody": _body(items),
                "responses": {
                    "200": _answer(
                        "Decisions on a replica that reached this version see them", _ref(wire.VersionAnswer)
                    ),
                    **_errors("400", "413", "422", "429", "503"),
                },
            }
        },
        "/v1/items/{item_id}": {
            "get": {
                "operationId": "get_item",
                "summary": "An item as it was put",
                "parameters": [item_id],
                "responses": {"200": _answer("The item", _ref(wire.Item)), **_errors("404", "422", "429")},
            },
            "delete": {
                "operationId": "delete_item",
                "summary": "Remove an item",
                "parameters": [item_id],
                "responses": {
                    "200": _answer("The version that no longer has it", _ref(wire.VersionAnswer)),
                    **_errors("404", "422", "429", "503"),
                },
            },
        },
        "/healthz": {"get": {"operationId": "healthz", "responses": {"200": _answer("Alive", text)}}},
        "/readyz": {
            "get": {
                "operationId": "readyz",
                "summary": "Each surface with the policy it is served by",
                "responses": {"200": _answer("Ready, in fallback or not", text), "503": _answer("Not ready", text)},
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "responses": {
                    "200": {
                        "description": "Prometheus exposition",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
    }
