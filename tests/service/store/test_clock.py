"""Steps of PostgreSQL's clock, and the leases written meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from relay.maintenance.cell_metrics import watch_cell
from relay.store import Cell
from relay.store.server_clock import Step
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import steady_ns
from tests.support.delivery_harness import Books, delivering, until
from tests.support.receiver import Receiver


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


async def test_a_row_lease_that_reaches_further_than_leases_do_has_run_out(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    ahead, right = await books.accept(organization_id, 2)
    for event_id, lease in ((ahead, "1 hour"), (right, "80 seconds")):
        await books.read(
            "update relay.open set claim_token = $2, leased_until = now() + $3::text::interval where event_id = $1",
            event_id,
            cell.clock.new(),
            lease,
        )
    async with delivering(cell):
        await until(lambda: _is_open(books, right))
    assert [UUID(request.headers["webhook-id"]) for request in receiver.received] == [ahead]


async def _is_open(books: Books, *event_ids: UUID) -> bool:
    return [row["event_id"] for row in await books.open()] == list(event_ids)


@pytest.mark.parametrize(("lease", "is_led"), [("20 seconds", False), ("1 hour", True)])
async def test_a_lead_that_reaches_further_than_leases_do_has_ended(
    cell: Cell, books: Books, lease: str, is_led: bool
) -> None:
    other = cell.clock.new()
    await books.read(
        "update relay.leaders set process_id = $1, leased_until = now() + $2::text::interval", other, lease
    )
    rows = await cell.fetch("lead", "retention", cell.clock.new(), 30.0, 600.0)
    assert bool(rows) is is_led


async def test_steps_of_the_clock_are_counted(cell: Cell) -> None:
    metrics = Metrics()
    watch_cell(cell, metrics)
    believed_ns = cell.clock.offset_ns
    # It has been believed for long, and then somebody sets it.
    cell.server.clock.look(believed_ns + 86_400 * 10**9, steady_ns() - 1000 * 10**9)
    await cell.server.refresh()
    assert abs(cell.clock.offset_ns - believed_ns) > 86_000 * 10**9
    cell.server.on_clock_step(Step.BELIEVED)
    rendered = metrics.render().decode()
    assert 'relay_clock_steps_total{state="seen"} 1.0' in rendered
    assert 'relay_clock_steps_total{state="believed"} 1.0' in rendered
