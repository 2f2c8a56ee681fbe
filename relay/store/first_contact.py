"""Make the first connection to a server, and find out whether there is a transaction pooler in front of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import asyncpg

from relay.store import errors
from relay.store.connection import ConnectionFactory

_log = logging.getLogger("relay.store")

# A pooler without a free connection makes clients wait, by default for two minutes.
_PROBE_TIMEOUT_S: Final = 5.0
# The pause between attempts to reach a server.
_PAUSE_S: Final = 0.5
_SLOWEST_CONNECT_S: Final = 10.0


async def find_pooler(opener: ConnectionFactory, direct: ConnectionFactory, patience_s: float) -> None:
    """Wait for the server, and record in both factories whether they connect through a transaction pooler.

    Args:
        opener: for the connections that run statements.
        direct: for the connections that listen.
        patience_s: how long to wait for a server that is slow, starting or full.

    Raises:
        DatabaseUnavailable: there is no response within `patience_s`.
    """
    opener.pooled = await _reach(opener, patience_s) or opener.target.pooled
    if opener.target.binds_channel:
        _log.warning("channel_binding_not_used", extra={"note": "use sslmode=verify-full to verify the server"})
    if not opener.pooled:
        return
    direct.pooled = direct.target == opener.target or await _direct_is_pooled(direct)
    if direct.pooled:
        note = "set DATABASE_DIRECT_URL to the server itself, or wakeups are up to a second late"
        _log.warning("transaction_pooler_detected", extra={"listens": False, "note": note})
    else:
        _log.info("transaction_pooler_detected", extra={"listens": True})


async def _reach(opener: ConnectionFactory, patience_s: float) -> bool:
    """Return True if there is a pooler in front of the server, which may be slow to accept the first connection."""
    try:
        return await _is_pooled(opener, opener.connect_timeout_s)
    except errors.ServerNotReady as error:
        if not patience_s:
            raise
        extra = {"database": opener.target.shown, "reason": str(error), "up_to_s": patience_s}
        _log.warning("waiting_for_postgresql", extra=extra)
    now = asyncio.get_running_loop().time
    until = now() + patience_s
    while True:
        try:
            await _is_pooled(opener, max(until - now(), opener.connect_timeout_s))
            break
        except errors.ServerNotReady:
            if now() + _PAUSE_S > until:
                raise
            await asyncio.sleep(_PAUSE_S)
    begun = now()
    pooled = await _is_pooled(opener, _SLOWEST_CONNECT_S)
    # A distant server takes as long each time.
    opener.allow(2 * (now() - begun))
    return pooled


async def _direct_is_pooled(direct: ConnectionFactory) -> bool:
    try:
        return direct.target.pooled or await _is_pooled(direct, direct.connect_timeout_s)
    except errors.DatabaseUnavailable:
        # Only notifications use it. The listeners keep retrying, and log that.
        return False


async def _is_pooled(opener: ConnectionFactory, timeout_s: float) -> bool:
    """Return True if there is a pooler in front: it invents the backend's process id. A session pooler does that too,
    and can safely be treated as a transaction pooler.

    Raises:
        DatabaseUnavailable: there is no response.
    """
    connection = await opener.probe(timeout_s)
    try:
        real = await connection.fetchval("select pg_backend_pid()", timeout=max(timeout_s, _PROBE_TIMEOUT_S))
        return bool(real != connection.get_server_pid())
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        TimeoutError,
    ) as error:
        raise errors.connecting(error) from None
    finally:
        connection.terminate()
