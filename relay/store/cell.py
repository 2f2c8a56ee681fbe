"""A cell: one PostgreSQL schema with all tables, and the connections and clock of a process that uses it."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import asyncpg
from asyncpg.pgproto import pgproto

from relay.store import errors
from relay.store.backends import CANCEL_TIMEOUT_S, BackendLimit
from relay.store.connection import PLAN_EACH, RENEW_TIMEOUT_S, Connection, ConnectionFactory, HotConnection, Row
from relay.store.listener import Listener
from relay.store.server_clock import ServerClock, Step
from relay.store.statements import Statements
from relay.values.cursor import Position
from relay.values.uuid7 import Uuid7Clock, steady_ns

_log = logging.getLogger("relay.store")

CLOCK_INTERVAL_S: Final = 10.0
# The fastest of several readings of the server's clock is the best: its error is at most half of its round trip.
_COMPARISONS: Final = 3
# `remote_write` and `remote_apply` ask for more than a flush here.
_DURABLE: Final = ("on", "remote_write", "remote_apply")
_STATEMENT_TIMEOUT_S: Final = 10.0
# The server ends a statement by itself shortly after this process has abandoned it.
_SERVER_TIMEOUT_S: Final = 12.0
# Dropping a partition, which waits for those who read it.
_CONTROL_TIMEOUT_S: Final = 130.0
# A pooler without a free connection makes clients wait, by default for two minutes.
_PROBE_TIMEOUT_S: Final = 5.0
# The pause between attempts to reach a server.
_CONTACT_PAUSE_S: Final = 0.5
_SLOWEST_CONNECT_S: Final = 10.0
_CONFLICT_TRIES: Final = 5
# Flush, wide batches, wake-up, clock, keys, their verification, health and listener (or claims, leases, results, share,
# clock, health and two listeners) each own one connection; the pool has what is left.
_OWNED_CONNECTIONS: Final = 8


class Connections(NamedTuple):
    """The numbers of a process's connections to PostgreSQL: in the pool, and owned by a service."""

    in_use: int
    idle: int
    owned: int


