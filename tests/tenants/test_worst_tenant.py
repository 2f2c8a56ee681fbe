"""Whatever a tenant does within its limits, the bounds hold and its neighbour is served."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tenants.house import memory_group
from tests.tenants.visit import Visit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


#: The machine that fly.toml asks for.
SMALL_BYTES = 256 * 2**20


@pytest.fixture
def place(home: Path, request: pytest.FixtureRequest) -> Path:
    made = home / str(request.node.name)[:20]
    made.mkdir(mode=0o711)
    return made


async def test_the_worst_tenant_stays_within_every_bound_while_both_processes_share_256_megabytes(place: Path) -> None:
    async with memory_group(SMALL_BYTES) as memory:
        visit = Visit("pro", place, memory)

        await visit.run()

        print(visit)
        assert visit.broken == []
    if memory is None:
        pytest.skip("no memory cgroup can be made here: the other bounds hold")
