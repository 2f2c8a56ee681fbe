"""Bodies that come slowly or not at all, under the HTTP server that we ship."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from relay.errors import ApiError
from relay.http.access_log import AccessLog
from relay.http.application import Application
from relay.http.body import DROPPED_BYTES, DROPPED_S, BodyReader
from relay.http.dispatcher import Dispatcher
from relay.http.exchange import JSON, Exchange, Receive, Scope, Send
from relay.http.operations import Operation, RawHandler
from relay.telemetry.metrics import Metrics
from relay.values.json_encoding import encode
from tests.conftest import free_port
from tests.service.http.test_http import assert_error, chunk, connection, head
from tests.support.wire import read_answer

BETWEEN_BYTES_S = 0.3
WHOLE_BODY_S = 1.0


class Echo(RawHandler):
    """Answers with the size of the body."""

    def __init__(self, bodies: BodyReader) -> None:
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["relay"]
        body = await self._bodies.read(exchange, 1024 * 1024)
        await exchange.respond(200, encode({"size": len(body)}), JSON)


class Refuse(RawHandler):
    """Answers without a look at the body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise ApiError("missing_api_key")


class House:
    """The clock, and the port at which it is used."""

    def __init__(self, bodies: BodyReader, port: int) -> None:
        self.bodies = bodies
        self.port = port


@asynccontextmanager
async def opened() -> AsyncIterator[House]:
    port = free_port()
    async with BodyReader(between_bytes_s=BETWEEN_BYTES_S, whole_body_s=WHOLE_BODY_S) as bodies:
        operations = (
            Operation("POST", "/echo", Echo(bodies), success={200: None}, scope=None),
            Operation("POST", "/refuse", Refuse(), success={200: None}, scope=None),
        )
        front = Application(operations, Dispatcher(), Metrics(), AccessLog(0.0))
        server = Server(
            front,
            address="127.0.0.1",
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
        )
        serving = asyncio.create_task(server.serve())
        try:
            async with asyncio.timeout(10):
                await _answers(port)
            yield House(bodies, port)
        finally:
            front.stop()
            server.stop()  # type: ignore[no-untyped-call]
            await serving


async def _answers(port: int) -> None:
    while True:
        try:
            async with connection(port):
                return
        except OSError:
            await asyncio.sleep(0.005)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with opened() as made:
        yield made


async def drip(writer: asyncio.StreamWriter, pieces: list[bytes], every_s: float) -> None:
    """Send a piece every now and then, until there is nobody to take it."""
    for piece in pieces:
        await asyncio.sleep(every_s)
        if writer.is_closing():
            return
        writer.write(piece)


async def ended_as_too_slow(house: House, request: bytes, pieces: list[bytes], every_s: float) -> float:
    """Whether a request gets 408 and its connection is closed; after how long the answer came."""
    async with asyncio.timeout(20), connection(house.port) as (reader, writer):
        begun = time.monotonic()
        writer.write(request)
        dripping = asyncio.create_task(drip(writer, pieces, every_s))
        try:
            assert_error(await read_answer(reader), 408, "body_timeout")
            answered = time.monotonic() - begun
            assert await reader.read() == b""
        finally:
            dripping.cancel()
            await asyncio.wait((dripping,))
        return answered


async def test_slow_bodies_are_ended_and_their_connections_closed(house: House) -> None:
    silent, silent_after_one, trickling, never_ending, waited_for, _ = await asyncio.gather(
        ended_as_too_slow(house, head("POST", "/echo", Content_Length=100), [], 0),
        ended_as_too_slow(house, head("POST", "/echo", Content_Length=100) + b" ", [], 0),
        ended_as_too_slow(house, head("POST", "/echo", Content_Length=100), [b" "] * 99, 0.1),
        ended_as_too_slow(house, head("POST", "/echo", Transfer_Encoding="chunked"), [chunk(b" ")] * 99, 0.1),
        ended_after_100_continue(house),
        closed_after_its_refusal(house),
    )
    assert min(silent, silent_after_one, waited_for) > BETWEEN_BYTES_S
    assert min(trickling, never_ending) > WHOLE_BODY_S


async def ended_after_100_continue(house: House) -> float:
    async with asyncio.timeout(20), connection(house.port) as (reader, writer):
        begun = time.monotonic()
        writer.write(head("POST", "/echo", Content_Length=100, Expect="100-continue"))
        assert (await read_answer(reader)).status == 100
        assert_error(await read_answer(reader), 408, "body_timeout")
        answered = time.monotonic() - begun
        assert await reader.read() == b"", "closed without the garbage collector's help"
        return answered


async def closed_after_its_refusal(house: House) -> None:
    async with asyncio.timeout(20), connection(house.port) as (reader, writer):
        begun = time.monotonic()
        writer.write(head("POST", "/refuse", Content_Length=100) + b"x")
        assert_error(await read_answer(reader), 401, "missing_api_key")
        assert await reader.read() == b""
        # A loop's timers are exact to a millisecond.
        assert time.monotonic() - begun > DROPPED_S - 0.002, "the rest of the body had that long to come"


async def test_a_body_within_the_limits_is_read_whatever_its_pace(house: House) -> None:
    async with asyncio.timeout(20), connection(house.port) as (reader, writer):
        for pieces, every_s in (([b"x"] * 5, 0.1), ([b"x" * 500_000] * 2, 0.0)):
            size = sum(map(len, pieces))
            writer.write(head("POST", "/echo", Content_Length=size))
            await drip(writer, pieces, every_s)
            answer = await read_answer(reader)
            assert (answer.status, json.loads(answer.body)) == (200, {"size": size})


async def test_when_the_process_stops_slow_bodies_are_told_so() -> None:
    async with opened() as house, connection(house.port) as (reader, writer):
        writer.write(head("POST", "/echo", Content_Length=100) + b"x")
        house.bodies.stop()
        async with asyncio.timeout(10):
            answer = await read_answer(reader)
        assert_error(answer, 503, "shutting_down")
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")


async def send_until_it_breaks(port: int, most_bytes: int) -> tuple[int, int]:
    """Post a body that is refused at once, as fast as it goes: the status read first, and how much was then taken."""
    loop = asyncio.get_running_loop()
    line = socket.socket()
    line.setblocking(False)
    piece = b"x" * 65_536
    sent = 0
    with line:
        await loop.sock_connect(line, ("127.0.0.1", port))
        await loop.sock_sendall(line, head("POST", "/refuse", Content_Length=most_bytes))
        status = int((await loop.sock_recv(line, 4096)).split()[1])
        try:
            while sent < most_bytes:
                await loop.sock_sendall(line, piece)
                sent += len(piece)
        except OSError:
            pass
    return status, sent


async def test_of_a_refused_body_no_more_than_8_mib_are_dropped(house: House) -> None:
    most_bytes = 256 * 1024 * 1024
    async with asyncio.timeout(20):
        status, sent = await send_until_it_breaks(house.port, most_bytes)
    assert status == 401
    # What the kernels of both ends hold comes on top.
    assert DROPPED_BYTES <= sent < DROPPED_BYTES + 32 * 1024 * 1024
