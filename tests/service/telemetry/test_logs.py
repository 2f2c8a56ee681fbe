"""The log of real processes, and the secrets that it never contains."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.conftest import LOOPBACK, environment, free_port
from tests.service.http.test_http import connection, head
from tests.support.api import Api, Tenant
from tests.support.command_output import Told
from tests.support.delivery_harness import until
from tests.support.proxy import Proxy
from tests.support.receiver import Receiver, raw, reply
from tests.support.wire import read_answer

EVENT = b'{"type":"order.created","payload":1}'


async def answers(api: Api) -> None:
    async def healthy() -> bool:
        with suppress(OSError, Exception):
            return bool((await api.client.get("/health/live")).status_code == 200)
        return False

    await until(healthy, 30.0)


async def test_a_sampled_request_has_a_line_of_facts(database: str) -> None:
    async with AsyncExitStack() as stack:
        serve = await stack.enter_async_context(
            Told("serve", env=environment(database, free_port(), RELAY_LOG_SAMPLE="1"))
        )
        await serve.says("serving")
        api = await stack.enter_async_context(serve.api("admin-token-of-the-tests"))
        tenant = await api.tenant()
        traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        answer = await tenant.send(EVENT, **{"X-Request-Id": "mine", "traceparent": traceparent})
        assert answer.status_code == 201
        await tenant.post(f"/api/ack/{answer.json()['id']}")
        await tenant.get("/api/no/such/place")

        async def three() -> bool:
            return {"/api/events", "/api/ack/{id}", "other"} <= {line["route"] for line in asked()}

        def asked() -> list[dict[str, object]]:
            return serve.lines("request_sampled")

        await until(three)
        (line,) = [line for line in asked() if line["route"] == "/api/events"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(line.pop("timestamp")))
        assert float(str(line.pop("duration_ms"))) > 0
        assert line == {
            "level": "info",
            "logger": "relay.http",
            "event": "request_sampled",
            "command": "serve",
            "pid": serve.process.pid,
            "request_id": "mine",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "organization_id": tenant.organization_id,
            "method": "POST",
            "route": "/api/events",
            "status": 201,
            "request_bytes": len(EVENT),
            "client": "127.0.0.1",
        }
        assert await serve.stop() == 0
        assert serve.lines()[-1]["event"] == "stopped"


@pytest.mark.slow
async def test_refused_requests_leave_no_line_and_a_lost_database_few(database: str) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(database))
        serve = await stack.enter_async_context(Told("serve", env=environment(proxy.url, free_port())))
        await serve.says("serving")
        api = await stack.enter_async_context(serve.api("admin-token-of-the-tests"))
        tenant = await api.tenant()
        for _ in range(50):
            assert (await api.client.get("/api/inbox")).status_code == 401
            assert (await tenant.send(b"{")).status_code == 400
        assert not [line for line in serve.lines() if line["event"].startswith("request_")]

        proxy.refuse()
        proxy.cut()
        statuses = await asyncio.gather(*(_status(tenant) for _ in range(300)))
        assert set(statuses) == {503}

        async def told() -> bool:
            failed, left_out = serve.lines("request_failed"), serve.lines("lines_left_out")
            counted = sum(line["lines"] for line in left_out if line["of"] == "request_failed")
            return bool(len(failed) + counted >= 300)

        await until(told)
        failed = serve.lines("request_failed")
        assert len(failed) <= 100
        assert {line["code"] for line in failed} <= {"database_unavailable", "commit_unknown"}
        assert all(line["level"] == "warning" and "traceback" not in line for line in failed)
        # One line of why, from whoever was to write.
        assert serve.lines("flush_not_stored")[0]["reason"]


async def _status(tenant: Tenant) -> int:
    answer = await tenant.api.client.post("/api/events", content=EVENT, headers={"X-API-Key": tenant.key})
    return int(answer.status_code)


async def _statuses(tenant: Tenant, count: int) -> tuple[int, ...]:
    """Which statuses so many posts get, one after the other on one connection."""
    request = head("POST", "/api/events", Content_Length=len(EVENT), X_API_Key=tenant.key) + EVENT
    found = set()
    async with connection(tenant.api.port) as (reader, writer):
        for _ in range(count):
            writer.write(request)
            found.add((await read_answer(reader)).status)
    return tuple(found)


@pytest.mark.slow
async def test_the_api_goes_on_when_nobody_reads_its_log(database: str) -> None:
    reader, writer = os.pipe()
    try:
        env = environment(database, free_port(), RELAY_LOG_SAMPLE="1", RELAY_RATE_LIMIT_ENTERPRISE="1000000000")
        async with Told("serve", env=env, stderr=writer) as serve, serve.api("admin-token-of-the-tests") as api:
            os.close(writer)
            await answers(api)
            tenant = await api.tenant()
            line_bytes = 200
            # The pipe takes 64 KiB, and a MiB waits for it.
            each = (64 * 1024 + 1024 * 1024) // line_bytes // 50 + 20
            async with asyncio.timeout(60):
                assert set(await asyncio.gather(*(_statuses(tenant, each) for _ in range(50)))) == {(201,)}
            assert await serve.stop() == 0
    finally:
        os.close(reader)


async def test_on_a_terminal_lines_are_readable(database: str) -> None:
    ours, theirs = pty.openpty()
    try:
        env = environment(database, free_port(), RELAY_LOG_SAMPLE="1")
        async with Told("serve", env=env, stderr=theirs) as serve, serve.api() as api:
            os.close(theirs)
            await answers(api)
            assert await serve.stop() == 0
            shown = os.read(ours, 65536).decode()
        facts = r"^\d\d:\d\d:\d\d\.\d{3} info serving host=127\.0\.0\.1 port=\d+\r$"
        assert re.search(facts, shown, re.MULTILINE), shown
    finally:
        os.close(ours)


class Secrets(dict[str, str]):
    """What must be nowhere, by what it is."""

    def new(self, what: str) -> str:
        self[what] = f"unmistakable-{what}-4f1c9a7e"
        return self[what]

    def found_in(self, text: str) -> list[str]:
        return [what for what, secret in self.items() if secret in text]


@pytest.mark.slow
async def test_no_secret_and_no_payload_is_ever_said(database: str) -> None:
    secrets = Secrets()
    admin_token = secrets.new("admin-token")
    secrets["database password"] = urlsplit(database).password or "?"
    assert len(secrets["database password"]) > 8
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(database))
        settings = {
            "RELAY_LOG_LEVEL": "debug",
            "RELAY_LOG_SAMPLE": "1",
            "RELAY_SECRET_KEY": secrets.new("secret-key-of-thirty-two-characters"),
            "RELAY_ADMIN_TOKEN": admin_token,
            "RELAY_METRICS_TOKEN": secrets.new("metrics-token"),
            "REDIS_URL": f"redis://relay:{secrets.new('redis-password')}@127.0.0.1:{free_port()}/0",
            "RELAY_ALLOWED_NETWORKS": LOOPBACK,
            "RELAY_RETRY_SCHEDULE": "0.05,0.05",
            "RELAY_COMMIT_TIMEOUT_S": "1",
        }
        env = environment(proxy.url, free_port(), RELAY_OPS_PORT=str(free_port()), **settings)
        migrate = await stack.enter_async_context(Told("migrate", env=env))
        assert await migrate.ended() == 0
        serve = await stack.enter_async_context(Told("serve", env=env))
        deliver = await stack.enter_async_context(Told("deliver", env=env))
        await serve.says("serving")
        await deliver.says("delivering")
        api = await stack.enter_async_context(serve.api(admin_token))
        connection = await asyncpg.connect(database)
        stack.push_async_callback(connection.close)
        receiver = await stack.enter_async_context(Receiver())

        tenant = await a_tenant_with_endpoints(api, receiver, secrets)
        await everything_a_caller_does_wrong(tenant, secrets)
        for answer in (
            reply(500, secrets.new("answer").encode()),
            raw(f"HTTP/9 {secrets.new('garbage')}\r\n\r\n".encode()),
            raw(b""),
            reply(204),
            reply(410, b"gone"),
        ):
            receiver.script = answer
            before = len(receiver.received)
            await tenant.accept(payload=secrets["payload"], dedup_id=None)
            await receiver.until(before + 2)
        await deliver.says("endpoint_disabled")

        await what_nobody_thought_of(connection, api, secrets)
        assert any("KeyError" in line.get("traceback", "") for line in await serve.says("request_failed"))
        await what_cannot_be_opened(connection, tenant)
        await deliver.says("endpoint_secret_cannot_be_opened")

        proxy.refuse()
        proxy.cut()
        assert set(await asyncio.gather(*(_status(tenant) for _ in range(20)))) == {503}
        await deliver.says("claims_wait_for_database")
        proxy.accept()

        told = [migrate, serve, deliver]
        for refused in ("migrate", "serve", "deliver", "keys"):
            wrong = env | {"DATABASE_URL": proxy.url.replace(secrets["database password"], secrets.new("wrong"))}
            arguments = (refused, "reencrypt") if refused == "keys" else (refused,)
            wrong |= {"PORT": str(free_port()), "RELAY_OPS_PORT": str(free_port())}
            told.append(await stack.enter_async_context(Told(*arguments, env=wrong)))
            assert await told[-1].ended() == 5, told[-1].stderr
        told.append(await stack.enter_async_context(Told("keys", "reencrypt", env=env)))
        await told[-1].ended()
        told.append(await stack.enter_async_context(Told("config", env=env)))
        assert await told[-1].ended() == 0
        assert (await serve.stop(), await deliver.stop()) == (0, 0)
        for command in told:
            assert secrets.found_in(command.stdout + command.stderr) == []
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", command.stderr)
        # Much has been said.
        assert len(serve.lines()) > 20
        assert len(deliver.lines()) > 10


async def a_tenant_with_endpoints(api: Api, receiver: Receiver, secrets: Secrets) -> Tenant:
    tenant = await api.tenant()
    secrets["api key"] = tenant.key
    secrets["secret of the api key"] = tenant.key[-60:]
    url = f"{receiver.url}?token={secrets.new('url-token')}"
    made = await tenant.post("/api/endpoints", json={"url": url, "headers": {"X-Token": secrets.new("header-value")}})
    assert made.status_code == 201
    secrets["webhook secret"] = made.json()["secret"].removeprefix("whsec_")
    configured = await tenant.post("/api/webhook/config", json={"webhook_url": receiver.url})
    secrets["secret of the default endpoint"] = configured.json()["secret"].removeprefix("whsec_")
    return tenant


async def everything_a_caller_does_wrong(tenant: Tenant, secrets: Secrets) -> None:
    payload = secrets.new("payload")
    hostile = payload + "\\u001b[31m\\u202e\\n\\u0000\\ud800"
    key = {"Idempotency-Key": secrets.new("idempotency-key")}
    assert (await tenant.send(b'{"type":"order.created","payload":"%s"}' % hostile.encode(), **key)).status_code == 201
    assert (await tenant.send(b'{"type":"order.created","payload":"%s2"}' % payload.encode(), **key)).status_code == 422
    for body in (
        b'{"type":"%s' % payload.encode(),
        b'{"type":"a","payload":1,"%s":1}' % payload.encode(),
        b'{"type":"%s\\u0000","payload":1}' % payload.encode(),
        payload.encode() + b"\xff",
        b'{"type":"a","payload":%s}' % (b"[" * 600 + b"]" * 600),
    ):
        assert 400 <= (await tenant.send(body)).status_code <= 422
    dedup_id = secrets.new("dedup-id")
    await tenant.accept(dedup_id=dedup_id)
    assert (await tenant.post("/api/events", json={"type": "a", "payload": 1, "dedup_id": dedup_id})).status_code == 409
    wrong = tenant.key[:-12] + "aaaaaaaaaaaa"
    secrets["wrong key"] = wrong
    assert (await tenant.get("/api/inbox", headers={"X-API-Key": wrong})).status_code == 401
    assert (await tenant.get(f"/api/inbox?cursor={secrets.new('query')}")).status_code == 422
    assert (await tenant.get(f"/api/{secrets.new('path')}")).status_code == 404
    assert (await tenant.post("/api/keys/rotate", json={"overlap_s": 3600})).status_code == 200


async def what_nobody_thought_of(connection: asyncpg.Connection, api: Api, secrets: Secrets) -> None:
    """An exception whose text is the value of a row."""
    odd = await api.tenant()
    await connection.execute("alter table relay.organizations drop constraint organizations_tier_check")
    await connection.execute(
        "update relay.organizations set tier = $2 where id = $1::uuid", odd.organization_id, secrets.new("row-value")
    )
    # Past the check of answers: so early there are no headers of limits yet.
    assert (await api.client.get("/api/inbox", headers={"X-API-Key": odd.key})).status_code == 500


async def what_cannot_be_opened(connection: asyncpg.Connection, tenant: Tenant) -> None:
    await connection.execute(
        "update relay.endpoints set secret_seal = '\\x00', enabled = true, version = version + 1"
        " where organization_id = $1::uuid",
        tenant.organization_id,
    )
    await tenant.accept()


@pytest.mark.slow
async def test_relay_up_says_its_demo_key_on_stdout_and_no_other_secret(home: Path) -> None:
    data = home / "told-up"
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "RELAY_DATA_DIR": str(data), "PORT": str(free_port())}
    env |= {"RELAY_LOG_LEVEL": "debug", "RELAY_LOG_SAMPLE": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    # Else the demo organization has no limit, and its responses lack the headers that the document has.
    env["RELAY_RATE_LIMIT_ENTERPRISE"] = "100000"
    async with Told("up", env=env) as up:

        async def is_up() -> bool:
            assert up.process.returncode is None, up.stderr
            return "curl " in up.stdout

        await until(is_up, 60.0)
        key = (data / "demo_key").read_text().strip()
        secrets = Secrets({"secret key": (data / "secret_key").read_text().strip()})
        secrets["password"] = (data / "postgresql" / "password").read_text().strip()
        payload = secrets.new("payload")
        async with up.api() as api:
            tenant = Tenant(api, key, "")
            await tenant.accept("demo.said", {"it": payload})
            assert (await tenant.send(b'{"type":"%s"' % payload.encode())).status_code == 400

            async def delivered() -> bool:
                return "delivered in" in up.stdout

            await until(delivered)
        assert await up.stop() == 0
        assert all(len(secret) > 10 for secret in secrets.values())
        assert secrets.found_in(up.stdout + up.stderr) == []
        assert key in up.stdout
        assert key not in up.stderr
        assert "request_sampled" in up.stderr
