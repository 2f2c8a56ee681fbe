"""The tests of this folder run on the servers that they name."""

from __future__ import annotations

import asyncpg

from tests.conftest import pooled_url
from tests.support.api_harness import Stage


async def test_the_server_is_another_one(database: str, stage: Stage) -> None:
    pooled = pooled_url(database)
    if pooled is not None:
        assert pooled_url(stage.url) is not None
        connection = await asyncpg.connect(pooled, statement_cache_size=0)
        assert await connection.fetchval("select pg_backend_pid()") != connection.get_server_pid()
    else:
        connection = await asyncpg.connect(database)
        assert connection.get_server_version().major == 15
        assert (await stage.read("show server_version_num"))[0][0].startswith("15")
    await connection.close()
