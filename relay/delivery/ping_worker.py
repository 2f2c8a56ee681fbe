"""Test deliveries: whoever asks for one leaves a row, and finds what came of it there."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final
from uuid import UUID

import msgspec

from relay.config.settings import LONGEST_TEST_S
from relay.delivery.endpoint_cache import EndpointCache
from relay.delivery.transport.sender import Post, Sender
from relay.delivery.transport.shortage import Shortage
from relay.runtime.service import Service
from relay.store import Cell, StoreError

_log = logging.getLogger("relay.delivery")

# Hints may be lost; looking this often makes up for them.
_POLL_S: Final = 1.0
#: So many are on the wire at once, beside everything else that is.
_MOST: Final = 16
_TIMEOUT_S: Final = 2.0
_TYPE: Final = "relay.ping"
_PAYLOAD: Final = b"{}"


class PingWorker(Service):
    """Makes the test deliveries that are asked for: one attempt each, whatever the endpoint's limits or health, of 30 s
    at most; two of an organization at once, over all processes.

    Args:
        cell: where they are asked for.
        directory: knows the endpoints, disabled ones too.
        sender: makes the attempts.
        timeout_s: of endpoints that have none of their own.
    """

    def __init__(self, cell: Cell, directory: EndpointCache, sender: Sender, timeout_s: float) -> None:
        self._cell = cell
        self._directory = directory
        self._sender = sender
        self._timeout_s = timeout_s
        self._asked = asyncio.Event()
        # By the organization that each is for.
        self._sending: dict[asyncio.Task[None], UUID] = {}

    def poll(self) -> None:
        """Somebody may have asked for one."""
        self._asked.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        # Whoever waits asks again: a test is not worth delaying the end.
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait([*self._sending])

    async def run(self) -> None:
        """Take what is asked for, until cancelled."""
        while True:
            self._asked.clear()
            try:
                await self._take()
            except StoreError as reason:
                _log.info("pings_not_read", extra={"reason": str(reason)})
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _take(self) -> None:
        free = _MOST - len(self._sending)
        if free <= 0:
            return
        here = list(self._sending.values())
        rows = await self._cell.fetch("take_pings", free, self._timeout_s, LONGEST_TEST_S, here, timeout_s=_TIMEOUT_S)
        for row in rows:
            task = asyncio.create_task(self._ping(row["organization_id"], row["id"], row["endpoint_id"]))
            self._sending[task] = row["organization_id"]
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        # Its organization, or another, may have been waiting for this.
        self.poll()
        if not task.cancelled() and task.exception() is not None:
            _log.error("ping_dropped", exc_info=task.exception())

    async def _ping(self, organization_id: UUID, id_: UUID, endpoint_id: UUID) -> None:
        try:
            endpoint = await self._directory.find(self._cell, organization_id, endpoint_id)
            if endpoint is None or endpoint.target is None:
                return
            target = msgspec.structs.replace(endpoint.target, timeout_s=min(endpoint.target.timeout_s, LONGEST_TEST_S))
            answer = await self._sender.send(Post(target, id_, _TYPE, _PAYLOAD, 1))
            await self._cell.fetch(
                "answer_ping",
                organization_id,
                id_,
                answer.at,
                answer.status_code,
                round(answer.latency_s * 1000),
                answer.error_class,
                answer.response,
            )
        except (StoreError, Shortage) as reason:
            _log.warning("ping_not_answered", extra={"endpoint_id": str(endpoint_id), "reason": str(reason)})
