"""Access to PostgreSQL: cells, connections, named statements, migrations. Only this package uses asyncpg."""

from relay.store.cell import Cell
from relay.store.connection import PLAN_EACH, PLAN_KEPT, Row
from relay.store.errors import (
    DatabaseUnavailable,
    DiskFull,
    MigrationRefused,
    OutcomeUnknown,
    PartitionMissing,
    RowRefused,
    ServerNotReady,
    StatementRejected,
    StoreError,
)
from relay.store.hot_connection import HotConnection, SharedConnection
from relay.store.listener import Listener
from relay.store.statements import Statements

__all__ = [
    "PLAN_EACH",
    "PLAN_KEPT",
    "Cell",
    "DatabaseUnavailable",
    "DiskFull",
    "HotConnection",
    "Listener",
    "MigrationRefused",
    "OutcomeUnknown",
    "PartitionMissing",
    "Row",
    "RowRefused",
    "ServerNotReady",
    "SharedConnection",
    "StatementRejected",
    "Statements",
    "StoreError",
]
