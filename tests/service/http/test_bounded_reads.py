"""Every read examines a bounded number of rows and gives a bounded number of bytes, whatever a tenant has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest

from relay.auth import KeyListing
from relay.endpoints.consumers import ConsumerRepository
from relay.endpoints.repository import EndpointRepository
from relay.inbox import DeliveriesQuery, InboxQuery, TimeRange, read_attempts, read_deliveries, read_event, read_page
from relay.inbox.stats import read_stats
from relay.jobs.lifecycle import list_jobs, read_job
from relay.jobs.redelivery import find_delivery
from relay.store import Cell, Row
from relay.values import uuid7
from relay.values.uuid7 import bucket
from tests.conftest import Databases, staging
from tests.support.api import Tenant
from tests.support.api_harness import NIL, Stage, walk_deliveries

MOST_ROWS = 10_000
MOST_BYTES = 8 * 1024 * 1024
ENDPOINTS = 500
ATTEMPTS = 51
# Each has a delivery for each endpoint: far more rows than a page may examine.
EVENTS = 60
# What JSON makes most of: six bytes of one.
RESPONSE = b"\x01" * 1024


@pytest.fixture(scope="module")
async def stage(databases: Databases) -> AsyncIterator[Stage]:
    async with staging(databases) as made:
        yield made


class Worst:
    """A tenant with the largest of everything that its limits allow, or allowed once."""

    def __init__(self, stage: Stage, tenant: Tenant) -> None:
        self.stage = stage
        self.tenant = tenant
        self.organization_id = UUID(tenant.organization_id)
        self.endpoints: list[UUID] = []
        self.events: list[UUID] = []

    async def fill(self) -> None:
        stage, clock = self.stage, self.stage.cell.clock
        # Without endpoints nothing is opened at once.
        self.events = await stage.accept_many(self.tenant, EVENTS)
        self.endpoints = [clock.new() for _ in range(ENDPOINTS)]
        await stage.read(
            "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal, event_types)"
            " select $1, e.id, e.bucket, 'https://example.com/' || repeat('a', 2000), '\\x00',"
            "  array(select repeat('\"', 250) || f from generate_series(1, 100) as f)"
            " from unnest($2::uuid[], $3::int2[]) as e (id, bucket)",
            self.organization_id,
            self.endpoints,
            [bucket(endpoint) for endpoint in self.endpoints],
        )
        # One event has failed everywhere, the others but for one delivery, which is open.
        await stage.read(
            "with wanted as ("
            "  select v as event_id, d as endpoint_id from unnest($2::uuid[]) v cross join unnest($3::uuid[]) d"
            " )"
            " insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)"
            " select $1, event_id, endpoint_id, 'failed', $4, 'http' from wanted"
            " where event_id = $5 or endpoint_id <> $6",
            self.organization_id,
            self.events,
            self.endpoints,
            ATTEMPTS,
            self.story,
            self.endpoints[0],
        )
        await stage.read(
            "with gone as (delete from relay.open where organization_id = $1 returning *)"
            " insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)"
            " select organization_id, epoch, xid, event_id, $2, $3, now() + interval '1 day'"
            " from gone where event_id <> $4",
            self.organization_id,
            self.endpoints[0],
            bucket(self.endpoints[0]),
            self.story,
        )
        await stage.read(
            "insert into relay.attempts"
            " (organization_id, event_id, endpoint_id, number, at, latency_ms, error_class, response)"
            " select $1, $2, d, n, now(), 1, 'http', $4 from unnest($3::uuid[]) d cross join generate_series(1, $5) n",
            self.organization_id,
            self.story,
            self.endpoints,
            RESPONSE,
            ATTEMPTS,
        )
        await stage.read(
            "insert into relay.jobs (organization_id, id, kind, status)"
            " select $1, relay.uuid7_floor(now() + n * interval '1 ms'),"
            "  case n when 1 then 'retry' else 'hold' end, 'done' from generate_series(1, 10100) n",
            self.organization_id,
        )
        await self._fill_consumer()
        await stage.read("analyze")

    async def _fill_consumer(self) -> None:
        """Give an organization of its own a consumer with too much of each kind to count."""
        self.pulling, consumer = self.stage.cell.clock.new(), self.stage.cell.clock.new()
        await self.stage.read(
            "insert into relay.organizations (id, name, tier) values ($1, 'pulling', 'free')", self.pulling
        )
        await self.stage.read(
            "insert into relay.endpoints"
            " (organization_id, id, bucket, url, secret_seal, kind, name, lease_s, max_attempts)"
            " values ($1, $2, -1, '', '\\x00', 'consumer', 'worst', 30, 5)",
            self.pulling,
            consumer,
        )
        for state in (None, "leased", "waiting"):
            await self.stage.read(
                "insert into relay.open"
                " (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at, away, back_at)"
                " select $1, 1, 1, uuidv7(n * interval '1 us'), $2, -1, now(), $3,"
                "  case when $3::text is not null then now() + interval '1 hour' end"
                " from generate_series(1, 10100) n",
                self.pulling,
                consumer,
                state,
            )
        await self.stage.read(
            "insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)"
            " select $1, uuidv7(n * interval '1 us'), $2, 'failed', 5 from generate_series(1, 10100) n",
            self.pulling,
            consumer,
        )

    @property
    def story(self) -> UUID:
        return self.events[EVENTS // 2]


@pytest.fixture(scope="module")
async def worst(stage: Stage) -> Worst:
    made = Worst(stage, await stage.api.tenant())
    await made.fill()
    return made


class Explained(Cell):
    """A cell that has the plan of each statement, with what it really read."""

    def __init__(self, url: str, connection: asyncpg.Connection) -> None:
        super().__init__(
            url, direct_url=None, schema="relay", application="explained", connections=10, lifetime_s=540.0
        )
        self._explaining = connection
        self.examined: list[tuple[str, int]] = []

    async def fetch(self, name: str, *args: Any, **options: Any) -> Sequence[Row]:
        for mode in ("force_custom_plan", "force_generic_plan"):
            await self._explaining.execute(f"set plan_cache_mode = {mode}")
            text = f"explain (analyze, format json) {self.statements[name]}"
            (row,) = await self._explaining.fetch(text, *args)
            self.examined += [(f"{name} {node} {mode}", rows) for node, rows in scans(json.loads(row[0])[0]["Plan"])]
        return await super().fetch(name, *args, **options)


def scans(node: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """How many rows each scan of a table has read, partitions by themselves."""
    if "Relation Name" in node:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        yield node["Relation Name"], round((node["Actual Rows"] + removed) * node["Actual Loops"])
    for below in node.get("Plans", ()):
        yield from scans(below)


@asynccontextmanager
async def explained(stage: Stage) -> AsyncIterator[Explained]:
    connection = await asyncpg.connect(stage.url)
    # A table of a few pages would be read whole for each row of another.
    await connection.execute("set enable_seqscan = off")
    try:
        async with Explained(stage.url, connection) as cell:
            yield cell
    finally:
        await connection.close()


Read = Callable[[Cell, Worst], Awaitable[object]]


def page(**changes: Any) -> Read:
    async def read(cell: Cell, worst: Worst) -> object:
        asked = {"status": "all", "type": None, "order": "desc", "limit": 1000, "cursor": None, **changes}
        asked = {name: value(worst) if callable(value) else value for name, value in asked.items()}
        return await read_page(cell, InboxQuery(worst.organization_id, **asked))

    return read


def listing(status: str | None, *, of_event: bool = False, error_class: str | None = None) -> Read:
    async def read(cell: Cell, worst: Worst) -> object:
        event_id = worst.story if of_event else None
        query = DeliveriesQuery(
            worst.organization_id, cast(Any, status), None, event_id, error_class, TimeRange(), 1000, None
        )
        return await read_deliveries(cell, query)

    return read


async def attempts(cell: Cell, worst: Worst) -> object:
    delivery_id = uuid7.delivery_id(worst.story, worst.endpoints[7])
    found = await find_delivery(cell, worst.organization_id, delivery_id)
    return await read_attempts(cell, worst.organization_id, *found, 1000, None)


async def endpoints(cell: Cell, worst: Worst) -> object:
    return await EndpointRepository(cell, cast(Any, None), most={}, due=lambda: None, changed=lambda _: None).page(
        worst.organization_id, None, 1000
    )


async def endpoint(cell: Cell, worst: Worst) -> object:
    return await EndpointRepository(cell, cast(Any, None), most={}, due=lambda: None, changed=lambda _: None).read(
        worst.organization_id, worst.endpoints[0]
    )


def consumers(cell: Cell) -> ConsumerRepository:
    return ConsumerRepository(cell, cast(Any, None), most={})


async def job(cell: Cell, worst: Worst) -> object:
    rows = await worst.stage.read(
        "select id from relay.jobs where organization_id = $1 and kind = 'retry'", worst.organization_id
    )
    return await read_job(cell, worst.organization_id, rows[0]["id"])


# Every way in which something is read, by its path: a new path, parameter or order belongs in here.
READS: dict[str, list[Read]] = {
    "/api/inbox": [
        page(status=status, order=order, type=type_)
        for status in ("pending", "failed", "all")
        for order in ("desc", "asc")
        for type_ in (None, "nothing.*")
    ],
    "/api/inbox/stream": [page(status="all", order="asc", type=type_) for type_ in (None, "nothing.*")],
    "/api/events": [
        page(list_name="events", order=order, **narrowed)
        for order in ("desc", "asc")
        for narrowed in (
            {},
            {"status": "pending"},
            {"status": "delivered"},
            {"endpoint_id": lambda worst: worst.endpoints[0]},
            {"endpoint_id": lambda worst: NIL},
            {"dedup_id": "none"},
        )
    ],
    "/api/events/{id}": [lambda cell, worst: read_event(cell, worst.organization_id, worst.story)],
    "/api/deliveries": [
        listing(status, of_event=of_event, error_class=error_class)
        for status in (None, "pending", "held", "failed", "delivered")
        for of_event in (False, True)
        for error_class in (None, "tls")
    ],
    "/api/deliveries/{id}/attempts": [attempts],
    "/api/endpoints": [endpoints],
    "/api/endpoints/{id}": [endpoint],
    "/api/consumers": [lambda cell, worst: consumers(cell).page(worst.pulling, None, 1000)],
    "/api/consumers/{name}": [lambda cell, worst: consumers(cell).read(worst.pulling, "worst")],
    "/api/jobs": [lambda cell, worst: list_jobs(cell, worst.organization_id, 1000, None)],
    "/api/jobs/{id}": [job],
    "/api/keys": [lambda cell, worst: KeyListing(cell).describe(worst.organization_id)],
    "/api/stats": [lambda cell, worst: read_stats(cell, worst.organization_id, None)],
}


async def test_every_path_that_is_read_is_in_the_table(stage: Stage) -> None:
    document = (await stage.api.contract()).document
    paths = {path for path, methods in document["paths"].items() if "get" in methods and path.startswith("/api/")}
    assert paths == set(READS)


async def test_a_filter_that_nothing_matches_ends_the_page_at_the_rows_it_may_examine(stage: Stage) -> None:
    asked = Worst(stage, await stage.api.tenant())
    asked.events = await stage.accept_many(asked.tenant, MOST_ROWS + 200)
    await stage.read("analyze relay.events, relay.open")
    async with explained(stage) as cell:
        for order in ("desc", "asc"):
            for status in ("pending", "all"):
                cell.examined.clear()
                read: Any = await page(type="nothing.*", order=order, status=status)(cell, asked)
                assert (read.events, read.next_cursor is not None) == ([], True)
                assert max(rows for _, rows in cell.examined) <= MOST_ROWS + 1


@pytest.mark.slow
@pytest.mark.parametrize("path", READS)
async def test_a_read_examines_no_more_rows_of_a_table_than_it_may(path: str, worst: Worst) -> None:
    async with explained(worst.stage) as cell:
        for read in READS[path]:
            cell.examined.clear()
            await read(cell, worst)
            assert cell.examined
            # A page asks for one more row than it shows, to know whether there are others.
            for scan, rows in cell.examined:
                assert rows <= MOST_ROWS + 1, scan


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/api/inbox?limit=1000",
        "/api/inbox?limit=1000&status=failed",
        "/api/events?limit=1000",
        "/api/deliveries?limit=1000",
        "/api/endpoints?limit=1000",
        "/api/jobs",
        "/api/keys",
        "/api/stats",
    ],
)
async def test_a_read_gives_no_more_than_8_mib(path: str, worst: Worst) -> None:
    answer = await worst.tenant.get(path)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) <= MOST_BYTES


@pytest.mark.slow
async def test_an_event_is_shown_with_its_newest_deliveries_and_attempts(worst: Worst) -> None:
    answer = await worst.tenant.get(f"/api/events/{worst.story}")
    assert answer.status_code == 200
    assert MOST_BYTES // 2 < len(answer.content) <= MOST_BYTES
    event = answer.json()
    assert event["deliveries_total"] == ENDPOINTS
    assert event["attempts_total"] == event["attempts"] == ENDPOINTS * ATTEMPTS
    assert [delivery["endpoint_id"] for delivery in event["deliveries"]] == [
        str(endpoint) for endpoint in worst.endpoints[:-101:-1]
    ]
    logs = [[attempt["number"] for attempt in delivery["attempt_log"]] for delivery in event["deliveries"]]
    # 2,000 attempts would be 12 MiB: all have their newest ones, as far as the room goes.
    assert all(log == list(range(ATTEMPTS - len(log) + 1, ATTEMPTS + 1)) for log in logs)
    assert min(map(len, logs)) >= 10
    assert max(map(len, logs)) <= 20


@pytest.mark.slow
async def test_the_rest_of_an_event_is_listed_page_by_page(worst: Worst) -> None:
    found = await walk_deliveries(worst.tenant, event_id=str(worst.story))
    assert [delivery["endpoint_id"] for delivery in found] == [str(each) for each in reversed(worst.endpoints)]
    numbers: list[int] = []
    path, cursor = f"/api/deliveries/{found[3]['id']}/attempts", None
    while True:
        answer = await worst.tenant.get(path, params={"limit": 20} | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        numbers += [attempt["number"] for attempt in answer.json()["attempts"]]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            break
    assert numbers == list(range(ATTEMPTS, 0, -1))


@pytest.mark.slow
async def test_pages_cut_off_by_their_work_still_reach_everything(worst: Worst) -> None:
    newest_first = [str(event) for event in reversed(worst.events)]
    open_ones = [event for event in newest_first if event != str(worst.story)]
    for path, parameters, wanted in (
        ("/api/inbox", {"status": "pending"}, open_ones),
        ("/api/inbox", {"status": "failed"}, [str(worst.story)]),
        ("/api/inbox", {"status": "all"}, newest_first),
        ("/api/events", {"endpoint_id": str(worst.endpoints[3])}, newest_first),
        ("/api/events", {"status": "pending"}, open_ones),
    ):
        for order in ("desc", "asc"):
            found: list[str] = []
            pages = 0
            cursor: str | None = None
            while True:
                asked = {**parameters, "order": order, "limit": 1000} | ({"cursor": cursor} if cursor else {})
                answer = await worst.tenant.get(path, params=asked)
                assert answer.status_code == 200, answer.text
                events, before = answer.json()["events"], cursor
                found += [event["id"] for event in events]
                assert all(
                    event["attempts"] == ATTEMPTS * (ENDPOINTS - (event["id"] != str(worst.story))) for event in events
                )
                cursor, pages = answer.json()["next_cursor"], pages + 1
                if cursor is None or cursor == before:
                    break
            assert found == (wanted if order == "desc" else wanted[::-1]), (path, parameters, order)
            assert pages > EVENTS * ENDPOINTS // MOST_ROWS


@pytest.mark.slow
async def test_every_endpoint_is_on_some_page(worst: Worst) -> None:
    found, cursor = [], None
    while True:
        asked = {"limit": 1000} | ({"cursor": cursor} if cursor else {})
        answer = await worst.tenant.get("/api/endpoints", params=asked)
        assert len(answer.content) <= MOST_BYTES
        found += [endpoint["id"] for endpoint in answer.json()["endpoints"]]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            break
    assert found == [str(endpoint) for endpoint in reversed(worst.endpoints)]


@pytest.mark.slow
async def test_jobs_that_are_not_shown_do_not_make_a_list_long(worst: Worst) -> None:
    first = (await worst.tenant.get("/api/jobs")).json()
    assert first["jobs"] == []
    second = (await worst.tenant.get("/api/jobs", params={"cursor": first["next_cursor"]})).json()
    assert [job["kind"] for job in second["jobs"]] == ["retry"]
    assert second["next_cursor"] is None


async def test_a_page_of_the_widest_events_is_no_more_than_8_mib(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    name = '"' * 255
    wide = [{"type": name, "payload": "x" * 10_000, "dedup_id": f"{number:03}" + name[3:]} for number in range(1000)]
    for begin in range(0, 1000, 250):
        posted = await tenant.post("/api/events/batch", json=wide[begin : begin + 250])
        assert {result["status"] for result in posted.json()["results"]} == {"accepted"}
    for path in ("/api/inbox?limit=1000", "/api/events?limit=1000", "/api/events?limit=1000&status=pending"):
        answer = await tenant.get(path)
        assert len(answer.content) + 300 * len(answer.json()["events"]) > MOST_BYTES - 10_000
        assert len(answer.content) <= MOST_BYTES
