"""What a request costs before anything was done for it: bodies that are rejected, and large responses without a key."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import httpx2
import pytest

from relay.cli.http_server import http_server, until_it_answers
from relay.http.access_log import AccessLog
from relay.http.application import Application
from relay.http.dispatcher import Dispatcher
from relay.http.operations import Operation
from relay.http.proxies import TrustedProxies
from relay.http.request import Request
from relay.http.resources.system import get_liveness
from relay.http.response import Response
from relay.http.schemas.system import Health
from relay.http.static import IN_ALL, OF_ONE_CLIENT, Static, Strangers
from relay.telemetry.metrics import Metrics
from tests.conftest import free_port
from tests.service.http.test_http import assert_error, connection, head
from tests.service.http.test_slow_answers import ask
from tests.support.api import Api, Tenant
from tests.support.processes import resident_bytes
from tests.support.wire import read_answer

BUNDLE = "/docs/swagger-ui-bundle.js"


async def remaining(tenant: Tenant) -> int:
    return int((await tenant.get("/api/keys")).headers["ratelimit-remaining"])


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/api/events", b"x" * 100_000, "malformed_json"),
        ("POST", "/api/events/batch", b"[" + b" " * 99_998 + b"}", "malformed_json"),
        ("POST", "/api/events/batch", b"\xff" * 100_000, "invalid_utf8"),
        ("POST", "/api/ack", b'{"ids": [' + b" " * 50_000, "malformed_json"),
        # Not read for anything, and dropped all the same.
        ("POST", "/api/endpoints", b" " * 100_000, "body_too_large"),
        ("POST", "/api/nothing", b" " * 100_000, "not_found"),
    ],
)
async def test_a_rejected_body_costs_a_token_for_each_4_kib(
    api: Api, method: str, path: str, body: bytes, code: str
) -> None:
    tenant = await api.tenant("free")
    before = await remaining(tenant)
    answer = await tenant.request(method, path, content=body)
    assert answer.json()["code"] == code
    # What is dropped is counted once it has come in, after the answer.
    async with asyncio.timeout(15):
        while (spent := before - await remaining(tenant)) < len(body) // 4096 - 2:
            await asyncio.sleep(0.1)
    assert spent <= len(body) // 4096 + 10


async def test_a_rejected_body_takes_no_more_than_is_left(api: Api) -> None:
    tenant = await api.tenant("free")
    answer = await tenant.post("/api/events/batch", content=b"[" + b"0," * 2_000_000 + b"0]")
    assert answer.json()["code"] == "batch_too_large"
    assert answer.headers["ratelimit-remaining"] == "0"
    limited = await tenant.post("/api/events", json={"type": "a", "payload": 1})
    assert_error(limited, 429, "rate_limited")
    assert int(limited.headers["retry-after"]) <= 2
    # Too many requests are not multiplied by what they carry.
    again = await tenant.post("/api/events", json={"type": "a", "payload": "x" * 200_000})
    assert_error(again, 429, "rate_limited")
    assert int(again.headers["retry-after"]) <= 2


async def test_a_repeat_costs_what_the_event_cost(api: Api) -> None:
    tenant = await api.tenant("free")
    event = {"type": "a", "payload": "x" * 200_000, "dedup_id": "one"}
    assert (await tenant.post("/api/events", json=event)).status_code == 201
    before = await remaining(tenant)
    assert (await tenant.post("/api/events", json=event)).status_code == 409
    assert before - await remaining(tenant) <= 2


async def test_static_files_are_compressed_and_not_sent_twice(api: Api) -> None:
    for path in (BUNDLE, "/docs/swagger-ui.css", "/docs/start.js", "/openapi.json"):
        plain = await api.client.get(path, headers={"Accept-Encoding": "identity"})
        packed = await api.client.get(path, headers={"Accept-Encoding": "br, gzip;q=0.5"})
        assert plain.content == packed.content
        assert "content-encoding" not in plain.headers
        assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
        if len(plain.content) > 1000:
            assert packed.headers["content-encoding"] == "gzip"
            assert int(packed.headers["content-length"]) < len(plain.content) / 2
            assert plain.headers["etag"] != packed.headers["etag"]
        for answer in (plain, packed):
            kept = {"If-None-Match": f'"other", W/{answer.headers["etag"]}'}
            for coding in ("gzip", "identity"):
                again = await api.client.get(path, headers={**kept, "Accept-Encoding": coding})
                same = coding == answer.headers.get("content-encoding", "identity") or len(plain.content) < 1000
                assert again.status_code == (304 if same else 200)
                assert bool(again.content) is not same


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        (None, False),
        ("", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("*;q=0", False),
        ("gzip", True),
        ("GZIP ; Q=1", True),
        ("*", True),
        ("gzip;q=0.001, *;q=0", True),
    ],
)
async def test_a_response_is_compressed_where_the_client_takes_gzip(
    api: Api, accepted: str | None, packed: bool
) -> None:
    async with connection(api.port) as (reader, writer):
        headers = {} if accepted is None else {"Accept_Encoding": accepted}
        writer.write(head("GET", "/docs/swagger-ui.css", **headers))
        answer = await read_answer(reader)
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert (gzip.decompress(answer.body) if packed else answer.body).startswith(b".swagger-ui")


class Huge:
    """The same for everybody, and more than the buffers of both kernels hold."""

    def __init__(self, strangers: Strangers) -> None:
        self.static = Static(lambda: random.Random(7).randbytes(16 * 1024 * 1024), strangers)

    async def __call__(self, request: Request[None, None]) -> Response:
        return await self.static.respond(request)


@asynccontextmanager
async def serving_huge() -> AsyncIterator[int]:
    """A server with such a response behind a trusted proxy: its port."""
    strangers, port = Strangers(TrustedProxies([ipaddress.ip_network("127.0.0.0/8")])), free_port()
    table = (
        Operation("GET", "/huge", Huge(strangers), success={200: None}, scope=None),
        Operation("GET", "/live", get_liveness, success={200: Health}, scope=None),
    )
    front = Application(table, Dispatcher(), Metrics(), AccessLog(0.0))
    server = http_server(front, "127.0.0.1", port, backlog=128, connections=1000)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            await until_it_answers(serving, "127.0.0.1", port)
        yield port
    finally:
        front.stop()
        server.stop()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(20):
            await serving


async def status_of(line: socket.socket) -> int:
    first = b""
    while len(first) < 12:
        first += await asyncio.get_running_loop().sock_recv(line, 12 - len(first))
    return int(first[9:])


async def test_large_responses_without_a_key_are_bounded_by_client_and_in_all() -> None:
    async with asyncio.timeout(60), serving_huge() as port:

        async def asked_by(client: str) -> socket.socket:
            return await ask(port, head("GET", "/huge", X_Forwarded_For=client))

        with ExitStack() as slow:
            # Nobody reads more than the first line.
            clients = [f"192.0.2.{number}" for number in range(IN_ALL // OF_ONE_CLIENT)]
            for client in clients[1:]:
                for _ in range(OF_ONE_CLIENT):
                    line = slow.enter_context(await asked_by(client))
                    assert await status_of(line) == 200
            before = resident_bytes(os.getpid())
            for number in range(OF_ONE_CLIENT + 3):
                line = slow.enter_context(await asked_by(clients[0]))
                assert await status_of(line) == (200 if number < OF_ONE_CLIENT else 503)
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as other:
                refused = await other.get("/huge", headers={"X-Forwarded-For": "198.51.100.1"})
                assert_error(refused, 503, "too_many_large_responses")
                assert refused.headers["retry-after"] == "1"
                assert (await other.get("/live")).status_code == 200
            # All of them share one body; each has a few pieces on its way.
            assert resident_bytes(os.getpid()) - before < 16 * 1024 * 1024
        # Once they have gone there is room again.
        while True:
            line = await asked_by("198.51.100.1")
            with line:
                if await status_of(line) == 200:
                    break
            await asyncio.sleep(0.05)


async def test_metrics_are_rendered_once_for_all_who_ask_together(api: Api) -> None:
    pages = await asyncio.gather(*(api.client.get("/metrics") for _ in range(50)))
    # Each request is counted, so pages that were rendered by themselves would differ.
    assert len({page.content for page in pages}) <= 3
    open_metrics = await api.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")
    assert open_metrics.text.count("# EOF") == 1
