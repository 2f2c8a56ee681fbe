"""Remember the state of endpoints: while they have deliveries in flight, and while it differs from the default."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Final
from uuid import UUID

from relay.delivery.capacity.circuit_breaker import Breaker
from relay.delivery.capacity.endpoint_state import EndpointLimits, EndpointState

#: Idle endpoints that are remembered. Each is a parameter of every claim.
_REMEMBERED: Final = 1_000
#: The limit is higher for those with an open breaker: a forgotten one would be probed in every pass.
_BROKEN_REMEMBERED: Final = 5_000
#: After a probe has been due for this long without a delivery, the endpoint is forgotten: it may be disabled, gone, or
#: assigned to another process. Its state is read from its row again with its next delivery.
_UNUSED_S: Final = 600.0


class KnownEndpoints:
    """The endpoints whose state is known. The number of idle ones is bounded."""

    __slots__ = ("_idle", "_idle_broken", "broken", "busy")

    def __init__(self) -> None:
        #: The endpoints with deliveries in flight.
        self.busy: dict[UUID, EndpointState] = {}
        #: The open breakers of all endpoints.
        self.broken: dict[UUID, Breaker] = {}
        self._idle: OrderedDict[UUID, EndpointState] = OrderedDict()
        # Idle endpoints with an open breaker.
        self._idle_broken: OrderedDict[UUID, EndpointState] = OrderedDict()

    def __iter__(self) -> Iterator[tuple[UUID, EndpointState]]:
        return chain(self.busy.items(), self._idle.items(), self._idle_broken.items())

    def find(self, endpoint_id: UUID) -> EndpointState | None:
        """Return the state of an endpoint, unless it is idle with an open breaker."""
        return self.busy.get(endpoint_id) or self._idle.get(endpoint_id)

    def activate(self, endpoint_id: UUID, limits: EndpointLimits, now: float) -> EndpointState:
        """Return the state of an endpoint that has deliveries in flight from now on. Its limits may be outdated."""
        known = self._idle.pop(endpoint_id, None) or self._idle_broken.pop(endpoint_id, None)
        endpoint = known or EndpointState(limits, now)
        self.busy[endpoint_id] = endpoint
        if known is None and endpoint.breaker.broken_at is not None:
            self.broken[endpoint_id] = endpoint.breaker
        return endpoint

    def note_breaker(self, endpoint_id: UUID, breaker: Breaker) -> None:
        """Record whether the breaker of an endpoint is open."""
        if breaker.broken_at is None:
            self.broken.pop(endpoint_id, None)
        else:
            self.broken[endpoint_id] = breaker

    def make_idle(self, endpoint_id: UUID) -> None:
        """Record that an endpoint has no deliveries in flight any more."""
        endpoint = self.busy.pop(endpoint_id)
        if endpoint.breaker.broken_at is not None:
            self._idle_broken[endpoint_id] = endpoint
            if len(self._idle_broken) > _BROKEN_REMEMBERED:
                forgotten, _ = self._idle_broken.popitem(last=False)
                del self.broken[forgotten]
        elif not endpoint.is_default:
            self._idle[endpoint_id] = endpoint
            if len(self._idle) > _REMEMBERED:
                self._idle.popitem(last=False)

    def forget_unused(self, now: float) -> None:
        """Forget the endpoints whose probe has been due for long without a delivery."""
        unused = [
            endpoint_id
            for endpoint_id, endpoint in self._idle_broken.items()
            if now - endpoint.breaker.probe_at > _UNUSED_S
        ]
        for endpoint_id in unused:
            del self._idle_broken[endpoint_id], self.broken[endpoint_id]
