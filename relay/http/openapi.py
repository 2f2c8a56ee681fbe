"""The OpenAPI 3.1 document, from the table of operations and the types of requests and responses."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

import relay
from relay.errors import KINDS
from relay.http.json_schema import defaults_in_words, in_declared_order, simplify, without_null
from relay.http.operations import Operation
from relay.http.schemas import common as schemas
from relay.values.json_encoding import encode

# The errors of every operation. `misdirected_host` comes only from `relay up`, for a foreign Host header.
_EVERY_ERROR: Final = ("invalid_request", "invalid_headers", "misdirected_host", "internal_error")
# The errors of every operation that takes an API key.
_EVERY_API_ERROR: Final = (
    "missing_api_key",
    "invalid_api_key",
    "insufficient_scope",
    "rate_limited",
    "too_many_requests_waiting",
    "database_unavailable",
    "shutting_down",
)
_EVERY_BODY_ERROR: Final = (
    "malformed_json",
    "invalid_utf8",
    "body_incomplete",
    "body_timeout",
    "body_too_large",
    "unsupported_media_type",
    "unsupported_encoding",
    "too_deep",
)
_TAGS: Final = {
    "Events": "Posting, reading, leasing and acknowledging events.",
    "Deliveries": "Deliveries and their attempts, retries and replays.",
    "Endpoints": "The destinations of webhooks.",
    "Consumers": "The destinations that lease their events.",
    "Keys": "Organizations and their API keys.",
    "System": "Health, metrics and this document.",
}
# Added to the description of an operation, by the scope that it requires.
_SCOPES: Final = {
    "ingest": " Requires a key with the scope `ingest`.",
    "consume": " Requires a key with the scope `consume`.",
    "manage": " Requires a key with the scope `manage`.",
}
_REQUEST_ID: Final = {"X-Request-Id": {"description": "Identifies this request in logs.", "schema": {"type": "string"}}}
_LIMITS: Final = {
    "RateLimit-Limit": {"description": "The burst limit of requests.", "schema": {"type": "integer"}},
    "RateLimit-Remaining": {"description": "Requests that are left of the burst.", "schema": {"type": "integer"}},
    "RateLimit-Reset": {
        "description": "Seconds until the whole burst is available again.",
        "schema": {"type": "integer"},
    },
}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}}
}
# Statuses of errors that may occur before the key is known. They have no RateLimit headers.
_BEFORE_THE_KEY: Final = (401, 421, 500, 503)


def document(operations: Sequence[Operation]) -> bytes:
    """Return the document as JSON."""
    listed = [operation for operation in operations if operation.listed]
    types = list(dict.fromkeys(_types(listed)))
    made, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = {kind: simplify(schema) for kind, schema in zip(types, made, strict=True)}
    components = {name: simplify(schema) for name, schema in in_declared_order(components, types).items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, refs, components)
    return encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "relay",
                "version": relay.__version__,
                "description": "Accepts events, stores them in PostgreSQL, and delivers them by inbox or webhook.",
                "contact": {"name": "relay contributors"},
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/", "description": "The server of this document."}],
            "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": {name: defaults_in_words(schema) for name, schema in components.items()},
                "securitySchemes": {
                    "ApiKeyAuth": {
                        "type": "apiKey",
                        "in": "header",
                        "name": "X-API-Key",
                        "description": "A key of an organization.",
                    },
                    "BearerAuth": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The operator's RELAY_ADMIN_TOKEN or, for metrics, RELAY_METRICS_TOKEN.",
                    },
                },
            },
        }
    )


def _types(operations: Iterable[Operation]) -> Iterable[Any]:
    yield schemas.ErrorResponse
    yield schemas.DuplicateResponse
    for operation in operations:
        yield from (kind for kind in (operation.body, operation.query, *operation.success.values()) if kind)


def _operation(operation: Operation, refs: dict[Any, dict[str, Any]], components: dict[str, Any]) -> dict[str, Any]:
    description = _description(operation)
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": description.partition(". ")[0].removesuffix(".") + ".",
        "description": description + _SCOPES.get(operation.scope or "", ""),
        "security": _security(operation),
        "parameters": _parameters(operation, refs, components),
        "responses": {
            **{str(status): _success(operation, kind, refs) for status, kind in operation.success.items()},
            **_errors(operation, refs),
        },
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {kind: {"schema": refs[operation.body]} for kind in operation.body_types},
        }
    return described


def _description(operation: Operation) -> str:
    """Return the first paragraph of the handler's docstring. The others are about the code."""
    handler: Any = operation.handler
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.cleandoc(handler.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.scope is not None:
        return [{"ApiKeyAuth": []}]
    # Whether a token is needed depends on the operator's settings.
    return [{"BearerAuth": []}, {}] if operation.gate is not None else []


def _parameters(
    operation: Operation, refs: dict[Any, dict[str, Any]], components: dict[str, Any]
) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if operation.path_parameter is not None:
        parameters.append(
            {
                "name": operation.path_parameter,
                "in": "path",
                "required": True,
                "description": f"The name of the {operation.path_name}."
                if operation.path_name is not None
                else f"The id of the {operation.path_noun}.",
                "schema": {"type": "string"},
            }
        )
    if operation.query is not None:
        for name, member in components.pop(operation.query.__name__)["properties"].items():
            schema = without_null(member)
            description = {"description": schema.pop("description")} if "description" in schema else {}
            parameters.append({"name": name, "in": "query", "required": False, **description, "schema": schema})
    headers = dict(operation.headers)
    if operation.idempotency is not None:
        headers["Idempotency-Key"] = operation.idempotency.description
    for name, text in headers.items():
        schema = {"type": "string"}
        parameters.append({"name": name, "in": "header", "required": False, "description": text, "schema": schema})
    return parameters


def _success(operation: Operation, kind: type | None, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": "Success.",
        "headers": _REQUEST_ID | (_LIMITS if operation.scope else {}),
    }
    if kind is not None:
        response["description"] = (kind.__doc__ or "").strip().splitlines()[0]
        response["content"] = {"application/json": {"schema": refs[kind]}}
    elif operation.media:
        schema = {"type": "object" if operation.media == ("application/json",) else "string"}
        response["content"] = {media: {"schema": schema} for media in operation.media}
    return response


def _errors(operation: Operation, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    codes = [*operation.errors]
    if operation.path_noun is not None:
        codes.append(f"{operation.path_noun}_not_found")
    if operation.path_name is not None:
        codes.append(f"{operation.path_name}_not_found")
    if operation.query is not None and "cursor" in operation.query.__struct_fields__:
        codes.append("invalid_cursor")
    if operation.idempotency is not None:
        codes.append("invalid_idempotency_key")
    codes += _EVERY_ERROR
    if operation.scope is not None:
        codes += _EVERY_API_ERROR
    if operation.body is not None:
        codes += _EVERY_BODY_ERROR
    if operation.method != "GET":
        codes += ("cross_site_request", "commit_unknown") if operation.scope is not None else ("cross_site_request",)
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(KINDS[code].status, []).append(code)
    responses: dict[str, Any] = {}
    for status, found in sorted(by_status.items()):
        kind = schemas.DuplicateResponse if found == ["duplicate"] else schemas.ErrorResponse
        sentences = " ".join(f"`{code}`: {KINDS[code].sentence}" for code in found)
        limits = _LIMITS if operation.scope and status not in _BEFORE_THE_KEY else {}
        responses[str(status)] = {
            "description": sentences,
            "headers": _REQUEST_ID | limits | (_RETRY_AFTER if status in (429, 503) else {}),
            "content": {"application/json": {"schema": refs[kind]}},
        }
    return responses
