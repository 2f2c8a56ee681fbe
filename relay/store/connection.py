"""Connections to PostgreSQL: how one is opened, and the kind that a hot path owns."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from relay.store import errors
from relay.values.database_url import DatabaseUrl

_log = logging.getLogger("relay.store")

# A new connection must come, or be refused, well within the second in which waiting requests want their 503.
CONNECT_TIMEOUT_S: Final = 0.8
#: A new epoch waits for the writes under way.
RENEW_TIMEOUT_S: Final = 4.0
_CONFLICT_TRIES: Final = 5
# A 201 stands on synchronous_commit, whatever the server or the role has as its default. Our statements touch few rows
# through an index, whatever the planner thinks of fresh tables, and compiling one to machine code costs more than
# running it.
_SESSION: Final[Mapping[str, str]] = {
    "synchronous_commit": "on",
    # Each statement is a transaction of its own and is written for this level.
    "default_transaction_isolation": "read committed",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    # A statement whose client has gone ends within a second, and not when it has something to say.
    "client_connection_check_interval": "1s",
    # No transaction of ours waits for us.
    "idle_in_transaction_session_timeout": "30s",
    # A machine that vanished is noticed within half a minute; without meaning for Unix sockets.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "30s",
}

#: Values of PostgreSQL's `plan_cache_mode`. A plan for the parameters of one execution leaves out the partitions that
#: they rule out, and a plan that is kept would lock every one of them. What reads all of them anyway spends most of its
#: time on being planned: there it is kept.
PLAN_EACH: Final = "force_custom_plan"
PLAN_KEPT: Final = "force_generic_plan"

Row = asyncpg.Record

_Execute = Callable[..., Awaitable[Sequence[Row]]]


class Connection(asyncpg.Connection):
    """asyncpg's connection, knowing its age, and without the round trip that resets session state at each release."""

    __slots__ = ("born", "plans", "process_id")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.born = time.monotonic()
        self.plans: str | None = PLAN_EACH
        # asyncpg's own is gone with the connection.
        self.process_id: int = self.get_server_pid()

    async def plan(self, statement: str, mode: str, timeout_s: float) -> None:
        """Let what runs from now on be planned in this way; asked of PostgreSQL only when it is another way."""
        if self.plans != mode:
            # If that fails nobody knows.
            self.plans = None
            await self.fetch(statement, mode, timeout=timeout_s)
            self.plans = mode

    def itself(self) -> Connection:
        """The connection behind the proxy that a pool gives out, which knows nothing more once it is released."""
        return self

    def get_reset_query(self) -> str:
        """Return nothing to reset: sessions keep no state but their plans."""
        return ""


class ConnectionFactory:
    """Opens connections to one database.

    Args:
        url: as in DATABASE_URL.
        application: what `pg_stat_activity` shows.
        pooled: a transaction pooler stands in front, so no session state: no prepared statements, no settings.
        lifetime_s: the age at which a connection is replaced.
        statements: of a cell: every new connection makes sure that its epoch stands for the server behind it.
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
        """The keyword arguments for asyncpg, for a connection or a pool.

        Args:
            server_timeout_s: after which PostgreSQL ends a statement; 0 for never.
            plans: `PLAN_EACH` or `PLAN_KEPT`, until a connection is told otherwise; None leaves it to PostgreSQL.
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
        """A new connection.

        Args:
            server_timeout_s: after which PostgreSQL ends a statement; 0 for never.
            plans: as in `options`.

        Raises:
            DatabaseUnavailable: there is none to be had.
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
        """Run the first statements of a new connection."""
        if self._statements is None:
            return
        try:
            row = await connection.fetchrow(self._statements["enter_cell"], timeout=self.connect_timeout_s)
            if row is not None and not row["is_current"]:
                await connection.fetch(self._statements["renew_epoch"], timeout=RENEW_TIMEOUT_S)
        except asyncpg.InternalClientError:
            # The server said goodbye before we asked anything, for which asyncpg has neither a state nor an error.
            raise asyncpg.InterfaceError("the connection ended as soon as it was open") from None

    async def probe(self, timeout_s: float) -> asyncpg.Connection:
        """A connection that asks nothing of what stands in front: no settings, no prepared statements, no cell.

        Raises:
            DatabaseUnavailable: there is none to be had.
        """
        try:
            return await asyncpg.connect(
                self.target.dsn, timeout=timeout_s, statement_cache_size=0, connection_class=Connection
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TimeoutError) as error:
            raise errors.connecting(error) from None

    @property
    def connect_timeout_s(self) -> float:
        """How long opening a connection may take."""
        return self.target.connect_timeout_s or self._connect_timeout_s

    def allow(self, connect_timeout_s: float) -> None:
        """Let opening a connection take so long, if the URL does not say how long and it is more than it could."""
        self._connect_timeout_s = max(self._connect_timeout_s, connect_timeout_s)

    def is_old(self, connection: Any) -> bool:
        """Whether a connection of ours has reached the age at which it is replaced."""
        return bool(time.monotonic() - connection.born > self.lifetime_s)


class _Deadline:
    """Terminates a connection whose statement takes too long.

    The timer is not put off with each statement, only when it rings too early: one for each costs 4 µs.
    """

    __slots__ = ("_at", "_connection", "_loop", "_timer", "passed")

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        #: Whether it was this that ended the connection.
        self.passed = False

    def set(self, timeout_s: float | None) -> None:
        """A statement begins, which may take so long."""
        if timeout_s is None:
            return
        self._at = self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._at:
            self._ring_at(self._at)

    def clear(self) -> None:
        """The statement has ended."""
        self._at = math.inf

    def drop(self) -> None:
        """There is nothing left to end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring_at(self, at: float) -> None:
        self.drop()
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._at == math.inf:
            return
        if self._at > self._loop.time():
            self._ring_at(self._at)
        else:
            self.passed = True
            self._connection.terminate()


