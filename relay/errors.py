"""The errors of the API: a table of code, status and sentence, and the exception that carries one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from relay.values.document_errors import DocumentError, InvalidMember, InvalidUtf8, MalformedJson, TooDeep


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table."""

    code: str
    status: int
    sentence: str


KINDS: Final[Mapping[str, Kind]] = {
    kind.code: kind
    for kind in (
        Kind("malformed_json", 400, "The body is not valid JSON."),
        Kind("invalid_utf8", 400, "The body is not valid UTF-8."),
        Kind("body_incomplete", 400, "The body is incomplete or its HTTP framing is invalid. Send it again in full."),
        Kind(
            "invalid_headers",
            400,
            "A header is missing or repeated. Send one Host header, and Content-Type, Content-Encoding, "
            "Idempotency-Key and Authorization at most once.",
        ),
        Kind("missing_api_key", 401, "The API key is missing. Send it in the X-API-Key header."),
        Kind("invalid_api_key", 401, "The API key is unknown, revoked or expired. Use a key that is in force."),
        Kind(
            "invalid_admin_token",
            401,
            "The admin token is missing or wrong. Send it as `Authorization: Bearer <token>`.",
        ),
        Kind(
            "invalid_metrics_token",
            401,
            "The metrics token is missing or wrong. Send it as `Authorization: Bearer <token>`.",
        ),
        Kind("insufficient_scope", 403, "The API key lacks the scope that this route needs. Use a key that has it."),
        Kind(
            "cross_site_request",
            403,
            "The request comes from a page of another origin. Add that origin to RELAY_CORS_ORIGINS to allow it.",
        ),
        Kind("not_found", 404, "There is no such path."),
        Kind("event_not_found", 404, "There is no such event in your organization."),
        Kind("endpoint_not_found", 404, "There is no such endpoint in your organization."),
        Kind("consumer_not_found", 404, "There is no such consumer in your organization."),
        Kind("delivery_not_found", 404, "There is no such delivery in your organization."),
        Kind("key_not_found", 404, "There is no such key in your organization."),
        Kind("job_not_found", 404, "There is no such job in your organization."),
        Kind("method_not_allowed", 405, "This path does not support the method. Use one that the Allow header lists."),
        Kind("body_timeout", 408, "The body arrived too slowly. Send the request again."),
        Kind("duplicate", 409, "An event with this dedup_id was already accepted."),
        Kind("no_endpoint", 409, "None of your endpoints accepts events of this type. Add one, or change a filter."),
        Kind("already_ended", 409, "The delivery has been delivered or cancelled already. It cannot be discarded."),
        Kind("consumer_exists", 409, "Your organization has a consumer with this name. Choose another name."),
        Kind(
            "too_many_leased",
            409,
            "10,000 events are leased, the limit for a consumer and for the plain inbox. Acknowledge some first.",
        ),
        Kind(
            "last_manager",
            409,
            "This is the last key that can manage the organization. Create another that does not expire, or rotate "
            "this one.",
        ),
        Kind(
            "too_many_endpoints",
            409,
            "Your organization has as many endpoints as its tier allows. Delete one first.",
        ),
        Kind(
            "too_many_filters",
            409,
            "The filters of your organization's endpoints exceed 262,144 bytes. Use fewer, or prefixes such as "
            "`order.*`.",
        ),
        Kind("body_too_large", 413, "The body is larger than this route allows. Send a smaller one."),
        Kind("payload_too_large", 413, "The payload is larger than 262,144 bytes. Send a smaller one."),
        Kind("batch_too_large", 413, "The batch has more than 1,000 events. Split it."),
        Kind(
            "batch_opens_too_many",
            413,
            "The batch creates more than 20,000 deliveries, one for each event and endpoint. Send fewer events at "
            "once.",
        ),
        Kind("unsupported_media_type", 415, "The media type is not supported. Send the body as application/json."),
        Kind(
            "unsupported_encoding",
            415,
            "Compressed bodies are not supported. Send the body without Content-Encoding.",
        ),
        Kind("misdirected_host", 421, "The Host is not a loopback name. Set RELAY_ADMIN_TOKEN to serve other names."),
        Kind("invalid_request", 422, "The request is invalid. See details."),
        Kind("too_deep", 422, "The JSON is nested more than 512 levels deep. Nest it less."),
        Kind("invalid_cursor", 422, "The cursor is not from this query. Use one that this query returned, or none."),
        Kind(
            "invalid_idempotency_key",
            422,
            "The Idempotency-Key is invalid. It must be 1 to 255 visible ASCII characters.",
        ),
        Kind("idempotency_key_reused", 422, "This Idempotency-Key was used for a different request. Use a new one."),
        Kind("unstorable", 422, "PostgreSQL rejects a value in this event. Change the event."),
        Kind("batch_over_limit", 422, "The batch has more events than your tier's burst allows. Split it."),
        Kind("tier_not_allowed", 422, "This tier is not available by sign-up. Choose a lower one."),
        Kind("too_many_keys", 422, "Your organization has 100 keys in force, the limit. Delete some first."),
        Kind("invalid_url", 422, "Webhooks cannot be sent to this URL. Use another."),
        Kind("rate_limited", 429, "The rate limit is exceeded. Retry when the Retry-After header says."),
        Kind(
            "too_many_requests_waiting",
            429,
            "Your organization has too many requests in progress. Wait for some to finish.",
        ),
        Kind("too_many_signups", 429, "Too many keys were generated from this address. Wait a minute."),
        Kind("too_many_wrong_tokens", 429, "Too many wrong tokens were sent from this address. Wait a minute."),
        Kind("internal_error", 500, "An internal error occurred. The log has its details under the request id."),
        Kind("queue_full", 503, "Too many events are waiting to be committed. Nothing was stored: retry."),
        Kind("database_unavailable", 503, "The database is unavailable. Nothing was stored: retry."),
        Kind(
            "commit_unknown",
            503,
            "The database connection was lost during the commit, which may have succeeded. Retry an event with the "
            "same dedup_id or Idempotency-Key.",
        ),
        Kind(
            "no_delivery_process",
            503,
            "No delivery process sent the test in time. Check that `relay deliver` is running.",
        ),
        Kind("test_not_sent", 503, "The delivery process could not send the test. Try again in a moment."),
        Kind("too_many_new_keys", 503, "Too many keys are being created. Nothing was stored: retry in a moment."),
        Kind(
            "too_many_large_responses",
            503,
            "Too many large responses are being sent to clients without an API key. Retry in a moment.",
        ),
        Kind("shutting_down", 503, "This process is shutting down. Nothing was stored: retry."),
    )
}


@dataclass(frozen=True, slots=True)
class Detail:
    """An error in one member of a request."""

    field: str
    message: str


class ApiError(Exception):
    """An error response, raised where the error is known and written in one place, `relay.http.application`.

    Args:
        code: a row of `KINDS`.
        details: for 422, the members that are wrong and why.
        sentence: replaces the sentence of the table if figures are known.
        extra: further members of the response body, such as the first id of a duplicate.
        retry_after_s: whole seconds for `Retry-After`. The default for 503 is 1.
        headers: further headers, such as `Allow`.
        close: True closes the connection after the response.
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
    """Return the 422 for one invalid member."""
    return ApiError("invalid_request", details=(Detail(field, message),))


def of_document(error: DocumentError) -> ApiError:
    """Return the response error for an invalid document."""
    if isinstance(error, InvalidMember):
        return invalid(error.field, error.message)
    return ApiError(_DOCUMENT_ERRORS[type(error)])


_DOCUMENT_ERRORS: Final[Mapping[type[DocumentError], str]] = {
    InvalidUtf8: "invalid_utf8",
    MalformedJson: "malformed_json",
    TooDeep: "too_deep",
}
