"""Every error an API caller can meet: a table of code, status and sentence, and the exception that carries one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: what `code` stands for."""

    code: str
    status: int
    sentence: str


KINDS: Final[Mapping[str, Kind]] = {
    kind.code: kind
    for kind in (
        Kind("malformed_json", 400, "The body is not valid JSON."),
        Kind("invalid_utf8", 400, "The body is not valid UTF-8."),
        Kind("body_incomplete", 400, "The body broke off or is not framed as HTTP says."),
        Kind(
            "invalid_headers",
            400,
            "Send one Host header, and Content-Type, Content-Encoding, Idempotency-Key and Authorization at most once.",
        ),
        Kind("missing_api_key", 401, "Send your API key in the X-API-Key header."),
        Kind("invalid_api_key", 401, "The API key is not known, has been revoked or has expired."),
        Kind("invalid_admin_token", 401, "Send the operator's token as `Authorization: Bearer <token>`."),
        Kind("invalid_metrics_token", 401, "Send the metrics token as `Authorization: Bearer <token>`."),
        Kind("insufficient_scope", 403, "The API key lacks the scope that this route needs."),
        Kind(
            "cross_site_request",
            403,
            "A page of another origin sent this; RELAY_CORS_ORIGINS names the origins that may.",
        ),
        Kind("not_found", 404, "There is nothing at this address."),
        Kind("event_not_found", 404, "There is no such event in your organization."),
        Kind("endpoint_not_found", 404, "There is no such endpoint in your organization."),
        Kind("delivery_not_found", 404, "There is no such delivery in your organization."),
        Kind("key_not_found", 404, "There is no such key in your organization."),
        Kind("job_not_found", 404, "There is no such job in your organization."),
        Kind("method_not_allowed", 405, "This address does not take that method; see the Allow header."),
        Kind("body_timeout", 408, "The body came too slowly."),
        Kind("duplicate", 409, "An event with this dedup_id was accepted before."),
        Kind("no_endpoint", 409, "None of your endpoints takes events of this type."),
        Kind(
            "last_manager",
            409,
            "Without this key nobody could manage your organization any more: make another first, without an end, or "
            "rotate it.",
        ),
        Kind(
            "too_many_endpoints",
            409,
            "Your organization has as many endpoints as its tier may have; delete one first.",
        ),
        Kind(
            "too_many_filters",
            409,
            "The filters of an organization's endpoints take at most 262,144 bytes; use fewer, or prefixes such as "
            "`order.*`.",
        ),
        Kind("body_too_large", 413, "The body is larger than this route takes."),
        Kind("payload_too_large", 413, "The payload is larger than 262,144 bytes."),
        Kind("batch_too_large", 413, "A batch holds at most 1,000 events."),
        Kind(
            "batch_opens_too_many",
            413,
            "A batch opens at most 20,000 deliveries, one for each event and endpoint; send fewer events at once.",
        ),
        Kind("unsupported_media_type", 415, "Send the body as application/json."),
        Kind("unsupported_encoding", 415, "Compressed bodies are not taken; send the body without Content-Encoding."),
        Kind("misdirected_host", 421, "This server answers only to loopback names until RELAY_ADMIN_TOKEN is set."),
        Kind("invalid_request", 422, "The request is not what this route takes; see details."),
        Kind("too_deep", 422, "The JSON is nested more than 512 levels deep."),
        Kind("invalid_cursor", 422, "The cursor is not one that this query gave you."),
        Kind("invalid_idempotency_key", 422, "An Idempotency-Key is 1 to 255 visible ASCII characters."),
        Kind("idempotency_key_reused", 422, "This Idempotency-Key came before with another request."),
        Kind("unstorable", 422, "PostgreSQL refuses a value in this event."),
        Kind("batch_over_limit", 422, "The batch holds more events than your tier may ever send at once."),
        Kind("tier_not_allowed", 422, "Sign-up does not give this tier."),
        Kind("too_many_keys", 422, "An organization has at most 100 keys in force; delete some first."),
        Kind("invalid_url", 422, "The URL is not one that webhooks can be sent to."),
        Kind("rate_limited", 429, "You are over your rate limit."),
        Kind("too_many_requests_waiting", 429, "Too many requests of your organization are under way; let some end."),
        Kind("too_many_signups", 429, "Too many keys were generated from this address; wait a minute."),
        Kind("too_many_wrong_tokens", 429, "Too many wrong tokens came from this address; wait a minute."),
        Kind("internal_error", 500, "Something went wrong here; the request id names it in our log."),
        Kind("queue_full", 503, "Too many events wait to be committed; nothing was stored."),
        Kind("database_unavailable", 503, "The database does not answer; nothing was stored."),
        Kind(
            "commit_unknown",
            503,
            "The database was lost during the commit, which may have happened: retry an event with the same dedup_id "
            "or Idempotency-Key.",
        ),
        Kind(
            "no_delivery_process",
            503,
            "No delivery process has taken this up in time: see whether `relay deliver` runs.",
        ),
        Kind("too_many_new_keys", 503, "Too many keys are being made at this moment; nothing was stored."),
        Kind(
            "too_many_large_responses",
            503,
            "Too many large responses are on their way to clients without an API key; try again in a moment.",
        ),
        Kind("shutting_down", 503, "This process is stopping; nothing was stored."),
    )
}


@dataclass(frozen=True, slots=True)
class Detail:
    """What is wrong with one member of a request."""

    field: str
    message: str


class ApiError(Exception):
    """An answer other than success, raised where it is known and written in one place (relay.http.answers).

    Args:
        code: a row of `KINDS`.
        details: for 422, what is wrong where.
        sentence: in the place of the table's, where figures are known.
        extra: further members of the answer's body, such as the first id of a duplicate.
        retry_after_s: whole seconds for `Retry-After`; 503 has 1 without it.
        headers: further headers, such as `Allow`.
        close: whether the connection ends with it.
    """

    def __init__(
        self,
        code: str,
        *,
        details: Sequence[Detail] = (),
        sentence: str | None = None,
        extra: Mapping[str, str | int] | None = None,
        retry_after_s: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        close: bool = False,
    ) -> None:
        super().__init__(code)
        self.kind = KINDS[code]
        self.details = tuple(details)
        self.sentence = sentence or self.kind.sentence
        self.extra = extra or {}
        self.retry_after_s = retry_after_s if retry_after_s or self.kind.status != 503 else 1
        self.headers = tuple(headers)
        self.close = close


def invalid(field: str, message: str) -> ApiError:
    """The 422 for one member that is not what it may be."""
    return ApiError("invalid_request", details=(Detail(field, message),))


_AT: Final = re.compile(r"^(?P<message>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_NAMED: Final = re.compile(r"field `(?P<name>[^`]*)`")


def refused(message: str) -> ApiError:
    """The 422 for what msgspec says of a body, for instance "Expected `str`, got `int` - at `$.type`"."""
    match = _AT.match(message)
    text, path = (match["message"], match["path"] or "") if match else (message, "")
    named = _NAMED.search(text)
    field = path.lstrip(".") if named is None else f"{path}.{named['name']}".lstrip(".")
    return invalid(field[:200] or "body", text[:200] + ".")
