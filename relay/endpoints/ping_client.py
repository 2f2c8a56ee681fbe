"""Asking for test deliveries: an API process asks in a table, and a delivery process answers there."""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from uuid import UUID

from relay.config.settings import LONGEST_TEST_S
from relay.errors import ApiError
from relay.runtime.service import Service
from relay.store import Cell, Row, StoreError

_log = logging.getLogger("relay.delivery")

# How long after the endpoint's timeout an answer is still waited for.
_MARGIN_S: Final = 5.0
# How long a test can be under way: it is taken up while somebody waits for it, and then has its time.
_SEAT_S: Final = 2 * (LONGEST_TEST_S + _MARGIN_S)
# How often another request may be faster.
_TRIES: Final = 3
_LOOK_EVERY_S: Final = 0.1
_AFTER_ERROR_S: Final = 1.0


class PingClient(Service):
    """The pings that this process waits for. One look every 100 ms for all of them together: however many callers
    wait, the database is asked ten times a second.

    Args:
        cell: where they are asked.
        timeout_s: that of endpoints without one of their own.
    """

    def __init__(self, cell: Cell, timeout_s: float) -> None:
        self._cell = cell
        self._timeout_s = timeout_s
        self._waiting: dict[UUID, tuple[UUID, asyncio.Future[Row]]] = {}
        self._somebody_waits = asyncio.Event()
        self._stopping = False

    async def ping(self, organization_id: UUID, endpoint_id: UUID) -> Row | None:
        """Have a test delivery made; None when the organization has no such endpoint.

        Returns:
            The attempt as a row of `take_ping_answers`.

        Raises:
            ApiError: `too_many_requests_waiting` when the organization has two under way, `no_delivery_process` when
                nobody answers, `shutting_down`.
            StoreError: it could not be asked for.
        """
        if self._stopping:
            raise ApiError("shutting_down")
        ping_id = self._cell.clock.new()
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting[ping_id] = organization_id, answer
        try:
            asked = await self._ask(organization_id, endpoint_id, ping_id)
            if asked is None:
                return None
            self._somebody_waits.set()
            await self._wake()
            async with asyncio.timeout(min(asked["timeout_s"] or self._timeout_s, LONGEST_TEST_S) + _MARGIN_S):
                return await answer
        except TimeoutError:
            raise ApiError("no_delivery_process") from None
        finally:
            del self._waiting[ping_id]
            if not answer.done() or answer.cancelled() or answer.exception() is not None:
                await self._drop(organization_id, ping_id)

    def stop(self) -> None:
        """From now on nobody waits: those who do are told so."""
        self._stopping = True
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ApiError("shutting_down"))

    async def run(self) -> None:
        """Look for answers while somebody waits for one."""
        while True:
            if not self._waiting:
                self._somebody_waits.clear()
                await self._somebody_waits.wait()
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._look()
            except StoreError as error:
                _log.warning("pings_not_read", extra={"reason": str(error)})
                await asyncio.sleep(_AFTER_ERROR_S)

    async def _ask(self, organization_id: UUID, endpoint_id: UUID, ping_id: UUID) -> Row | None:
        for _ in range(_TRIES):
            row = await self._cell.fetch_row("ask_ping", organization_id, endpoint_id, ping_id, _SEAT_S)
            if row is None or row["asked"]:
                return row
            if row["is_full"]:
                break
        raise ApiError("too_many_requests_waiting", retry_after_s=1)

    async def _look(self) -> None:
        organizations = [organization_id for organization_id, _ in self._waiting.values()]
        for row in await self._cell.fetch("take_ping_answers", organizations, list(self._waiting)):
            waiting = self._waiting.get(row["id"])
            if waiting is not None and not waiting[1].done():
                waiting[1].set_result(row)

    async def _wake(self) -> None:
        try:
            await self._cell.fetch("wake", self._cell.channel("ping"), timeout_s=1.0)
        except StoreError:
            # They look by themselves once a second.
            return

    async def _drop(self, organization_id: UUID, ping_id: UUID) -> None:
        try:
            await self._cell.fetch("drop_ping", organization_id, ping_id, timeout_s=1.0)
        except StoreError:
            # Delivery processes drop what is old.
            return
