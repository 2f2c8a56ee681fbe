"""Every fault once, in the order that RELAY_FAULT_SEED gives, and after each: nothing lost, nothing twice."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, schedule
from tests.faults.faults import FAULTS
from tests.faults.ground import Ground
from tests.faults.load import Load


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_nothing_that_was_acknowledged_is_lost_or_twice_whatever_fails(home: Path) -> None:
    seed = int(os.environ.get("RELAY_FAULT_SEED") or secrets.randbelow(10**6))
    print(f"RELAY_FAULT_SEED={seed}")
    place = home / "faults"
    place.mkdir(mode=0o711)
    settings = {"RELAY_COMMIT_TIMEOUT_S": "1", "RELAY_LEASE_S": "4"}
    async with Ground(place, settings=settings) as ground:
        async with Load(ground.port, ground.senders, ground.ledger, seed) as load:
            campaign = Campaign(ground, load, seed)
            await campaign.warm_up()
            for fault in schedule(FAULTS, seed, ground):
                trial = await campaign.strike(fault, fault.hold_s, measure=False)
                account = trial.account
                print(
                    f"{fault.name}: {account.acknowledged} acknowledged, {account.maybe} unknown of which"
                    f" {account.recovered} stored, {account.repeated} delivered again; accepts after"
                    f" {trial.accepted_after_s:.2f} s, delivers after {trial.received_after_s:.2f} s,"
                    f" slowest 503 {trial.slowest_refusal_s:.2f} s"
                )
                assert account.wrong == [], fault.name
                assert ground.ledger.strange == [], fault.name
            account = await campaign.finish()
        print(f"in the end {ground.ledger.answers}, {account.dead} dead letters")
        assert account.wrong == []
