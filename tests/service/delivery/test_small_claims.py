"""A claim after one that took little uses a shorter statement, which takes what the other would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from bench.backlogs import make_due, make_endpoints
from bench.plans import MODES, Explained, looked_at, nodes, outline
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.organization_quota import LARGEST_PAYLOAD, Allotment
from relay.delivery.claims import ClaimedDelivery, Claimer
from relay.delivery.ownership.buckets import EVERYTHING, Assignment
from relay.store import Cell, HotConnection, Row, Statements
from relay.store.connection import ConnectionFactory
from tests.support.delivery_harness import Books

NOWHERE = "http://127.0.0.1/"
UNBOUNDED = Allotment(1_000, 1_000, 1_000, 1_000 * LARGEST_PAYLOAD)
OFFER = ClaimBudget(100, [], [], 50, untouched=UNBOUNDED, bytes=1_000 * LARGEST_PAYLOAD)
FEW = 16


class Noted(HotConnection):
    """Notes which statements it runs."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell._opener, cell.statements)
        self.names: list[str] = []

    async def fetch(self, name: str, *args: Any, timeout_s: float | None = None) -> Sequence[Row]:
        self.names.append(name)
        return await super().fetch(name, *args, timeout_s=timeout_s)


class Claims:
    """A claimer whose last claim took nothing."""

    def __init__(self, cell: Cell) -> None:
        self.connection = Noted(cell)
        self.claimer = Claimer(self.connection, 30.0)

    async def begin(self) -> None:
        assert await self.claim() == []
        assert self.connection.names == ["claim_due"]
        self.connection.names.clear()

    async def claim(self, offer: ClaimBudget = OFFER, assignment: Assignment = EVERYTHING) -> list[ClaimedDelivery]:
        self.claimer.begin_pass()
        return (await self.claimer.claim(offer, assignment)).deliveries


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def claims(cell: Cell) -> AsyncIterator[Claims]:
    claims = Claims(cell)
    await claims.begin()
    yield claims
    await claims.connection.close()


def kept(deliveries: Sequence[ClaimedDelivery]) -> list[tuple[Any, ...]]:
    """Everything but the claim token."""
    return sorted((each.claim.organization_id, each.claim.epoch, each.claim.xid, each.claim.event_id,
                   each.claim.endpoint_id, *each[1:]) for each in deliveries)  # fmt: skip


async def test_it_takes_what_the_other_statement_takes(cell: Cell, books: Books, claims: Claims) -> None:
    made = [await books.endpoint(NOWHERE) for _ in range(4)]
    for organization_id, _ in made:
        await books.accept(organization_id, 3)
    (full, full_id), (closed, closed_id), (broken, broken_id), (some, some_id) = made
    await books.read("update relay.endpoints set broken_since = now() where id = $1", broken_id)
    # What is not due, and what a live lease holds.
    await books.read("update relay.open set due_at = now() + interval '1 hour' where event_id in"
                     " (select event_id from relay.open where endpoint_id = $1 limit 1)", some_id)  # fmt: skip
    for known, free in (([], []), ([full_id, closed_id, broken_id, some_id], [0, -1, -1, 1])):
        offer = OFFER._replace(endpoint_ids=known, free=free, is_new=[False] * len(known), is_slow=[False] * len(known))
        few = await claims.claim(offer)
        assert claims.connection.names.pop() == "claim_few"
        await books.read("update relay.open set leased_until = '-infinity', claim_token = null, claims = 0")
        other = Claims(cell)
        due = await other.claim(offer)
        assert other.connection.names == ["claim_due"]
        assert kept(few) == kept(due)
        await other.connection.close()
        await books.read("update relay.open set leased_until = '-infinity', claim_token = null, claims = 0")
        taken = {each.claim.organization_id for each in few}
        assert taken == ({full, closed, broken, some} if not known else {closed, some})


async def test_a_lease_that_ran_out_is_seen_and_counted(books: Books, claims: Claims) -> None:
    organization_id, _ = await books.endpoint(NOWHERE)
    await books.accept(organization_id)
    (first,) = await claims.claim()
    assert (first.earlier_claims, first.ran_out) == (0, False)
    assert await claims.claim() == []
    await books.read("update relay.open set leased_until = now() - interval '1 second'")
    (second,) = await claims.claim()
    assert (second.earlier_claims, second.ran_out) == (1, True)
    assert set(claims.connection.names) == {"claim_few"}


async def test_a_full_one_is_followed_by_the_other_statement_from_where_it_ended(books: Books, claims: Claims) -> None:
    ids = []
    for _ in range(2 * FEW):
        organization_id, _ = await books.endpoint(NOWHERE)
        ids += await books.accept(organization_id)
    first = await claims.claimer.claim(OFFER, EVERYTHING)
    assert (len(first.deliveries), first.more) == (FEW, True)
    second = await claims.claimer.claim(OFFER, EVERYTHING)
    assert claims.connection.names == ["claim_few", "claim_due"]
    assert len(second.deliveries) == FEW
    assert {each.claim.event_id for each in (*first.deliveries, *second.deliveries)} == set(ids)
    # After one that took as much as this one could, the next is no small one.
    assert await claims.claim() == []
    assert await claims.claim() == []
    assert claims.connection.names == ["claim_few", "claim_due", "claim_due", "claim_few"]


