"""The errors of statements, as callers must distinguish them."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

#: SQLSTATE classes of a statement that failed because of one of its rows: cardinality, data, integrity, program limits.
ROW_CLASSES: Final = ("21", "22", "23", "54")
_CHECK_VIOLATION: Final = "23514"
#: Serialization failure and deadlock: the transaction is rolled back and can be retried.
TRY_AGAIN: Final = ("40001", "40P01")
#: The server closes the connection, or has become a standby: the connection cannot be used any more.
GOODBYE: Final = ("25006", "57P01", "57P02", "57P03", "57P05")

# The server is starting or stopping, or all of its connections are in use.
_NOT_READY: Final = ("57P03", "53300")
_CANCELLED: Final = "57014"
_DISK_FULL: Final = "53100"

#: No such table, schema, column or function.
NOT_MIGRATED: Final = ("42P01", "3F000", "42703", "42883")


# Feature not supported; no such schema; syntax error or access rule violation.
_REJECTED: Final = ("0A000", "3F000", "42")


class StoreError(Exception):
    """The base class of these errors."""


class DatabaseUnavailable(StoreError):
    """The statement certainly had no effect: it was not sent, or was rolled back."""


class ServerNotReady(DatabaseUnavailable):
    """Connecting failed but may soon succeed: the server is slow, is starting, or has no connection left."""


class PartitionMissing(DatabaseUnavailable):
    """The day of one of the rows has no partition, not yet or no more. Nothing of the statement was stored."""


class DiskFull(DatabaseUnavailable):
    """PostgreSQL has no disk space left."""


class StatementRejected(DatabaseUnavailable):
    """PostgreSQL rejects the statement itself, because a table, function or privilege is missing. It had no effect, and
    retrying does not help until an operator has solved that.
    """

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class OutcomeUnknown(StoreError):
    """The connection was lost during a statement, which may have been committed."""


class RowRefused(StoreError):
    """PostgreSQL rejects a value in one of the rows. Nothing of the statement was stored."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"PostgreSQL rejects a value (SQLSTATE {sqlstate})")
        self.sqlstate = sqlstate


class TransactionConflict(StoreError):
    """The statement had no effect: its transaction was rolled back in favour of another. Retrying is safe."""


class MigrationRefused(StoreError):
    """A migration cannot be applied. The message is one line for the operator."""


def said(error: asyncpg.PostgresError) -> str:
    """Return PostgreSQL's message with its SQLSTATE, without its details, which may quote rows."""
    return f"{error.args[0] if error.args else 'no message'} (SQLSTATE {error.sqlstate})"


def connecting(error: BaseException) -> StoreError:
    """Return the error that a failure to connect means."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return ServerNotReady("PostgreSQL does not respond")
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return DatabaseUnavailable("PostgreSQL rejects the user or the password")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return DatabaseUnavailable("PostgreSQL has no such database")
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "XX000"
        if state in NOT_MIGRATED:
            return StatementRejected("the tables are missing: run `relay migrate`", state)
        if state.startswith(_REJECTED):
            return StatementRejected(f"PostgreSQL rejects the connection: {said(error)}", state)
        kind = ServerNotReady if error.sqlstate in _NOT_READY else DatabaseUnavailable
        return kind(f"PostgreSQL rejects the connection: {said(error)}")
    if isinstance(error, FileNotFoundError):
        return DatabaseUnavailable(
            "PostgreSQL cannot be reached: a socket or certificate that the URL names is not there"
        )
    # The text of an OSError or of an invalid URL may contain the URL and so a password: only its type is given.
    return DatabaseUnavailable(f"PostgreSQL cannot be reached ({type(error).__name__})")


def running(error: BaseException) -> StoreError:
    """Return the error that a failure during a statement means."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "XX000"
        if state == _CHECK_VIOLATION and error.constraint_name is None:
            # A missing partition has the same SQLSTATE but names no constraint. The row itself is valid.
            return PartitionMissing("a partition is missing")
        if state == _DISK_FULL:
            return DiskFull("PostgreSQL's disk is full")
        if state[:2] in ROW_CLASSES:
            return RowRefused(state)
        if state in TRY_AGAIN or isinstance(error, asyncpg.InvalidCachedStatementError):
            # The latter: the schema has changed, and the statement has to be prepared again.
            return TransactionConflict(state)
        if state.startswith("57P") or state.startswith("08"):
            return OutcomeUnknown(f"the connection ended (SQLSTATE {state})")
        if state == _CANCELLED:
            return DatabaseUnavailable("PostgreSQL ended the statement, which took longer than statement_timeout")
        if state.startswith(_REJECTED):
            return StatementRejected(f"PostgreSQL rejects the statement: {said(error)}", state)
        return DatabaseUnavailable(f"the statement failed: {said(error)}")
    if isinstance(error, asyncpg.DataError | ValueError | OverflowError):
        return RowRefused("22000")
    return OutcomeUnknown(f"the connection broke ({type(error).__name__})")
