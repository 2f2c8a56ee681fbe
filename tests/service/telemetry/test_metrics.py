"""Metrics of real processes with a real PostgreSQL, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from relay.local.processes import PythonChild
from relay.maintenance.cell_metrics import CellMetrics, watch_cell
from relay.runtime.shared_memory import SharedMemory
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from tests.conftest import ADMIN_TOKEN, LOOPBACK, Commands, environment, free_port, open_cell
from tests.support.api import Api, Tenant
from tests.support.api_harness import Stage
from tests.support.delivery_harness import Books, delivering, until
from tests.support.job_harness import running
from tests.support.proxy import Proxy
from tests.support.receiver import Receiver, hang, reply
from tests.support.wire import exchange

ROOT = Path(__file__).parents[3]
PROMTOOL = shutil.which("promtool")

#: What a name may end with: what is counted, or a unit that is a base unit.
UNITS = {
    "total", "seconds", "bytes", "info", "up",
    "events", "keys", "cached", "deliveries", "breakers", "buckets", "endpoints", "connections", "processes", "pages",
    "streams", "waiters", "flight", "running", "lookups", "waiting", "doubted", "overdue", "leader",
}  # fmt: skip


class Page:
    """A rendered page."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, sample_name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 when there are none."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == sample_name and labels.items() <= sample.labels.items()
        )

    def shows(self, name: str) -> bool:
        """Whether there is a sample of this name."""
        return any(sample.name == name for family in self.families.values() for sample in family.samples)


async def page_of(port: int, token: str = "") -> Page:
    """Read the page of a process on a new connection: of several behind one port any may respond."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    first: str | None = None
    while True:
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics", headers=headers)
        assert answer.status_code == 200
        # It is rendered once a second, and counts its own requests: one that differs was rendered since.
        if first is not None and answer.text != first:
            return Page(answer.text)
        first = first or answer.text
        await asyncio.sleep(0.05)


async def until_page(port: int, holds: Callable[[Page], bool], token: str = "") -> Page:
    async def look() -> Page | None:
        try:
            page = await page_of(port, token)
        except httpx2.TransportError:
            return None
        return page if holds(page) else None

    page: Page = await until(look, timeout_s=30)
    return page


def promtool_says(promtool: str, text: str) -> str:
    """What Prometheus's own linter has against a page."""
    said = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    return said.stdout + said.stderr


