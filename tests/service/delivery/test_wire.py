"""The bytes of a request and its response: the configured URL is sent, and packet boundaries do not matter."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import pytest
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.delivery.transport.idle_connections import keep_s
from relay.delivery.transport.receiver_connection import ReceiverConnection
from relay.delivery.transport.request import SigningKeys, Target
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.response_reader import is_interim
from relay.delivery.transport.sender import AttemptResponse, Post, Sender
from relay.delivery.transport.ssrf_guard import SsrfGuard
from relay.values.uuid7 import Uuid7Clock
from tests.support.receiver import Received, Receiver, Script, raw, reply

LOOPBACK = SsrfGuard((ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
SECRET = b"s" * 32
CLOCK = Uuid7Clock()


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(LOOPBACK, now=lambda: datetime.datetime.now(datetime.UTC)) as entered:
        yield entered


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


async def attempt(
    sender: Sender, url: str, payload: bytes = b"1", timeout_s: float = 5.0, **headers: str
) -> AttemptResponse:
    return await sender.send(
        Post(Target(url, SigningKeys(SECRET), headers, timeout_s), CLOCK.new(), "order.created", payload, 1)
    )


@pytest.mark.parametrize(
    ("configured", "sent"),
    [
        ("/hook?next=%2Fa%3Ab&x=%20+", "/hook?next=%2Fa%3Ab&x=%20+"),
        ("/a/../b/./c//d", "/a/../b/./c//d"),
        ("/a%2fb%41", "/a%2fb%41"),
        ("", "/"),
        ("?x=1", "/?x=1"),
        ("/?", "/?"),
        ("/'()*!$&;=@:,~|^`{}[]\"<>", "/'()*!$&;=@:,~|^`{}[]\"<>"),
        ("/ü?q=€", "/%C3%BC?q=%E2%82%AC"),
        ("/x#fragment", "/x"),
        ("/100%", "/100%"),
    ],
)
async def test_the_path_and_query_are_sent_as_they_were_configured(
    sender: Sender, receiver: Receiver, configured: str, sent: str
) -> None:
    assert (await attempt(sender, f"http://127.0.0.1:{receiver.port}{configured}")).error_class is None
    assert receiver.received[0].path == sent


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("127.0.0.1:{port}", "127.0.0.1:{port}"),
        ("LOCALHOST:{port}", "localhost:{port}"),
        ("[::1]:{port}", "[::1]:{port}"),
        ("us%65r:p%40ss@127.0.0.1:{port}", "127.0.0.1:{port}"),
    ],
)
async def test_the_host_header_names_the_host_and_no_user(sender: Sender, authority: str, host: str) -> None:
    async with Receiver(host="::1" if "::1" in authority else "127.0.0.1") as receiver:
        url = f"http://{authority.format(port=receiver.port)}/"
        assert (await attempt(sender, url)).error_class is None
        assert receiver.received[0].headers["host"] == host.format(port=receiver.port)
        expected = "Basic dXNlcjpwQHNz" if "@" in authority else None
        assert receiver.received[0].headers.get("authorization") == expected


async def test_an_international_name_is_asked_for_and_named_in_ascii(receiver: Receiver) -> None:
    from relay.delivery.transport.resolver import Resolver
    from relay.delivery.transport.system_lookup import Address

    asked = []

    def look_up(host: str) -> list[Address]:
        asked.append(host)
        return [(socket.AF_INET, socket.IPPROTO_TCP, "127.0.0.1")]

    now = datetime.datetime.now(datetime.UTC)
    async with Sender(LOOPBACK, now=lambda: now, resolver=lambda: Resolver(look_up)) as sender:
        assert (await attempt(sender, f"http://bücher.example:{receiver.port}/")).error_class is None
    assert asked == ["xn--bcher-kva.example"]
    assert receiver.received[0].headers["host"] == f"xn--bcher-kva.example:{receiver.port}"


async def test_an_endpoints_own_authorization_stands_before_that_of_its_url(sender: Sender, receiver: Receiver) -> None:
    url = receiver.url.replace("127.0.0.1", "user:word@127.0.0.1")
    await attempt(sender, url, authorization="Bearer of good news")
    assert receiver.received[0].headers["authorization"] == "Bearer of good news"


@pytest.mark.parametrize("bytes_", [1, 16_000, 16_385, 262_144])
async def test_a_body_of_any_size_arrives_as_it_was_signed(sender: Sender, receiver: Receiver, bytes_: int) -> None:
    payload = b'"' + b"x" * (bytes_ - 2) + b'"' if bytes_ > 1 else b"1"
    for _ in range(2):
        assert (await attempt(sender, receiver.url, payload)).error_class is None
    for request in receiver.received:
        assert request.body.endswith(b'"data":' + payload + b"}")
    assert receiver.connections == 1


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = b"X: " + b"x" * 9_000 + b"\r\n"
MANY = b"".join(b"X-%d: x\r\n" % number for number in range(200))

#: Responses whose status counts whatever follows or fills their heads: status and body.
COMPLETE = {
    "a body after 204": (b"HTTP/1.1 204 No Content\r\n\r\nhello", 204, b""),
    "a length and a body after 204": (b"HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\nhello", 204, b""),
    "a length in characters": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xc3\xa9\xc3\xa9", 200, b"\xc3\xa9"),
    "a byte more": (GOOD + b"x", 200, b"ok"),
    "a line break more": (GOOD + b"\r\n", 200, b"ok"),
    "a body after a length of 0": (b"HTTP/1.1 202 X\r\nContent-Length: 0\r\n\r\n{}", 202, b""),
    "a failure and a byte more": (b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno!", 500, b"no"),
    "a bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n", 200, b"abc"),
    "garbage after the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nx", 200, b"ab",
    ),
    "an interim response and a byte more": (b"HTTP/1.1 103 X\r\nLink: x\r\n\r\n" + GOOD + b"x", 200, b"ok"),
    "two responses": (GOOD + GOOD.replace(b"200", b"500"), 200, b"ok"),
    "a response and half of another": (GOOD + b"HTTP/1.1 500", 200, b"ok"),
    "bare line feeds and a byte more": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nokx", 200, b"ok"),
    "a long line": (b"HTTP/1.1 200 OK\r\n" + LONG + b"Content-Length: 0\r\n\r\n", 200, b""),
    "a long line and a failure": (b"HTTP/1.1 503 X\r\n" + LONG + b"\r\n", 503, b""),
    "a long reason": (b"HTTP/1.1 201 " + b"x" * 9_000 + b"\r\n\r\n", 201, b""),
    "many lines": (b"HTTP/1.1 200 OK\r\n" + MANY + b"\r\n", 200, b""),
    "an interim response with many lines": (b"HTTP/1.1 103 X\r\n" + MANY + b"\r\n" + GOOD, 200, None),
}  # fmt: skip

#: Those after which the connection is as good as before: an empty line may stand before a response.
HARMLESS = ("a line break more", "an interim response with many lines")

#: Responses that aiohttp's own session takes, and takes alike.
PLAIN = {
    "a length": GOOD,
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
    "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: x\r\n\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "version 1.0": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "version 1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx",
    "the connection ends": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    "interim responses": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\n" + GOOD,
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "odd bytes": b"HTTP/1.1 500 \xff\r\nX-Odd: \xff\xfe\r\nContent-Length: 2\r\n\r\n\x00\xff",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
    "a failure": b"HTTP/1.1 503 X\r\nRetry-After: 5\r\nContent-Length: 2\r\n\r\nno",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
}

#: What is no response.
BROKEN = {
    "nothing at all": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a status": b"HTTP/1.1 2",
    "another service": b"220 mail.example ESMTP\r\n",
    "a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "two ways of framing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    "a bad header": b"HTTP/1.1 200 OK\r\nX y: z\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "version 2": b"HTTP/2 200 OK\r\n\r\n",
    "a bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "only interim responses": b"HTTP/1.1 103 X\r\n\r\n" * 3,
    "too many interim responses": b"HTTP/1.1 103 X\r\n\r\n" * 20 + GOOD,
}


@pytest.mark.parametrize("name", COMPLETE)
async def test_a_complete_head_counts_whatever_follows_it(sender: Sender, receiver: Receiver, name: str) -> None:
    response, status, body = COMPLETE[name]

    async def script(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(response)
        await writer.drain()
        # Were the connection kept, this would go on to the next request.
        return True

    receiver.script = script
    for number in (1, 2):
        answer = await attempt(sender, receiver.url)
        assert answer.status_code == status
        assert answer.error_class is (None if status < 300 else ErrorClass.HTTP)
        assert body is None or answer.body == body
        assert receiver.connections == (1 if name in HARMLESS else number)


class Cut(asyncio.Transport):
    """The side of a connection that a test holds: it notes that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def result_of(pieces: Iterable[bytes]) -> tuple[object, ...]:
    """What a connection makes of bytes that come in these pieces, up to its end: a status and the body, or an error."""
    connection, transport = ReceiverConnection(asyncio.get_running_loop()), Cut()
    connection.connection_made(transport)
    connection.begin()
    for piece in pieces:
        if transport.closed:
            break
        connection.data_received(piece)
    connection.connection_lost(None)
    try:
        head, content = await connection.read()
        while is_interim(head.code):
            head, content = await connection.read()
    except (aiohttp.ClientError, HttpProcessingError) as error:
        return ("lost" if isinstance(error, aiohttp.ClientConnectionError) else "refused",)
    return head.code, content.read_nowait(1024) if not content.at_eof() else b""


