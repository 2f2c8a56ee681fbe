"""Receivers that misbehave: attempts are recorded correctly, memory is bounded, a neighbour notices nothing."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest

from relay.delivery.loop import DeliveryLoop
from relay.store import Cell
from tests.conftest import Commands, Databases, open_cell
from tests.support.certificates import Authority
from tests.support.delivery_harness import Books, delivering, until
from tests.support.receiver import Received, Receiver, Script, hang, raw, reply

#: For those who let it pass.
TIMEOUT_S = 1.0
#: As many as an unknown endpoint has slots.
EVENTS = 4
BOMB = gzip.compress(b"\0" * 20_000_000)


def drip(head: bytes, body: bytes = b"x" * 1_000) -> Script:
    """A head at once, and what follows a byte at a time."""

    async def script(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(head)
        for byte in body:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.1)
        return False

    return script


def endless(head: bytes, part: bytes) -> Script:
    """A head, and 5 GB of what follows, or as much of it as is taken."""

    async def script(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(head)
        block = part * (65_536 // len(part) + 1)
        for _part in range(5_000_000_000 // len(block)):
            writer.write(block)
            await writer.drain()
        return False

    return script


async def redirect_to_itself(request: Received, writer: asyncio.StreamWriter) -> bool:
    location = b"Location: http://" + request.headers["host"].encode() + request.path.encode()
    return await reply(307, b"", location)(request, writer)


async def answer_late(request: Received, writer: asyncio.StreamWriter) -> bool:
    """A perfect answer after the timeout."""
    await asyncio.sleep(2 * TIMEOUT_S)
    return await reply(200)(request, writer)


async def close_before_the_next(request: Received, writer: asyncio.StreamWriter) -> bool:
    """Each connection answers once, promises to stay, and is closed when the next request has come."""
    return request.nth == 1 and await reply()(request, writer)


async def close_after_the_answer(request: Received, writer: asyncio.StreamWriter) -> bool:
    """The same, closed when the answer is out."""
    await reply()(request, writer)
    return False


async def chatter(request: Received, writer: asyncio.StreamWriter) -> bool:
    """An answer, and when it has been read any number of others."""
    await reply(200)(request, writer)
    await asyncio.sleep(0.05)
    return await endless(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")(request, writer)


async def reset(_: Received, writer: asyncio.StreamWriter) -> bool:
    """A connection that is broken off, not closed."""
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    return False


class Expected(NamedTuple):
    """The expected record of an attempt. A `response` of None is not compared."""

    script: Script
    status_code: int | None
    error_class: str | None
    response: bytes | None = None


HOSTILE = {
    "never answers": Expected(hang, None, "timeout"),
    "drips its head": Expected(drip(b"", b"HTTP/1.1 200 OK\r\n" * 100), None, "timeout"),
    "drips a header": Expected(drip(b"HTTP/1.1 200 OK\r\nX: "), None, "timeout"),
    "drips its body": Expected(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), 200, None),
    "drips the body of a failure": Expected(drip(b"HTTP/1.1 503 X\r\nContent-Length: 1000\r\n\r\n"), 503, "http"),
    "sends 5 GB": Expected(
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n", b"x"), 200, None, b"x" * 1024
    ),
    "sends 5 GB with a failure": Expected(
        endless(b"HTTP/1.1 500 X\r\nContent-Length: 5000000000\r\n\r\n", b"x"), 500, "http", b"x" * 1024
    ),
    "sends until it is closed": Expected(endless(b"HTTP/1.0 200 OK\r\n\r\n", b"x"), 200, None, b"x" * 1024),
    "sends chunks of a byte": Expected(
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), 200, None, b"x" * 1024
    ),
    "sends an endless header": Expected(endless(b"HTTP/1.1 200 OK\r\nX: ", b"x"), None, "protocol"),
    "sends endless headers": Expected(endless(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"), None, "protocol"),
    "sends an endless status line": Expected(endless(b"HTTP/1.1 200 ", b"x"), None, "protocol"),
    "sends an endless chunk size": Expected(
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"), 200, None
    ),
    "sends endless interim answers": Expected(endless(b"", b"HTTP/1.1 103 X\r\n\r\n"), None, "protocol"),
    "goes on after its answer": Expected(
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        200,
        None,
    ),
    "goes on when nobody expects it": Expected(chatter, 200, None),
    "sends a bomb": Expected(reply(500, BOMB, b"Content-Encoding: gzip"), 500, "http", BOMB[:1024]),
    "does not speak HTTP": Expected(raw(b"220 mail.example ESMTP\r\n"), None, "protocol"),
    "speaks garbage": Expected(raw(b"\x00\xff\xfe\r\n\r\n"), None, "protocol"),
    "speaks HTTP badly": Expected(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1e309\r\n\r\n"), None, "protocol"),
    "closes at once": Expected(raw(b""), None, "connect"),
    "resets": Expected(reset, None, "connect"),
    "closes within its head": Expected(raw(b"HTTP/1.1 200 OK\r\nContent-Le"), None, "connect"),
    "closes within its body": Expected(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), 200, None),
    "closes within the body of a failure": Expected(
        raw(b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\nhalf"), 500, "http"
    ),
    "closes a kept connection before the next request": Expected(close_before_the_next, 200, None),
    "closes a kept connection after its answer": Expected(close_after_the_answer, 200, None),
    "redirects to itself": Expected(redirect_to_itself, 307, "http"),
    "answers when it is too late": Expected(answer_late, None, "timeout"),
    "answers NUL and broken UTF-8": Expected(
        reply(500, b"\x00\xff\xfe\xed\xa0\x80", b"Retry-After: 1e309", b"X-Odd: \x01\xff"),
        *(500, "http", b"\x00\xff\xfe\xed\xa0\x80"),
    ),
}


class Running(NamedTuple):
    """A delivery loop and its books."""

    loop: DeliveryLoop
    books: Books


@asynccontextmanager
async def running(databases: Databases, timeout_s: float) -> AsyncIterator[Running]:
    url = await databases.create()
    connection = await asyncpg.connect(url)
    async with open_cell(url) as cell, delivering(cell, delivery_timeout_s=timeout_s, retry_schedule=(3600.0,)) as loop:
        yield Running(loop, Books(cell, connection))
    await connection.close()


@pytest.fixture(scope="module")
async def patient(databases: Databases) -> AsyncIterator[Running]:
    """One loop that meets them all, one after the other."""
    async with running(databases, 10.0) as entered:
        yield entered


@pytest.fixture(scope="module")
async def hurried(databases: Databases) -> AsyncIterator[Running]:
    """The same for those who let the timeout pass."""
    async with running(databases, TIMEOUT_S) as entered:
        yield entered


@pytest.fixture
async def neighbour() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


async def check_attempts(books: Books, endpoint_id: UUID, expected: Expected, count: int) -> None:
    """Wait until each of so many deliveries has had its attempt, and see what is written of it."""

    async def recorded() -> list[asyncpg.Record] | None:
        found = await books.read("select * from relay.attempts where endpoint_id = $1", endpoint_id)
        return found if len(found) >= count else None

    rows = await until(recorded)
    assert {(row["number"], row["status_code"], row["error_class"]) for row in rows} == {
        (1, expected.status_code, expected.error_class)
    }
    assert len(rows) == count
    assert all(len(row["response"] or b"") <= 1024 for row in rows)
    if expected.response is not None:
        assert {row["response"] for row in rows} == {expected.response}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_receiver_gets_its_attempts_recorded_and_a_neighbour_its_deliveries(
    patient: Running, hurried: Running, neighbour: Receiver, name: str
) -> None:
    expected = HOSTILE[name]
    loop, books = hurried if expected.error_class == "timeout" else patient
    async with Receiver(expected.script) as hostile:
        organization_id, endpoint_id = await books.endpoint(hostile.url)
        other_id, neighbour_id = await books.endpoint(neighbour.url)
        await books.accept(organization_id, EVENTS)
        await hostile.until(1)
        for number in range(1, 4):
            await books.accept(other_id)
            await neighbour.until(number)
        await check_attempts(books, endpoint_id, expected, EVENTS)
        await check_attempts(books, neighbour_id, Expected(reply(), 200, None), 3)
        if expected.error_class is None:
            # Over the connections that it said it would keep.
            await books.accept(organization_id, EVENTS)
            await check_attempts(books, endpoint_id, expected, 2 * EVENTS)
    rows = await books.read("select status from relay.deliveries where endpoint_id = $1", endpoint_id)
    assert [row["status"] for row in rows] == ([] if expected.error_class else ["delivered"] * 2 * EVENTS)
    waiting = await books.read("select attempts, claim_token from relay.open where endpoint_id = $1", endpoint_id)
    assert [tuple(row) for row in waiting] == ([(1, None)] * EVENTS if expected.error_class else [])
    assert not loop.broken.is_set()


def peak_kib(pid: int) -> int:
    """The most memory that a process has held since it was last asked to forget that."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_all_of_them_together_cost_bounded_memory_and_no_neighbour(
    cell: Cell, database: str, neighbour: Receiver, commands: Commands
) -> None:
    connection = await asyncpg.connect(database)
    books = Books(cell, connection)
    other_id, neighbour_id = await books.endpoint(neighbour.url)
    child = await commands.deliver(database, RELAY_RETRY_SCHEDULE="3600")
    assert child.pid is not None
    # Threads, pools and caches that any work brings.
    await books.accept(other_id, 50)
    await neighbour.until(50)
    before = peak_kib(child.pid)
    async with AsyncExitStack() as stack:
        endpoints = {}
        for name, expected in HOSTILE.items():
            hostile = await stack.enter_async_context(Receiver(expected.script))
            organization_id, endpoint_id = await books.endpoint(hostile.url)
            endpoints[name] = endpoint_id
            await books.accept(organization_id, EVENTS)
        for number in range(51, 61):
            await books.accept(other_id)
            await neighbour.until(number)
        for name, endpoint_id in endpoints.items():
            # The others hang still.
            if HOSTILE[name].error_class != "timeout":
                await check_attempts(books, endpoint_id, HOSTILE[name], EVENTS)
    await check_attempts(books, neighbour_id, Expected(reply(), 200, None), 60)
    # A dozen of the receivers offered 5 GB, four times each.
    assert peak_kib(child.pid) - before < 32 * 1024
    await connection.close()


