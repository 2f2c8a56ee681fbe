"""The client of test deliveries: an API process writes a request to a table, a delivery process writes the result."""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from uuid import UUID

from relay.config.settings import LONGEST_TEST_S
from relay.endpoints.errors import NoDeliveryProcess, PingNotSent, PingsStopped, TooManyPings
from relay.runtime.service import Service
from relay.store import Cell, Row, StatementRejected, StoreError

_log = logging.getLogger("relay.delivery")

# The wait for a result beyond the endpoint's timeout.
_MARGIN_S: Final = 5.0
# The longest life of a test: it starts while a caller waits for it, and then has its full time.
_SLOT_S: Final = 2 * (LONGEST_TEST_S + _MARGIN_S)
# Attempts before concurrent requests make this one fail.
_TRIES: Final = 3
_POLL_S: Final = 0.1
_AFTER_ERROR_S: Final = 1.0
# The class of what a delivery process could not send, for the reason in place of a response.
_UNSENT: Final = "unsent"


class PingClient(Service):
    """A service that requests pings and waits for their results.

    One query every 100 ms serves all callers: their number does not add load on the database.

    Args:
        cell: the cell of the endpoints.
        timeout_s: the timeout of endpoints that have none.
    """

    def __init__(self, cell: Cell, timeout_s: float) -> None:
        self._cell = cell
        self._timeout_s = timeout_s
        self._waiting: dict[UUID, tuple[UUID, asyncio.Future[Row]]] = {}
        self._has_callers = asyncio.Event()
        self._stopping = False

    async def ping(self, organization_id: UUID, endpoint_id: UUID) -> Row | None:
        """Request a test delivery and wait for its result.

        Returns:
            The attempt as a row of `take_ping_answers`, or None if the endpoint does not exist.

        Raises:
            TooManyPings: two tests of the organization are running.
            NoDeliveryProcess: no process responds in time.
            PingNotSent: the delivery process could not send it.
            PingsStopped: this process is stopping.
            StoreError: the request could not be written.
        """
        if self._stopping:
            raise PingsStopped
        ping_id = self._cell.clock.new()
        result: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting[ping_id] = organization_id, result
        try:
            request = await self._request(organization_id, endpoint_id, ping_id)
            if request is None:
                return None
            self._has_callers.set()
            await self._wake()
            async with asyncio.timeout(min(request["timeout_s"] or self._timeout_s, LONGEST_TEST_S) + _MARGIN_S):
                row = await result
        except TimeoutError:
            raise NoDeliveryProcess from None
        finally:
            del self._waiting[ping_id]
            if not result.done() or result.cancelled() or result.exception() is not None:
                await self._drop(organization_id, ping_id)
        if row["error_class"] == _UNSENT:
            raise PingNotSent(row["response"].decode())
        return row

    def stop(self) -> None:
        """Fail the waiting callers with PingsStopped, and reject new ones."""
        self._stopping = True
        self._fail(PingsStopped())

    def _fail(self, error: Exception) -> None:
        for _, result in self._waiting.values():
            if not result.done():
                result.set_exception(error)

    async def run(self) -> None:
        """Poll for results while there are callers."""
        while True:
            if not self._waiting:
                self._has_callers.clear()
                await self._has_callers.wait()
            await asyncio.sleep(_POLL_S)
            try:
                await self._poll()
            except StatementRejected as error:
                # No result can be read until an operator has solved that.
                self._fail(error)
            except StoreError as error:
                _log.warning("pings_not_read", extra={"reason": str(error)})
                await asyncio.sleep(_AFTER_ERROR_S)

    async def _request(self, organization_id: UUID, endpoint_id: UUID, ping_id: UUID) -> Row | None:
        for _ in range(_TRIES):
            row = await self._cell.fetch_row("ask_ping", organization_id, endpoint_id, ping_id, _SLOT_S)
            if row is None or row["asked"]:
                return row
            if row["is_full"]:
                break
        raise TooManyPings

    async def _poll(self) -> None:
        organizations = [organization_id for organization_id, _ in self._waiting.values()]
        for row in await self._cell.fetch("take_ping_answers", organizations, list(self._waiting)):
            waiting = self._waiting.get(row["id"])
            if waiting is not None and not waiting[1].done():
                waiting[1].set_result(row)

    async def _wake(self) -> None:
        try:
            await self._cell.fetch("wake", self._cell.channel("ping"), timeout_s=1.0)
        except StoreError:
            # Delivery processes poll once a second anyway.
            return

    async def _drop(self, organization_id: UUID, ping_id: UUID) -> None:
        try:
            await self._cell.fetch("drop_ping", organization_id, ping_id, timeout_s=1.0)
        except StoreError:
            # Delivery processes drop old requests.
            return
