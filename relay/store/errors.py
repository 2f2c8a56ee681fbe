"""What a statement can end in other than rows, as its caller must tell them apart."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

#: SQLSTATE classes of a statement that one of its rows has spoilt: cardinality, data, integrity, program limits.
ROW_CLASSES: Final = ("21", "22", "23", "54")
_CHECK_VIOLATION: Final = "23514"
#: Serialization failure and deadlock: the transaction is rolled back and may simply be tried again.
TRY_AGAIN: Final = ("40001", "40P01")
#: The server says goodbye, or has become a standby: the connection is of no more use.
GOODBYE: Final = ("25006", "57P01", "57P02", "57P03", "57P05")

# It is starting or stopping; all of its connections are taken.
_NOT_READY: Final = ("57P03", "53300")
_CANCELLED: Final = "57014"
_DISK_FULL: Final = "53100"

#: No such table, schema, column or function.
NOT_MIGRATED: Final = ("42P01", "3F000", "42703", "42883")


# Feature not supported; syntax error or access rule violation.
_REJECTED: Final = ("0A000", "42")


class StoreError(Exception):
    """The base of what this room raises."""


class DatabaseUnavailable(StoreError):
    """The database did not do it, for certain: nothing was sent, or the statement was rolled back."""


class ServerNotReady(DatabaseUnavailable):
    """No connection was to be had, and soon one may: the server is slow, is starting, or has none left."""


class PartitionMissing(DatabaseUnavailable):
    """One of the rows is of a day that has no partition, not yet or no more; nothing of the statement was stored."""


class DiskFull(DatabaseUnavailable):
    """PostgreSQL has no space left to write it down."""


class StatementRejected(DatabaseUnavailable):
    """PostgreSQL rejects the statement itself, for a missing table or right: trying again does not help."""

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class OutcomeUnknown(StoreError):
    """The connection was lost while a statement was under way: it may have been committed."""


class RowRefused(StoreError):
    """PostgreSQL refuses a value in one of the rows; nothing of the statement was stored."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"PostgreSQL refuses a value (SQLSTATE {sqlstate})")
        self.sqlstate = sqlstate


class TransactionConflict(StoreError):
    """Rolled back in favour of another transaction; trying again is safe."""


class MigrationRefused(StoreError):
    """A migration cannot be applied; the message is a line for the operator."""


def said(error: asyncpg.PostgresError) -> str:
    """What PostgreSQL said, with its SQLSTATE and without its details, which may quote rows."""
    return f"{error.args[0] if error.args else 'no message'} (SQLSTATE {error.sqlstate})"


def connecting(error: BaseException) -> StoreError:
    """What a failure to connect means."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return ServerNotReady("PostgreSQL does not answer")
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return DatabaseUnavailable("PostgreSQL refuses the user or the password")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return DatabaseUnavailable("PostgreSQL has no such database")
    if isinstance(error, asyncpg.PostgresError):
        if error.sqlstate in NOT_MIGRATED:
            return DatabaseUnavailable("the tables are missing: run `relay migrate`")
        kind = ServerNotReady if error.sqlstate in _NOT_READY else DatabaseUnavailable
        return kind(f"PostgreSQL refuses the connection: {said(error)}")
    if isinstance(error, FileNotFoundError):
        return DatabaseUnavailable(
            "PostgreSQL cannot be reached: a socket or certificate that the URL names is not there"
        )
    # The text of an OSError or a bad URL may hold the URL and so a password: only its kind is told.
    return DatabaseUnavailable(f"PostgreSQL cannot be reached ({type(error).__name__})")


def running(error: BaseException) -> StoreError:
    """What a failure while a statement ran means for that statement."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "XX000"
        if state == _CHECK_VIOLATION and error.constraint_name is None:
            # Not the row's fault: its day has no partition yet, which shares its SQLSTATE and names no constraint.
            return PartitionMissing("a partition is missing")
        if state == _DISK_FULL:
            return DiskFull("PostgreSQL's disk is full")
        if state[:2] in ROW_CLASSES:
            return RowRefused(state)
        if state in TRY_AGAIN:
            return TransactionConflict(state)
        if state.startswith("57P") or state.startswith("08"):
            return OutcomeUnknown(f"the connection ended (SQLSTATE {state})")
        if state == _CANCELLED:
            return DatabaseUnavailable("PostgreSQL ended the statement, which took longer than statement_timeout")
        if state.startswith(_REJECTED):
            return StatementRejected(f"PostgreSQL rejects the statement: {said(error)}", state)
        return DatabaseUnavailable(f"PostgreSQL refuses the statement: {said(error)}")
    if isinstance(error, asyncpg.DataError | ValueError | OverflowError):
        return RowRefused("22000")
    return OutcomeUnknown(f"the connection broke ({type(error).__name__})")
