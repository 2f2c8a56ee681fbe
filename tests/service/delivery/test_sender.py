"""Single attempts at receivers that behave normally, and at receivers that attack."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay.delivery.transport.request import SigningKeys, Target
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import AttemptResponse, Post, Sender
from relay.delivery.transport.ssrf_guard import SsrfGuard
from relay.values.uuid7 import Uuid7Clock
from tests.support.receiver import Received, Receiver, hang, raw, reply

LOOPBACK = SsrfGuard((ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
SECRET = b"s" * 32
CLOCK = Uuid7Clock()


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def sender_with(guard: SsrfGuard = LOOPBACK) -> Sender:
    return Sender(guard, now=now)


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with sender_with() as entered:
        yield entered


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


def connector(sender: Sender) -> aiohttp.BaseConnector:
    return sender._connection_pool._pool


async def attempt(
    sender: Sender,
    url: str,
    payload: bytes = b"1",
    *,
    timeout_s: float = 5.0,
    headers: Mapping[str, str] | None = None,
) -> AttemptResponse:
    target = Target(url, SigningKeys(SECRET), headers or {}, timeout_s)
    return await sender.send(Post(target, CLOCK.new(), "order.created", payload, 1))


async def test_a_2xx_is_a_success_and_its_body_is_kept(sender: Sender, receiver: Receiver) -> None:
    for status in (200, 201, 202, 204, 299):
        receiver.script = reply(status, b"" if status == 204 else b"thanks")
        answer = await attempt(sender, receiver.url)
        assert (answer.status_code, answer.error_class) == (status, None)
        assert answer.body == (b"" if status == 204 else b"thanks")


async def test_everything_else_is_a_failed_attempt(sender: Sender, receiver: Receiver) -> None:
    for status in (304, 400, 404, 410, 429, 500, 503, 599, 600, 999):
        receiver.script = reply(status, b"" if status == 304 else b"no")
        answer = await attempt(sender, receiver.url)
        assert (answer.status_code, answer.error_class) == (status, ErrorClass.HTTP)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_not_followed(sender: Sender, receiver: Receiver, status: int) -> None:
    receiver.script = reply(status, b"", b"Location: " + receiver.url.encode())
    answer = await attempt(sender, receiver.url)
    assert (answer.status_code, answer.error_class) == (status, ErrorClass.HTTP)
    assert len(receiver.received) == 1


async def test_a_request_carries_only_the_headers_of_the_contract(sender: Sender, receiver: Receiver) -> None:
    receiver.script = reply(200, b"", b"Set-Cookie: a=b")
    await attempt(sender, receiver.url)
    await attempt(sender, receiver.url)
    for request in receiver.received:
        assert set(request.headers) == {
            *("host", "content-type", "content-length", "user-agent"),
            *("webhook-id", "webhook-timestamp", "webhook-signature"),
            *("x-event-id", "x-event-type", "x-delivery-attempt"),
        }


async def test_connections_are_kept_and_shared(sender: Sender, receiver: Receiver) -> None:
    receiver.script = reply(200, b"x" * 1024)
    for _ in range(3):
        assert (await attempt(sender, receiver.url)).error_class is None
    assert receiver.connections == 1


async def test_a_kept_connection_that_dies_unanswered_is_tried_once_more_on_a_new_one(
    sender: Sender, receiver: Receiver
) -> None:
    async def only_the_first_of_a_connection(request: Received, writer: asyncio.StreamWriter) -> bool:
        return request.nth == 1 and await reply()(request, writer)

    receiver.script = only_the_first_of_a_connection
    first = await attempt(sender, receiver.url)
    second = await attempt(sender, receiver.url)
    assert (first.error_class, second.error_class) == (None, None)
    assert [(request.connection, request.nth) for request in receiver.received] == [(1, 1), (1, 2), (2, 1)]
    # The same request, not a new attempt.
    assert receiver.received[1].headers["webhook-signature"] == receiver.received[2].headers["webhook-signature"]


async def test_a_new_connection_that_dies_unanswered_is_a_failed_attempt(sender: Sender, receiver: Receiver) -> None:
    receiver.script = raw(b"")
    assert (await attempt(sender, receiver.url)).error_class is ErrorClass.CONNECT
    assert len(receiver.received) == 1


async def test_a_kept_connection_that_dies_within_the_answer_is_a_failed_attempt(
    sender: Sender, receiver: Receiver
) -> None:
    await attempt(sender, receiver.url)
    receiver.script = raw(b"HTTP/1.1 2")
    assert (await attempt(sender, receiver.url)).error_class is ErrorClass.CONNECT
    assert len(receiver.received) == 2


async def test_an_answer_that_came_unasked_is_not_taken_for_the_next_one(sender: Sender, receiver: Receiver) -> None:
    go_on = asyncio.Event()

    async def twice(request: Received, writer: asyncio.StreamWriter) -> bool:
        await reply(200)(request, writer)
        await go_on.wait()
        return await reply(200, b"unasked")(request, writer)

    receiver.script = twice
    assert (await attempt(sender, receiver.url)).error_class is None
    ((kept, _),) = next(iter(connector(sender)._conns.values()))
    go_on.set()
    async with asyncio.timeout(5):
        while not kept.should_close:
            await asyncio.sleep(0.001)
    receiver.script = reply(500)
    assert (await attempt(sender, receiver.url)).status_code == 500


async def test_no_answer_within_the_timeout_is_a_timeout(sender: Sender, receiver: Receiver) -> None:
    receiver.script = hang
    answer = await attempt(sender, receiver.url, timeout_s=0.25)
    assert (answer.status_code, answer.error_class) == (None, ErrorClass.TIMEOUT)
    assert 0.2 <= answer.latency_s < 1.0


async def test_a_head_that_drips_is_a_timeout(sender: Sender, receiver: Receiver) -> None:
    async def drip(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    receiver.script = drip
    assert (await attempt(sender, receiver.url, timeout_s=0.25)).error_class is ErrorClass.TIMEOUT


async def test_a_few_interim_answers_are_passed_over_and_a_flood_of_them_is_a_protocol_error(
    sender: Sender, receiver: Receiver
) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    receiver.script = raw(interim * 3 + b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok")
    answer = await attempt(sender, receiver.url)
    assert (answer.status_code, answer.error_class, answer.body) == (201, None, b"ok")
    # In one piece: that an answer follows in the end does not help.
    receiver.script = raw(interim * 1_000 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    answer = await attempt(sender, receiver.url)
    assert (answer.status_code, answer.error_class) == (None, ErrorClass.PROTOCOL)


async def test_two_answers_in_one_piece_are_one_answer_and_the_end_of_the_connection(
    sender: Sender, receiver: Receiver
) -> None:
    twice = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 500 X\r\nContent-Length: 6\r\n\r\nsecond"

    async def script(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(twice)
        await writer.drain()
        return True

    receiver.script = script
    for number in (1, 2):
        answer = await attempt(sender, receiver.url)
        assert (answer.status_code, answer.body) == (200, b"first")
        assert receiver.connections == number


async def test_a_kept_connection_is_closed_when_anything_comes_unasked(sender: Sender, receiver: Receiver) -> None:
    go_on = asyncio.Event()

    async def chatter(request: Received, writer: asyncio.StreamWriter) -> bool:
        await reply(200)(request, writer)
        await go_on.wait()
        writer.write(b"HTTP/1.1 2")
        return True

    receiver.script = chatter
    assert (await attempt(sender, receiver.url)).error_class is None
    ((kept, _),) = next(iter(connector(sender)._conns.values()))
    assert kept.is_connected()
    go_on.set()
    async with asyncio.timeout(5):
        while kept.is_connected():
            await asyncio.sleep(0.001)


async def test_a_body_that_drips_does_not_hold_up_a_success(sender: Sender, receiver: Receiver) -> None:
    async def drip(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    receiver.script = drip
    begun = time.monotonic()
    answer = await attempt(sender, receiver.url)
    assert time.monotonic() - begun < 2.0
    assert answer.error_class is None
    assert answer.body is not None
    assert 1 <= len(answer.body) < 100
    assert answer.body.strip(b"x") == b""


async def test_of_an_endless_answer_one_kib_is_read_and_the_connection_closed(
    sender: Sender, receiver: Receiver
) -> None:
    written = 0
    closed = asyncio.Event()

    async def endless(_: Received, writer: asyncio.StreamWriter) -> bool:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                written += 65536
        except OSError:
            closed.set()
        return False

    receiver.script = endless
    answer = await attempt(sender, receiver.url)
    assert (answer.error_class, answer.body) == (None, b"x" * 1024)
    async with asyncio.timeout(5):
        await closed.wait()
    # The rest is what the kernel and one read hold.
    assert written < 20_000_000


async def test_a_compressed_answer_is_not_unpacked(sender: Sender, receiver: Receiver) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    receiver.script = reply(200, bomb, b"Content-Encoding: gzip")
    answer = await attempt(sender, receiver.url)
    assert (answer.error_class, answer.body) == (None, bomb[:1024])


async def test_chunked_answers_and_those_until_the_end_of_the_connection_are_read(
    sender: Sender, receiver: Receiver
) -> None:
    receiver.script = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (await attempt(sender, receiver.url)).body == b"abcde"
    receiver.script = raw(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
    assert (await attempt(sender, receiver.url)).body == b"until the end"


async def test_a_body_that_breaks_off_does_not_undo_a_success(sender: Sender, receiver: Receiver) -> None:
    receiver.script = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    answer = await attempt(sender, receiver.url)
    assert (answer.status_code, answer.error_class) == (200, None)


async def test_a_receiver_that_answers_without_reading_leaves_no_connection_behind(
    sender: Sender,
) -> None:
    done = asyncio.Event()

    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await done.wait()
        writer.close()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        async with await asyncio.start_server(deaf, sock=listening, limit=16):
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            assert (await attempt(sender, url, b"1" * 262_144)).error_class is None
            assert not connector(sender)._acquired
            done.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\xfe",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e309\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_what_is_not_http_is_a_protocol_error(sender: Sender, receiver: Receiver, answer: bytes) -> None:
    receiver.script = raw(answer)
    assert (await attempt(sender, receiver.url)).error_class is ErrorClass.PROTOCOL


async def test_an_answer_of_nul_and_broken_utf8_is_kept_as_it_came(sender: Sender, receiver: Receiver) -> None:
    odd = b"\x00\xff\xfe\xed\xa0\x80"
    receiver.script = reply(500, odd, b"X-Odd: \xff\xfe", b"Retry-After: 1e309", b"Content-Type: \xff")
    answer = await attempt(sender, receiver.url)
    assert (answer.status_code, answer.body, answer.retry_after_s) == (500, odd, None)


async def test_retry_after_is_read(sender: Sender, receiver: Receiver) -> None:
    receiver.script = reply(503, b"", b"Retry-After: 17")
    assert (await attempt(sender, receiver.url)).retry_after_s == 17.0


async def test_a_refused_connection_is_connect_and_an_unknown_name_dns(sender: Sender) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert (await attempt(sender, url)).error_class is ErrorClass.CONNECT
    for name in ("relay.invalid", "x" * 64 + ".invalid"):
        assert (await attempt(sender, f"http://{name}/")).error_class is ErrorClass.DNS


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "ws://127.0.0.1/", "http:///x", "nonsense", "http://[::1/", ""])
async def test_a_url_that_cannot_be_asked_is_a_protocol_error(sender: Sender, url: str) -> None:
    assert (await attempt(sender, url)).error_class is ErrorClass.PROTOCOL


async def test_a_url_with_a_user_is_sent_as_basic_authentication(sender: Sender, receiver: Receiver) -> None:
    await attempt(sender, receiver.url.replace("127.0.0.1", "user:word@127.0.0.1"))
    assert receiver.received[0].headers["authorization"] == "Basic dXNlcjp3b3Jk"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]"],  # noqa: S104
)
async def test_the_guard_lets_nothing_reach_this_machine(receiver: Receiver, host: str) -> None:
    async with sender_with(SsrfGuard(())) as guarded:
        answer = await attempt(guarded, f"http://{host}:{receiver.port}/")
    assert answer.error_class is ErrorClass.BLOCKED
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "0177.0.0.1"])
async def test_odd_spellings_of_loopback_do_not_pass_the_guard(receiver: Receiver, host: str) -> None:
    async with sender_with(SsrfGuard(())) as guarded:
        answer = await attempt(guarded, f"http://{host}:{receiver.port}/")
    assert answer.error_class is not None
    assert receiver.connections == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now() - datetime.timedelta(days=1))
        .not_valid_after(now() + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def test_a_certificate_that_nobody_vouches_for_is_a_tls_error(sender: Sender, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await attempt(sender, f"https://localhost:{port}/")).error_class is ErrorClass.TLS


async def test_plain_http_where_tls_was_expected_is_a_tls_error(sender: Sender, receiver: Receiver) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await attempt(sender, f"https://localhost:{port}/")).error_class is ErrorClass.TLS


async def test_an_endpoints_own_headers_go_along(sender: Sender, receiver: Receiver) -> None:
    await attempt(sender, receiver.url, headers={"Authorization": "Bearer of good news", "X-Team": "a"})
    (request,) = receiver.received
    assert (request.headers["authorization"], request.headers["x-team"]) == ("Bearer of good news", "a")
    assert "webhook-signature" in request.headers


async def test_a_header_that_cannot_be_sent_is_a_failed_attempt(sender: Sender, receiver: Receiver) -> None:
    answer = await attempt(sender, receiver.url, headers={"X-Team": "a\r\nX-Other: b"})
    assert answer.error_class is ErrorClass.PROTOCOL
    assert receiver.received == []
