"""All scenarios in the order in which they run."""

from __future__ import annotations

from typing import Final

from bench.scenarios import claims, delivery, fairness, footprint, ingest, leases, pace, tenants, transport, waiting
from bench.scenarios.run import Scenario

SCENARIOS: Final = (
    Scenario("bare", "The bare callable: the ceiling of this machine and of the generator", ingest.bare, remote=True),
    Scenario("self-test", "The generator's self-test", footprint.self_test, remote=True),
    Scenario("ingest", "Ingest at 2,500 req/s, open loop", ingest.steady, remote=True, comparable=True),
    Scenario("even", "1,000 req/s, evenly spaced, by turns with the bare callable", pace.even, comparable=True),
    Scenario("bursts", "2,500 req/s in bursts of 50, by turns with the bare callable", pace.bursts, comparable=True),
    Scenario(
        "saturation", "Saturation: how much it takes, closed loop", ingest.saturation, remote=True, comparable=True
    ),
    Scenario("batch", "Batches of 300, closed loop", ingest.batch, remote=True, comparable=True),
    Scenario("mixed", "Ingest, inbox and acknowledgements", ingest.mixed, remote=True, comparable=True),
    Scenario("end-to-end", "Accepted and delivered together, open loop", delivery.together, comparable=True),
    Scenario("backlog", "A backlog delivered by one process", delivery.backlog, comparable=True),
    Scenario("exchange", "A delivery over kept and new connections", transport.exchange),
    Scenario("statements", "Claim and record without HTTP", delivery.statements),
    Scenario("claims", "Claims beside 1,000,000 due over 10,000 endpoints", claims.claims),
    Scenario("pull", "Leases and acknowledgements, four clients of one queue", leases.pull),
    Scenario("lease", "Leases beside 1,000,000 waiting and 1,000,000 other deliveries", leases.beside),
    Scenario("fairness", "A tenant beside endpoints that hang", fairness.fairness),
    Scenario("tenants", "A neighbour of the worst tenant", tenants.tenants),
    Scenario("efficiency", "Memory and CPU at 1,000 req/s", footprint.efficiency, comparable=True),
    Scenario("followers", "Followers with long polls at 1,000 events/s", waiting.followers),
    Scenario("waiting", "5,000 waiting readers while nothing happens", waiting.waiting),
    Scenario("cold-start", "Cold start of `relay serve` and `relay deliver`", footprint.cold_start),
    Scenario("idle", "POSTs beside 2,000 idle connections", footprint.idle, remote=True, comparable=True),
)
