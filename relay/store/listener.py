"""LISTEN on a dedicated connection that is probed, because asyncpg does not notice a dead one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Self

import asyncpg

from relay.runtime.service import Service
from relay.store import errors
from relay.store.connection import ConnectionFactory

_log = logging.getLogger("relay.store")

_PROBE_INTERVAL_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0


class Listener(Service):
    """A service that calls a callback for each notification on one or several channels.

    A notification may be lost, so callers also poll. It starts even if the database is unavailable.
    """

    def __init__(self, opener: ConnectionFactory, channel: str) -> None:
        self._opener = opener
        self._channel = channel
        self._heard: dict[str, Callable[[str], None]] = {}
        #: True while it is connected.
        self.is_open = False

    def on_notice(self, heard: Callable[[], None]) -> Self:
        """Set the callback. Call this before entering."""
        return self.and_on(self._channel, heard)

    def and_on(self, channel: str, heard: Callable[[], None]) -> Self:
        """Set the callback for another channel of the same database. Call this before entering."""
        return self.and_on_payload(channel, lambda _payload: heard())

    def and_on_payload(self, channel: str, heard: Callable[[str], None]) -> Self:
        """Set a callback that gets the payload of each notification, and an empty one after each connect."""
        self._heard[channel] = heard
        return self

    @property
    def can_listen(self) -> bool:
        """Return whether notifications arrive here: not behind a transaction pooler."""
        return not self._opener.pooled

    async def run(self) -> None:
        """Listen, and reconnect when the connection ends. Do nothing behind a transaction pooler: it gives the server's
        connection to another client after each statement, so no notification would arrive.
        """
        if self._opener.pooled:
            return
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                connection = await self._opener.open(2 * _PROBE_TIMEOUT_S)
            except errors.StoreError as error:
                if pause_s == _FIRST_PAUSE_S:
                    _log.warning("listener_cannot_connect", extra={"channel": self._channel, "reason": str(error)})
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            pause_s = _FIRST_PAUSE_S
            self.is_open = True
            try:
                await self._listen(connection)
            except (
                OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError
            ) as error:  # fmt: skip
                # InternalClientError: the server said goodbye between two statements.
                _log.info("listener_reconnects", extra={"channel": self._channel, "reason": type(error).__name__})
            finally:
                self.is_open = False
                connection.terminate()

    async def _listen(self, connection: asyncpg.Connection) -> None:
        for channel, heard in self._heard.items():
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await connection.add_listener(channel, self._notice)
            # Call once to make up for notifications that were sent while this was not connected.
            heard("")
        while not self._opener.is_old(connection):
            await asyncio.sleep(_PROBE_INTERVAL_S)
            await connection.fetchval("select 1", timeout=_PROBE_TIMEOUT_S)

    def _notice(self, _connection: Any, _process_id: int, channel: str, payload: object) -> None:
        self._heard[channel](str(payload))