async def check_all_cuts(response: bytes) -> None:
    whole = await result_of([response])
    places = range(len(response)) if len(response) < 600 else [*range(0, len(response), 397), len(response) - 1]
    for place in places:
        assert await result_of([response[:place], response[place:]]) == whole, (place, response[:200])
    assert await result_of([response[place : place + 1] for place in range(len(response))]) == whole


@pytest.mark.parametrize("name", [*COMPLETE, *PLAIN, *BROKEN])
async def test_a_response_means_the_same_wherever_it_is_cut(name: str) -> None:
    await check_all_cuts(COMPLETE[name][0] if name in COMPLETE else PLAIN.get(name) or BROKEN[name])


LINES = st.sampled_from(
    (
        b"Content-Length: 3", b"Content-Length: 0", b"Content-Length: 5", b"Connection: close", b"X: y", b"X: ",
        b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Retry-After: 3", b"Set-Cookie: a=b", b"bad line",
        b"Keep-Alive: timeout=5", b" folded", b"X: \xff",
    )
)  # fmt: skip
STATUS_LINES = st.sampled_from(
    (
        b"HTTP/1.1 200 OK", b"HTTP/1.1 204 X", b"HTTP/1.0 200 OK", b"HTTP/1.1 500 X", b"HTTP/1.1 304 X",
        b"HTTP/1.1 200", b"HTTP/1.1 103 X", b"HTTP/1.1 99 X", b"HTTP/1.1 101 X", b"HTTP/1.1 600 X",
    )
)  # fmt: skip
BODIES = st.sampled_from((b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"abcde", b"3\r\nabc", b"\r\n", b"z\r\n\r\n", b"\0"))


