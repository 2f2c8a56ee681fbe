"""Where faults strike: a PostgreSQL, two API processes, two delivery processes and a receiver, all of one run's own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import asyncpg

from relay.local.children import PythonChild
from relay.local.postgres import EmbeddedPostgres
from relay.local.supervisor import Pauses, Supervisor
from relay.store.migrations import migrate
from relay.values import uuid7
from tests.api import Api
from tests.conftest import ADMIN_TOKEN, LOOPBACK, environment, free_port
from tests.faults.auditor import Books, Ended, Stored
from tests.faults.ledger import Ledger
from tests.faults.load import Sender
from tests.processes import children_of, words_of
from tests.proxy import Proxy
from tests.receiver import Received, Receiver

ROOT: Final = Path(__file__).parents[2]

#: How many endpoints each organization has: one has none, and reads its inbox.
_ENDPOINTS: Final = (2, 1, 1, 1, 0)
#: Small, so that a disk that is full is full soon, and checkpoints happen in a short run too.
_POSTGRES: Final = {
    "max_wal_size": "256MB",
    "min_wal_size": "80MB",
    "max_connections": "80",
    # What it says of its faults is expected, and long.
    "log_min_messages": "panic",
}
_OVERLAP_S: Final = 30.0


class Disk:
    """A small file system in memory that can be full, where we may mount one.

    Args:
        path: an empty folder.
        size_mb: how much it holds.
    """

    def __init__(self, path: Path, size_mb: int) -> None:
        self.path = path
        self._size_mb = size_mb
        self.mounted = False

    def __enter__(self) -> Self:
        self.path.mkdir(mode=0o711)
        self.mounted = self._mount(f"size={self._size_mb}m,mode=0711")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.mounted:
            # Lazily: a process that is slow to leave keeps nothing from going.
            subprocess.run(["umount", "--lazy", self.path], check=True)
            self.path.rmdir()

    def fill(self) -> None:
        """From now on nothing more fits."""
        used = os.statvfs(self.path)
        taken_kb = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024
        assert self._mount(f"remount,size={taken_kb + 64}k")

    def empty(self) -> None:
        """There is room again."""
        assert self._mount(f"remount,size={self._size_mb}m")

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        with contextlib.suppress(OSError):
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        return False


class Clock:
    """The wall clock of relay's processes, and of no other, which can be stepped while they run.

    Args:
        path: a file to keep the step in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)

    @property
    def steps(self) -> bool:
        """Whether it can be stepped: Debian's package `libfaketime` is installed."""
        return self._library is not None

    def environment(self) -> Mapping[str, str]:
        """What makes a process look at this clock. Only that of the wall: timers go on as they do."""
        self.step(0)
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def step(self, by_s: float) -> None:
        """Be so far ahead of the real clock from now on, which processes see within a second."""
        written = self._path.with_suffix(".new")
        written.write_text(f"{by_s:+.0f}\n")
        written.rename(self._path)


