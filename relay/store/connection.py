"""Open connections to PostgreSQL."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import asyncpg

from relay.store import errors
from relay.values.database_url import DatabaseUrl

# Requests that wait for a connection get their 503 within a second, so opening one must succeed or fail well before.
CONNECT_TIMEOUT_S: Final = 0.8
#: Raising the epoch waits for writes in progress.
RENEW_TIMEOUT_S: Final = 4.0
# A 201 depends on synchronous_commit, so it is set here whatever the default of the server or the role is. Our
# statements read few rows through an index, but the planner does not know that of tables without statistics. Compiling
# a statement to machine code (jit) costs more than running it.
_SESSION: Final[Mapping[str, str]] = {
    "synchronous_commit": "on",
    # Each statement is a transaction of its own and is written for this level.
    "default_transaction_isolation": "read committed",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    # A statement whose client is gone ends within a second. Without this it ends only when it sends rows.
    "client_connection_check_interval": "1s",
    # No transaction waits for this process between two statements.
    "idle_in_transaction_session_timeout": "30s",
    # The server notices within half a minute that this machine has vanished. Unix sockets ignore these.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "30s",
}

#: Values of PostgreSQL's `plan_cache_mode`. A plan made for each execution leaves out the partitions that its
#: parameters rule out, and a generic plan would lock every one of them. A statement that reads all of them anyway
#: spends most of its time on planning, so it keeps its plan.
PLAN_EACH: Final = "force_custom_plan"
PLAN_KEPT: Final = "force_generic_plan"

Row = asyncpg.Record


class Connection(asyncpg.Connection):
    """asyncpg's connection with its age, and without the round trip that resets session state at each release."""

    __slots__ = ("born", "plans", "process_id", "transport")

    def __init__(self, protocol: Any, transport: asyncio.Transport, *args: Any, **kwargs: Any) -> None:
        super().__init__(protocol, transport, *args, **kwargs)
        self.transport = transport
        self.born = time.monotonic()
        self.plans: str | None = PLAN_EACH
        # asyncpg forgets it when the connection ends.
        self.process_id: int = self.get_server_pid()

    async def plan(self, statement: str, mode: str, timeout_s: float) -> None:
        """Set `plan_cache_mode` for the following statements, if it differs."""
        if self.plans != mode:
            # If the statement fails, the mode is unknown.
            self.plans = None
            await self.fetch(statement, mode, timeout=timeout_s)
            self.plans = mode

    def itself(self) -> Connection:
        """Return the connection behind a pool's proxy, which loses it on release."""
        return self

    def set_socket_options(self, options: Iterable[tuple[int, int, int]]) -> None:
        """Set options of a TCP socket: level, name, value. Other sockets have none of them."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            for option in options:
                sock.setsockopt(*option)

    def get_reset_query(self) -> str:
        """Return an empty query: sessions keep no state but their plan mode."""
        return ""


class ConnectionFactory:
    """Opens connections to one database.

    Args:
        url: as in DATABASE_URL.
        application: the name that `pg_stat_activity` shows.
        pooled: True if there is a transaction pooler. Then sessions have no state: no prepared statements, no settings.
        lifetime_s: the age at which a connection is replaced.
        statements: the statements of a cell, if every new connection must check that the cell's epoch belongs to the
            server behind it.
    """

    def __init__(
        self,
        url: str,
        application: str,
        *,
        pooled: bool,
        lifetime_s: float,
        statements: Mapping[str, str] | None = None,
    ) -> None:
        self.target = DatabaseUrl.read(url)
        self._connect_timeout_s = CONNECT_TIMEOUT_S
        self._statements = statements
        self.application = application
        self.pooled = pooled
        self.lifetime_s = lifetime_s

    def options(self, server_timeout_s: float, *, plans: str | None = None) -> dict[str, Any]:
        """Return the keyword arguments for asyncpg, for a connection or a pool.

        Args:
            server_timeout_s: after which PostgreSQL ends a statement; 0 for never.
            plans: `PLAN_EACH` or `PLAN_KEPT`, until `Connection.plan` changes it; None leaves it to PostgreSQL.
        """
        settings = {
            "application_name": self.application,
            "statement_timeout": f"{server_timeout_s * 1000:.0f}ms",
            **_SESSION,
        }
        if plans is not None:
            settings["plan_cache_mode"] = plans
        return {
            "timeout": self.connect_timeout_s,
            "connection_class": Connection,
            "statement_cache_size": 0 if self.pooled else 200,
            "max_cached_statement_lifetime": 0,
            "server_settings": None if self.pooled else settings,
        }

    async def open(self, server_timeout_s: float = 0.0, plans: str | None = None) -> Connection:
        """Open a connection.

        Args:
            server_timeout_s: after which PostgreSQL ends a statement; 0 for never.
            plans: as in `options`.

        Raises:
            DatabaseUnavailable: it cannot be opened.
        """
        try:
            connection: Connection = await asyncpg.connect(
                self.target.dsn, **self.options(server_timeout_s, plans=plans)
            )
            try:
                await self.on_open(connection)
            except BaseException:
                connection.terminate()
                raise
            return connection
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TimeoutError) as error:
            raise errors.connecting(error) from None

    async def on_open(self, connection: asyncpg.Connection) -> None:
        """Set up a new connection, and run its first statements."""
        cast(Connection, connection).set_socket_options(self.target.socket_options)
        if self._statements is None:
            return
        try:
            row = await connection.fetchrow(self._statements["enter_cell"], timeout=self.connect_timeout_s)
            if row is not None and not row["is_current"]:
                await connection.fetch(self._statements["renew_epoch"], timeout=RENEW_TIMEOUT_S)
        except asyncpg.InternalClientError:
            # The server closed it before the first statement. asyncpg raises an internal error then.
            raise asyncpg.InterfaceError("the connection ended as soon as it was open") from None

    async def probe(self, timeout_s: float) -> asyncpg.Connection:
        """Open a connection that works through any pooler: no settings, no prepared statements, no cell.

        Raises:
            DatabaseUnavailable: it cannot be opened.
        """
        try:
            return await asyncpg.connect(
                self.target.dsn, timeout=timeout_s, statement_cache_size=0, connection_class=Connection
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TimeoutError) as error:
            raise errors.connecting(error) from None

    @property
    def connect_timeout_s(self) -> float:
        """The timeout for opening a connection."""
        return self.target.connect_timeout_s or self._connect_timeout_s

    def allow(self, connect_timeout_s: float) -> None:
        """Raise the timeout for opening a connection, unless the URL sets it."""
        self._connect_timeout_s = max(self._connect_timeout_s, connect_timeout_s)

    def is_old(self, connection: Any) -> bool:
        """Return True if a connection has reached the age at which it is replaced."""
        return bool(time.monotonic() - connection.born > self.lifetime_s)
