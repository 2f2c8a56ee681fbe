"""Make test deliveries. A request for one is a row, and its result is written to the same row."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final
from uuid import UUID

import msgspec

from relay.config.settings import LONGEST_TEST_S
from relay.delivery.endpoint_cache import EndpointCache
from relay.delivery.transport.request import Target
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import AttemptResponse, Post, Sender
from relay.delivery.transport.shortage import Shortage
from relay.runtime.service import Service
from relay.store import Cell, StoreError

_log = logging.getLogger("relay.delivery")

# Wakeups may be lost, so polling makes up for them.
_POLL_S: Final = 1.0
#: At most this many are in flight at once, in addition to deliveries.
_MAX_IN_FLIGHT: Final = 16
_TIMEOUT_S: Final = 2.0
_TYPE: Final = "relay.ping"
_PAYLOAD: Final = b"{}"


class PingWorker(Service):
    """Make requested test deliveries: one attempt of at most 30 s, regardless of the endpoint's limits and health.

    At most two per organization are in flight, across all processes.

    Args:
        cell: the cell that holds the requests.
        endpoint_cache: loads endpoints, including disabled ones.
        sender: makes the attempts.
        timeout_s: the timeout of endpoints that set none.
    """

    def __init__(self, cell: Cell, endpoint_cache: EndpointCache, sender: Sender, timeout_s: float) -> None:
        self._cell = cell
        self._endpoint_cache = endpoint_cache
        self._sender = sender
        self._timeout_s = timeout_s
        self._wakeup = asyncio.Event()
        # The organization of each.
        self._sending: dict[asyncio.Task[None], UUID] = {}

    def poll(self) -> None:
        """Wake the worker: a test delivery may have been requested."""
        self._wakeup.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        # A test delivery is not worth delaying shutdown. The caller can request it again.
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait([*self._sending])

    async def run(self) -> None:
        """Take requested test deliveries until cancelled."""
        while True:
            self._wakeup.clear()
            try:
                await self._take()
            except StoreError as reason:
                _log.info("pings_not_read", extra={"reason": str(reason)})
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wakeup.wait()
            except TimeoutError:
                continue

    async def _take(self) -> None:
        free = _MAX_IN_FLIGHT - len(self._sending)
        if free <= 0:
            return
        organization_ids = list(self._sending.values())
        rows = await self._cell.fetch(
            "take_pings", free, self._timeout_s, LONGEST_TEST_S, organization_ids, timeout_s=_TIMEOUT_S
        )
        for row in rows:
            task = asyncio.create_task(self._ping(row["organization_id"], row["id"], row["endpoint_id"]))
            self._sending[task] = row["organization_id"]
            task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        # Another request, of any organization, may have been waiting for this to end.
        self.poll()
        if not task.cancelled() and task.exception() is not None:
            _log.error("ping_dropped", exc_info=task.exception())

    async def _ping(self, organization_id: UUID, id_: UUID, endpoint_id: UUID) -> None:
        try:
            endpoint = await self._endpoint_cache.find(self._cell, organization_id, endpoint_id)
            if endpoint is None:
                return
            if endpoint.target is None:
                response = self._unsent("The delivery process cannot read the endpoint's secret or headers.")
            else:
                response = await self._send(endpoint.target, id_)
            await self._cell.fetch(
                "answer_ping",
                organization_id,
                id_,
                response.at,
                response.status_code,
                round(response.latency_s * 1000),
                response.error_class,
                response.body,
            )
        except StoreError as reason:
            _log.warning("ping_not_answered", extra={"endpoint_id": str(endpoint_id), "reason": str(reason)})

    async def _send(self, target: Target, id_: UUID) -> AttemptResponse:
        target = msgspec.structs.replace(target, timeout_s=min(target.timeout_s, LONGEST_TEST_S))
        try:
            return await self._sender.send(Post(target, id_, _TYPE, _PAYLOAD, 1))
        except Shortage as shortage:
            _log.warning("delivery_not_sent", extra={"lacking": shortage.lacking})
            return self._unsent(f"The delivery process has run out of {shortage.lacking}. Try again in a moment.")

    def _unsent(self, reason: str) -> AttemptResponse:
        return AttemptResponse(self._cell.now(), 0.0, error_class=ErrorClass.UNSENT, body=reason.encode())