@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(st.tuples(STATUS_LINES, st.lists(LINES, max_size=4), BODIES), min_size=1, max_size=3),
    ending=st.sampled_from((b"\r\n", b"\n")),
    data=st.data(),
)
def test_any_response_means_the_same_wherever_it_is_cut(
    parts: list[tuple[bytes, list[bytes], bytes]], ending: bytes, data: st.DataObject
) -> None:
    response = b"".join(ending.join([line, *headers, b"", b""]) + body for line, headers, body in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(response)), max_size=6)))
    pieces = [response[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(response)], strict=True)]

    async def check() -> None:
        whole = await result_of([response])
        assert await result_of(pieces) == whole, (pieces, response)
        # However little comes at once.
        assert await result_of([bytes((octet,)) for octet in response]) == whole, response

    asyncio.run(check())


@pytest.mark.parametrize("name", PLAIN)
async def test_plain_responses_are_read_as_aiohttps_session_reads_them(
    sender: Sender, receiver: Receiver, name: str
) -> None:
    receiver.script = raw(PLAIN[name])
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(receiver.url, data=b"1", allow_redirects=False) as response,
    ):
        expected = response.status, b"" if response.status == 101 else await response.read()
    answer = await attempt(sender, receiver.url)
    assert (answer.status_code, answer.body) == expected


@pytest.mark.parametrize("name", BROKEN)
async def test_what_aiohttps_session_rejects_is_rejected(sender: Sender, receiver: Receiver, name: str) -> None:
    receiver.script = raw(BROKEN[name])
    answer = await attempt(sender, receiver.url)
    assert answer.status_code is None
    assert answer.error_class in (ErrorClass.CONNECT, ErrorClass.PROTOCOL)
    # It takes interim responses without end, which is why there is a limit of ours.
    if name != "too many interim responses":
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(receiver.url, data=b"1")


