"""Locks in PostgreSQL, held by a test to make everybody else wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def locked(url: str, table: str = "events") -> AsyncIterator[asyncpg.Connection]:
    """Lock a table against all readers and writers until left, and give another connection, which sees who waits."""
    connection, onlooker = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"lock table relay.{table} in access exclusive mode")
            # A transaction sees what it saw of other sessions when it first looked.
            yield onlooker
    finally:
        await connection.close()
        await onlooker.close()
