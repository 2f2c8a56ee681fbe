"""Connections that are owned by one hot path."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from relay.store import errors
from relay.store.connection import Connection, ConnectionFactory, Row
from relay.store.rejections import Rejections

_log = logging.getLogger("relay.store")

_CONFLICT_TRIES: Final = 5

_Execute = Callable[..., Awaitable[Sequence[Row]]]


class _Deadline:
    """Terminate a connection whose statement takes too long.

    A timer for each statement costs 4 µs. One timer is set again when it expires too early.
    """

    __slots__ = ("_at", "_connection", "_loop", "_timer", "passed")

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        #: True if this terminated the connection.
        self.passed = False

    def set(self, timeout_s: float | None) -> None:
        """Begin a statement that may take `timeout_s`."""
        if timeout_s is None:
            return
        self._at = self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._at:
            self._ring_at(self._at)

    def clear(self) -> None:
        """End the statement."""
        self._at = math.inf

    def drop(self) -> None:
        """Cancel the timer."""
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
    """A connection owned by one hot path, with prepared statements. It reconnects after a loss.

    The owner must run only one statement at a time.

    Args:
        opener: opens it.
        statements: their texts by name.
        server_timeout_s: after which PostgreSQL ends a statement that was abandoned here; 0 for never.
        given_up: called with the process id of a backend that may still run such a statement.
        plans: as in `ConnectionFactory.options`.
        rejections: reports rejected statements.
    """

    def __init__(
        self,
        opener: ConnectionFactory,
        statements: Mapping[str, str],
        server_timeout_s: float = 0.0,
        given_up: Callable[[int], None] | None = None,
        plans: str | None = None,
        rejections: Rejections | None = None,
    ) -> None:
        self._opener = opener
        self._statements = statements
        self._server_timeout_s = server_timeout_s
        self._given_up = given_up
        self._plans = plans
        self._rejections = rejections or Rejections()
        self._connection: Connection | None = None
        self._deadline: _Deadline | None = None
        self._prepared: dict[str, _Execute] = {}

    @property
    def is_open(self) -> bool:
        """True if it is connected."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, name: str, *args: Any, timeout_s: float | None = None) -> Sequence[Row]:
        """Run a named statement in a transaction of its own.

        Args:
            name: of the statement.
            args: its parameters.
            timeout_s: after which the connection is terminated. The statement is not cancelled: whatever makes it hang
                makes a cancel request hang too.

        Raises:
            DatabaseUnavailable: it had no effect.
            OutcomeUnknown: the connection was lost while it ran.
            RowRefused: PostgreSQL rejects a value in one of the rows.
            StatementRejected: PostgreSQL rejects the statement itself.
        """
        for _ in range(_CONFLICT_TRIES):
            try:
                connection = self._connection
                if connection is None or connection.is_closed():
                    connection = await self._open()
                elif self._opener.is_old(connection):
                    connection = await self._renew(connection)
                return await self._run(connection, name, args, timeout_s)
            except errors.TransactionConflict:
                continue
            except errors.StatementRejected as rejected:
                self._rejections.report(name, rejected)
                raise
        raise errors.DatabaseUnavailable("the statement conflicted with other transactions repeatedly")

    async def _renew(self, old: Connection) -> Connection:
        """Replace an old connection. If no new one can be opened, keep the old one."""
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
                meaning = errors.OutcomeUnknown("PostgreSQL did not respond in time")
            elif isinstance(meaning, errors.OutcomeUnknown) or getattr(error, "sqlstate", None) in errors.GOODBYE:
                connection.terminate()
            if isinstance(meaning, errors.StatementRejected) or isinstance(error, asyncpg.InvalidCachedStatementError):
                # The schema may have changed since it was prepared.
                self._prepared.pop(name, None)
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
        """Close the connection. The next statement opens another."""
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


class SharedConnection:
    """A connection that a few services with short statements use in turns.

    Args:
        connection: used by nothing else.
    """

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def fetch(self, name: str, *args: Any, timeout_s: float) -> Sequence[Row]:
        """Run a named statement once the others are done.

        Raises:
            StoreError: as `HotConnection.fetch`.
        """
        async with self._lock:
            return await self._connection.fetch(name, *args, timeout_s=timeout_s)
