"""What requests say of endpoints."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from relay.store.idempotency import IdempotencyKey

Scheme = Literal["v1", "v1a"]


@dataclass(frozen=True, slots=True)
class EndpointChanges:
    """What a request says of an endpoint; None where it says nothing.

    Args:
        given: the names of the members that it names, to tell a null that resets a limit from none.
        url: checked.
        description: for people.
        event_types: which types the endpoint takes, exact or with a star at the end; none means all.
        event_prefixes: what stands before the stars.
        enabled: whether events are sent.
        headers: additional headers of each request.
        rate_limit_per_second: attempts a second.
        max_in_flight: attempts on the wire at once.
        timeout_s: how long the receiver may take.
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
    """Which events from before are sent too, and how a repeat of the request is known."""

    since: datetime.datetime
    once: IdempotencyKey | None
