"""The worst tenant: the most of everything that the limits allow, every operation on it, and then floods."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2

from tests.support.api import Tenant
from tests.tenants.arguments import Arguments, Operation, encoded, operations
from tests.tenants.house import TIERS, House
from tests.tenants.receivers import TESTS

#: Test deliveries of one organization at once.
MOST_TESTS: Final = 2
_TIMEOUT_S: Final = 60.0
_KEYS: Final = 20
_NAME: Final = "n" * 255
#: The types of its events, as long as they get; filters name the first.
TYPES: Final = ("worst." + "t" * 249, "other." + "t" * 249)
_PAYLOAD_BYTES: Final = 262_144
_PAST_EVENTS: Final = 12_000
_ROOM: Final = 5
# Leases of the walk's own before it; each holds as much as a response may.
_LEASES: Final = 15
# Members of which a request may have one.
_EITHER: Final = ({"ids", "receipts"}, {"endpoint_id", "consumer"})
#: One endpoint of so many has a name that is looked up; more than may be looked up at once.
_NAMED_EVERY: Final = 4
_TESTS: Final = 12
#: Ways to make a body of 4 MiB of very little.
_DENSE: Final = (
    (b"[" + b"0," * (2 * 1024 * 1024 - 1) + b"0]", "application/json"),
    (b"[" + b"{}," * (1024 * 1024 + 349_000) + b"0]", "application/json"),
    (b"[" * (4 * 1024 * 1024), "application/json"),
    (b"\n" * (4 * 1024 * 1024), "application/x-ndjson"),
    (b"0\n" * (2 * 1024 * 1024), "application/x-ndjson"),
    (b'{"type":"a","payload":' + b"[" * 512 + b"]" * 512 + b"}", "application/json"),
)


class Worst:
    """An organization that does the worst it can.

    Args:
        house: where.
        tier: its own.
    """

    def __init__(self, house: House, tier: str) -> None:
        self.house = house
        self.tier = tier
        self.most_endpoints, self.most_events = TIERS[tier]
        self.name = f"worst-{tier}"
        #: Answers by operation and by status with the error's code.
        self.answers: dict[str, Counter[str]] = {}
        self.largest: dict[str, int] = {}
        self.endpoints: list[str] = []
        #: The most that waited at once.
        self.waiting = 0.0

    async def build(self) -> None:
        """A long past, and as many endpoints and keys as it may have, each as large as it may be."""
        house = self.house
        self.tenant = await house.api.tenant(self.tier, _NAME)
        await self._past()
        document = (await house.api.contract()).document
        self.operations = [operation for operation in operations(document) if not operation.streams]
        self.ids: dict[str, list[str]] = {"events": []}
        self.arguments = Arguments(document, self.ids, house.receivers.url(self.name, "hang"), TYPES)
        for place in range(self.most_endpoints):
            made = await self._endpoint(place)
            if made is None:
                break
            self.endpoints.append(made)
        self.hanging = self.endpoints[2]
        for _ in range(_ROOM):
            # For those that the walk makes.
            await self.tenant.request("DELETE", f"/api/endpoints/{self.endpoints.pop()}")
        self.ids["endpoints"] = self.endpoints
        await self._consumer()
        await self._keys()

    async def _consumer(self) -> None:
        """A consumer with a long past too, of which as much is leased as may be."""
        made = await self.tenant.post(
            "/api/consumers", json={"name": "worst", "event_types": [TYPES[1]], "from": "oldest", "lease_s": 43_200}
        )
        assert made.status_code == 201, made.text
        self.ids["consumers"] = ["worst"]

    async def lease(self) -> None:
        """Lease until there may be no more, from the consumer and from the plain inbox."""
        receipts: list[str] = []
        for members in ({"consumer": "worst"}, {"lease_s": 43_200}):
            for _ in range(_LEASES):
                answer = await self.tenant.post("/api/inbox/lease", json={"limit": 1000, **members})
                self.answers.setdefault("POST /api/inbox/lease, many", Counter())[_shown(answer)] += 1
                if answer.status_code != 200 or not answer.json()["events"]:
                    break
                receipts += [event["receipt"] for event in answer.json()["events"]]
        self.ids["receipts"] = receipts[:1000]

    async def _past(self) -> None:
        """More events than one request may look at, and more bytes than one may answer: before there are endpoints."""
        size = min(self.most_events, 1_000)
        small = encoded([{"type": TYPES[1], "payload": 1, "dedup_id": None}] * size)
        large = encoded([{"type": TYPES[1], "payload": "x" * (_PAYLOAD_BYTES - 2)}] * 15)
        for content in [small] * (_PAST_EVENTS // size) + [large] * 3:
            answer = await self.tenant.post(
                "/api/events/batch", content=content, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 200, answer.text

    async def _endpoint(self, place: int) -> str | None:
        """Make one: a tenth answers at once, a fifth fails and is tried again at once, the others hang."""
        (operation,) = (found for found in self.operations if found.name == "POST /api/endpoints")
        assert operation.body is not None
        body = self.arguments.body(operation.body)
        mode = ("ok", "fail", "hang", "fail", "hang", "hang", "hang", "hang", "hang", "hang")[place % 10]
        body["url"] = self.house.receivers.url(self.name, mode).ljust(2048, "x")
        if place % _NAMED_EVERY == _NAMED_EVERY - 1:
            # RFC 6761: no name server knows it.
            body["url"] = f"http://worst-{place}.relay.invalid/"
        body["signature"] = "v1"
        # Catching up and waiting are for the walk: here every event is to be tried as often as it can be.
        body.pop("catch_up_since", None)
        body["retry_schedule"] = [0] * 50
        answer = await self.tenant.request("POST", operation.path, json=body)
        if answer.status_code != 201 and _code(answer) == "too_many_filters":
            body["event_types"] = []
            answer = await self.tenant.request("POST", operation.path, json=body)
        if answer.status_code == 201:
            made: str = answer.json()["id"]
            return made
        assert _code(answer) == "too_many_endpoints", answer.text
        return None

    async def _keys(self) -> None:
        # Fewer than there may be: each costs a run of Argon2id, and rotation wants room.
        for number in range(_KEYS):
            answer = await self.tenant.post("/api/keys", json={"name": str(number).ljust(255, "k")})
            assert answer.status_code == 201, answer.text
            self.spare = Tenant(self.house.api, answer.json()["api_key"], self.tenant.organization_id)

    async def remember(self) -> None:
        """An event with as large a history as there is: every endpoint that fails has tried it as often as it may."""
        self.event = await self.tenant.accept(TYPES[0], payload="x" * 262_000)
        self.ids["events"] = [self.event]
        await self.lease()
        # Few slots of its own for each at first, so this takes a while with many endpoints.
        await self.settled(lambda: self.house.receivers.requests[self.name])
        answer = await self.tenant.post("/api/deliveries/retry", json={"status": "failed"})
        assert answer.status_code == 202, answer.text

    async def settled(self, count: Callable[[], int], quiet_s: float = 1.0, most_s: float = 8.0) -> None:
        """Wait until a count does not grow any more, or for so long that it will not stop."""
        loop = asyncio.get_running_loop()
        ends, last, since = loop.time() + most_s, count(), loop.time()
        while loop.time() < ends and loop.time() - since < quiet_s:
            await asyncio.sleep(0.05)
            if count() > last:
                last, since = count(), loop.time()

    async def walk(self, seen: Callable[[Operation, httpx2.Response], Coroutine[Any, Any, None]]) -> None:
        """Ask for everything with the largest arguments, one after the other.

        Args:
            seen: told of each answer.
        """
        async with httpx2.AsyncClient(base_url=self.house.api.base, timeout=_TIMEOUT_S, trust_env=False) as client:
            await self._collect()
            for operation in self.operations:
                for request in self._requests(client, operation):
                    answer = await client.send(request)
                    self._note(operation, answer)
                    await seen(operation, answer)

    async def _collect(self) -> None:
        """The ids of what the organization has, by the lists that show it."""
        for operation in self.operations:
            name = operation.path.removeprefix("/api/")
            if operation.method != "GET" or "{" in operation.path or not operation.keyed:
                continue
            answer = await self.tenant.get(operation.path)
            if answer.status_code != 200:
                continue
            shown = next((value for value in answer.json().values() if isinstance(value, list)), [])
            ids = [item.get("id") or item.get(f"{name[:-1]}_id") or item.get("name") for item in shown]
            if ids and name not in ("inbox", "stats"):
                self.ids[name] = [str(id_) for id_ in ids]

    def _requests(self, client: httpx2.AsyncClient, operation: Operation) -> list[httpx2.Request]:
        headers = {"X-API-Key": self.tenant.key} if operation.keyed else {}
        if not headers:
            headers = self.house.api.authorization
        if operation.path == "/api/keys/rotate":
            # It ends the key that calls.
            headers = {"X-API-Key": self.spare.key}
        path = operation.path
        if operation.collection is not None:
            ids = self.ids.get(operation.collection) or ["019bb8d4-0000-7000-8000-000000000000"]
            # What is removed or turned is not what the next request needs: the newest stands first, keys apart.
            path = operation.at(ids[-1] if operation.method == "DELETE" else ids[0])
        if operation.path.endswith("/test"):
            path = operation.at(self.endpoints[0])
        if operation.body is not None:
            return [
                client.build_request(
                    operation.method, path, headers={**headers, "Content-Type": "application/json"}, content=content
                )
                for content in self._bodies(operation, operation.body)
            ]
        queries = list(self.arguments.queries(operation)) or [""]
        return [client.build_request(operation.method, f"{path}?{query}".rstrip("?"), headers=headers)
                for query in queries]  # fmt: skip

    def _bodies(self, operation: Operation, schema: dict[str, Any]) -> list[bytes]:
        body = self.arguments.body(schema)
        if isinstance(body, list):
            for item in body:
                item["type"] = TYPES[1]
            # As many as the tier allows at once, and as many as could ever open 20,000 deliveries.
            fitting = min(self.most_events, 20_000 // max(1, len(self.endpoints)))
            return [encoded(body[: self.most_events]), encoded(body[:fitting])]
        if operation.path == "/api/events":
            body["type"] = TYPES[1]
        either = next((pair for pair in _EITHER if body.keys() >= pair), ())
        if either:
            return [encoded({name: body[name] for name in body if name != left_out}) for left_out in either]
        if operation.path.startswith(("/api/endpoints", "/api/consumers")) and "event_types" in body:
            # Its filters stay as they are: there is no room for more of them.
            return [encoded(body), encoded({**body, "event_types": []})]
        return [encoded(body)]

    def _note(self, operation: Operation, answer: httpx2.Response) -> None:
        self.answers.setdefault(operation.name, Counter())[_shown(answer)] += 1
        self.largest[operation.name] = max(self.largest.get(operation.name, 0), len(answer.content))

    async def dense_bodies(self) -> None:
        """Bodies that are small for what they cost: several at once, each as large as the route takes."""
        async with httpx2.AsyncClient(base_url=self.house.api.base, timeout=_TIMEOUT_S, trust_env=False) as client:
            headers = {"X-API-Key": self.tenant.key}
            for content, kind in _DENSE:
                for path in ("/api/events/batch", "/api/events"):
                    answers = await asyncio.gather(
                        *(
                            client.post(path, content=content, headers={**headers, "Content-Type": kind})
                            for _ in range(3)
                        ),
                        return_exceptions=True,
                    )
                    for answer in answers:
                        what = answer if isinstance(answer, httpx2.Response) else None
                        shown = f"{what.status_code} {_code(what)}" if what is not None else repr(answer)
                        self.answers.setdefault(f"dense POST {path}", Counter())[shown] += 1

    async def open_many(self) -> None:
        """As many deliveries as fit into a few batches, at once: most of them to receivers that hang."""
        size = min(self.most_events, 1_000, 20_000 // max(1, len(self.endpoints)))
        events = [{"type": TYPES[0], "payload": "x" * 4_000} for _ in range(size)]
        answers = await asyncio.gather(*(self.tenant.post("/api/events/batch", json=events) for _ in range(2)))
        large = [{"type": TYPES[0], "payload": "x" * 262_000} for _ in range(10)]
        answers.append(await self.tenant.post("/api/events/batch", json=large))
        for answer in answers:
            self.answers.setdefault("POST /api/events/batch, at once", Counter())[_shown(answer)] += 1
        await self.settled(lambda: self.house.receivers.requests[self.name])

    async def flood_jobs(self, count: int = 12) -> None:
        """Start jobs over all of its deliveries."""
        body = {"since": "2020-01-01T00:00:00Z"}
        for path in [f"/api/endpoints/{id_}/replay" for id_ in self.endpoints[:count]]:
            answer = await self.tenant.post(path, json=body)
            self.answers.setdefault("POST /api/endpoints/{id}/replay, many", Counter())[_shown(answer)] += 1

    async def flood_tests(self) -> None:
        """Ask at once for more test deliveries than there may be, to what hangs, and do not wait for their ends."""
        asked = [asyncio.create_task(self.tenant.post(f"/api/endpoints/{self.hanging}/test")) for _ in range(_TESTS)]
        refused = 0
        for ended in asyncio.as_completed(asked):
            answer = await ended
            self.answers.setdefault("POST /api/endpoints/{id}/test, at once", Counter())[_shown(answer)] += 1
            refused += answer.status_code == 429
            if refused >= _TESTS - MOST_TESTS:
                break
        owner = self.name + TESTS
        await self.settled(lambda: self.house.receivers.requests[owner])
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    @asynccontextmanager
    async def reading_slowly(self, count: int = 150) -> AsyncIterator[None]:
        """Requests whose large answers nobody reads: of the tenant's, and without any key."""
        writers = []
        lists = f"GET /api/inbox?status=all&limit=1000 HTTP/1.1\r\nHost: x\r\nX-API-Key: {self.tenant.key}\r\n\r\n"
        files = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        try:
            for number in range(count):
                _, writer = await asyncio.open_connection("127.0.0.1", self.house.port, limit=4096)
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write((files if number % 3 else lists).encode())
                writers.append(writer)
            yield
        finally:
            for writer in writers:
                writer.transport.abort()

    @asynccontextmanager
    async def following(self, count: int = 1_100) -> AsyncIterator[None]:
        """Open waiting requests with different filters, and streams that it does not read, as many as it gets.

        Then post events that some of them match.
        """
        pages = [await self.tenant.inbox(order="asc", status="all", limit=number) for number in range(1, 30)]
        writers = []
        try:
            for number in range(min(count, self.most_events)):
                cursor = pages[number % len(pages)]["next_cursor"]
                place = f"/api/inbox?wait=30&order=asc&status=all&cursor=now&type=x.{number}"
                if number % 2:
                    place = f"/api/inbox/stream?cursor={cursor}"
                _, writer = await asyncio.open_connection("127.0.0.1", self.house.port, limit=4096)
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                head = f"GET {place} HTTP/1.1\r\nHost: x\r\nX-API-Key: {self.tenant.key}\r\n\r\n"
                writer.write(head.encode())
                writers.append(writer)
            for _ in range(30):
                await self.tenant.post("/api/events", json={"type": TYPES[0], "payload": "x" * 100_000})
                self.waiting = max(self.waiting, (await self.house.metrics()).get("relay_waiters", 0.0))
            yield
        finally:
            for writer in writers:
                writer.transport.abort()


