"""Write the health of endpoints to their rows: rarely, and not as part of any delivery."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final
from uuid import UUID

from relay.delivery.capacity.circuit_breaker import Breaker
from relay.delivery.endpoint_cache import CachedEndpoint
from relay.runtime.service import Service
from relay.store import Cell, DatabaseUnavailable, StatementRejected, StoreError
from relay.telemetry.metrics import Metrics
from relay.values.json_encoding import encode
from relay.values.times import rfc3339

_log = logging.getLogger("relay.delivery")

# Failures shorter than this are not written.
_WRITE_AFTER_S: Final = 60.0
# At most this many endpoints are waiting to be written. Others are written after their next attempt.
_MAX_PENDING: Final = 10_000
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
# The time that shutdown waits for pending writes.
_DRAIN_S: Final = 1.0
_WAKE_TIMEOUT_S: Final = 2.0
# The type of the event that notifies the organization.
_DISABLED: Final = "relay.endpoint.disabled"


class _Verdict:
    """An endpoint to be disabled, until its row is written or that is rejected."""

    __slots__ = ("endpoint", "reason", "settled")

    def __init__(self, endpoint: CachedEndpoint, reason: str) -> None:
        self.endpoint = endpoint
        self.reason = reason
        self.settled = asyncio.Event()


class EndpointHealth(Service):
    """Record since when endpoints have failed and their breakers have been open, and disable those that keep failing.

    Args:
        cell: the cell of the endpoints.
        disable_after_s: an endpoint that only fails for this long is disabled.
        now: the clock for `at` in the event.
        metrics: counts the disabled endpoints.
    """

    def __init__(
        self, cell: Cell, disable_after_s: float, now: Callable[[], datetime.datetime], metrics: Metrics
    ) -> None:
        self._cell = cell
        self._disable_after_s = disable_after_s
        self._now = now
        self._changed = asyncio.Event()
        self._is_closing = False
        self._pending: dict[UUID, tuple[CachedEndpoint, Breaker]] = {}
        self._to_disable: dict[UUID, _Verdict] = {}
        self._disabled = metrics.counter(
            "relay_endpoints_disabled", "Endpoints disabled by relay, by reason: gone, failing.", "reason"
        )
        for reason in ("gone", "failing"):
            self._disabled.labels(reason)

    def attempted(self, endpoint: CachedEndpoint, breaker: Breaker, now: float) -> None:
        """Record the state of an endpoint's breaker after an attempt or a probe."""
        failing_at = breaker.failing_at
        if failing_at is not None and now - failing_at >= self._disable_after_s:
            self._request_disable(endpoint, "failing")
            return
        broken = breaker.broken_at is not None
        if breaker.persisted != (broken or (failing_at is not None and now - failing_at >= _WRITE_AFTER_S), broken):
            if len(self._pending) < _MAX_PENDING:
                self._pending[endpoint.id] = endpoint, breaker
            self._changed.set()

    async def gone(self, endpoint: CachedEndpoint) -> None:
        """Disable an endpoint that responded with 410, and wait until that is written, or rejected by PostgreSQL."""
        await self._request_disable(endpoint, "gone").settled.wait()

    def _request_disable(self, endpoint: CachedEndpoint, reason: str) -> _Verdict:
        verdict = self._to_disable.setdefault(endpoint.id, _Verdict(endpoint, reason))
        self._changed.set()
        return verdict

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closing = True
        self._changed.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_DRAIN_S)
        await super().__aexit__(kind, error, traceback)

    async def run(self) -> None:
        """Write pending changes until exit or cancellation."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._write_all()
            except StoreError as reason:
                waiting = len(self._pending) + len(self._to_disable)
                _log.warning("health_waits_for_database", extra={"endpoints": waiting, "reason": str(reason)})
                if self._is_closing:
                    return
                self._changed.set()
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                if self._is_closing:
                    return
                pause_s = _FIRST_PAUSE_S

    async def _write_all(self) -> None:
        while self._to_disable:
            endpoint_id, verdict = next(iter(self._to_disable.items()))
            # If that is rejected, the next attempt requests it again. The result of this one must not wait for it.
            with suppress(StatementRejected):
                await self._disable(verdict)
                self._pending.pop(endpoint_id, None)
            del self._to_disable[endpoint_id]
            verdict.settled.set()
        while self._pending:
            endpoint_id, (endpoint, breaker) = next(iter(self._pending.items()))
            del self._pending[endpoint_id]
            try:
                await self._write_health(endpoint, breaker)
            except StoreError:
                self._pending.setdefault(endpoint_id, (endpoint, breaker))
                raise

    async def _write_health(self, endpoint: CachedEndpoint, breaker: Breaker) -> None:
        now = asyncio.get_running_loop().time()
        failing_at, broken_at = breaker.failing_at, breaker.broken_at
        broken_s = None if broken_at is None else now - broken_at
        failing_s = None if failing_at is None else now - failing_at
        if broken_s is None and failing_s is not None and failing_s < _WRITE_AFTER_S:
            failing_s = None
        breaker.persisted = failing_s is not None, broken_s is not None
        await self._cell.fetch("note_health", endpoint.organization_id, endpoint.id, failing_s, broken_s)

    async def _disable(self, verdict: _Verdict) -> None:
        endpoint, at = verdict.endpoint, self._now()
        payload = {"endpoint_id": str(endpoint.id), "reason": verdict.reason, "at": rfc3339(at)}
        row = await self._cell.fetch_row(
            "disable_endpoint",
            endpoint.organization_id,
            endpoint.id,
            endpoint.url,
            verdict.reason,
            at,
            self._cell.clock.new(),
            self._cell.clock.new(),
            encode(payload),
            _DISABLED,
        )
        if row is not None and row["disabled"] is None:
            await self._cell.server.renew_epoch()
            # Retried after a pause.
            raise DatabaseUnavailable("PostgreSQL was restarted")
        if row is None or not row["disabled"]:
            return
        self._disabled.add(1, verdict.reason)
        _log.warning("endpoint_disabled", extra={"endpoint_id": str(endpoint.id), "reason": verdict.reason})
        try:
            await self._cell.fetch("wake", self._cell.channel("wake"), timeout_s=_WAKE_TIMEOUT_S)
        except StoreError as reason:
            # Listeners also poll once a second.
            _log.info("wake_up_not_sent", extra={"reason": str(reason)})
