"""The core of the suite once more, on servers that are not the embedded one. Each file here names a file of
tests/service, whose tests run with the databases of this folder; all do by `pytest --server NAME tests/service`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Databases, made_on, serving, staging
from tests.support.api import Api
from tests.support.api_harness import Stage
from tests.support.servers import missing, pgbouncer, postgresql_15


# Not the parameter of `databases`: pytest hands it to the fixture of that name above too, and makes that anew for each.
@pytest.fixture(scope="session", params=["pgbouncer", "postgresql-15"])
def server_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
async def databases(server_name: str, databases: Databases, home: Path) -> AsyncIterator[Databases]:
    if why := missing(server_name):
        pytest.skip(why)
    if server_name == "pgbouncer":
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