class Neighbour:
    """An organization that does nothing unusual, while the worst tenant does what it does.

    Args:
        house: where.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self.accepted: list[str] = []
        self.refused: list[str] = []

    async def build(self) -> None:
        """One endpoint that answers."""
        self.tenant = await self._house.api.tenant("enterprise", "neighbour")
        url = self._house.receivers.url("neighbour", "ok")
        answer = await self.tenant.post("/api/webhook/config", json={"webhook_url": url})
        assert answer.status_code == 200, answer.text

    async def post(self) -> None:
        """One event."""
        answer = await self.tenant.post("/api/events", json={"type": "order.created", "payload": len(self.accepted)})
        if answer.status_code == 201:
            self.accepted.append(answer.json()["id"])
        else:
            self.refused.append(answer.text)

    @asynccontextmanager
    async def posting(self, every_s: float = 0.05) -> AsyncIterator[None]:
        """Posts, one after the other, until left."""

        async def post() -> None:
            while True:
                await self.post()
                await asyncio.sleep(every_s)

        task = asyncio.create_task(post())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def missing(self, timeout_s: float = 30.0) -> Sequence[str]:
        """Return the events that were accepted and did not arrive in time."""
        received = self._house.receivers.received.setdefault("neighbour", set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not received.issuperset(self.accepted):
                    await asyncio.sleep(0.05)
        return [id_ for id_ in self.accepted if id_ not in received]


def _shown(answer: httpx2.Response) -> str:
    return f"{answer.status_code} {_code(answer)}".strip()


def _code(answer: httpx2.Response) -> str:
    if answer.status_code < 400:
        return ""
    with contextlib.suppress(json.JSONDecodeError):
        return str(answer.json().get("code", ""))
    return "not ours"
