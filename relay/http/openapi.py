"""The OpenAPI 3.1 document, from the table of operations and the types of requests and answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import orjson

import relay
from relay.errors import KINDS
from relay.http.json_schema import defaults_in_words, simplify, without_null
from relay.http.operations import Operation
from relay.http.schemas import common as schemas

# The part before it says whose id it is.
_PARAMETER: Final = re.compile(r"(\w+)/\{(\w+)\}")
# What every route can answer; the first from `relay up` only, to a foreign Host header.
_EVERY_ERROR: Final = ("invalid_headers", "misdirected_host", "internal_error")
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
_TAGS: Final = {
    "Events": "Post events, read them, acknowledge them.",
    "Deliveries": "What was pushed, what failed, and sending it again.",
    "Endpoints": "Where events are pushed to.",
    "Keys": "Organizations and their API keys.",
    "System": "Health, metrics and this document.",
}
# What an identifier in a path belongs to, by the part of the path before it.
_NAMED_BY_ID: Final = {
    "ack": "event",
    "deliveries": "delivery",
    "endpoints": "endpoint",
    "events": "event",
    "jobs": "job",
    "keys": "key",
}
_REQUEST_ID: Final = {"X-Request-Id": {"description": "Names this request in logs.", "schema": {"type": "string"}}}
_LIMITS: Final = {
    "RateLimit-Limit": {"description": "Requests that may come at once.", "schema": {"type": "integer"}},
    "RateLimit-Remaining": {"description": "Requests that may still come now.", "schema": {"type": "integer"}},
    "RateLimit-Reset": {"description": "Seconds until all of them may.", "schema": {"type": "integer"}},
}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait before another try.", "schema": {"type": "integer"}}
}
# Errors that come before the key is known have no limits to tell.
_BEFORE_THE_KEY: Final = (401, 421, 500, 503)


def document(operations: Sequence[Operation]) -> bytes:
    """The document as JSON."""
    listed = [operation for operation in operations if operation.listed]
    types = list(dict.fromkeys(_types(listed)))
    made, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = {kind: simplify(schema) for kind, schema in zip(types, made, strict=True)}
    components = {name: simplify(schema) for name, schema in components.items()}
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
                "contact": {"name": "relay contributors"},
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/", "description": "Where this document comes from."}],
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
                        "description": "The operator's token: RELAY_ADMIN_TOKEN, or RELAY_METRICS_TOKEN for metrics.",
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
    # What follows the first paragraph is about the code.
    description = inspect.cleandoc(operation.endpoint.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": description.partition(". ")[0].removesuffix(".") + ".",
        "description": description,
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


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.key:
        return [{"ApiKeyAuth": []}]
    return [{"BearerAuth": []}, {}] if operation.token else []


def _parameters(
    operation: Operation, refs: dict[Any, dict[str, Any]], components: dict[str, Any]
) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"The id of the {_NAMED_BY_ID[folder]}.",
            "schema": {"type": "string"},
        }
        for folder, name in _PARAMETER.findall(operation.path)
    ]
    if operation.query is not None:
        for name, member in components.pop(operation.query.__name__)["properties"].items():
            schema = without_null(member)
            description = {"description": schema.pop("description")} if "description" in schema else {}
            parameters.append({"name": name, "in": "query", "required": False, **description, "schema": schema})
    parameters += [
        {"name": name, "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
        for name, meaning in operation.headers.items()
    ]
    return parameters


def _success(
    operation: Operation, kind: type[msgspec.Struct] | None, refs: dict[Any, dict[str, Any]]
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done.", "headers": _REQUEST_ID | (_LIMITS if operation.key else {})}
    if kind is not None:
        answer["description"] = (kind.__doc__ or "").strip().splitlines()[0]
        answer["content"] = {"application/json": {"schema": refs[kind]}}
    elif operation.media:
        schema = {"type": "object" if operation.media == ("application/json",) else "string"}
        answer["content"] = {media: {"schema": schema} for media in operation.media}
    return answer


def _errors(operation: Operation, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    codes = [*operation.errors, *_EVERY_ERROR]
    if operation.key:
        codes += _EVERY_API_ERROR
    if operation.body is not None:
        codes += _EVERY_BODY_ERROR
    if operation.method != "GET":
        codes.append("cross_site_request")
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(KINDS[code].status, []).append(code)
    answers: dict[str, Any] = {}
    for status, found in sorted(by_status.items()):
        kind = schemas.DuplicateResponse if found == ["duplicate"] else schemas.ErrorResponse
        sentences = " ".join(f"`{code}`: {KINDS[code].sentence}" for code in found)
        limits = _LIMITS if operation.key and status not in _BEFORE_THE_KEY else {}
        answers[str(status)] = {
            "description": sentences,
            "headers": _REQUEST_ID | limits | (_RETRY_AFTER if status in (429, 503) else {}),
            "content": {"application/json": {"schema": refs[kind]}},
        }
    return answers