@pytest.mark.parametrize("age", ["13 hours", "-2 hours"])
async def test_an_event_of_another_time_is_left_to_the_other_statement(
    books: Books, claims: Claims, cell: Cell, age: str
) -> None:
    organization_id, _ = await books.endpoint(NOWHERE)
    recent, other = await books.accept(organization_id, 2)
    await books.read(f"select relay.make_partitions((now() - interval '{age}')::date)")
    (row,) = await books.read(f"select relay.uuid7_floor(now() - interval '{age}') as id")
    await books.read("update relay.events set id = $2 where id = $1", other, row["id"])
    await books.read("update relay.open set event_id = $2 where event_id = $1", other, row["id"])
    first = await claims.claimer.claim(OFFER, EVERYTHING)
    assert ([each.claim.event_id for each in first.deliveries], first.more) == ([recent], True)
    second = await claims.claimer.claim(OFFER, EVERYTHING)
    # It was not claimed before, as far as anybody can tell.
    assert [(each.claim.event_id, each.earlier_claims, each.ran_out) for each in second.deliveries] == [
        (row["id"], 0, False)
    ]
    assert claims.connection.names == ["claim_few", "release_claims", "claim_due"]
    assert await claims.claim() == []
    assert claims.connection.names[-1] == "claim_due"


async def test_an_event_that_is_gone_is_lost(books: Books, cell: Cell) -> None:
    lost: list[UUID] = []
    connection = Noted(cell)
    claimer = Claimer(connection, 30.0, lost=lambda claims: lost.extend(claim.event_id for claim in claims))
    assert (await claimer.claim(OFFER, EVERYTHING)).deliveries == []
    organization_id, _ = await books.endpoint(NOWHERE)
    (event_id,) = await books.accept(organization_id)
    await books.read("delete from relay.events")
    more = True
    while more:
        _, more = await claimer.claim(OFFER, EVERYTHING)
    assert lost == [event_id]
    assert connection.names == ["claim_due", "claim_few", "release_claims", "claim_due", "lose_claims"]
    await connection.close()


@pytest.mark.parametrize(
    ("left", "most"),
    [
        (UNBOUNDED._replace(slots=11), 11),
        (UNBOUNDED._replace(new=10), 10),
        (UNBOUNDED._replace(slow=8), 8),
        (UNBOUNDED._replace(bytes=9 * LARGEST_PAYLOAD + 1), 9),
    ],
)
async def test_it_takes_no_more_than_the_organization_that_has_least_left(
    books: Books, claims: Claims, left: Allotment, most: int
) -> None:
    organization_id, _ = await books.endpoint(NOWHERE)
    await books.accept(organization_id, 20)
    taken = await claims.claim(OFFER._replace(left={organization_id: left}))
    assert claims.connection.names == ["claim_few"]
    assert len(taken) == most


@pytest.mark.parametrize(
    "offer",
    [
        OFFER._replace(bytes=8 * LARGEST_PAYLOAD - 1),
        OFFER._replace(untouched=UNBOUNDED._replace(bytes=8 * LARGEST_PAYLOAD - 1)),
        OFFER._replace(left={UUID(int=1): UNBOUNDED._replace(slots=7)}),
        OFFER._replace(
            endpoint_ids=[UUID(int=number) for number in range(129)],
            free=[1] * 129,
            is_new=[False] * 129,
            is_slow=[False] * 129,
        ),
    ],
)
async def test_where_a_bound_is_near_it_is_not_used(books: Books, claims: Claims, offer: ClaimBudget) -> None:
    organization_id, _ = await books.endpoint(NOWHERE)
    await books.accept(organization_id)
    assert len(await claims.claim(offer)) == 1
    assert claims.connection.names == ["claim_due"]


async def test_neither_excluded_endpoints_nor_orphaned_buckets_are_overlooked(books: Books, claims: Claims) -> None:
    organization_id, endpoint_id = await books.endpoint(NOWHERE)
    await books.accept(organization_id)
    assert await claims.claim(assignment=EVERYTHING._replace(excluded=frozenset((endpoint_id,)))) == []
    assert claims.connection.names == ["claim_few"]
    assert len(await claims.claim(assignment=EVERYTHING._replace(orphaned=(1,)))) == 1
    assert claims.connection.names == ["claim_few", "claim_due"]


async def test_it_reads_indexes_only_and_one_or_two_partitions_of_events(database: str) -> None:
    connection = await asyncpg.connect(database)
    endpoint_ids = await make_endpoints(connection, 400)
    await make_due(connection, endpoint_ids, 40)
    await connection.execute("update relay.open set due_at = now() + interval '1 hour'")
    explained = Explained(
        ConnectionFactory(database, "relay tests", pooled=False, lifetime_s=540.0), Statements("relay")
    )
    claimer = Claimer(explained, 30.0)
    assert (await claimer.claim(OFFER, EVERYTHING)).deliveries == []
    await connection.execute("update relay.open set due_at = now() where endpoint_id = any($1)", endpoint_ids[:4])
    claimer.begin_pass()
    taken, more = await claimer.claim(OFFER._replace(first=3), EVERYTHING)
    assert (len(taken), more) == (12, False)
    for mode in MODES:
        plan = explained.seen["claim_few", mode]
        said = "\n".join((mode, *outline(plan)))
        partitions = {
            node["Relation Name"] for node in nodes(plan) if node.get("Relation Name", "").startswith("events_")
        }
        assert 1 <= len(partitions) <= 2, said
        for node in nodes(plan):
            if node["Actual Loops"] and node.get("Relation Name", "").startswith(("open", "events", "endpoints")):
                assert node["Node Type"] in ("Index Scan", "Index Only Scan", "ModifyTable"), said
            assert looked_at(node) <= 400 + FEW, said
    await explained.close()
    await connection.close()
