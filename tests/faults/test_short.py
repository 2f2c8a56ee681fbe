"""Every fault once, in the order that RELAY_FAULT_SEED gives, and after each: nothing lost, nothing twice."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, schedule
from tests.faults.faults import FAULTS
from tests.faults.ground import Clock, Ground
from tests.faults.load import Load

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Shorter than theirs are, so that what they end is over in a short run too.
SETTINGS = {"RELAY_COMMIT_TIMEOUT_S": "1", "RELAY_LEASE_S": "4"}


def seed() -> int:
    """Printed: the same one gives the same order, the same requests and the same choices."""
    chosen = int(os.environ.get("RELAY_FAULT_SEED") or secrets.randbelow(10**6))
    print(f"RELAY_FAULT_SEED={chosen}")
    return chosen


async def each_fault_once(ground: Ground, seed: int) -> None:
    async with Load(ground.port, ground.senders, ground.ledger, seed) as load:
        campaign = Campaign(ground, load, seed)
        await campaign.warm_up()
        for fault in schedule(FAULTS, seed, ground):
            trial = await campaign.strike(fault, fault.hold_s, measure=False)
            print(trial)
            assert trial.account.wrong == [], fault.name
            assert ground.ledger.strange == [], fault.name
        account = await campaign.finish()
    print(f"in the end {ground.ledger.answers}, {account.dead} dead letters")
    assert account.wrong == []


async def test_nothing_that_was_acknowledged_is_lost_or_twice_whatever_fails(home: Path) -> None:
    place = home / "faults"
    place.mkdir(mode=0o711)
    async with Ground(place, settings=SETTINGS) as ground:
        await each_fault_once(ground, seed())


@pytest.mark.skipif(not Clock(Path()).steps, reason="needs libfaketime, to step a clock without being root")
async def test_a_clock_that_steps_loses_nothing_and_stops_nothing(home: Path) -> None:
    place = home / "clocks"
    place.mkdir(mode=0o711)
    async with Ground(place, settings=SETTINGS, clock=True) as ground:
        await each_fault_once(ground, seed())
