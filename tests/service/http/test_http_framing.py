"""Requests whose end two servers could see in two places: what a proxy would have to disagree on to smuggle one in."""

from __future__ import annotations

import asyncio
import re
from typing import Final, NamedTuple

import pytest

from tests.service.http.test_http import EVENT, chunk, connection
from tests.support.api import Api, Tenant
from tests.support.wire import exchange

SIZE: Final = len(EVENT)
NEXT: Final = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
LENGTH: Final = b"Content-Length: %d\r\n" % SIZE
WHOLE: Final = chunk(EVENT) + chunk(b"")


class Shape(NamedTuple):
    """A request to post an event, from its framing headers on, and the statuses that come before the end."""

    rest: bytes
    statuses: list[int]
    closed: bool
    events: int = 0


# Every one is followed by a second request, which is answered once or, where the connection ends, not at all.
SHAPES: Final = {
    # RFC 9112, section 6.3: chunked decides, and the connection ends.
    "length and chunks": Shape(LENGTH + CHUNKED + b"\r\n" + WHOLE, [201], True, 1),
    "chunks and length": Shape(CHUNKED + LENGTH + b"\r\n" + WHOLE, [201], True, 1),
    "length that ends earlier than the chunks": Shape(
        LENGTH + CHUNKED + b"\r\n" + chunk(EVENT) + chunk(b" and more") + chunk(b""), [400], True
    ),
    "chunks that end earlier than the length": Shape(
        b"Content-Length: 60\r\n" + CHUNKED + b"\r\n" + chunk(b"") + b"GET /smuggled HTTP/1.1\r\n", [400], True
    ),
    "one length twice": Shape(LENGTH + LENGTH + b"\r\n" + EVENT, [201, 200], False, 1),
    "two lengths": Shape(LENGTH + b"Content-Length: 5\r\n\r\n" + EVENT, [400], True),
    "a list of lengths": Shape(b"Content-Length: %d, %d\r\n\r\n" % (SIZE, SIZE) + EVENT, [400], True),
    "a signed length": Shape(b"Content-Length: +%d\r\n\r\n" % SIZE + EVENT, [400], True),
    "a hexadecimal length": Shape(b"Content-Length: 0x18\r\n\r\n" + EVENT, [400], True),
    "a length beyond 64 bits": Shape(b"Content-Length: 99999999999999999999999\r\n\r\n" + EVENT, [400], True),
    "a length with a space before its colon": Shape(b"Content-Length : %d\r\n\r\n" % SIZE + EVENT, [400], True),
    "chunked that is not last": Shape(b"Transfer-Encoding: chunked, identity\r\n\r\n" + WHOLE, [400], True),
    "chunked that is not last, in two lines": Shape(
        CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + WHOLE, [400], True
    ),
    "no transfer coding at all": Shape(b"Transfer-Encoding: xchunked\r\n\r\n" + WHOLE, [400], True),
    "chunked with a space before its colon": Shape(b"Transfer-Encoding : chunked\r\n\r\n" + WHOLE, [400], True),
    "a folded header": Shape(b"Transfer-Encoding:\r\n chunked\r\n\r\n" + WHOLE, [400], True),
    "a carriage return in a value": Shape(b"A: a\rContent-Length: 1\r\n" + LENGTH + b"\r\n" + EVENT, [400], True),
    "a NUL in a value": Shape(b"A: a\0b\r\n" + LENGTH + b"\r\n" + EVENT, [400], True),
    "a line feed that ends a chunk's size": Shape(CHUNKED + b"\r\n%x\n%s\n0\n\n" % (SIZE, EVENT), [400], True),
    "a line feed in a chunk's extension": Shape(
        CHUNKED + b"\r\n%x;a\nb\r\n%s\r\n0\r\n\r\n" % (SIZE, EVENT), [400], True
    ),
    "a chunk longer than its size": Shape(CHUNKED + b"\r\n%x\r\n%sXX\r\n0\r\n\r\n" % (SIZE, EVENT), [400], True),
    "a chunk size beyond 64 bits": Shape(CHUNKED + b"\r\n1%s\r\n%s" % (b"0" * 16, EVENT), [400], True),
    "an endless extension": Shape(CHUNKED + b"\r\n%x;%s\r\n" % (SIZE, b"a" * 20_000) + EVENT, [400], True),
    "too many trailers": Shape(CHUNKED + b"\r\n" + chunk(EVENT) + b"0\r\n" + b"A: b\r\n" * 200 + b"\r\n", [400], True),
    "an extension": Shape(CHUNKED + b"\r\n%x;a=b\r\n%s\r\n0\r\n\r\n" % (SIZE, EVENT), [201, 200], False, 1),
    "trailers that are headers elsewhere": Shape(
        CHUNKED + b"\r\n" + chunk(EVENT) + b"0\r\nX-API-Key: no\r\nContent-Length: 5\r\n\r\n", [201, 200], False, 1
    ),
}


async def statuses(port: int, request: bytes) -> tuple[list[int], bool]:
    """The statuses of all answers, and whether the connection was closed after them: it is, or the last one asked."""
    last = NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(20), connection(port) as (reader, writer):
        writer.write(request + NEXT + last)
        answers = await reader.read()
        found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]
        # The very last request is answered where the connection was still open.
        return (found[:-1], False) if b"connection: close" in answers.lower() and found[-1:] == [200] else (found, True)


@pytest.mark.parametrize("name", SHAPES)
async def test_a_request_ends_in_one_place_only(api: Api, name: str) -> None:
    tenant: Tenant = await api.tenant()
    shape = SHAPES[name]
    begin = b"POST /api/events HTTP/1.1\r\nHost: x\r\nX-API-Key: " + tenant.key.encode("ascii") + b"\r\n"
    assert await statuses(api.port, begin + shape.rest) == (shape.statuses, shape.closed)
    assert len((await tenant.inbox())["events"]) == shape.events


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n",
        b"POST /api/events HTTP/1.1\r\nHost: x\r\n",
        b"POST /nothing HTTP/1.1\r\nHost: x\r\n",
        b"DELETE /api/events HTTP/1.1\r\nHost: x\r\n",
        b"OPTIONS /api/events HTTP/1.1\r\nHost: x\r\n",
        b"POST /api/events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n",
    ],
)
async def test_a_body_that_nobody_asked_for_is_no_request(api: Api, begin: bytes) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    for framed in (b"Content-Length: %d\r\n\r\n" % len(smuggled) + smuggled, CHUNKED + b"\r\n" + chunk(smuggled)):
        whole = framed + (chunk(b"") if framed.startswith(CHUNKED) else b"")
        found, _ = await statuses(api.port, begin + whole)
        assert len(found) in (1, 2), "its own, and that of the next"
        assert found[1:] in ([], [200])


async def test_a_length_of_nineteen_digits_is_too_large_too(api: Api) -> None:
    tenant = await api.tenant()
    request = f"POST /api/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {tenant.key}\r\nContent-Length: {10**18}\r\n\r\n"
    answer = await exchange(api.port, request.encode(), timeout_s=5.0)
    assert answer.status == 413
