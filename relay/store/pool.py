"""Run statements on pooled connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from relay.store import errors
from relay.store.backends import CANCEL_TIMEOUT_S, BackendLimit
from relay.store.connection import PLAN_EACH, Connection, ConnectionFactory, Row

_MAX_IDLE_S: Final = 60.0


class StatementPool:
    """asyncpg's pool with a limit that also counts the backends of abandoned statements. Entering it connects.

    Args:
        opener: opens the connections.
        statements: the text of `set_plans`.
        size: the maximum number of connections.
        server_timeout_s: after which PostgreSQL ends a statement that was abandoned here.
        backends_left: as `left` of `BackendLimit`.
    """

    def __init__(
        self,
        opener: ConnectionFactory,
        statements: Mapping[str, str],
        size: int,
        server_timeout_s: float,
        backends_left: Callable[[Sequence[int], Sequence[float]], Awaitable[Sequence[int]]],
    ) -> None:
        self._opener = opener
        self._statements = statements
        self._server_timeout_s = server_timeout_s
        #: The maximum number of connections.
        self.size = size
        self._backends = BackendLimit(size, backends_left)
        self._pool: asyncpg.Pool | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            pool = asyncpg.create_pool(
                self._opener.target.dsn,
                min_size=0,
                max_size=self.size,
                max_inactive_connection_lifetime=_MAX_IDLE_S,
                max_queries=1_000_000_000,
                init=self._opener.on_open,
                **self._opener.options(self._server_timeout_s, plans=PLAN_EACH),
            )
            self._pool = await pool
            stack.callback(pool.terminate)
            await stack.enter_async_context(self._backends)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def in_use(self) -> int:
        """The number of connections in use."""
        return 0 if self._pool is None else self._pool.get_size() - self._pool.get_idle_size()

    @property
    def idle(self) -> int:
        """The number of idle connections."""
        return 0 if self._pool is None else self._pool.get_idle_size()

    def count_backend(self, process_id: int) -> None:
        """Count a backend that may still run a statement, although its connection, which is not pooled, is closed."""
        if not self._opener.pooled:
            self._backends.add(process_id)

    async def fetch(self, text: str, args: Sequence[Any], timeout_s: float, plans: str) -> Sequence[Row]:
        """Run a statement and return its rows. Parameters as in `Cell.fetch`.

        Raises:
            StoreError: as in `relay.store.errors`.
        """
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
                await connection.plan(self._statements["set_plans"], plans, timeout_s)
            rows: Sequence[Row] = await connection.fetch(text, *args, timeout=timeout_s)
            return rows
        except TimeoutError:
            given_up = True
            raise errors.OutcomeUnknown("PostgreSQL did not respond in time") from None
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
