"""The OpenAPI 3.1 document, from the table of operations and the types of requests and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import orjson

import relay
from relay.errors import KINDS
from relay.http import schemas
from relay.http.operations import Operation

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
# What every route can answer; the first from `relay up` only, to a foreign Host header.
_EVERY_ERROR: Final = ("misdirected_host", "internal_error")
# What every route under /api can answer besides its own.
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
    "invalid_request",
    "too_deep",
)
_LIMIT_HEADERS: Final = {
    "RateLimit-Limit": "Requests that may come at once.",
    "RateLimit-Remaining": "Requests that may still come now.",
    "RateLimit-Reset": "Seconds until all of them may.",
}


def document(operations: Sequence[Operation]) -> bytes:
    """The document as JSON."""
    listed = [operation for operation in operations if operation.listed]
    types = list(dict.fromkeys(_types(listed)))
    made, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(types, made, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, refs, components)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "relay",
                "version": relay.__version__,
                "description": "Events in over HTTP, kept in PostgreSQL, pulled from an inbox or pushed as webhooks.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "token": {"type": "http", "scheme": "bearer"},
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
    summary = (operation.endpoint.__doc__ or "").strip().splitlines()[0]
    described: dict[str, Any] = {
        "operationId": type(operation.endpoint).__name__,
        "summary": summary,
        "parameters": _parameters(operation, refs, components),
        "responses": {
            **{str(status): _success(operation, kind, refs) for status, kind in operation.success.items()},
            **_errors(operation, refs),
        },
    }
    if operation.key:
        described["security"] = [{"key": []}]
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {kind: {"schema": refs[operation.body]} for kind in operation.body_types},
        }
    return described


def _parameters(
    operation: Operation, refs: dict[Any, dict[str, Any]], components: dict[str, Any]
) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]
    if operation.query is not None:
        schema = components.pop(operation.query.__name__)
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": described}
            for name, described in schema["properties"].items()
        ]
    parameters += [
        {"name": name, "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
        for name, meaning in operation.headers.items()
    ]
    return parameters


def _headers(operation: Operation) -> dict[str, Any]:
    names = {"X-Request-Id": "Names this request in logs.", **(_LIMIT_HEADERS if operation.key else {})}
    return {name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in names.items()}


def _success(
    operation: Operation, kind: type[msgspec.Struct] | None, refs: dict[Any, dict[str, Any]]
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done.", "headers": _headers(operation)}
    if kind is not None:
        answer["description"] = (kind.__doc__ or "").strip().splitlines()[0]
        answer["content"] = {"application/json": {"schema": refs[kind]}}
    return answer


def _errors(operation: Operation, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    codes = [*operation.errors, *_EVERY_ERROR]
    if operation.key:
        codes += _EVERY_API_ERROR
    if operation.body is not None:
        codes += _EVERY_BODY_ERROR
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(KINDS[code].status, []).append(code)
    answers: dict[str, Any] = {}
    for status, found in sorted(by_status.items()):
        kind = schemas.DuplicateResponse if found == ["duplicate"] else schemas.ErrorResponse
        sentences = " ".join(f"`{code}`: {KINDS[code].sentence}" for code in found)
        answers[str(status)] = {
            "description": sentences,
            "headers": {"X-Request-Id": {"description": "Names this request in logs.", "schema": {"type": "string"}}},
            "content": {"application/json": {"schema": refs[kind]}},
        }
    return answers
