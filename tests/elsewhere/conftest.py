"""The core of the suite once more, on servers that are not the embedded one. Each file here names a file of
tests/service, whose tests run with the databases of this folder; all of them do by `pytest --server NAME tests/service`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api import Api
from tests.conftest import Databases, made_on, serving, staging
from tests.servers import missing, pgbouncer, postgresql_15
from tests.stage import Stage


@pytest.fixture(scope="session", params=["pgbouncer", "postgresql-15"])
async def databases(request: pytest.FixtureRequest, databases: Databases, home: Path) -> AsyncIterator[Databases]:
    name: str = request.param
    if why := missing(name):
        pytest.skip(why)
    if name == "pgbouncer":
        async with pgbouncer(home, databases.postgres) as server:
            yield Databases(server)
    else:
        async with postgresql_15(home) as server:
            yield await made_on(server)


# Again, though they say the same: what a fixture of the folder above has made would be taken from another server.


@pytest.fixture(scope="session")
async def api(databases: Databases) -> AsyncIterator[Api]:
    async with serving(databases) as api:
        yield api


@pytest.fixture(scope="session")
async def stage(databases: Databases) -> AsyncIterator[Stage]:
    async with staging(databases) as stage:
        yield stage
