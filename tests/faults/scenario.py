"""The parts that every run has: an API to post to, receivers, and a database for the auditor."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import asyncpg

from relay.values import uuid7
from tests.conftest import ADMIN_TOKEN, free_port
from tests.faults.auditor import Books, Ended, Stored
from tests.faults.ledger import Ledger
from tests.faults.load import Sender
from tests.support.api import Api
from tests.support.proxy import Proxy
from tests.support.receiver import Received, Receiver

#: How many endpoints each organization has: one has none, and reads its inbox.
_ENDPOINTS: Final = (2, 1, 1, 1, 0)
#: What was still being committed at one audit is new at the next.
_OVERLAP_S: Final = 30.0


class Scene(ABC):
    """The API's port, the organizations, and the ledger of requests and webhooks."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.senders: list[Sender] = []
        self.port = free_port()
        self.receiver = Receiver(self._receive)
        self._urls: dict[str, str] = {}

    @property
    @abstractmethod
    def database_url(self) -> str:
        """The database, not through a proxy."""

    @abstractmethod
    def family(self) -> Mapping[str, list[int]]:
        """The processes by role. The first of each role is the parent of the others."""

    async def settle(self, network: Proxy) -> None:
        """Create the organizations and their endpoints."""
        async with Api(f"http://127.0.0.1:{self.port}", admin_token=ADMIN_TOKEN) as api:
            for number, endpoints in enumerate(_ENDPOINTS):
                tenant = await api.tenant()
                paths = [f"/{number}/{place}" for place in range(endpoints)]
                for path in paths:
                    url = network.url.replace("/hook", path)
                    self._urls[url] = path
                    answer = await tenant.post("/api/endpoints", json={"url": url})
                    assert answer.status_code == 201, answer.text
                self.senders.append(Sender(tenant.key, tenant.organization_id, paths))

    async def _receive(self, received: Received, writer: asyncio.StreamWriter) -> bool:
        self.receiver.received.clear()
        self.ledger.arrived(
            json.loads(received.body)["event_id"], received.path, int(received.headers["x-delivery-attempt"])
        )
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True

    async def connect(self) -> asyncpg.Connection:
        """Open a connection to the database."""
        connection: asyncpg.Connection = await asyncpg.connect(
            self.database_url, server_settings={"application_name": "faults"}
        )
        return connection

    async def connect_patiently(self, patience_s: float = 60.0) -> asyncpg.Connection:
        """Open a connection as soon as PostgreSQL accepts one."""
        async with asyncio.timeout(patience_s):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    return await self.connect()
                await asyncio.sleep(0.05)

    async def books(self, audited_at: float, owed: frozenset[tuple[str, str]]) -> Books:
        """Read the rows that the auditor compares.

        Args:
            audited_at: when it last looked, on the local clock.
            owed: deliveries that waited then.
        """
        connection = await self.connect_patiently()
        try:
            return await _read(connection, self._urls, self.ledger, audited_at, owed)
        finally:
            await connection.close()


async def _read(
    connection: asyncpg.Connection,
    paths: Mapping[str, str],
    ledger: Ledger,
    audited_at: float,
    owed: frozenset[tuple[str, str]],
) -> Books:
    endpoints = {
        row["id"]: paths[row["url"]]
        for row in await connection.fetch("select id, url from relay.endpoints")
        if row["url"] in paths
    }
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
    rows = [
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
    """Return events of the whole run that are stored more than once."""
    count: int = await connection.fetchval(
        "select count(*) from (select from relay.events group by organization_id, payload having count(*) > 1) as twice"
    )
    return count