async def test_only_a_certificate_that_is_good_for_the_host_is_talked_to(
    cell: Cell, database: str, tmp_path: Path, neighbour: Receiver, commands: Commands
) -> None:
    authority = Authority(tmp_path, "authority")
    presented = {
        "good": authority.presents("localhost"),
        "expired": authority.presents("localhost", days=(-9.0, -1.0)),
        "of tomorrow": authority.presents("localhost", days=(0.5, 1.0)),
        "of another host": authority.presents("example.com"),
        "of strangers": Authority(tmp_path, "strangers").presents("localhost"),
    }
    connection = await asyncpg.connect(database)
    books = Books(cell, connection)
    # As an operator would have it trusted.
    await commands.deliver(database, SSL_CERT_FILE=str(authority.path), RELAY_RETRY_SCHEDULE="3600")
    async with AsyncExitStack() as stack:
        endpoints = {}
        for name, tls in presented.items():
            receiver = await stack.enter_async_context(Receiver(tls=tls))
            url = receiver.url.replace("127.0.0.1", "localhost")
            endpoints[name] = (receiver, *await books.endpoint(url))
        other_id, neighbour_id = await books.endpoint(neighbour.url)
        for _, organization_id, _ in endpoints.values():
            await books.accept(organization_id, EVENTS)
        await books.accept(other_id, EVENTS)
        for name, (receiver, _, endpoint_id) in endpoints.items():
            expected = Expected(reply(), 200, None) if name == "good" else Expected(reply(), None, "tls")
            await check_attempts(books, endpoint_id, expected, EVENTS)
            assert len(receiver.received) == (EVENTS if name == "good" else 0)
        await check_attempts(books, neighbour_id, Expected(reply(), 200, None), EVENTS)
    await connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not this machine")