class Cell:
    """Pool, owned connections and clock of one cell. Entering it connects; leaving it closes everything.

    Args:
        url: the database, perhaps through a transaction pooler.
        direct_url: the database without a pooler, for LISTEN; None where `url` is that, or there is none.
        schema: the schema that holds the tables.
        application: what `pg_stat_activity` shows.
        connections: how many connections this process may hold.
        lifetime_s: the age at which a connection is replaced.
        patience_s: how long to wait for a server that is slow, starting or full before entering fails.
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
        self.schema = schema
        # The kind that asyncpg gives: to make, write out and send one takes 0.2 µs, and 1.4 the standard library's.
        # PostgreSQL's time, told by a clock that is not stepped.
        self.clock = Uuid7Clock(steady_ns, kind=pgproto.UUID)
        self.clock.offset_ns = time.time_ns() - steady_ns()
        #: What was seen of PostgreSQL's clock, and what is believed of that.
        self.server_clock = ServerClock()
        #: Called with each step of it by more than a minute.
        self.on_clock_step: Callable[[Step], None] = lambda step: None
        self.id = ""
        #: The age of the oldest transaction that may still write: so far behind are readers that go forward.
        self.oldest_write_s = 0.0
        # Readers that go forward stop here, or further on by now.
        self._horizon = -1, 0
        #: Called when a reader came with a cursor of a history that is gone.
        self.found_ahead: Callable[[], None] = _nothing
        #: The age of the oldest transaction with a snapshot: every version of a row that it may see is kept.
        self.oldest_snapshot_s = 0.0
        #: Whether the server answered when it was last asked, which it is every 10 s.
        self.answers = False
        self._opener = ConnectionFactory(
            url, application, pooled=False, lifetime_s=lifetime_s, statements=self.statements
        )
        self._direct = ConnectionFactory(direct_url or url, application, pooled=False, lifetime_s=lifetime_s)
        #: How many connections the pool may have.
        self.most_pooled = max(1, connections - _OWNED_CONNECTIONS)
        self._backends = BackendLimit(self.most_pooled, self._backends_left)
        self._pool: asyncpg.Pool | None = None
        self._owned: list[HotConnection | Listener] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            found = await _first_contact(self._opener, self._patience_s)
            self._opener.pooled = found or self._opener.target.pooled
            if self._opener.target.binds_channel:
                _log.warning("channel_binding_not_used", extra={"note": "sslmode=verify-full proves the server too"})
            if self._opener.pooled:
                self._direct.pooled = self._direct.target == self._opener.target or await self._direct_is_pooled()
                _say_pooled(listens=not self._direct.pooled)
            self._pool = asyncpg.create_pool(
                self._opener.target.dsn,
                min_size=0,
                max_size=self.most_pooled,
                max_inactive_connection_lifetime=60.0,
                max_queries=1_000_000_000,
                init=self._opener.on_open,
                **self._opener.options(_SERVER_TIMEOUT_S, plans=PLAN_EACH),
            )
            await self._pool
            stack.callback(self._pool.terminate)
            stack.push_async_callback(self._close_owned)
            self._control = self.owned_connection(_CONTROL_TIMEOUT_S)
            self._control_lock = asyncio.Lock()
            await self.refresh()
            await stack.enter_async_context(self._backends)
            clock_task = asyncio.create_task(self._keep_time(), name="cell clock")
            stack.push_async_callback(_cancel, clock_task)
            self._stack = stack.pop_all()
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
        connection = HotConnection(self._opener, self.statements, server_timeout_s, self._backend_given_up, plans)
        self._owned.append(connection)
        return connection

    def listener(self, channel: str) -> Listener:
        """Return a listener for notifications on this cell's `channel`."""
        listener = Listener(self._direct, self.channel(channel))
        self._owned.append(listener)
        return listener

    def channel(self, name: str) -> str:
        """Return the name of this cell's notification channel `name`. Cells of one database have separate channels."""
        return f"{self.schema}_{name}"

    def now(self) -> datetime.datetime:
        """Return the time that ids are made from: PostgreSQL's, as accepted by `ServerClock`."""
        return datetime.datetime.fromtimestamp(self.clock.now_ns() / 1e9, datetime.UTC)

    def connections(self) -> Connections:
        """Return the current numbers of connections."""
        size, idle = (self._pool.get_size(), self._pool.get_idle_size()) if self._pool is not None else (0, 0)
        return Connections(size - idle, idle, sum(owned.is_open for owned in self._owned))

    async def fetch(
        self, name: str, *args: Any, timeout_s: float = _STATEMENT_TIMEOUT_S, plans: str = PLAN_EACH
    ) -> Sequence[Row]:
        """Run a named statement on a connection of the pool and return its rows.

        Args:
            name: of the statement.
            args: its parameters.
            timeout_s: how long it may take.
            plans: `PLAN_KEPT` for what reads all partitions whatever its parameters say.

        Raises:
            StoreError: as in `relay.store.errors`. Conflicts with other transactions are retried here.
        """
        for _ in range(_CONFLICT_TRIES):
            try:
                return await self._fetch(self.statements[name], args, timeout_s, plans)
            except errors.TransactionConflict:
                continue
        raise errors.DatabaseUnavailable("other transactions kept winning")

    async def _fetch(self, text: str, args: Sequence[Any], timeout_s: float, plans: str) -> Sequence[Row]:
        pool = self._pool
        if pool is None:
            raise errors.DatabaseUnavailable("the cell is not open")
        try:
            await self._backends.acquire(min(timeout_s, 2 * self._opener.connect_timeout_s))
        except TimeoutError:
            raise errors.DatabaseUnavailable("every connection of the pool is in use") from None
        try:
            connection: Any = await pool.acquire(timeout=min(timeout_s, 2 * self._opener.connect_timeout_s))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            self._backends.release()
            raise errors.connecting(error) from None
        except BaseException:
            self._backends.release()
            raise
        spent = self._opener.is_old(connection)
        given_up = False
        try:
            if not self._opener.pooled:
                await connection.plan(self.statements["set_plans"], plans, timeout_s)
            rows: Sequence[Row] = await connection.fetch(text, *args, timeout=timeout_s)
            return rows
        except TimeoutError:
            given_up = True
            raise errors.OutcomeUnknown("PostgreSQL did not answer in time") from None
        except asyncio.CancelledError:
            given_up = True
            raise
        except Exception as error:
            spent = spent or getattr(error, "sqlstate", None) in errors.GOODBYE
            raise errors.running(error) from None
        finally:
            if given_up:
                # asyncpg has sent a cancel request. Nothing here waits until it has taken effect.
                self._backends.release_after(self._cancelled(pool, connection))
            else:
                try:
                    if spent:
                        # A dead connection has already left the pool, and raises this.
                        with suppress(asyncpg.InterfaceError):
                            connection.terminate()
                    await pool.release(connection)
                finally:
                    self._backends.release()

    async def _cancelled(self, pool: asyncpg.Pool, proxy: Any) -> int | None:
        """Release a connection whose statement was cancelled. Return its backend's process id if that may still run."""
        connection: Connection = proxy.itself()
        try:
            await pool.release(proxy, timeout=CANCEL_TIMEOUT_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError):
            connection.terminate()
        # A pooler invents process ids, and has its own limit.
        return connection.process_id if connection.is_closed() and not self._opener.pooled else None

    def _backend_given_up(self, process_id: int) -> None:
        if not self._opener.pooled:
            self._backends.add(process_id)

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

    async def renew_epoch(self) -> None:
        """Raise the epoch if the server behind the connections is not the one it was recorded for.

        Raises:
            StoreError: the epoch was not raised: the server does not respond, or a write of events takes too long.
        """
        (row,) = await self.fetch_on_control_connection("renew_epoch", timeout_s=RENEW_TIMEOUT_S)
        _log.info("epoch_renewed", extra={"epoch": row["epoch"]})

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

    async def refresh(self) -> None:
        """Read this cell's id and clock from the server.

        Raises:
            StoreError: the server does not respond, or has no such cell.
        """
        (row,) = await self.fetch_on_control_connection("enter_cell", timeout_s=5.0)
        self.id = row["id"]
        if not row["is_current"]:
            await self.renew_epoch()
        self.answers = True
        offset_ns = min([await self._compare_clocks() for _ in range(_COMPARISONS)])[1]
        before_ns = self.server_clock.believed_ns
        step = self.server_clock.look(offset_ns, steady_ns())
        self.clock.offset_ns = self.server_clock.believed_ns
        if step is not None:
            _log.warning(f"clock_step_{step.value}", extra={"step_s": (offset_ns - before_ns) // 10**9})
            self.on_clock_step(step)

    async def _compare_clocks(self) -> tuple[int, int]:
        """Read the server's clock. Return how long that took, and how far it is ahead of ours, in nanoseconds."""
        async with self._control_lock:
            before = steady_ns()
            (row,) = await self._control.fetch("server_clock", timeout_s=5.0)
            after = steady_ns()
        self.oldest_write_s = row["oldest_write_s"]
        self.oldest_snapshot_s = row["oldest_snapshot_s"]
        return after - before, int(row["seconds"] * 1e9) - (before + after) // 2

    async def check_durability(self) -> None:
        """Log a warning if the server's settings make a 201 less durable than promised.

        Raises:
            StoreError: the server does not respond.
        """
        (row,) = await self.fetch_on_control_connection("durability", timeout_s=5.0)
        off = sorted(name for name, value in row.items() if value not in _DURABLE)
        if off:
            _log.warning("not_durable", extra={"settings_off": ",".join(off)})

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_INTERVAL_S)
            try:
                await self.refresh()
            except errors.StoreError as error:
                self.answers = False
                _log.warning("clock_not_read", extra={"reason": str(error)})

    async def _direct_is_pooled(self) -> bool:
        try:
            return self._direct.target.pooled or await _behind_pooler(self._direct, self._direct.connect_timeout_s)
        except errors.DatabaseUnavailable:
            # Only notifications use it. The listeners keep retrying, and log that.
            return False

    async def _close_owned(self) -> None:
        for owned in self._owned:
            if isinstance(owned, HotConnection):
                await owned.close()


def _nothing() -> None:
    pass


async def _first_contact(opener: ConnectionFactory, patience_s: float) -> bool:
    """Return True if there is a pooler in front of the server, which may be slow to accept the first connection.

    Raises:
        DatabaseUnavailable: there is no response within `patience_s`.
    """
    try:
        return await _behind_pooler(opener, opener.connect_timeout_s)
    except errors.ServerNotReady as error:
        if not patience_s:
            raise
        extra = {"database": opener.target.shown, "reason": str(error), "up_to_s": patience_s}
        _log.warning("waiting_for_postgresql", extra=extra)
    now = asyncio.get_running_loop().time
    until = now() + patience_s
    while True:
        try:
            await _behind_pooler(opener, max(until - now(), opener.connect_timeout_s))
            break
        except errors.ServerNotReady:
            if now() + _CONTACT_PAUSE_S > until:
                raise
            await asyncio.sleep(_CONTACT_PAUSE_S)
    begun = now()
    pooled = await _behind_pooler(opener, _SLOWEST_CONNECT_S)
    # A distant server takes as long each time.
    opener.allow(2 * (now() - begun))
    return pooled


async def _behind_pooler(opener: ConnectionFactory, timeout_s: float) -> bool:
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


def _say_pooled(*, listens: bool) -> None:
    if listens:
        _log.info("transaction_pooler_detected", extra={"listens": True})
    else:
        _log.warning(
            "transaction_pooler_detected",
            extra={
                "listens": False,
                "note": "set DATABASE_DIRECT_URL past the pooler, else hints are late by a second",
            },
        )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
