"""POST /api/events/batch: accept up to 1,000 events with one request and one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.errors import ApiError
from relay.http.admission import Admission
from relay.http.body import JSON_TYPES, BodyReader
from relay.http.exchange import JSON, Exchange, Receive, Scope, Send
from relay.http.operations import RawHandler
from relay.http.query import reject_query
from relay.http.schemas.events import BatchResponse, BatchResult
from relay.ingest import (
    Accepted,
    Duplicate,
    GroupCommit,
    Item,
    KeyReused,
    Outcome,
    Replayed,
    parse_array,
    parse_lines,
    read_idempotency_key,
)
from relay.telemetry.metrics import Counter
from relay.values.json_encoding import encode

BATCH_BODY_BYTES: Final = 4 * 1024 * 1024
NDJSON: Final = b"application/x-ndjson"
_TYPES: Final = JSON_TYPES | {NDJSON}
# Around the ids of accepted events.
_BEFORE_FIRST: Final = '{"results":[{"status":"accepted","id":"'
_BETWEEN: Final = '"},{"status":"accepted","id":"'
_AFTER_LAST: Final = '"}]}'


class PostBatch(RawHandler):
    """Accept many events at once. Valid events are committed even if others are not.

    Args:
        admission: admits requests.
        bodies: reads bodies.
        commit: commits events.
        rejected: counts invalid events by error code.
    """

    def __init__(self, admission: Admission, bodies: BodyReader, commit: GroupCommit, rejected: Counter) -> None:
        self._admission = admission
        self._bodies = bodies
        self._commit = commit
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        exchange: Exchange = scope["relay"]
        tenant = await self._admission.admit(exchange, "ingest", permit=False)
        reject_query(scope)
        header = exchange.headers.get(b"idempotency-key")
        key = None if header is None else read_idempotency_key(header)
        body = await self._bodies.read(exchange, BATCH_BODY_BYTES, _TYPES)
        lines = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == NDJSON
        items = parse_lines(body) if lines else parse_array(body)
        exchange.uncounted_events = len(items)
        if len(items) > 1:
            await self._admission.charge(exchange, tenant, len(items))
        # From here on events are counted one by one: here, or by group commit.
        exchange.uncounted_events = 0
        valid = [item for item in items if not isinstance(item, ApiError)]
        keys: list[str | None] = [None] * len(valid)
        if key is not None:
            keys = [f"{key}#{place}" for place, item in enumerate(items) if not isinstance(item, ApiError)]
        for item in items if len(valid) < len(items) else ():
            if isinstance(item, ApiError):
                self._rejected.add(1, item.kind.code)
        outcomes = await self._commit.join_batch(tenant.organization_id, valid, keys, exchange.trace) if valid else []
        await exchange.respond(200, response_of(items, outcomes), JSON)


def response_of(items: Sequence[Item], outcomes: Sequence[Outcome | ApiError]) -> bytes:
    """Return the response to a batch as JSON.

    If all events are accepted, as nearly always, it is their ids with the same text between them. Building and encoding
    a result for each takes seven times as long.

    Raises:
        ApiError: as `results_of`.
    """
    ids = [str(outcome.event_id) for outcome in outcomes if isinstance(outcome, Accepted)]
    if ids and len(ids) == len(items):
        return (_BEFORE_FIRST + _BETWEEN.join(ids) + _AFTER_LAST).encode("ascii")
    return encode(BatchResponse(results=results_of(items, outcomes)))


def results_of(items: Sequence[Item], outcomes: Sequence[Outcome | ApiError]) -> list[BatchResult]:
    """Return the result of each item: its error, or the next of the outcomes.

    Raises:
        ApiError: 503 if some events failed for our own reasons. A retry with the same keys finds the others. It is
            `commit_unknown` if others were committed, because the other codes say that nothing was stored.
    """
    failures = [each for each in outcomes if isinstance(each, ApiError) and each.kind.status >= 500]
    if failures:
        if any(isinstance(each, Accepted) for each in outcomes):
            raise ApiError("commit_unknown")
        raise next((each for each in failures if each.kind.code == "commit_unknown"), failures[0])
    following = iter(outcomes)
    results = []
    for item in items:
        outcome = item if isinstance(item, ApiError) else next(following)
        match outcome:
            case Accepted(event_id) | Replayed(event_id):
                results.append(BatchResult(status="accepted", id=str(event_id)))
            case Duplicate(first_id, differs):
                duplicate = BatchResult(status="duplicate", id=str(first_id))
                if differs:
                    duplicate["conflict"] = "payload"
                results.append(duplicate)
            case KeyReused():
                results.append(_invalid(ApiError("idempotency_key_reused")))
            case ApiError():
                results.append(_invalid(outcome))
            case _:
                raise outcome
    return results


def _invalid(error: ApiError) -> BatchResult:
    problems = [f"{detail.field}: {detail.message}" for detail in error.details]
    return BatchResult(status="invalid", error=" ".join(problems) or error.kind.sentence, code=error.kind.code)
