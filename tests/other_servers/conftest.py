"""The core of the suite once more, on servers that are not the embedded one. Each file here names a file of
tests/service, whose tests run with the databases of this folder; all do by `pytest --server NAME tests/service`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
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


class Kept:
    """These servers and what runs on each, once in a run: started when a test needs it, and ended with the run.

    As fixtures with a parameter they would be started again for each file.
    """

    def __init__(self, chosen: Databases, home: Path, stack: AsyncExitStack) -> None:
        self._chosen = chosen
        self._home = home
        self._stack = stack
        self._databases: dict[str, Databases] = {}
        self._apis: dict[str, Api] = {}
        self._stages: dict[str, Stage] = {}

    async def databases(self, name: str) -> Databases:
        if name not in self._databases:
            if name == "pgbouncer":
                server = await self._stack.enter_async_context(pgbouncer(self._home, self._chosen.postgres))
                # That has a migrated database to copy.
                self._databases[name] = Databases(server)
            else:
                self._databases[name] = await made_on(await self._stack.enter_async_context(postgresql_15(self._home)))
        return self._databases[name]

    async def api(self, name: str) -> Api:
        if name not in self._apis:
            self._apis[name] = await self._stack.enter_async_context(serving(await self.databases(name)))
        return self._apis[name]

    async def stage(self, name: str) -> Stage:
        if name not in self._stages:
            self._stages[name] = await self._stack.enter_async_context(staging(await self.databases(name)))
        return self._stages[name]


@pytest.fixture(scope="session")
async def kept(chosen: Databases, home: Path) -> AsyncIterator[Kept]:
    async with AsyncExitStack() as stack:
        yield Kept(chosen, home, stack)


@pytest.fixture(scope="session")
async def databases(server_name: str, kept: Kept) -> Databases:
    if why := missing(server_name):
        pytest.skip(why)
    return await kept.databases(server_name)


@pytest.fixture(scope="session")
async def api(server_name: str, databases: Databases, kept: Kept) -> Api:
    return await kept.api(server_name)


@pytest.fixture(scope="session")
async def stage(server_name: str, databases: Databases, kept: Kept) -> Stage:
    return await kept.stage(server_name)
