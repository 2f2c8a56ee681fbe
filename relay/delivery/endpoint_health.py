"""What the rows of endpoints say of their health: written seldom, beside the deliveries."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final
from uuid import UUID

import orjson

from relay.delivery.capacity.circuit_breaker import Breaker
from relay.delivery.endpoint_cache import Endpoint
from relay.runtime.service import Service
from relay.store import Cell, DatabaseUnavailable, StoreError
from relay.telemetry.metrics import Metrics
from relay.values.times import rfc3339

_log = logging.getLogger("relay.delivery")

# Failures that last shorter than this are nobody's business.
_NOTED_AFTER_S: Final = 60.0
# More endpoints do not change at once; what is not noted now is when the next attempt ends.
_MOST_NOTES: Final = 10_000
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
# How long what is left at a stop may take.
_LAST_NOTES_S: Final = 1.0
_WAKE_TIMEOUT_S: Final = 2.0
# The type of the event that tells an organization.
_DISABLED: Final = "relay.endpoint.disabled"


class _Verdict:
    """An endpoint that is given up, until its row says so."""

    __slots__ = ("endpoint", "reason", "written")

    def __init__(self, endpoint: Endpoint, reason: str) -> None:
        self.endpoint = endpoint
        self.reason = reason
        self.written = asyncio.Event()


class EndpointHealth(Service):
    """Notes since when endpoints fail and their breakers are open, and disables those that are beyond hope.

    Args:
        cell: whose endpoints.
        disable_after_s: how long an endpoint may do nothing but fail.
        now: the clock that `at` of the event is read from.
        metrics: counts what was disabled.
    """

    def __init__(
        self, cell: Cell, disable_after_s: float, now: Callable[[], datetime.datetime], metrics: Metrics
    ) -> None:
        self._cell = cell
        self._disable_after_s = disable_after_s
        self._now = now
        self._changed = asyncio.Event()
        self._ends = False
        self._notes: dict[UUID, tuple[Endpoint, Breaker]] = {}
        self._given_up: dict[UUID, _Verdict] = {}
        self._disabled = metrics.counter(
            "relay_endpoints_disabled", "Endpoints that relay has disabled, by reason: gone, failing.", "reason"
        )
        for reason in ("gone", "failing"):
            self._disabled.labels(reason)

    def attempted(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        """An attempt or a probe has ended and left the breaker like this."""
        failing_at = breaker.failing_at
        if failing_at is not None and now - failing_at >= self._disable_after_s:
            self._give_up(endpoint, "failing")
            return
        broken = breaker.broken_at is not None
        if breaker.noted != (broken or (failing_at is not None and now - failing_at >= _NOTED_AFTER_S), broken):
            if len(self._notes) < _MOST_NOTES:
                self._notes[endpoint.id] = endpoint, breaker
            self._changed.set()

    async def gone(self, endpoint: Endpoint) -> None:
        """The endpoint has answered 410: come back once it is disabled."""
        await self._give_up(endpoint, "gone").written.wait()

    def _give_up(self, endpoint: Endpoint, reason: str) -> _Verdict:
        verdict = self._given_up.setdefault(endpoint.id, _Verdict(endpoint, reason))
        self._changed.set()
        return verdict

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends = True
        self._changed.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_LAST_NOTES_S)
        await super().__aexit__(kind, error, traceback)

    async def run(self) -> None:
        """Write what is to be written, until it is left or cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._write_all()
            except StoreError as reason:
                waiting = len(self._notes) + len(self._given_up)
                _log.warning("health_waits_for_database", extra={"endpoints": waiting, "reason": str(reason)})
                if self._ends:
                    return
                self._changed.set()
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                if self._ends:
                    return
                pause_s = _FIRST_PAUSE_S

    async def _write_all(self) -> None:
        while self._given_up:
            endpoint_id, verdict = next(iter(self._given_up.items()))
            await self._disable(verdict)
            del self._given_up[endpoint_id]
            self._notes.pop(endpoint_id, None)
            verdict.written.set()
        while self._notes:
            endpoint_id, (endpoint, breaker) = next(iter(self._notes.items()))
            del self._notes[endpoint_id]
            try:
                await self._note(endpoint, breaker)
            except StoreError:
                self._notes.setdefault(endpoint_id, (endpoint, breaker))
                raise

    async def _note(self, endpoint: Endpoint, breaker: Breaker) -> None:
        now = asyncio.get_running_loop().time()
        failing_at, broken_at = breaker.failing_at, breaker.broken_at
        broken_s = None if broken_at is None else now - broken_at
        failing_s = None if failing_at is None else now - failing_at
        if broken_s is None and failing_s is not None and failing_s < _NOTED_AFTER_S:
            failing_s = None
        breaker.noted = failing_s is not None, broken_s is not None
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
            orjson.dumps(payload),
            _DISABLED,
        )
        if row is not None and row["disabled"] is None:
            await self._cell.renew_epoch()
            # Once more, after a pause.
            raise DatabaseUnavailable("PostgreSQL was started anew")
        if row is None or not row["disabled"]:
            return
        self._disabled.add(1, verdict.reason)
        _log.warning("endpoint_disabled", extra={"endpoint_id": str(endpoint.id), "reason": verdict.reason})
        try:
            await self._cell.fetch("wake", self._cell.channel("wake"), timeout_s=_WAKE_TIMEOUT_S)
        except StoreError as reason:
            # Whoever listens looks once a second too.
            _log.info("wake_up_not_sent", extra={"reason": str(reason)})