class Ground:
    """Entering starts everything, and makes the organizations and their endpoints; leaving ends it at once.

    What dies is started again as `relay up` does it, after at most a second.

    Args:
        home: an empty folder that PostgreSQL's user may enter.
        settings: of our commands.
        disk_mb: how much PostgreSQL's disk holds, where one can be mounted.
        clock: whether relay's processes have a clock of their own, where they can.
    """

    def __init__(
        self, home: Path, *, settings: Mapping[str, str] | None = None, disk_mb: int = 1024, clock: bool = False
    ) -> None:
        self.ledger = Ledger()
        self.clock = Clock(home / "clock")
        #: Whether relay's processes look at `clock`.
        self.clocked = clock and self.clock.steps
        self.disk = Disk(home / "disk", disk_mb)
        self.postgres = EmbeddedPostgres(self.disk.path / "postgres", settings=_POSTGRES)
        self._settings = settings or {}
        self._supervisor = Supervisor(Pauses(longest_s=1.0))
        self._stack = AsyncExitStack()
        self.senders: list[Sender] = []
        self.port = free_port()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self.disk)
            stack.push_async_callback(self._end)
            await self._supervisor.start(self.postgres, needed=True)
            await migrate(self.postgres.url, "relay")
            self.database = await stack.enter_async_context(Proxy(self.postgres.url))
            self.receiver = await stack.enter_async_context(Receiver(self._receive))
            self.network = await stack.enter_async_context(Proxy(self.receiver.url))
            settings = {
                "RELAY_WORKERS": "2",
                "RELAY_RATE_LIMIT_ENTERPRISE": "1000000000",
                "RELAY_ALLOWED_NETWORKS": LOOPBACK,
                "RELAY_LOG_LEVEL": "error",
                **self._settings,
                **(self.clock.environment() if self.clocked else {}),
            }
            env = environment(self.database.url, self.port, **settings)
            self.serve = PythonChild("serve", ["relay", "serve"], env=env)
            self.deliver = [PythonChild(f"deliver-{n}", ["relay", "deliver", "--no-ops"], env=env) for n in (1, 2)]
            for child in (self.serve, *self.deliver):
                await self._supervisor.start(child)
            await self._settle()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        now = asyncio.Event()
        now.set()
        await self._supervisor.stop(now)

    async def _settle(self) -> None:
        async with Api(f"http://127.0.0.1:{self.port}", admin_token=ADMIN_TOKEN) as api:
            for number, endpoints in enumerate(_ENDPOINTS):
                tenant = await api.tenant()
                paths = [f"/{number}/{place}" for place in range(endpoints)]
                for path in paths:
                    answer = await tenant.post("/api/endpoints", json={"url": self._url(path)})
                    assert answer.status_code == 201, answer.text
                self.senders.append(Sender(tenant.key, tenant.organization_id, paths))

    def _url(self, path: str) -> str:
        return self.network.url.replace("/hook", path)

    async def _receive(self, received: Received, writer: asyncio.StreamWriter) -> bool:
        self.receiver.received.clear()
        self.ledger.arrived(
            json.loads(received.body)["event_id"], received.path, int(received.headers["x-delivery-attempt"])
        )
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True

    async def connect(self) -> asyncpg.Connection:
        """A connection of ours to the database, not through the proxy."""
        connection: asyncpg.Connection = await asyncpg.connect(
            self.postgres.url, server_settings={"application_name": "faults"}
        )
        return connection

    async def connect_patiently(self, patience_s: float = 60.0) -> asyncpg.Connection:
        """The same, as soon as PostgreSQL takes one."""
        async with asyncio.timeout(patience_s):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    return await self.connect()
                await asyncio.sleep(0.05)

    def workers(self) -> list[int]:
        """The API processes."""
        assert self.serve.pid is not None
        return [pid for pid in children_of(self.serve.pid) if "--worker" in words_of(pid)]

    def family(self) -> dict[str, list[int]]:
        """All processes that work here, by what they are."""
        found = {"serve": [self.serve.pid or 0, *self.workers()]}
        found |= {child.name: [child.pid or 0] for child in self.deliver}
        with contextlib.suppress(RuntimeError):
            found["PostgreSQL"] = [self.postgres.pid, *children_of(self.postgres.pid)]
        return found

    async def books(self, audited_at: float, owed: frozenset[tuple[str, str]]) -> Books:
        """What the auditor wants to see.

        Args:
            audited_at: when it last looked, on the local clock.
            owed: deliveries that waited then.
        """
        connection = await self.connect_patiently()
        try:
            return await _read(connection, self._paths(), self.ledger, audited_at, owed)
        finally:
            await connection.close()

    def _paths(self) -> Mapping[str, str]:
        return {self._url(path): path for sender in self.senders for path in sender.paths}


async def _read(
    connection: asyncpg.Connection,
    paths: Mapping[str, str],
    ledger: Ledger,
    audited_at: float,
    owed: frozenset[tuple[str, str]],
) -> Books:
    endpoints = {row["id"]: paths[row["url"]] for row in await connection.fetch("select id, url from relay.endpoints")}
    since = uuid7.floor(datetime.datetime.fromtimestamp(max(0.0, audited_at - _OVERLAP_S), datetime.UTC))
    known = [UUID(each) for intent in ledger.intents.values() for each in intent.ids]
    events = await connection.fetch(
        "select organization_id, id, convert_from(payload, 'UTF8') as payload, dedup_id from relay.events"
        " where id >= $1 or (organization_id = any($3) and id = any($2))",
        since,
        known,
        organizations := [row["id"] for row in await connection.fetch("select id from relay.organizations")],
    )
    waiting = await connection.fetch("select event_id, endpoint_id from relay.open")
    wanted = [*(row["id"] for row in events), *(UUID(event_id) for event_id, _ in owed)]
    ended = await connection.fetch(
        "select d.event_id, d.endpoint_id, d.status, extract(epoch from d.ended_at)::float8 as ended_at,"
        " a.succeeded, coalesce(a.attempted, 0) as attempted"
        " from relay.deliveries as d left join lateral ("
        "  select min(number) filter (where status_code between 200 and 299) as succeeded, max(number) as attempted"
        "  from relay.attempts as a where a.organization_id = d.organization_id and a.event_id = d.event_id"
        "  and a.endpoint_id = d.endpoint_id) as a on true"
        " where d.organization_id = any($2) and d.event_id = any($1)",
        wanted,
        organizations,
    )
    rows: Sequence[Ended] = [
        Ended(
            str(row["event_id"]), endpoints[row["endpoint_id"]], row["status"], row["ended_at"], row["succeeded"],
            row["attempted"],
        )
        for row in ended
    ]  # fmt: skip
    return Books(
        [Stored(str(row["organization_id"]), str(row["id"]), row["payload"], row["dedup_id"]) for row in events],
        frozenset((str(row["event_id"]), endpoints.get(row["endpoint_id"], "")) for row in waiting),
        {(row.event_id, row.path): row for row in rows},
    )


async def stored_twice(connection: asyncpg.Connection) -> int:
    """Events of the whole run that stand in the database more than once."""
    count: int = await connection.fetchval(
        "select count(*) from (select from relay.events group by organization_id, payload having count(*) > 1) as twice"
    )
    return count
