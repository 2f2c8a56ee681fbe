"""The changes of an endpoint that a request asks for."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from relay.store.idempotency import IdempotencyKey

Scheme = Literal["v1", "v1a"]


@dataclass(frozen=True, slots=True)
class EndpointChanges:
    """The endpoint members of a request. None: the request does not set the member.

    Args:
        given: the names of the members in the request, to tell a null that resets a limit from an absent member.
        url: a validated URL.
        description: a text for people.
        event_types: the filters, exact or with a star at the end. An empty list matches all types.
        event_prefixes: the parts before the stars.
        enabled: False holds deliveries.
        headers: additional headers of each request.
        rate_limit_per_second: the limit of attempts per second.
        max_in_flight: the limit of concurrent attempts.
        timeout_s: the time limit of an attempt.
        retry_schedule: the waits between attempts, in seconds.
    """

    given: frozenset[str]
    url: str | None
    description: str | None
    event_types: Sequence[str] | None
    event_prefixes: Sequence[str] | None
    enabled: bool | None
    headers: Mapping[str, str] | None
    rate_limit_per_second: int | None
    max_in_flight: int | None
    timeout_s: float | None
    retry_schedule: Sequence[float] | None


class CatchUp(NamedTuple):
    """A request to deliver events older than the endpoint.

    `since` is the earliest time. `once` identifies a repeat of the request.
    """

    since: datetime.datetime
    once: IdempotencyKey | None
