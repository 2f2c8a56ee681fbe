"""The cost of a claim does not depend on how much is due, as PostgreSQL's plan shows."""

from __future__ import annotations

import asyncpg
import pytest

from bench.backlogs import make_due, make_endpoints
from bench.plans import MODES, Explained, looked_at, nodes, outline
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.endpoint_state import FIRST_SLOTS
from relay.delivery.claims import Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.store.connection import ConnectionFactory
from relay.store.statements import Statements

ENDPOINTS = 500
EACH = 40
BATCH = 100
TABLES = ("open", "events", "endpoints")


@pytest.fixture
async def backlog(database: str) -> str:
    """A database with 20,000 due deliveries of 500 endpoints."""
    connection = await asyncpg.connect(database)
    await make_due(connection, await make_endpoints(connection, ENDPOINTS), EACH)
    await connection.close()
    return database


async def test_a_claim_reads_indexes_only_and_no_more_than_it_visits_and_takes(backlog: str) -> None:
    explained = Explained(
        ConnectionFactory(backlog, "relay tests", pooled=False, lifetime_s=540.0), Statements("relay")
    )
    claimer = Claimer(explained, 30.0)
    for _ in range(3):
        taken, more = await claimer.claim(ClaimBudget(BATCH, [], [], FIRST_SLOTS), EVERYTHING)
        assert (len(taken), more) == (BATCH, True)
        for mode in MODES:
            plan = explained.plans[mode]
            for node in nodes(plan):
                said = "\n".join((mode, *outline(plan)))
                kind, table = node["Node Type"], node.get("Relation Name", "")
                if node["Actual Loops"] and any(table == name or table.startswith(f"{name}_") for name in TABLES):
                    assert kind in ("Index Scan", "Index Only Scan", "ModifyTable"), said
                # Every endpoint is visited here, and each that gives something is read as far as it gives.
                assert looked_at(node) <= ENDPOINTS + BATCH + FIRST_SLOTS, said
    await explained.close()
