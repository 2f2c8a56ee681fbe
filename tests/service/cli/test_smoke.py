"""scripts/smoke.sh against a real relay: it passes if all is well, and otherwise reports what differs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ADMIN_TOKEN, Commands, Databases, free_port
from tests.support.receiver import Receiver

SCRIPT = Path(__file__).parents[3] / "scripts" / "smoke.sh"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def smoke(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """Run the script, and return its exit code and output."""
    env: Mapping[str, str] = {"PATH": os.environ["PATH"], **environment}
    process = await asyncio.create_subprocess_exec(
        *("sh", str(SCRIPT), *arguments), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(180):
        said, _ = await process.communicate()
    return process.returncode, said.decode()


@pytest.mark.slow
async def test_it_passes_step_by_step_with_deliveries_and_leaves_no_endpoint(
    commands: Commands, databases: Databases
) -> None:
    database = await databases.create()
    async with Receiver() as receiver:
        api = await commands.serve(database, RELAY_METRICS_TOKEN="the-metrics-token")
        await commands.deliver(database)
        tenant = await api.tenant()
        hook = receiver.url.replace("localhost", "127.0.0.1")
        tokens = {"RELAY_ADMIN_TOKEN": ADMIN_TOKEN, "RELAY_METRICS_TOKEN": "the-metrics-token"}
        code, said = await smoke(api.base, SMOKE_WEBHOOK_URL=hook, **tokens)
        assert code == 0, said
        # Once more with a key that is given, whose organization keeps its webhook.
        assert (await tenant.post("/api/webhook/config", json={"webhook_url": hook})).status_code == 200
        given_code, given = await smoke(
            BASE_URL=api.base, RELAY_API_KEY=tenant.key, RELAY_METRICS_TOKEN="the-metrics-token"
        )
        assert given_code == 0, given
    lines = said.splitlines()
    assert all(line.startswith("ok    ") for line in lines[1:-1]), said
    assert len(lines) > 60
    assert lines[-1] == f"all {len(lines) - 2} steps passed"
    assert "FAIL" not in given
    assert given.count("skip ") == 3
    endpoints = (await tenant.get("/api/endpoints")).json()["endpoints"]
    assert [endpoint["url"] for endpoint in endpoints] == [hook]
    assert (await tenant.get("/api/keys")).json()["webhook_url"] == hook
    assert len((await tenant.get("/api/keys")).json()["keys"]) == 1


@pytest.mark.slow
async def test_what_differs_is_said_and_ends_with_1(commands: Commands, databases: Databases) -> None:
    code, said = await smoke(f"http://127.0.0.1:{free_port()}")
    assert code == 1
    assert "FAIL      health: status none" in said
    api = await commands.serve(await databases.create())
    code, said = await smoke(api.base, RELAY_ADMIN_TOKEN="another")
    assert code == 1
    assert "FAIL      an organization and its key: status 401, not 201" in said
    # A key that may not do everything: the steps that it may take pass, the others say why not.
    tenant = await api.tenant()
    made = await tenant.post("/api/keys", json={"name": "narrow", "scopes": ["ingest"]})
    narrow = made.json()["api_key"]
    code, said = await smoke(api.base, RELAY_API_KEY=narrow)
    assert code == 1
    assert "ok    201 an event\n" in said
    assert "FAIL      the inbox: status 403, not 200" in said
    assert '"code":"insufficient_scope"' in said
    assert narrow not in said
