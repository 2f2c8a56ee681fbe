"""`relay deliver` as a process: exit codes, port, stop, SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx2
import pytest

from relay.store import Cell
from tests.conftest import Commands, Databases, environment, free_port
from tests.support.delivery_harness import Books, until
from tests.support.receiver import Receiver, hang, reply

ROOT = Path(__file__).parents[3]


async def run(env: dict[str, str], *arguments: str) -> tuple[int | None, str]:
    """Run `relay deliver` to its end: exit code and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "deliver", *arguments),
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_a_start_that_cannot_be_says_why_in_one_line(databases: Databases) -> None:
    empty = await databases.create(migrated=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        good = environment(empty, 1)
        nobody = f"postgresql://relay@127.0.0.1:{port}/relay"
        ends = await asyncio.gather(
            run({**good, "DATABASE_URL": ""}),
            run({**good, "RELAY_SECRET_KEY": ""}),
            run({**good, "DATABASE_URL": nobody}, "--no-ops"),
            run(good, "--no-ops"),
            run({**good, "RELAY_OPS_PORT": str(port)}),
            run({**good, "RELAY_DB_POOL_MAX": "8"}, "--no-ops"),
        )
    assert [code for code, _ in ends] == [2, 2, 5, 5, 1, 2]
    expected = (
        "DATABASE_URL", "RELAY_SECRET_KEY", "cannot be reached", "relay migrate", f"port {port}", "RELAY_DB_POOL_MAX",
    )  # fmt: skip
    for (_, said), words in zip(ends, expected, strict=True):
        assert words in said
        assert said.startswith("relay: ")
        assert said.count("\n") == 1


async def test_the_ops_port_tells_health_and_metrics_and_a_signal_ends_it_all(
    database: str, commands: Commands
) -> None:
    port = free_port()
    env = environment(
        database, 1, RELAY_OPS_PORT=str(port), RELAY_METRICS_TOKEN="told to prometheus only".replace(" ", "-")
    )
    child = await commands.start("deliver", "deliver", env=env)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for path in ("/health", "/health/live"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
        assert (await client.get("/metrics")).status_code == 401
        told = await client.get("/metrics", headers={"Authorization": "Bearer told-to-prometheus-only"})
        assert "\nrelay_delivery_claims_total " in told.text
        assert (await client.get("/api/events")).status_code == 404
        while (wrong := await client.get("/metrics")).status_code == 401:
            pass
        assert (wrong.status_code, wrong.json()["code"]) == (429, "too_many_wrong_tokens")
        connection = await asyncpg.connect(database)
        seen = "select 1 from relay.processes where kind = 'deliver'"
        await until(lambda: connection.fetch(seen))
        # The client still holds its connection, as a scraper would.
        assert child.pid is not None
        os.kill(child.pid, signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await child.wait() == 0
    assert await connection.fetch(seen) == []
    await connection.close()


async def test_it_holds_no_more_connections_than_it_may(database: str, commands: Commands) -> None:
    async with Receiver() as receiver:
        api = await commands.serve(database)
        tenant = await api.tenant()
        await tenant.post("/api/webhook/config", json={"webhook_url": receiver.url})
        port = free_port()
        env = environment(
            database, 1, RELAY_OPS_PORT=str(port), RELAY_DB_POOL_MAX="9", RELAY_ALLOWED_NETWORKS="127.0.0.0/8"
        )
        await commands.start("deliver", "deliver", env=env)
        # Everything that it does at once: deliveries, a test delivery, a job, health.
        for _ in range(20):
            await tenant.accept()
        endpoint_id = (await tenant.get("/api/endpoints")).json()["endpoints"][0]["id"]
        ping = await tenant.post(f"/api/endpoints/{endpoint_id}/test")
        assert ping.json()["status_code"] == 200
        await receiver.until(21)
        since = {"since": "2026-01-01T00:00:00Z"}
        assert (await tenant.post(f"/api/endpoints/{endpoint_id}/replay", json=since)).status_code == 202
        await receiver.until(30)
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
        connection = await asyncpg.connect(database)
        held = await connection.fetchval(
            "select count(*) from pg_stat_activity"
            " where application_name = 'relay deliver' and datname = current_database()"
        )
        await connection.close()
        assert 1 < held <= 9


@pytest.mark.slow
async def test_what_a_killed_process_held_is_delivered_by_another(
    database: str, cell: Cell, commands: Commands
) -> None:
    connection = await asyncpg.connect(database)
    books = Books(cell, connection)
    async with Receiver(hang) as receiver:
        organization_id, _ = await books.endpoint(receiver.url)
        ids = await books.accept(organization_id, 4)
        victim = await commands.deliver(database, RELAY_LEASE_S="1")
        await receiver.until(4)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
        receiver.script = reply()
        await commands.deliver(database)
        await until(books.is_empty)
    assert [UUID(request.headers["webhook-id"]) in ids for request in receiver.received] == [True] * 8
    # What died with its process was never recorded, so it is not counted.
    assert [row["number"] for row in await books.attempts()] == [1] * 4
    assert {row["status"] for row in await books.deliveries()} == {"delivered"}
    await connection.close()