def workers_of(supervisor: int) -> dict[str, int]:
    """The process ids of the workers of a `relay serve`, by their names."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = (stat.parent / "cmdline").read_text().split("\0")
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == supervisor and "--worker" in words:
            found[f"api-{words[words.index('--worker') + 1]}"] = int(stat.parent.name)
    return found


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


@pytest.mark.slow
async def test_two_workers_are_one_page_and_one_that_is_killed_takes_its_gauges_and_no_count(
    commands: Commands, database: str
) -> None:
    api = await commands.serve(database, RELAY_WORKERS="2")
    tenant = await api.tenant()
    for _ in range(40):
        async with httpx2.AsyncClient(base_url=api.base, trust_env=False) as client:
            headers = {"X-API-Key": tenant.key}
            answer = await client.post("/api/events", json={"type": "a", "payload": 1}, headers=headers)
            assert answer.status_code == 201
    page = await until_page(api.port, lambda page: page.value("relay_processes") == 2)
    assert page.value("relay_events_accepted_total") == 40
    wanted = {"method": "POST", "route": "/api/events"}
    assert page.value("relay_http_requests_total", **wanted, status="201") == 40
    assert page.value("relay_http_request_duration_seconds_count", **wanted) == 40
    # Each has had its share, so this is a sum.
    assert {f"api-{number}" for number in (1, 2)} == {
        sample.labels["process"] for sample in page.families["relay_process_resident_memory_bytes"].samples
    }

    before = workers_of(api.pid)
    assert set(before) == {"api-1", "api-2"}
    # Nobody is started in its place as long as it is only stopped: its gauges are old, and its counts stand.
    os.kill(before["api-2"], signal.SIGSTOP)
    async with AsyncExitStack() as stack:

        async def alone() -> Page | None:
            # A connection that the other one has taken gets no answer.
            client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=0.5))
            try:
                seen = Page((await client.get(f"{api.base}/metrics")).text)
            except httpx2.TransportError:
                return None
            return seen if seen.value("relay_processes") == 1 else None

        page = await until(alone, timeout_s=40)
    assert not page.value("relay_process_resident_memory_bytes", process="api-2")
    assert page.value("relay_process_resident_memory_bytes", process="api-1") > 10_000_000
    assert page.value("relay_process_cpu_seconds_total", process="api-2") > 0
    assert page.value("relay_events_accepted_total") == 40

    os.kill(before["api-2"], signal.SIGKILL)
    back = await until_page(api.port, lambda page: page.value("relay_processes") == 2)
    assert workers_of(api.pid)["api-2"] != before["api-2"]
    for name in ("relay_events_accepted_total", "relay_flush_events_count"):
        assert back.value(name) == page.value(name)
    assert back.value("relay_process_cpu_seconds_total", process="api-2") > page.value(
        "relay_process_cpu_seconds_total", process="api-2"
    )


@pytest.mark.slow
async def test_an_api_process_shows_the_delivery_process_beside_it_and_no_file_is_written(
    database: str, receiver: Receiver
) -> None:
    shared_memory = SharedMemory.create(2)
    port = free_port()
    # Nobody can write there, not even root.
    env = environment(
        database, port, RELAY_ALLOWED_NETWORKS=LOOPBACK, TMPDIR="/proc", HOME="/proc", PYTHONDONTWRITEBYTECODE="1"
    )
    async with AsyncExitStack() as stack:
        for name, place, more in (("delivery", 0, ("deliver", "--no-ops")), ("api", 1, ("serve",))):
            arguments = ("relay", *more, "--shared-memory", shared_memory.for_child(place))
            child = PythonChild(name, arguments, env=env, fds=(shared_memory.fd,))
            stack.push_async_callback(child.end_now)
            await child.start()
        api = await stack.enter_async_context(Api(f"http://127.0.0.1:{port}", None, ADMIN_TOKEN))
        tenant = await api.tenant()
        await tenant.post("/api/webhook/config", json={"webhook_url": receiver.url})
        await tenant.accept()
        await receiver.until(1)
        ended = await until_page(port, lambda page: page.value("relay_deliveries_ended_total", status="delivered") == 1)
        assert ended.value("relay_delivery_attempts_total", result="delivered") == 1
        assert ended.value("relay_delivery_lag_seconds_count") == 1
        assert ended.value("relay_events_accepted_total") == 1
        assert ended.value("relay_processes") == 2
        assert ended.value("relay_postgres_up") == 1
        processes = {s.labels["process"] for s in ended.families["relay_process_start_time_seconds"].samples}
        assert processes == {"delivery", "api-1"}


async def test_every_metric_explains_itself_and_names_its_unit_and_promtool_agrees(
    commands: Commands, database: str, receiver: Receiver
) -> None:
    # Some are there only where there is something to share. That nothing listens there is nothing to them.
    token = "a-token-for-metrics"
    several = {
        "RELAY_WORKERS": "2", "REDIS_URL": f"redis://127.0.0.1:{free_port()}", "RELAY_METRICS_TOKEN": token,
    }  # fmt: skip
    api = await commands.serve(database, RELAY_ALLOWED_NETWORKS=LOOPBACK, **several)
    ops = free_port()
    env = environment(database, 1, RELAY_OPS_PORT=str(ops), RELAY_ALLOWED_NETWORKS=LOOPBACK)
    await commands.start("deliver", "deliver", env=env)
    tenant = await api.tenant()
    await tenant.post("/api/webhook/config", json={"webhook_url": receiver.url})
    await tenant.accept()
    await tenant.post("/api/events", json={"type": ""})
    await receiver.until(1)
    documented = dict(
        re.findall(
            r"^\| `(relay_\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    shown: dict[str, str] = {}
    for port in (api.port, ops):
        page = await until_page(port, lambda page: page.shows("relay_oldest_due_seconds"), token)
        for family in page.families.values():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            shown[name] = family.type
            assert family.documentation.endswith("."), name
            assert name.rpartition("_")[2] in UNITS, name
            assert not re.search(r"_(ms|milliseconds|minutes|kb|kib|mb|mib|percent)(_|$)", name), name
        if PROMTOOL is not None:
            assert await asyncio.to_thread(promtool_says, PROMTOOL, page.text) == ""
    # The docs and the code are held against each other by their text elsewhere; here by what really comes.
    assert shown == documented
    if PROMTOOL is None:
        pytest.skip("there is no promtool, so it was not asked; all else holds")


async def test_whatever_callers_make_up_there_are_no_more_series(api: Api, tenant: Tenant) -> None:
    async def made_up(number: int) -> None:
        await tenant.request("GET", f"/api/made-up-{number}")
        await tenant.request("GET", f"/api/events/made-up-{number}")
        await tenant.request("POST", f"/made-up-{number}", json={"made-up": number})
        method = f"MADEUP{number}"
        for path in ("/api/inbox", f"/api/events/made-up-{number}", "/health"):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: made-up-{number}\r\nContent-Length: 0\r\n\r\n"
            await exchange(api.port, head.encode())
        await tenant.post(
            "/api/events", json={"type": f"made-up-{number}", "payload": 1, "dedup_id": f"made-up-{number}"}
        )
        await tenant.post("/api/events", json={"type": f"made-up-{number}", f"made-up-{number}": 1})
        await tenant.get("/api/inbox", headers={"X-API-Key": f"made-up-{number}"})
        await tenant.get("/api/inbox", params={f"made-up-{number}": 1})

    def series(page: Page) -> set[tuple[str, str]]:
        return {(s.name, str(s.labels)) for family in page.families.values() for s in family.samples}

    await made_up(0)
    # What asks is counted too.
    await page_of(api.port)
    before = series(await page_of(api.port))
    for number in range(1, 8):
        await made_up(number)
    page = await page_of(api.port)
    assert series(page) - before == set()
    assert "made-up" not in page.text.lower()
    assert "madeup" not in page.text.lower()
    assert tenant.organization_id not in page.text
    assert page.value("relay_http_requests_total", method="other", route="other", status="405") >= 8


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def test_events_are_accepted_duplicate_or_rejected_by_code(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_RATE_LIMIT_FREE="60", RELAY_RATE_BURST_FREE="5")
    tenant = await api.tenant("free")
    batch = [{"type": "a", "payload": 1}, {"type": ""}, {"type": "a", "payload": 1, "dedup_id": "x"}]
    assert (await tenant.post("/api/events/batch", json=batch)).status_code == 200
    assert (await tenant.post("/api/events", json={"type": "a", "payload": 1, "dedup_id": "x"})).status_code == 409
    assert (await tenant.send(b"{")).status_code == 400
    assert (await tenant.send(b"{")).status_code == 429
    page = await page_of(api.port)
    assert page.value("relay_events_accepted_total") == 2
    assert page.value("relay_events_duplicate_total") == 1
    rejected = {s.labels["code"]: s.value for s in page.families["relay_events_rejected"].samples}
    assert rejected == {"invalid_request": 1, "malformed_json": 1, "rate_limited": 1}
    # The batch is two decisions: its first event at the door, the rest once it is known.
    assert page.value("relay_limit_decisions_total", decision="allowed") == 4
    assert page.value("relay_limit_decisions_total", decision="limited") == 1
    assert page.value("relay_key_cache_lookups_total", result="miss") == 1
    assert page.value("relay_key_cache_lookups_total", result="hit") == 3
    assert page.value("relay_http_refusals_total", code="rate_limited") == 1


async def test_a_cancelled_delivery_has_ended_by_an_acknowledgement_or_with_its_endpoint(
    commands: Commands, database: str, cell: Cell, books: Books
) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    await tenant.post("/api/webhook/config", json={"webhook_url": "http://127.0.0.1:9/"})
    ids = [await tenant.accept() for _ in range(3)]
    await tenant.post(f"/api/ack/{ids[0]}")
    await tenant.post(f"/api/ack/{ids[0]}")
    await tenant.post("/api/ack", json={"ids": ids[:2]})
    page = await page_of(api.port)
    assert page.value("relay_deliveries_ended_total", status="cancelled") == 2
    endpoint_id = (await tenant.get("/api/endpoints")).json()["endpoints"][0]["id"]
    await tenant.request("DELETE", f"/api/endpoints/{endpoint_id}")
    metrics = Metrics()
    async with running(cell, metrics):
        await until(lambda: books.read("select 1 where not exists (select from relay.jobs where status = 'running')"))
        await until(_holds(lambda: Page(metrics.render().decode()).value("relay_jobs_ended_total", kind="cancel") == 1))
    assert Page(metrics.render().decode()).value("relay_deliveries_ended_total", status="cancelled") == 1


def _holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds


async def test_a_lease_that_ran_out_is_counted_and_one_that_was_given_back_is_not(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    ids = await books.accept(organization_id, 3, wake=False)
    await books.read(
        "update relay.open set claim_token = $2, leased_until = now() - interval '1 second' where event_id = $1",
        ids[0],
        endpoint_id,
    )
    metrics = Metrics()
    async with delivering(cell, metrics):
        await until(books.is_empty)
    page = Page(metrics.render().decode())
    assert page.value("relay_delivery_claimed_total") == 3
    assert page.value("relay_delivery_leases_run_out_total") == 1


async def test_the_lag_is_that_of_first_attempts_of_what_was_due_at_once(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    metrics = Metrics()
    (retried,) = await books.accept(organization_id, wake=False)
    await books.read("update relay.open set attempts = 1, attempts_before = 0 where event_id = $1", retried)
    (late,) = await books.accept(organization_id, wake=False)
    # As if it had been held, and let go an hour after its event.
    await books.read("update relay.open set due_at = due_at + interval '1 hour' where event_id = $1", late)
    (at_once,) = await books.accept(organization_id, wake=False)
    begun = asyncio.get_running_loop().time()
    async with delivering(cell, metrics):
        await until(_holds(lambda: Page(metrics.render().decode()).value("relay_delivery_duration_seconds_count") == 2))
        await books.read("update relay.open set due_at = due_at - interval '59 minutes' where event_id = $1", late)
    page = Page(metrics.render().decode())
    assert page.value("relay_delivery_attempts_total", result="delivered") == 2
    assert page.value("relay_delivery_lag_seconds_count") == 1
    assert 0 < page.value("relay_delivery_lag_seconds_sum") < asyncio.get_running_loop().time() - begun + 60
    assert {request.headers["webhook-id"] for request in receiver.received} == {str(retried), str(at_once)}


async def test_a_breaker_is_half_open_while_its_probe_is_on_the_wire_and_a_410_is_counted(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.read(
        "update relay.endpoints set broken_since = now(), failing_since = now() where id = $1", endpoint_id
    )
    receiver.script = hang
    await books.accept(organization_id, 5)
    metrics = Metrics()
    async with Receiver(reply(410)) as gone, delivering(cell, metrics, delivery_timeout_s=60.0):
        await receiver.until(1)
        page = Page(metrics.render().decode())
        assert page.value("relay_delivery_breakers", state="half_open") == 1
        assert page.value("relay_delivery_breakers", state="open") == 0
        assert page.value("relay_endpoints_disabled_total") == 0
        other, _ = await books.endpoint(gone.url)
        await books.accept(other)
        await until(
            _holds(lambda: Page(metrics.render().decode()).value("relay_endpoints_disabled_total", reason="gone") == 1)
        )
        receiver.cut()


async def survey_of(cell: Cell) -> Page:
    """What a first look shows."""
    metrics = Metrics()
    async with CellMetrics(cell, metrics):
        await until(_holds(lambda: Page(metrics.render().decode()).shows("relay_oldest_due_seconds")))
        return Page(metrics.render().decode())


async def test_the_backlog_is_told_by_what_it_waits_for(cell: Cell, books: Books) -> None:
    empty = await survey_of(cell)
    assert empty.value("relay_backlog_deliveries") == 0
    assert empty.value("relay_oldest_due_seconds") == 0

    organization_id, _ = await books.endpoint("http://127.0.0.1:9/")
    broken_organization, broken = await books.endpoint("http://127.0.0.1:9/")
    await books.change(broken, broken_since=await now(books))
    disabled_organization, disabled = await books.endpoint("http://127.0.0.1:9/")
    await books.change(disabled, enabled=False)
    ids = await books.accept(organization_id, 10, wake=False)
    await books.accept(broken_organization, 2, wake=False)
    await books.accept(disabled_organization, 3, wake=False)
    await books.accept(cell.clock.new(), 4, wake=False)
    # What waits for its consumer since yesterday is not late.
    consumer_organization, consumer = await books.endpoint("http://127.0.0.1:9/")
    await books.accept(consumer_organization, 5, wake=False)
    await books.read(
        "update relay.endpoints set kind = 'consumer', name = 'a', lease_s = 30, max_attempts = 5, bucket = -1"
        " where id = $1",
        consumer,
    )
    await books.read(
        "update relay.open set bucket = -1, due_at = now() - interval '1 day' where endpoint_id = $1", consumer
    )
    for event_id, change in (
        (ids[0], "due_at = now() - interval '1 hour', leased_until = now() + interval '1 hour'"),
        (ids[1], "due_at = now() + interval '1 hour'"),
        (ids[2], "due_at = now() - interval '5 minutes'"),
    ):
        await books.read(f"update relay.open set {change} where event_id = $1", event_id)  # noqa: S608
    await books.read("update relay.open set due_at = now() - interval '2 hours' where endpoint_id = $1", broken)
    page = await survey_of(cell)
    found = {s.labels["state"]: s.value for s in page.families["relay_backlog_deliveries"].samples}
    assert found == {"due": 8 + 2, "leased": 1, "later": 1, "held": 3, "pulled": 5}
    assert page.value("relay_backlog_unacknowledged_events") == 4
    # Neither what is being attempted nor what waits behind an open breaker is late because of us.
    assert 300 <= page.value("relay_oldest_due_seconds") < 600
    states = {s.labels["state"]: s.value for s in page.families["relay_endpoints"].samples}
    assert states == {"closed": 1, "open": 1, "disabled": 1}
    connected = page.value("relay_postgres_connections")
    assert 2 <= connected <= page.value("relay_postgres_max_connections") == 197


async def now(books: Books) -> Any:
    (row,) = await books.read("select now() as now")
    return row["now"]


async def test_what_a_look_counts_one_by_one_is_bounded_and_the_rest_is_reckoned(
    cell: Cell, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.maintenance.cell_metrics._COUNTED", 100)
    monkeypatch.setattr("relay.maintenance.cell_metrics._PAGES", 20.0)
    organization_id, _ = await books.endpoint("http://127.0.0.1:9/")
    for _ in range(6):
        await books.accept(organization_id, 1000, wake=False)
    pages = (await books.read("select pg_relation_size('relay.open') / 8192 as pages"))[0]["pages"]
    assert pages > 60
    page = await survey_of(cell)
    # A page holds about as much as another; a sample of twenty is not off by more than a few pages.
    assert 3000 < page.value("relay_backlog_deliveries", state="due") < 12_000
    await books.read("update relay.open set due_at = null where event_id in (select event_id from relay.open limit 50)")
    page = await survey_of(cell)
    assert page.value("relay_backlog_deliveries", state="held") == 50


async def test_a_look_for_the_oldest_goes_on_where_the_last_one_stopped(
    cell: Cell, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.maintenance.cell_metrics._VISITS", 3)
    monkeypatch.setattr("relay.maintenance.cell_metrics._INTERVAL_S", 0.01)
    endpoints = []
    for _ in range(8):
        organization_id, endpoint_id = await books.endpoint("http://127.0.0.1:9/")
        await books.accept(organization_id, wake=False)
        endpoints.append(endpoint_id)
    (last, *_) = await books.read("select endpoint_id from relay.open order by bucket desc, endpoint_id desc")
    await books.read(
        "update relay.open set due_at = now() - interval '1 hour' where endpoint_id = $1", last["endpoint_id"]
    )
    metrics = Metrics()
    async with CellMetrics(cell, metrics):
        await until(_holds(lambda: Page(metrics.render().decode()).value("relay_oldest_due_seconds") > 3000))
        # And begins again.
        await until(_holds(lambda: Page(metrics.render().decode()).value("relay_oldest_due_seconds") < 3000))


async def test_a_look_reads_indexes_and_a_bounded_sample(stage: Stage) -> None:
    """With the planner settings of our connections, whatever it thinks of empty tables."""
    connection = await asyncpg.connect(
        stage.url, server_settings={"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}
    )
    for name, arguments in (
        ("backlog", "10000::int8, 2000::float8"),
        ("oldest_due", "0::int2, '00000000-0000-0000-0000-000000000000'::uuid, 3000"),
        ("endpoints_by_state", "2000::float8"),
    ):
        await connection.execute(f"prepare look as {stage.cell.statements[name]}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain execute look({arguments})"))
        await connection.execute("deallocate look")
        assert "Seq Scan" not in plan, plan
        assert "Sample Scan" in plan or name == "oldest_due", plan
    await connection.close()


async def test_figures_of_a_database_that_is_away_are_not_shown_and_postgres_is_down(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.maintenance.cell_metrics._INTERVAL_S", 0.05)
    monkeypatch.setattr("relay.store.server_state.READ_INTERVAL_S", 0.05)
    async with Proxy(database) as proxy, open_cell(proxy.url) as cell:
        metrics = Metrics()
        watch_cell(cell, metrics)

        def page() -> Page:
            return Page(metrics.render().decode())

        async with CellMetrics(cell, metrics):
            await until(_holds(lambda: page().shows("relay_oldest_due_seconds")))
            assert page().value("relay_postgres_up") == 1
            assert page().value("relay_pool_connections") >= 2
            assert page().value("relay_pool_max_connections") == 12
            proxy.refuse()
            proxy.cut()
            await until(_holds(lambda: not page().shows("relay_backlog_deliveries")))
            await until(_holds(lambda: page().value("relay_postgres_up") == 0))
            proxy.accept()
            await until(_holds(lambda: page().shows("relay_backlog_deliveries")))
            await until(_holds(lambda: page().value("relay_postgres_up") == 1))


async def test_a_reader_that_holds_a_snapshot_is_told_by_its_age(cell: Cell, database: str) -> None:
    reader = await asyncpg.connect(database)
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("select count(*) from relay.events")
        await cell.server.refresh()
        first = cell.server.oldest_snapshot_s
        await cell.server.refresh()
        assert cell.server.oldest_snapshot_s > first > 0
        assert cell.server.oldest_write_s == 0
    await cell.server.refresh()
    assert cell.server.oldest_snapshot_s == 0
    await reader.close()