async def test_a_name_that_means_this_machine_the_second_time_is_blocked(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanings = iter(("127.0.0.2", "127.0.0.1"))
    real = socket.getaddrinfo

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        return real(next(meanings) if host == "rebinding.example" else host, *args, **options)

    # The system's resolver, whose answers come from the owner of the name.
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    options: dict[str, Any] = {
        "allowed_networks": (ipaddress.ip_network("127.0.0.2/32"),),
        "retry_schedule": (3600.0,),
    }
    connection = await asyncpg.connect(database)
    async with Receiver(host="0.0.0.0") as receiver, open_cell(database) as cell:  # noqa: S104 - as both
        books = Books(cell, connection)
        organization_id, endpoint_id = await books.endpoint(f"http://rebinding.example:{receiver.port}/hook")
        other_id, neighbour_id = await books.endpoint(f"http://127.0.0.2:{receiver.port}/neighbour")
        await books.accept(organization_id)
        async with delivering(cell, **options):
            await check_attempts(books, endpoint_id, Expected(reply(), 200, None), 1)
        # Another process, which remembers no addresses.
        (event_id,) = await books.accept(organization_id)
        await books.accept(other_id, 3)
        async with delivering(cell, **options):
            await check_attempts(books, neighbour_id, Expected(reply(), 200, None), 3)
            (attempt,) = await until(lambda: books.read("select * from relay.attempts where event_id = $1", event_id))
        assert (attempt["status_code"], attempt["error_class"]) == (None, "blocked")
        assert [request.path for request in receiver.received] == ["/hook"] + ["/neighbour"] * 3
        # Each attempt asked once: what was judged is what was connected to.
        assert next(meanings, None) is None
    await connection.close()
