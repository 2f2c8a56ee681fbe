"""Clients that ask and do not read, that vanish, or that only open connections, under the HTTP server that we ship."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import pytest

from relay.cli.http_server import end_unread_answers, http_server, until_it_answers
from relay.http import bulkhead as bulkheads
from relay.http import exchange as exchanges
from relay.http.access_log import AccessLog
from relay.http.application import Application
from relay.http.bulkhead import Bulkheads
from relay.http.dispatcher import Dispatcher
from relay.http.exchange import PIECE_BYTES
from relay.http.operations import Operation
from relay.http.request import Request
from relay.http.response import Response
from relay.telemetry.metrics import Metrics
from tests.conftest import free_port
from tests.service.http.test_http import connection, head
from tests.support.wire import read_answer

# More than the kernels of both ends hold.
LARGE_BYTES = 16 * 1024 * 1024
ASK = head("GET", "/large")
ORGANIZATION = UUID(int=7)


class Large:
    """Answers with more than a client's buffers take."""

    def __init__(self) -> None:
        self.body = b"x" * LARGE_BYTES

    async def __call__(self, request: Request[None, None]) -> Response:
        return Response(200, self.body)


class Sized:
    """Answers with as many bytes as the path says, as large answers of one organization are answered."""

    def __init__(self) -> None:
        self.bulkheads = Bulkheads(connections=8, body_bytes=1)

    async def __call__(self, request: Request[None, None]) -> Response:
        exchange = request.exchange
        exchange.bulkhead = self.bulkheads.enter(ORGANIZATION)
        await exchange.take_permit()
        size = int(request.scope["path_params"]["size"])
        return Response(200, bytes(number % 251 for number in range(251)) * (size // 251 + 1))


class House:
    """A front behind the server that `relay serve` uses."""

    def __init__(self, application: Application, port: int, sized: Sized) -> None:
        self.application = application
        self.port = port
        self.sized = sized


@asynccontextmanager
async def opened(**options: float) -> AsyncIterator[House]:
    port = free_port()
    sized = Sized()
    application = Application(
        (
            Operation("GET", "/large", Large(), success={200: None}, scope=None),
            Operation("GET", "/sized/{size}", sized, success={200: None}, scope=None),
        ),
        Dispatcher(),
        Metrics(),
        AccessLog(0.0),
    )
    server = http_server(application, "127.0.0.1", port, backlog=128, connections=1000, **options)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            await until_it_answers(serving, "127.0.0.1", port)
        yield House(application, port, sized)
    finally:
        application.stop()
        server.stop()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(20):
            await serving


async def ask(port: int, request: bytes = ASK) -> socket.socket:
    """A client that sends a request and reads nothing."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, ("127.0.0.1", port))
    await loop.sock_sendall(line, request)
    return line


async def rest_of(line: socket.socket) -> bytes:
    """All that still comes, until the other end closes; what a reset has thrown away is not there."""
    loop = asyncio.get_running_loop()
    read = bytearray()
    try:
        while piece := await loop.sock_recv(line, 1 << 20):
            read += piece
    except ConnectionError:
        pass
    return bytes(read)


async def test_an_answer_that_is_not_read_is_given_up_and_its_connection_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanges, "UNREAD_S", 0.3)
    async with asyncio.timeout(60), opened() as house, AsyncExitStack() as stack:
        lines = [stack.enter_context(await ask(house.port)) for _ in range(5)]
        await until_answered(lines)
        house.application.stop()
        await house.application.quiet()
        for line in lines:
            assert len(await rest_of(line)) < LARGE_BYTES, "the rest was dropped, and the client sees that it was"


async def until_answered(lines: list[socket.socket]) -> None:
    """Wait until the first bytes of every answer are there; they stay unread."""
    loop = asyncio.get_running_loop()
    for line in lines:
        ready = asyncio.Event()
        loop.add_reader(line, ready.set)
        await ready.wait()
        loop.remove_reader(line)


async def test_an_answer_that_drips_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "WHOLE_RESPONSE_S", 1.0)
    async with asyncio.timeout(60), opened() as house:
        line = await ask(house.port)
        loop = asyncio.get_running_loop()
        read = 0
        begun = time.monotonic()
        with line:
            while time.monotonic() - begun < 1.5:
                read += len(await loop.sock_recv(line, PIECE_BYTES))
                await asyncio.sleep(0.02)
            read += len(await rest_of(line))
        assert read < LARGE_BYTES


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 300, PIECE_BYTES, PIECE_BYTES + 1, 5_000_000])
async def test_an_answer_of_any_size_arrives_whole_and_the_connection_goes_on(size: int) -> None:
    expected = bytes(number % 251 for number in range(251)) * (size // 251 + 1)
    async with asyncio.timeout(30), opened() as house, connection(house.port) as (reader, writer):
        for _ in range(3):
            writer.write(head("GET", f"/sized/{size}"))
            assert (await read_answer(reader)).body == expected
            writer.write(head("GET", "/nothing"))
            assert (await read_answer(reader)).status == 404
        assert len(house.sized.bulkheads) == 0


async def test_a_client_that_leaves_in_the_middle_of_its_answer_is_not_waited_for() -> None:
    async with asyncio.timeout(30), opened() as house:
        for _ in range(3):
            with await ask(house.port, head("GET", f"/sized/{LARGE_BYTES}")) as line:
                await until_answered([line])
        house.application.stop()
        await house.application.quiet()
        assert len(house.sized.bulkheads) == 0


async def test_who_does_not_read_large_answers_runs_out_of_permits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "UNREAD_S", 60.0)
    monkeypatch.setattr(bulkheads, "WAIT_S", 60.0)
    async with asyncio.timeout(60), opened() as house, AsyncExitStack() as stack:
        large = head("GET", f"/sized/{LARGE_BYTES}")
        # Four large answers are on their way, and two more have both permits of this organization.
        lines = [stack.enter_context(await ask(house.port, large)) for _ in range(6)]
        bulkhead = house.sized.bulkheads.enter(ORGANIZATION)
        while bulkhead.requests < 7:
            await asyncio.sleep(0.005)
        async with connection(house.port) as (reader, writer):
            writer.write(head("GET", "/sized/1"))
            answering = asyncio.create_task(read_answer(reader))
            while bulkhead.requests < 8:
                await asyncio.sleep(0.005)
            assert not answering.done()
            # Read to its end, an answer makes room for the next.
            reading = [asyncio.create_task(rest_of(line)) for line in lines]
            assert (await answering).status == 200
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)
        bulkhead.leave(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a connection for what is not taken")
async def test_the_system_ends_connections_that_take_nothing() -> None:
    async with asyncio.timeout(60), opened() as house:
        end_unread_answers(house.port, 1.0)
        with await ask(house.port) as line:
            # The end comes as a reset, which throws away what was not read.
            while True:
                await asyncio.sleep(0.1)
                if line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or established(house.port) == 0:
                    break
        async with connection(house.port) as (reader, writer):
            writer.write(head("GET", "/nothing"))
            assert (await read_answer(reader)).status == 404


def established(port: int) -> int:
    """How many connections the server's side of a port has that are open."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_heads_that_come_slowly_and_idle_connections_are_closed() -> None:
    async def drip(house: House, begin: bytes) -> bytes:
        async with connection(house.port) as (reader, writer):
            writer.write(begin)
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                if begin and not writer.is_closing():
                    writer.write(b"A: b\r\n")
                await asyncio.sleep(0.05)
            return reading.result()

    async def idle(house: House) -> bytes:
        async with connection(house.port) as (reader, writer):
            writer.write(head("GET", "/nothing"))
            await read_answer(reader)
            return await reader.read()

    async with asyncio.timeout(30), opened(head_s=0.5) as house:
        begin = b"GET /nothing HTTP/1.1\r\nHost: x\r\n"
        ends = await asyncio.gather(drip(house, b""), drip(house, begin), idle(house))
        assert set(ends) == {b""}


async def test_a_head_beyond_all_measure_is_not_kept() -> None:
    async with asyncio.timeout(30), opened() as house, connection(house.port) as (reader, writer):
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1024 * 1024)
        assert (await read_answer(reader)).status == 431
        assert await reader.read() == b""


async def test_an_abandoned_answer_leaves_no_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # All eight are there before the first is given up, also on a busy machine.
    monkeypatch.setattr(exchanges, "UNREAD_S", 2.0)
    gc.collect()
    async with asyncio.timeout(60), opened() as house, AsyncExitStack() as stack:
        for _ in range(8):
            stack.enter_context(await ask(house.port, head("GET", f"/sized/{LARGE_BYTES}")))
        bulkhead = house.sized.bulkheads.enter(ORGANIZATION)
        while bulkhead.requests < 9:
            await asyncio.sleep(0.005)
        while bulkhead.requests > 1:
            await asyncio.sleep(0.02)
        bulkhead.leave(0)
        held = [found for found in gc.get_objects() if isinstance(found, exchanges.Exchange)]
        assert held == [], "given up without the garbage collector's help"
