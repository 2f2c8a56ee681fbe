"""A delivery loop in a separate process, with short intervals (`python -m tests.support.delivery_process`)."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

from relay.cli.http_server import say_ready
from relay.config.environment import load
from relay.delivery.loop import DeliveryLoop
from relay.delivery.ownership.bucket_leases import Pace
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault

#: Quick, and slow enough for a machine that does something else for half a second.
QUICK = Pace(tick_s=0.15, alive_s=0.9, lease_s=1.2, patience_s=0.3)


async def deliver(ready_fd: int) -> None:
    settings = load(os.environ)
    assert settings.database_url is not None
    cell = Cell(
        settings.database_url,
        direct_url=None,
        schema="relay",
        application="relay sharing",
        connections=20,
        lifetime_s=540.0,
    )
    async with cell, DeliveryLoop(cell, settings, Vault(settings.secret_keys), Metrics(), QUICK) as loop:
        await loop.ready.wait()
        say_ready(ready_fd)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(deliver(int(sys.argv[-1])))
