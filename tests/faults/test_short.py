"""Every fault once, in the order that RELAY_FAULT_SEED determines. After each, nothing is lost or stored twice."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, P, shuffled
from tests.faults.environment import Clock, Ground
from tests.faults.faults import CLOCK_FAULTS, FAULTS, UP_FAULTS, Fault
from tests.faults.load import Load
from tests.faults.local_stack import Up

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

# Shorter than theirs are, so that what they end is over in a short run too.
SETTINGS = {"RELAY_COMMIT_TIMEOUT_S": "1", "RELAY_LEASE_S": "4"}
# Requests a second. As many as there can be would only take the machine from the tests beside this one.
RATE = 150.0


def seed() -> int:
    """Return and print the seed, which determines the order, the requests and the choices."""
    chosen = int(os.environ.get("RELAY_FAULT_SEED") or secrets.randbelow(10**6))
    print(f"RELAY_FAULT_SEED={chosen}")
    return chosen


async def each_fault_once(scene: P, faults: Sequence[Fault[P]], *, disk: bool = False) -> None:
    chosen = seed()
    async with Load(scene.port, scene.senders, scene.ledger, chosen, rate=RATE) as load:
        campaign = Campaign(scene, load, chosen)
        await campaign.warm_up()
        for fault in shuffled(faults, chosen, disk=disk):
            trial = await campaign.strike(fault, fault.hold_s, measure=False)
            print(trial)
            assert trial.account.wrong == [], fault.name
            assert scene.ledger.strange == [], fault.name
        account = await campaign.finish()
    print(f"in the end {scene.ledger.answers}, {account.dead} dead letters")
    assert account.wrong == []


@pytest.fixture
def place(home: Path, request: pytest.FixtureRequest) -> Path:
    made = home / str(request.node.name)[:20]
    made.mkdir(mode=0o711)
    return made


async def test_nothing_that_was_acknowledged_is_lost_or_twice_whatever_fails(place: Path) -> None:
    async with Ground(place, settings=SETTINGS) as ground:
        await each_fault_once(ground, FAULTS, disk=ground.disk.mounted)


@pytest.mark.skipif(not Clock(Path()).steps, reason="needs libfaketime, to step a clock without being root")
async def test_a_clock_that_steps_loses_nothing_and_stops_nothing(place: Path) -> None:
    async with Ground(place, settings=SETTINGS, clock=True) as ground:
        await each_fault_once(ground, CLOCK_FAULTS)


async def test_a_relay_up_that_is_killed_has_lost_nothing_when_it_is_back(place: Path) -> None:
    async with Up(place) as up:
        await each_fault_once(up, UP_FAULTS)