class HotConnection:
    """One connection owned by one hot path, with its statements prepared; it opens itself again when it was lost.

    Only one statement runs at a time: its owner sees to that.

    Args:
        opener: opens it.
        statements: their texts by name.
        server_timeout_s: after which PostgreSQL ends a statement that was given up here; 0 for never.
        given_up: is told the process id of a backend that may still work on such a statement.
        plans: as in `ConnectionFactory.options`.
    """

    def __init__(
        self,
        opener: ConnectionFactory,
        statements: Mapping[str, str],
        server_timeout_s: float = 0.0,
        given_up: Callable[[int], None] | None = None,
        plans: str | None = None,
    ) -> None:
        self._opener = opener
        self._statements = statements
        self._server_timeout_s = server_timeout_s
        self._given_up = given_up
        self._plans = plans
        self._connection: Connection | None = None
        self._deadline: _Deadline | None = None
        self._prepared: dict[str, _Execute] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, name: str, *args: Any, timeout_s: float | None = None) -> Sequence[Row]:
        """Run a named statement in a transaction of its own.

        Args:
            name: the statement.
            args: its parameters.
            timeout_s: after which the connection is terminated. It is not cancelled: what hangs the statement hangs a
                cancel too.

        Raises:
            DatabaseUnavailable: it has not been done.
            OutcomeUnknown: the connection was lost meanwhile.
            RowRefused: one of the rows spoils it.
        """
        for _ in range(_CONFLICT_TRIES):
            connection = self._connection
            if connection is None or connection.is_closed():
                connection = await self._open()
            elif self._opener.is_old(connection):
                connection = await self._renew(connection)
            try:
                return await self._run(connection, name, args, timeout_s)
            except errors.TransactionConflict:
                continue
        raise errors.DatabaseUnavailable("other transactions kept winning")

    async def _renew(self, old: Connection) -> Connection:
        """A new connection in place of an old one, which stays where none is to be had: then it is all we have."""
        try:
            return await self._open()
        except errors.DatabaseUnavailable as reason:
            _log.info("connection_not_replaced", extra={"reason": str(reason)})
            return old

    async def _open(self) -> Connection:
        connection = await self._opener.open(self._server_timeout_s, self._plans)
        try:
            await self.close()
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self._deadline = _Deadline(connection)
        return connection

    async def _run(
        self, connection: Connection, name: str, args: tuple[Any, ...], timeout_s: float | None
    ) -> Sequence[Row]:
        deadline = self._deadline
        assert deadline is not None  # noqa: S101 - it comes with the connection
        deadline.set(timeout_s)
        try:
            execute = self._prepared.get(name) or await self._prepare(connection, name)
            return await execute(*args)
        except asyncio.CancelledError:
            connection.terminate()
            self._tell_given_up(connection)
            raise
        except Exception as error:
            meaning = errors.running(error)
            if deadline.passed:
                self._tell_given_up(connection)
                meaning = errors.OutcomeUnknown("PostgreSQL did not answer in time")
            elif isinstance(meaning, errors.OutcomeUnknown) or getattr(error, "sqlstate", None) in errors.GOODBYE:
                connection.terminate()
            _log.debug("statement_failed", extra={"statement": name, "reason": str(meaning)})
            raise meaning from None
        finally:
            deadline.clear()

    def _tell_given_up(self, connection: Connection) -> None:
        if self._given_up is not None:
            self._given_up(connection.process_id)

    async def _prepare(self, connection: Connection, name: str) -> _Execute:
        text = self._statements[name]
        execute = (
            functools.partial(connection.fetch, text) if self._opener.pooled else (await connection.prepare(text)).fetch
        )
        self._prepared[name] = execute
        return execute

    async def close(self) -> None:
        """Close the connection; the next statement opens another."""
        connection, self._connection = self._connection, None
        self._prepared.clear()
        if self._deadline is not None:
            self._deadline.drop()
            self._deadline = None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=1.0)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()
