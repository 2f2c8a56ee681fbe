"""What PostgreSQL rejects for good is told apart from a database that does not answer."""

from __future__ import annotations

import asyncpg
import pytest

from relay.store import DatabaseUnavailable, StatementRejected
from relay.store.errors import running
from tests.conftest import Commands


@pytest.mark.parametrize(
    ("error", "rejected"),
    [
        (asyncpg.FeatureNotSupportedError, True),
        (asyncpg.UndefinedTableError, True),
        (asyncpg.InsufficientPrivilegeError, True),
        (asyncpg.ReadOnlySQLTransactionError, False),
        (asyncpg.OutOfMemoryError, False),
    ],
)
def test_only_what_no_retry_can_mend_is_a_rejected_statement(
    error: type[asyncpg.PostgresError], rejected: bool
) -> None:
    meaning = running(error("no"))
    assert isinstance(meaning, DatabaseUnavailable)
    assert isinstance(meaning, StatementRejected) is rejected
    assert str(error.sqlstate) in str(meaning)


async def test_a_missing_table_is_an_internal_error_until_it_is_back(commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    assert await tenant.accept()
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("alter table relay.events rename to elsewhere")
        posted = await tenant.post("/api/events", json={"type": "a", "payload": 1})
        listed = await tenant.get("/api/events")
        await connection.execute("alter table relay.elsewhere rename to events")
    finally:
        await connection.close()
    assert (posted.status_code, posted.json()["code"]) == (500, "internal_error")
    assert (listed.status_code, listed.json()["code"]) == (500, "internal_error")
    assert await tenant.accept()