async def test_a_response_that_is_early_is_the_response(sender: Sender) -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hasty, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for payload in (b"1", b"1" * 262_144):
            answer = await attempt(sender, url, payload)
            assert (answer.status_code, answer.body) == (413, b"no")


async def test_a_connection_whose_request_was_not_taken_is_broken_off(sender: Sender) -> None:
    loop = asyncio.get_running_loop()

    def narrow(addr_info: Any) -> socket.socket:
        made = LOOPBACK(addr_info)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return made

    sender._connection_pool._pool._socket_factory = narrow
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        for answered in (True, False):
            attempting = asyncio.create_task(attempt(sender, url, b"1" * 262_144, 5.0 if answered else 0.2))
            receiving, _ = await loop.sock_accept(listening)
            with receiving:
                if answered:
                    await loop.sock_sendall(receiving, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                assert (await attempting).error_class is (None if answered else ErrorClass.TIMEOUT)
                assert sender._connection_pool.idle == 0
                # What was not taken is not waited for: only what the kernel holds still comes.
                came = 0
                with contextlib.suppress(ConnectionResetError):
                    while data := await loop.sock_recv(receiving, 65_536):
                        came += len(data)
                assert came < 262_144


def script_of(*headers: bytes) -> Script:
    return reply(200, b"ok", *headers)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("timeout=5", 4.0),
        ("timeout=5, max=100", 4.0),
        ("max=100, timeout=15", 14.0),
        ("TIMEOUT = 30", 29.0),
        ('timeout="20"', 19.0),
        ("timeout=75", 60.0),
        ("timeout=999999999", 60.0),
        ("timeout=2", 1.0),
        ("timeout=1", 0.5),
        ("timeout=0", 0.0),
        ("max=5", 4.0),
        ("xtimeout=9", 4.0),
        ("", 4.0),
    ],
)
def test_a_connection_is_kept_as_long_as_its_receiver_says_within_bounds(said: str, kept: float) -> None:
    assert keep_s(said) == kept


async def test_a_connection_that_its_receiver_ends_at_once_is_not_used_again(
    sender: Sender, receiver: Receiver
) -> None:
    receiver.script = script_of(b"Keep-Alive: timeout=0")
    for number in (1, 2):
        assert (await attempt(sender, receiver.url)).error_class is None
        assert receiver.connections == number


async def test_connections_are_kept_for_one_that_says_so_and_closed_when_their_time_is_over(
    sender: Sender, receiver: Receiver
) -> None:
    receiver.script = script_of(b"Keep-Alive: timeout=30")
    assert (await attempt(sender, receiver.url)).error_class is None
    (kept,) = sender._connection_pool._kept
    assert 28 < kept.keep_until - asyncio.get_running_loop().time() <= 29
    kept.keep_until = 0.0
    async with asyncio.timeout(10):
        while sender._connection_pool.idle:
            await asyncio.sleep(0.01)
    assert kept.transport is None
    assert (await attempt(sender, receiver.url)).error_class is None
    assert receiver.connections == 2


async def test_kept_connections_give_way_to_new_ones_at_the_limit(sender: Sender) -> None:
    sender._connection_pool._max_connections = 3
    receivers = [Receiver() for _ in range(5)]
    for receiver in receivers:
        async with receiver:
            assert (await attempt(sender, receiver.url)).error_class is None
            assert sender._connection_pool.idle <= 3
    assert sender._connection_pool._busy == 0


async def test_an_organization_with_many_kept_connections_gives_way_before_others(sender: Sender) -> None:
    pool = sender._connection_pool
    pool._max_connections = 4
    pool._kept.most_of_one = 2
    quiet, greedy = CLOCK.new(), CLOCK.new()
    async with Receiver() as first, Receiver() as second, Receiver() as third, Receiver() as fourth, Receiver() as last:
        for organization_id, receiver in (
            (quiet, first), (greedy, second), (greedy, third), (greedy, fourth), (greedy, last), (quiet, first),
        ):  # fmt: skip
            target = Target(receiver.url, SigningKeys(SECRET), {}, 5.0, organization_id)
            response = await sender.send(Post(target, CLOCK.new(), "order.created", b"1", 1))
            assert response.error_class is None
        # The quiet one's connection was idle longest, and is still there.
        assert first.connections == 1
        assert pool.idle == sum(len(own) for own in pool._kept._of.values())
