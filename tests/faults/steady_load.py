"""A long run at 1,000 events a second without faults, to see whether memory and tables grow."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.generator import receipts
from relay.local.processes import finished, launch, tell
from tests.conftest import ADMIN_TOKEN, free_port
from tests.faults.environment import ROOT, Ground
from tests.faults.sampling import Sampler
from tests.support.api import Api
from tests.support.wire import read_answer

#: Batches a second and events in each; single events a second.
_BATCHES: Final = 45
_BATCH: Final = 20
_SINGLES: Final = 100
#: Events a second.
RATE: Final = _BATCHES * _BATCH + _SINGLES
_LINES: Final = 4
_TENANTS: Final = 4
_PATIENCE_S: Final = 60.0
_STOP_S: Final = 10.0


class Calm:
    """One spell and its findings.

    Args:
        seconds: how long it is.
        home: an empty folder that PostgreSQL's user may enter.
    """

    def __init__(self, seconds: float, home: Path) -> None:
        self._seconds = seconds
        self._home = home
        self._keys: list[str] = []
        self._made = 0
        self.sampler = Sampler()
        self.wrong: list[str] = []
        self.found: list[str] = []

    async def run(self) -> None:
        """Post for the whole time, let requests in progress end, and count."""
        port, arrived = free_port(), self._home / "arrived"
        command = [sys.executable, "-m", "bench.receiver", str(port), str(arrived)]
        receiver = await launch(command, env={}, folder=str(ROOT))
        try:
            async with Ground(self._folder(), disk_mb=12 * 1024) as ground:
                await self._settle(ground, port)
                async with self.sampler.watching(ground):
                    await self._post(ground)
                    await self._end(ground)
        finally:
            tell(receiver, signal.SIGTERM)
            await finished(receiver, _STOP_S)
        accepted, came = ground.ledger.accepted, {event_id for event_id, _ in receipts.read(arrived)}
        self.found.append(f"{accepted:,} events acknowledged, {len(came):,} of them received")
        if len(came) != accepted:
            self.wrong.append(self.found[-1])
        self.found += _flat("resident memory", self.sampler.memory) + _flat("table", self.sampler.tables)

    def _folder(self) -> Path:
        made = self._home / "ground"
        made.mkdir(mode=0o711)
        return made

    async def _settle(self, ground: Ground, port: int) -> None:
        """Create organizations whose receiver costs little."""
        async with Api(f"http://127.0.0.1:{ground.port}", admin_token=ADMIN_TOKEN) as api:
            for number in range(_TENANTS):
                tenant = await api.tenant()
                answer = await tenant.post("/api/endpoints", json={"url": f"http://127.0.0.1:{port}/{number}"})
                assert answer.status_code == 201, answer.text
                self._keys.append(tenant.key)

    async def _post(self, ground: Ground) -> None:
        until = asyncio.get_running_loop().time() + self._seconds
        async with asyncio.TaskGroup() as group:
            for number in range(_LINES):
                group.create_task(self._line(ground, number, _BATCH, _LINES / _BATCHES, until))
                group.create_task(self._line(ground, number, 1, _LINES / _SINGLES, until))

    async def _line(self, ground: Ground, number: int, size: int, every_s: float, until: float) -> None:
        """Post on one connection, one request at a time. Late requests are sent immediately."""
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", ground.port)
        next_at = loop.time() + every_s * number / _LINES
        try:
            while next_at < until:
                await asyncio.sleep(max(0.0, next_at - loop.time()))
                next_at += every_s
                writer.write(self._request(self._keys[number], size))
                answer = await read_answer(reader)
                if answer.status != (201 if size == 1 else 200):
                    raise AssertionError(f"{answer.status} {answer.body[:200]!r}")
                ground.ledger.accepted += answer.body.count(b'"accepted"')
        finally:
            writer.close()

    def _request(self, key: str, size: int) -> bytes:
        events = [self._event() for _ in range(size)]
        body = json.dumps(events if size > 1 else events[0], separators=(",", ":"))
        path = "/api/events/batch" if size > 1 else "/api/events"
        return (
            f"POST {path} HTTP/1.1\r\nHost: relay\r\nX-API-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def _event(self) -> dict[str, object]:
        self._made += 1
        return {"type": "calm.hour", "payload": {"number": self._made, "note": "x" * 200}, "dedup_id": str(self._made)}

    async def _end(self, ground: Ground) -> None:
        connection = await ground.connect()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while await connection.fetchval("select exists (select from relay.open where due_at is not null)"):
                    await asyncio.sleep(0.1)
            stored = await connection.fetchval("select count(*) from relay.events")
            if stored != ground.ledger.accepted:
                self.wrong.append(f"{ground.ledger.accepted:,} events acknowledged, {stored:,} stored")
        finally:
            await connection.close()


def _flat(kind: str, sampled: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Return a line for each value: its median in the second and in the last quarter."""
    return [
        f"{kind} {name}: {second:.0f} MB in the second quarter, {last:.0f} MB in the last"
        for name, points in sampled.items()
        for second, last in [_quarters([value for _, value in points])]
    ]


def _quarters(values: Sequence[float]) -> tuple[float, float]:
    quarter = max(1, len(values) // 4)
    return statistics.median(values[quarter : 2 * quarter] or values), statistics.median(values[-quarter:])
