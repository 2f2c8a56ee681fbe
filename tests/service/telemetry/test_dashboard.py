"""Every panel of the dashboard shows data on a working system: zero is shown as zero, not as "no data"."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.conftest import LOOPBACK, Commands, environment, free_port
from tests.support.delivery_harness import until
from tests.support.receiver import Receiver
from tests.unit.test_dashboards import panels

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus here (Debian: prometheus)")


@asynccontextmanager
async def prometheus(folder: Path, targets: Mapping[str, int]) -> AsyncIterator[httpx2.AsyncClient]:
    """A Prometheus that scrapes the port of each job every second."""
    assert PROMETHEUS is not None
    port = free_port()
    jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]} for job, at in targets.items()]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def samples(client: httpx2.AsyncClient, query: str) -> list[float]:
    answer = await client.get("/api/v1/query", params={"query": query})
    found: dict[str, Any] = answer.json()
    assert found["status"] == "success", found
    return [float(one["value"][1]) for one in found["data"]["result"]]


@pytest.mark.slow
async def test_every_panel_has_a_value_where_all_is_well(database: str, commands: Commands, tmp_path: Path) -> None:
    api, ops_port = await commands.serve(database), free_port()
    env = environment(database, free_port(), RELAY_OPS_PORT=str(ops_port), RELAY_ALLOWED_NETWORKS=LOOPBACK)
    await commands.start("deliver", "deliver", env=env)
    async with (
        Receiver() as receiver,
        prometheus(tmp_path, {"relay-api": api.port, "relay-deliver": ops_port}) as client,
    ):
        tenant = await api.tenant()
        await tenant.post("/api/webhook/config", json={"webhook_url": receiver.url})
        queries = {
            (panel["title"], target["refId"]): target["expr"]
            .replace("$__rate_interval", "10s")
            .replace("$job", "relay-.*")
            for panel in panels()
            for target in panel["targets"]
        }
        missing = set(queries)

        async def all_have_one() -> bool:
            await tenant.accept()
            for where in sorted(missing):
                try:
                    values = await samples(client, queries[where])
                except httpx2.TransportError:
                    return False
                # A route that nobody has asked for a while has no percentile; others have.
                if not all(map(math.isnan, values)):
                    missing.discard(where)
            # Prometheus looks once a second.
            await asyncio.sleep(0.3)
            return not missing

        try:
            await until(all_have_one, 30.0)
        except TimeoutError:
            pytest.fail(f"no data: {sorted(missing)}")
