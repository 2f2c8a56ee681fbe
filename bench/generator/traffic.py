"""The requests and the expected responses. Requests are built in advance, only their keys are filled in when sent."""

from __future__ import annotations

import math
import random
import secrets
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import orjson

#: Says what is wrong with the status and the body of an answer, or None.
Check = Callable[[bytes, bytes], str | None]

POST = "POST /api/events"
REPEAT = "POST /api/events (repeated)"
BATCH = "POST /api/events/batch"

_TEMPLATES = 2048
_SMALLEST, _MEDIAN, _LARGEST = 200, 900, 20_000
_KEYED = 0.5
_REPEATED = 0.05
_ID = slice(7, 43)
_ACCEPTED = b'","status":"accepted"}'
_SMALL = b'{"type":"order.created","payload":{"id":123,"amount":45.6,"customer":"abc","items":[1,2,3,4,5,6,7,8,9]}}'


class Outgoing(NamedTuple):
    """One request."""

    data: bytes
    kind: str
    check: Check


class Traffic(Protocol):
    """Yields one request after another."""

    def next(self) -> Outgoing: ...


def request(method: str, path: str, host: str, key: str, body: bytes = b"") -> bytes:
    """Return a complete HTTP/1.1 request."""
    return head(method, path, host, key, len(body)) + body


def head(method: str, path: str, host: str, key: str, length: int) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"X-API-Key: {key}"]
    if length or method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def accepted(status: bytes, body: bytes) -> str | None:
    """Check the response to a single event."""
    if status == b"201" and body[43:] == _ACCEPTED:
        return None
    return unexpected(status, body)


def refused(status: bytes, body: bytes) -> str | None:
    """Check the response to an event with an invalid key."""
    return None if status == b"401" else unexpected(status, body)


def unexpected(status: bytes, body: bytes) -> str:
    """Return the description of an unexpected response."""
    code = body.partition(b'"code":"')[2].partition(b'"')[0]
    return f"{status.decode('latin-1')} {code.decode('latin-1') or body[:60].decode('latin-1')}"


class Small:
    """The same event of 105 bytes without a dedup_id, from each tenant in turn."""

    def __init__(self, host: str, keys: list[str], check: Check = accepted) -> None:
        self._all = [Outgoing(request("POST", "/api/events", host, key, _SMALL), POST, check) for key in keys]
        self._at = 0

    def next(self) -> Outgoing:
        self._at = (self._at + 1) % len(self._all)
        return self._all[self._at]


class Batches:
    """Batches of small events, each with a number of its own, from each tenant in turn."""

    def __init__(self, host: str, keys: list[str], size: int) -> None:
        self._size = size
        self._all = []
        for key in keys:
            events = b",".join(_SMALL.replace(b"123", b"%d" % (1_000_000 + number)) for number in range(size))
            data = request("POST", "/api/events/batch", host, key, b"[" + events + b"]")
            self._all.append(Outgoing(data, BATCH, self._check))
        self._at = 0

    def next(self) -> Outgoing:
        self._at = (self._at + 1) % len(self._all)
        return self._all[self._at]

    def _check(self, status: bytes, body: bytes) -> str | None:
        if status != b"200":
            return unexpected(status, body)
        held = body.count(b'"status":"accepted"')
        return None if held == self._size else f"200 with {held} of {self._size} accepted"


class _Template(NamedTuple):
    tenant: int
    start: bytes
    keyed: bool
    repeat: bool


class Events:
    """What a handful of tenants send in a day: 200 bytes to 20 KB, half with a dedup_id, one in twenty sent again.

    Args:
        host: for the header.
        keys: of the tenants.
        seed: of sizes and turns.
        accepted: told the id in each 201, with the number of the tenant.
    """

    def __init__(
        self, host: str, keys: list[str], seed: int, on_accepted: Callable[[int, bytes], None] | None = None
    ) -> None:
        draw = random.Random(seed)
        self._run = secrets.token_hex(4).encode("ascii")
        self._number = 0
        self._templates = [self._template(draw, host, keys) for _ in range(_TEMPLATES)]
        self._at = 0
        self._on_accepted = on_accepted
        self._check_unkeyed = [partial(self._first, tenant, b"") for tenant in range(len(keys))]
        # Requests that were answered 201, with the id that they got.
        self._answered: deque[tuple[bytes, bytes]] = deque(maxlen=1000)

    def _template(self, draw: random.Random, host: str, keys: list[str]) -> _Template:
        tenant = draw.randrange(len(keys))
        keyed = draw.random() < _KEYED
        size = min(_LARGEST, max(_SMALLEST, round(draw.lognormvariate(math.log(_MEDIAN), 0.9))))
        fixed = len(b'{"type":"order.created","payload":,"dedup_id":"0123456789abcdef0123"}')
        start = b'{"type":"order.%s","payload":%s' % (
            draw.choice((b"created", b"paid", b"shipped")),
            _payload(draw, size - fixed),
        )
        length = len(start) + (len(b',"dedup_id":"0123456789abcdef0123"}') if keyed else 1)
        start = head("POST", "/api/events", host, keys[tenant], length) + start
        return _Template(tenant, start if keyed else start + b"}", keyed, draw.random() < _REPEATED)

    def next(self) -> Outgoing:
        self._at = (self._at + 1) % _TEMPLATES
        template = self._templates[self._at]
        if template.repeat and self._answered:
            data, first_id = self._answered.popleft()
            return Outgoing(data, REPEAT, partial(self._repeated, first_id))
        if not template.keyed:
            return Outgoing(template.start, POST, self._check_unkeyed[template.tenant])
        self._number += 1
        data = b'%s,"dedup_id":"%s%012d"}' % (template.start, self._run, self._number)
        return Outgoing(data, POST, partial(self._first, template.tenant, data))

    def _first(self, tenant: int, data: bytes, status: bytes, body: bytes) -> str | None:
        wrong = accepted(status, body)
        if wrong is None:
            if data:
                self._answered.append((data, body[_ID]))
            if self._on_accepted is not None:
                self._on_accepted(tenant, body[_ID])
        return wrong

    def _repeated(self, first_id: bytes, status: bytes, body: bytes) -> str | None:
        if status == b"409" and b'"duplicate"' in body and first_id in body:
            return None
        return unexpected(status, body)


def _payload(draw: random.Random, size: int) -> bytes:
    """Return a JSON object of about `size` bytes that looks like an order."""
    order: dict[str, object] = {
        "id": draw.randrange(10**9),
        "currency": "EUR",
        "customer": f"customer-{draw.randrange(10**6)}",
    }
    items: list[object] = []
    order["items"] = items
    room = size - len(orjson.dumps(order))
    while room > 60:
        item = {"sku": f"{draw.randrange(10**8):08d}", "amount": draw.randrange(1, 9), "price": draw.randrange(10**5)}
        items.append(item)
        room -= len(orjson.dumps(item)) + 1
    order["note"] = "x" * max(0, room - 10)
    return orjson.dumps(order)
