"""A cell: one PostgreSQL schema with all tables, and the connections and clock of a process that uses it."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from asyncpg.pgproto import pgproto

from relay.store import errors
from relay.store.connection import PLAN_EACH, ConnectionFactory, Row
from relay.store.first_contact import find_pooler
from relay.store.hot_connection import HotConnection, SharedConnection
from relay.store.listener import Listener
from relay.store.pool import StatementPool
from relay.store.rejections import Rejections
from relay.store.server_state import ServerState
from relay.store.statements import Statements
from relay.values.cursor import Position
from relay.values.uuid7 import Uuid7Clock, steady_ns

_STATEMENT_TIMEOUT_S: Final = 10.0
# The server ends a statement by itself shortly after this process has abandoned it.
_SERVER_TIMEOUT_S: Final = 12.0
# The timeout for dropping a partition, which waits for transactions that read it.
_CONTROL_TIMEOUT_S: Final = 130.0
_CONFLICT_TRIES: Final = 5
# Flush, wide batches, wakeup and waiters, clock, keys, their verification, health and listener (or claims, leases,
# results, bucket leases, clock, health and two listeners) own one connection each. The pool has the rest.
_OWNED_CONNECTIONS: Final = 8


class Connections(NamedTuple):
    """The numbers of a process's connections to PostgreSQL: in the pool, and owned by a service."""

    in_use: int
    idle: int
    owned: int


