"""Pages in memory are bounded by organization and in all, and lists are compressed."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from tests.service.http.test_bounds_before_work import status_of
from tests.service.http.test_http import head
from tests.service.http.test_slow_answers import ask
from tests.support.api import Api, Tenant
from tests.support.api_harness import Stage
from tests.support.furnished import Furnished, furnish

FULL = 8 * 1024 * 1024
LEAST = 512 * 1024


async def filled(api: Api) -> Tenant:
    tenant = await api.tenant()
    for _ in range(36):
        await tenant.accept(payload="x" * 250_000)
    return tenant


async def size_of_page(tenant: Tenant, path: str) -> int:
    answer = await tenant.get(path, headers={"Accept-Encoding": "identity"})
    assert answer.status_code == 200
    assert answer.json()["next_cursor"] is not None
    return len(answer.content)


@pytest.mark.parametrize(
    "path", ["/api/inbox?limit=1000", "/api/inbox?limit=1000&status=all", "/api/events?type=order.*&limit=1000"]
)
async def test_pages_are_smaller_while_an_organization_has_large_ones_under_way(api: Api, path: str) -> None:
    loud, quiet = await filled(api), await filled(api)
    assert FULL - 500_000 < await size_of_page(loud, path) <= FULL
    async with asyncio.timeout(60):
        with ExitStack() as stack:
            # Nobody reads more of them than that they have begun.
            for _ in range(2):
                line = stack.enter_context(await ask(api.port, head("GET", path, X_API_Key=loud.key)))
                assert await status_of(line) == 200
            assert LEAST // 2 < await size_of_page(loud, path) <= LEAST
            assert await size_of_page(quiet, path) > FULL - 500_000
        while await size_of_page(loud, path) <= LEAST:
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
async def mine(stage: Stage) -> Furnished:
    return await furnish(stage)


async def test_every_list_is_compressed_where_the_client_takes_it(mine: Furnished) -> None:
    lists = ["/api/inbox?status=all", "/api/events", "/api/deliveries", "/api/endpoints"]
    for path in lists:
        plain = await mine.tenant.get(path, headers={"Accept-Encoding": "identity"})
        packed = await mine.tenant.get(path, headers={"Accept-Encoding": "gzip"})
        assert len(plain.content) > 1024, path
        assert plain.json() == packed.json()
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) < len(plain.content)
        assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"


async def test_what_is_small_or_no_list_goes_as_it_is(mine: Furnished) -> None:
    for path in ("/api/inbox?type=nothing", f"/api/events/{mine.ids['event'][0]}", "/api/keys"):
        answer = await mine.tenant.get(path, headers={"Accept-Encoding": "gzip"})
        assert "content-encoding" not in answer.headers
