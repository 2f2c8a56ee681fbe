"""What operators and their tools ask: health, metrics, the OpenAPI document and its page."""

from __future__ import annotations

import asyncio
import dataclasses
import html.parser
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, cast

import asyncpg
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

import relay
from relay.config.environment import load
from relay.errors import KINDS
from relay.http.routes import operations
from relay.http.services import Services
from relay.telemetry.metrics import Metrics
from tests.conftest import ADMIN_TOKEN, Commands, Databases, environment, free_port, open_cell
from tests.service.http.test_http import assert_error, head
from tests.support.api import Api
from tests.support.locks import locked
from tests.support.wire import exchange


async def test_a_service_that_works_says_so_and_its_version(api: Api) -> None:
    for path in ("/health", "/health/live"):
        answer = await api.request("GET", path)
        assert (answer.status_code, answer.json()) == (200, {"status": "healthy", "version": relay.__version__})


class Lonely(NamedTuple):
    """A `relay serve` whose database nobody else uses."""

    api: Api
    url: str


@pytest.fixture(scope="module")
async def lonely(databases: Databases) -> AsyncIterator[Lonely]:
    async with AsyncExitStack() as stack:
        url = await databases.create()
        yield Lonely(await Commands(stack).serve(url), url)


def name_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


async def test_without_postgresql_a_service_is_unhealthy_but_alive_and_gets_well_again(
    databases: Databases, lonely: Lonely
) -> None:
    tenant = await lonely.api.tenant()
    name = name_of(lonely.url)
    elsewhere = await asyncpg.connect(databases.postgres.url)
    try:
        await elsewhere.execute(f"alter database {name} allow_connections false")
        await elsewhere.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        begun = time.monotonic()
        answer = await lonely.api.request("GET", "/health")
        assert_error(answer, 503, "database_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert time.monotonic() - begun < 3
        assert (await lonely.api.request("GET", "/health/live")).status_code == 200
        assert (await lonely.api.request("GET", "/metrics")).status_code == 200
        refused = await tenant.send(b'{"type":"a","payload":1}')
        assert_error(refused, 503, "database_unavailable")
        await elsewhere.execute(f"alter database {name} allow_connections true")
    finally:
        await elsewhere.close()
    async with asyncio.timeout(10):
        while (await lonely.api.request("GET", "/health")).status_code != 200:
            await asyncio.sleep(0.02)
    assert await tenant.accept()


async def test_a_postgresql_that_hangs_makes_a_service_unhealthy(lonely: Lonely) -> None:
    # More than the pool keeps, so that the next one is a connection that hangs.
    await asyncio.gather(*(lonely.api.request("GET", "/health") for _ in range(20)))
    connection = await asyncpg.connect(lonely.url)
    pids = [
        row["pid"]
        for row in await connection.fetch(
            "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
    ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        answer = await lonely.api.request("GET", "/health")
        assert time.monotonic() - begun < 3
        assert_error(answer, 503, "database_unavailable")
        assert (await lonely.api.request("GET", "/health/live")).status_code == 200
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await connection.close()


async def test_metrics_are_prometheus_text_and_ours(api: Api) -> None:
    tenant = await api.tenant()
    await tenant.accept()
    answer = await api.request("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(await api.metrics()))
    assert families
    for family in families:
        assert family.name.startswith("relay_"), family.name
        assert family.documentation.endswith("."), family.name
        assert all(sample.name.startswith(family.name) for sample in family.samples)
    accepted = next(family for family in families if family.name == "relay_events_accepted")
    assert accepted.samples[0].value >= 1


async def test_no_label_is_what_a_caller_wrote(api: Api) -> None:
    await api.request("GET", '/api/nothing"}1{x="made-up')
    await api.request("MADE-UP", "/health")
    text = await api.metrics()
    assert "made-up" not in text.lower()
    assert 'relay_http_requests_total{method="other",route="other",status="404"}' in text


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    answer = await api.request("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def parts(value: object) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(value, dict):
        yield value
        for member in value.values():
            yield from parts(member)
    if isinstance(value, list):
        for member in value:
            yield from parts(member)


async def test_the_openapi_document_is_made_of_valid_schemas(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == relay.__version__
    assert set(document) <= {"openapi", "info", "paths", "components", "servers", "security", "tags"}
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    for part in parts(document):
        if "schema" in part and isinstance(part["schema"], dict):
            Draft202012Validator.check_schema(part["schema"])
        if isinstance(part.get("$ref"), str):
            prefix, _, name = part["$ref"].rpartition("/")
            assert prefix == "#/components/schemas"
            assert name in schemas


async def test_every_operation_is_described_whole(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            place = f"{method} {path}"
            # A verb and its object, which generators make a method of.
            assert re.fullmatch(r"[a-z]+[A-Z][A-Za-z]+", described["operationId"]), place
            assert described["summary"].endswith("."), place
            assert described["description"], place
            assert not re.search(r"Starlette|ASGI|relay\.\w+", described["description"]), place
            assert set(described["tags"]) <= {tag["name"] for tag in document["tags"]}, place
            assert all("description" in one for one in described["parameters"] if one["in"] != "query"), place
            named = {(parameter["name"], parameter["in"]) for parameter in described["parameters"]}
            assert {name for name, where in named if where == "path"} == set(re.findall(r"\{(\w+)\}", path)), place
            assert len(named) == len(described["parameters"]), place
            for status, answer in described["responses"].items():
                assert re.fullmatch(r"[245]\d\d", status), place
                assert answer["description"], place
                assert "X-Request-Id" in answer["headers"], place
            keyed = path.startswith("/api/") and path != "/api/keys/generate"
            assert all(set(need) <= set(schemes) for need in described["security"]), place
            assert (described["security"] == [{"ApiKeyAuth": []}]) is keyed, place
            # Where no key is asked for, none has to be given.
            assert keyed or described["security"] == [] or {} in described["security"], place
            if keyed:
                assert {"401", "403", "429", "500", "503"} <= set(described["responses"]), place
            for status in {"429", "503"} & set(described["responses"]):
                assert "Retry-After" in described["responses"][status]["headers"], place


async def test_generators_of_clients_understand_the_document(document: dict[str, Any]) -> None:
    assert document["servers"]
    for part in parts(document):
        assert "enum" not in part or "type" in part, part
        assert "const" not in part or "type" in part, part
        assert part.get("default", ...) is not None, part
        assert {"type": "null"} not in part.get("anyOf", ()), part
    for methods in document["paths"].values():
        for described in methods.values():
            assert all(one["schema"].get("type") != "null" for one in described["parameters"])
            assert not any(isinstance(one["schema"].get("type"), list) for one in described["parameters"])


async def test_no_two_names_in_the_document_would_be_one_class_of_a_generated_client(document: dict[str, Any]) -> None:
    ids = [described["operationId"] for methods in document["paths"].values() for described in methods.values()]
    made = [f"{name}{ending}" for name in ids for ending in ("", "Params", "Request", "Response", "Body", "JSONBody")]
    names = [*document["components"]["schemas"], *document["components"]["securitySchemes"], *made]
    folded = [name.lower() for name in names]
    assert sorted(folded) == sorted(set(folded))
    # Those are classes of the languages, or of the generators' own.
    assert not {"error", "key", "keys", "client", "response", "request", "object", "list"} & set(folded)


async def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [described["operationId"] for methods in document["paths"].values() for described in methods.values()]
    assert len(ids) == len(set(ids))


async def test_every_route_of_the_service_is_in_the_document(document: dict[str, Any]) -> None:
    nothing = cast(Any, None)
    closed = open_cell("postgresql:///nowhere")
    rooms = dict.fromkeys((field.name for field in dataclasses.fields(Services)), nothing)
    table = operations(Services(**{**rooms, "settings": load({}), "cell": closed, "metrics": Metrics()}))
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert documented == {(operation.method, operation.path) for operation in table if operation.listed}
    assert {operation.path for operation in table if not operation.listed} == {"/docs/{file}"}
    for operation in table:
        for code in operation.errors:
            if operation.listed:
                answer = document["paths"][operation.path][operation.method.lower()]["responses"][
                    str(KINDS[code].status)
                ]
                assert f"`{code}`" in answer["description"]


class Page(html.parser.HTMLParser):
    """What a page loads, and whether it brings scripts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [given[name] or "" for name in ("src", "href") if name in given]
        self.inline += tag in ("script", "style") and "src" not in given
        self.inline += any(name.startswith("on") or name == "style" for name in given)


async def test_the_docs_come_from_here_and_load_nothing_from_elsewhere(api: Api) -> None:
    answer = await api.request("GET", "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://", answer.text)
    page = Page()
    page.feed(answer.text)
    assert page.inline == 0
    assert page.loads
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["connect-src"]) == ("'self'", "'self'")
    assert policy["frame-ancestors"] == "'none'"
    for path in page.loads:
        loaded = await api.client.get(path)
        assert loaded.status_code == 200, path
        kind = {"css": "text/css", "js": "text/javascript"}[path.rpartition(".")[2]]
        assert loaded.headers["content-type"] == kind
        if path.endswith(".css"):
            assert all(url.startswith("data:") for url in re.findall(r"url\([\"']?([^\"')]+)", loaded.text))
        if path.endswith("start.js"):
            assert '"/openapi.json"' in loaded.text
            assert not re.search(r"https?://", loaded.text)


@pytest.mark.parametrize(
    "file", ["VERSION.md", "LICENSE", "..%2Fsystem.py", "../system.py", "%2e%2e/x.js", "x.js", ".js"]
)
async def test_the_docs_show_no_other_file(api: Api, file: str) -> None:
    answer = await exchange(api.port, head("GET", f"/docs/{file}", Connection="close"))
    assert_error(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("relay.cli.serve", ("aiohttp", "rich", "jinja2", "pydantic", "opentelemetry")),
        # The supervisor is there for as long as all else; with none of these it has 32 MB.
        ("relay.local.up", ("aiohttp", "asyncpg", "cryptography", "msgspec", "starlette")),
    ],
)
def test_a_command_loads_nothing_that_it_does_not_need(command: str, heavy: tuple[str, ...]) -> None:
    program = f"import sys, {command}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture(scope="module")
async def loopback(databases: Databases) -> AsyncIterator[int]:
    """The port of a `relay serve` as `relay up` runs it: it answers to loopback names only."""
    port = free_port()
    env = environment(await databases.create(), port, RELAY_METRICS_TOKEN="scraper-of-metrics")
    async with AsyncExitStack() as stack:
        await Commands(stack).start("api", "serve", "--loopback-only", env=env)
        yield port


@pytest.mark.parametrize(
    "host",
    ["localhost:{port}", "localhost", "LocalHost:1", "127.0.0.1:{port}", "127.8.0.2:{port}", "[::1]:{port}", "[::1]"],
)
async def test_loopback_names_are_answered(loopback: int, host: str) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: {host.format(port=loopback)}\r\nConnection: close\r\n\r\n"
    assert (await exchange(loopback, request.encode())).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example:{port}",
        "127.0.0.1.2",
        "1127.0.0.1",
        "0.0.0.0:{port}",
        "::1",
        "[::2]:{port}",
        "localhost:{port}:1",
        "evil.example, localhost",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/api/keys/generate", "/nothing"])
async def test_other_names_are_not(loopback: int, host: str, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: {host.format(port=loopback)}\r\nConnection: close\r\n\r\n"
    assert_error(await exchange(loopback, request.encode()), 421, "misdirected_host")


async def test_a_request_without_a_host_is_not_answered_on_the_loopback(loopback: int) -> None:
    for line in (b"GET /health HTTP/1.1\r\nConnection: close", b"GET /health HTTP/1.0"):
        assert_error(await exchange(loopback, line + b"\r\n\r\n"), 421, "misdirected_host")
    both = b"GET /health HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert_error(await exchange(loopback, both), 421, "misdirected_host")


async def test_a_metrics_token_guards_the_metrics_alone(loopback: int) -> None:
    async with Api(f"http://127.0.0.1:{loopback}") as api:
        for authorization in (None, "Bearer", "Bearer wrong", "Basic scraper-of-metrics", f"Bearer {ADMIN_TOKEN}"):
            headers = {"Authorization": authorization} if authorization else {}
            answer = await api.request("GET", "/metrics", headers=headers)
            assert_error(answer, 401, "invalid_metrics_token")
            assert answer.headers["www-authenticate"] == 'Bearer realm="relay"'
        answer = await api.request("GET", "/metrics", headers={"Authorization": "Bearer scraper-of-metrics"})
        assert answer.status_code == 200
        assert (await api.request("GET", "/health")).status_code == 200


async def test_health_does_not_wait_for_readers(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_DB_POOL_MAX="8")
    tenant = await api.tenant()
    async with locked(database):
        reading = asyncio.create_task(tenant.get("/api/inbox"))
        done, _ = await asyncio.wait((reading,), timeout=0.3)
        assert not done
        answer = await api.client.get("/health")
        assert answer.status_code == 200, answer.text
    await reading
