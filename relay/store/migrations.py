"""Migrations: numbered files, applied once each, in order, by one process at a time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from relay.store import errors
from relay.store.statements import Statements, in_schema, sql_folder
from relay.values.database_url import DatabaseUrl

_log = logging.getLogger("relay.store")

_CREATE_TRIES: Final = 20
_CONNECT_TIMEOUT_S: Final = 30.0
_ALREADY_THERE: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateTableError,
)
#: The number of days for which partitions are created in advance.
DAYS_AHEAD: Final = 7


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `sql/migrations/`."""

    name: str
    text: str
    checksum: bytes


def migrations(folder: Path | None = None) -> list[Migration]:
    """Return the files in the order in which they are applied."""
    found = []
    for path in sorted((folder or sql_folder() / "migrations").glob("[0-9]*.sql")):
        text = path.read_text(encoding="utf-8")
        found.append(Migration(path.stem, text, hashlib.sha256(text.encode()).digest()))
    return found


async def migrate(url: str, schema: str, folder: Path | None = None) -> list[str]:
    """Apply the files that have not been applied, each in its own transaction, and create the first partitions.

    Args:
        url: the database. A direct connection is better than a transaction pooler, though each file is one transaction.
        schema: the cell's schema, created if it is missing.
        folder: the folder of the files, if not `sql/migrations/`.

    Returns:
        The names that were applied.

    Raises:
        MigrationRefused: a file has changed since it was applied, or cannot be applied.
        DatabaseUnavailable: PostgreSQL does not respond.
    """
    try:
        # Transaction poolers do not support prepared statements.
        target = DatabaseUrl.read(url)
        connection = await asyncpg.connect(
            target.dsn, timeout=target.connect_timeout_s or _CONNECT_TIMEOUT_S, statement_cache_size=0
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TimeoutError) as error:
        raise errors.connecting(error) from None
    try:
        return await _migrate(connection, Statements(schema), schema, migrations(folder))
    except (OSError, asyncpg.InterfaceError, TimeoutError) as error:
        raise errors.DatabaseUnavailable(f"PostgreSQL was lost ({type(error).__name__})") from None
    finally:
        await connection.close(timeout=2.0)


async def _migrate(
    connection: asyncpg.Connection, statements: Statements, schema: str, files: list[Migration]
) -> list[str]:
    await _create_table(connection, statements, schema)
    names = {file.name for file in files}
    applied: list[str] = []
    for file in files:
        try:
            async with connection.transaction():
                await connection.execute(statements["lock_migrations"])
                known = {
                    row["name"]: row["checksum"] for row in await connection.fetch(statements["applied_migrations"])
                }
                for newer in sorted(set(known) - names):
                    _log.warning("unknown_newer_migration", extra={"migration": newer})
                names |= set(known)
                if file.name in known:
                    if known[file.name] != file.checksum:
                        raise errors.MigrationRefused(f"migration {file.name} has changed since it was applied")
                    continue
                await connection.execute(in_schema(file.text, schema))
                await connection.execute(statements["record_migration"], file.name, file.checksum)
        except asyncpg.PostgresError as error:
            raise errors.MigrationRefused(f"migration {file.name} cannot be applied: {errors.said(error)}") from None
        applied.append(file.name)
    try:
        await connection.execute(statements["make_partitions"], DAYS_AHEAD)
    except asyncpg.PostgresError as error:
        raise errors.MigrationRefused(f"the partitions cannot be made: {errors.said(error)}") from None
    return applied


async def _create_table(connection: asyncpg.Connection, statements: Statements, schema: str) -> None:
    """Create the schema and its table, with retries: `if not exists` fails if two processes create them at once."""
    for attempt in range(_CREATE_TRIES):
        try:
            (found,) = await connection.fetch(statements["schema_is_there"], schema)
            if not found["schema"]:
                await connection.execute(statements["create_schema"])
            if not found["migrations"]:
                await connection.execute(statements["create_migrations_table"])
            return
        except _ALREADY_THERE as error:
            if attempt == _CREATE_TRIES - 1:
                raise errors.MigrationRefused(f"the schema cannot be created: {errors.said(error)}") from None
            await asyncio.sleep(0.05)
        except asyncpg.PostgresError as error:
            raise errors.MigrationRefused(f"the schema cannot be created: {errors.said(error)}") from None