class Cell:
    """The pool, owned connections and clock of one cell. Entering connects. Leaving closes everything.

    Args:
        url: of the database. It may lead through a transaction pooler.
        direct_url: of the database without a pooler, for LISTEN. None if `url` is direct, or there is none.
        schema: the schema that contains the tables.
        application: the name that `pg_stat_activity` shows.
        connections: the limit on connections of this process.
        lifetime_s: the age at which a connection is replaced.
        patience_s: how long entering waits for a server that is slow, starting, or out of connections.
    """

    def __init__(
        self,
        url: str,
        *,
        direct_url: str | None,
        schema: str,
        application: str,
        connections: int,
        lifetime_s: float,
        patience_s: float = 0.0,
    ) -> None:
        self._patience_s = patience_s
        self.statements = Statements(schema)
        self.rejections = Rejections(active=False)
        self.schema = schema
        # asyncpg's UUIDs: creating, formatting and sending one takes 0.2 µs, and 1.4 µs with the standard library's.
        # A monotonic clock, to which the offset to PostgreSQL's time is added.
        self.clock = Uuid7Clock(steady_ns, kind=pgproto.UUID)
        # The last known horizon, where readers that go forward stop. It only rises.
        self._horizon = -1, 0
        #: Called when a reader sends a cursor from a history that no longer exists.
        self.found_ahead: Callable[[], None] = _nothing
        self._opener = ConnectionFactory(
            url, application, pooled=False, lifetime_s=lifetime_s, statements=self.statements
        )
        self._direct = ConnectionFactory(direct_url or url, application, pooled=False, lifetime_s=lifetime_s)
        self._pool = StatementPool(
            self._opener,
            self.statements,
            max(1, connections - _OWNED_CONNECTIONS),
            _SERVER_TIMEOUT_S,
            self._backends_left,
        )
        self._owned: list[HotConnection | Listener] = []
        self._control = self.owned_connection(_CONTROL_TIMEOUT_S)
        self._control_lock = asyncio.Lock()
        #: The state of the server, read every 10 s.
        self.server = ServerState(self._control, self._control_lock, self.clock)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await find_pooler(self._opener, self._direct, self._patience_s)
            stack.push_async_callback(self._close_owned)
            await self.server.refresh()
            await stack.enter_async_context(self._pool)
            await stack.enter_async_context(self.server)
            self._stack = stack.pop_all()
        self.rejections.active = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def owned_connection(
        self, server_timeout_s: float = _SERVER_TIMEOUT_S, *, plans: str | None = None
    ) -> HotConnection:
        """Return a connection owned by one hot path. The cell closes it.

        Args:
            server_timeout_s: after which PostgreSQL ends a statement that was abandoned here.
            plans: `PLAN_KEPT` if a statement's plan does not depend on its parameters; None leaves it to PostgreSQL.
        """
        connection = HotConnection(
            self._opener, self.statements, server_timeout_s, self._pool.count_backend, plans, self.rejections
        )
        self._owned.append(connection)
        return connection

    def shared_connection(self) -> SharedConnection:
        """Return a connection that a few services use in turns. The cell closes it."""
        return SharedConnection(self.owned_connection(plans=PLAN_EACH))

    def listener(self, channel: str) -> Listener:
        """Return a listener for notifications on this cell's `channel`."""
        listener = Listener(self._direct, self.channel(channel))
        self._owned.append(listener)
        return listener

    def channel(self, name: str) -> str:
        """Return the name of this cell's notification channel `name`. Cells of one database have separate channels."""
        return f"{self.schema}_{name}"

    @property
    def id(self) -> str:
        """The id of this cell."""
        return self.server.cell_id

    @property
    def most_pooled(self) -> int:
        """The maximum number of connections in the pool."""
        return self._pool.size

    def now(self) -> datetime.datetime:
        """Return the time that ids are made from: PostgreSQL's, as accepted by `ServerClock`."""
        return datetime.datetime.fromtimestamp(self.clock.now_ns() / 1e9, datetime.UTC)

    def connections(self) -> Connections:
        """Return the current numbers of connections."""
        return Connections(self._pool.in_use, self._pool.idle, sum(owned.is_open for owned in self._owned))

    async def fetch(
        self, name: str, *args: Any, timeout_s: float = _STATEMENT_TIMEOUT_S, plans: str = PLAN_EACH
    ) -> Sequence[Row]:
        """Run a named statement on a connection of the pool and return its rows.

        Args:
            name: of the statement.
            args: its parameters.
            timeout_s: its timeout.
            plans: `PLAN_KEPT` for a statement that reads all partitions whatever its parameters are.

        Raises:
            StoreError: as in `relay.store.errors`. Conflicts with other transactions are retried here.
        """
        for _ in range(_CONFLICT_TRIES):
            try:
                return await self._pool.fetch(self.statements[name], args, timeout_s, plans)
            except errors.TransactionConflict:
                continue
            except errors.StatementRejected as rejected:
                self.rejections.report(name, rejected)
                raise
        raise errors.DatabaseUnavailable("the statement conflicted with other transactions repeatedly")

    async def _backends_left(self, process_ids: Sequence[int], ages_s: Sequence[float]) -> Sequence[int]:
        return [
            row["pid"]
            for row in await self.fetch_on_control_connection("backends_left", process_ids, ages_s, timeout_s=5.0)
        ]

    async def fetch_row(self, name: str, *args: Any, timeout_s: float = _STATEMENT_TIMEOUT_S) -> Row | None:
        """Return the first row of a named statement, or None."""
        rows = await self.fetch(name, *args, timeout_s=timeout_s)
        return rows[0] if rows else None

    async def fetch_on_control_connection(
        self, name: str, *args: Any, timeout_s: float = _STATEMENT_TIMEOUT_S
    ) -> Sequence[Row]:
        """Run a named statement on the connection that reads the clock, one statement at a time.

        It is always open. If PostgreSQL accepts no new connection, for instance because its disk is full and it cannot
        write its catalog cache files, this one still works.

        Raises:
            StoreError: as in `relay.store.errors`.
        """
        async with self._control_lock:
            return await self._control.fetch(name, *args, timeout_s=timeout_s)

    async def is_ahead(self, position: Position) -> bool:
        """Return True if no reader of this database can have reached a position: its history is gone.

        Raises:
            StoreError: the database does not respond.
        """
        if position[:2] < self._horizon:
            return False
        (row,) = await self.fetch("horizon")
        self._horizon = row["epoch"], row["xid"]
        return position[:2] >= self._horizon

    @property
    def epoch(self) -> int:
        """The epoch when the horizon was last read."""
        return self._horizon[0]

    async def _close_owned(self) -> None:
        for owned in self._owned:
            if isinstance(owned, HotConnection):
                await owned.close()


def _nothing() -> None:
    pass
