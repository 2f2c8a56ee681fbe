"""Producers: each posts one request after the other, and repeats requests with an unknown outcome."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.faults.ledger import Intent, Ledger
from tests.support.wire import Answer, read_answer

#: Longer than two commit time-outs and a connection that has to be made.
PATIENCE_S = 20.0
_BATCH = 5
_BATCH_EVERY = 10
_KEPT = 50
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Sender:
    """An organization that producers post for: its key, and the paths of its endpoints at the receiver."""

    key: str
    organization_id: str
    paths: Sequence[str]


class Load:
    """So many producers, from entering to leaving; they can be made to rest.

    Args:
        port: the API's.
        senders: whom they post for.
        ledger: what they write down.
        seed: of all that they decide.
        producers: how many.
        most_outstanding: deliveries to come at which they wait: a load that is delivered as it is accepted.
        rate: requests a second in all, where they shall be no more; what is late is not made up for.
    """

    def __init__(
        self,
        port: int,
        senders: Sequence[Sender],
        ledger: Ledger,
        seed: int,
        *,
        producers: int = 12,
        most_outstanding: int = 500,
        rate: float | None = None,
    ) -> None:
        self._pause_s = producers / rate if rate else 0.0
        self._port = port
        self._senders = senders
        self._ledger = ledger
        self._seed = seed
        self._producers = producers
        self._most = most_outstanding
        self._going = asyncio.Event()
        self._busy = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._going.set()
        self._tasks = [asyncio.create_task(self._produce(number)) for number in range(self._producers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Check that all producers run.

        Raises:
            RuntimeError: one of them ended by itself.
        """
        for task in self._tasks:
            if task.done():
                raise RuntimeError("a producer ended by itself") from task.exception()

    async def rest(self) -> None:
        """Let requests in progress end, and begin no others."""
        self._going.clear()
        while self._busy:
            await asyncio.sleep(0.005)

    def go_on(self) -> None:
        """Begin requests again."""
        self._going.set()

    async def _produce(self, number: int) -> None:
        producer = Producer(self._port, self._senders, self._ledger, random.Random(f"{self._seed}/{number}"), number)
        loop = asyncio.get_running_loop()
        next_at = loop.time() + self._pause_s * number / self._producers
        try:
            while True:
                await asyncio.sleep(max(0.0, next_at - loop.time()))
                next_at = max(next_at, loop.time() - self._pause_s) + self._pause_s
                # It may have been cleared again since it woke us: whoever rests must not be passed by.
                while not self._going.is_set():
                    await self._going.wait()
                if len(self._ledger.outstanding) >= self._most:
                    await asyncio.sleep(0.005)
                    continue
                self._busy += 1
                try:
                    await producer.ask()
                finally:
                    self._busy -= 1
        finally:
            producer.hang_up()


class Producer:
    """A client with one connection, which it reopens when it breaks."""

    def __init__(
        self, port: int, senders: Sequence[Sender], ledger: Ledger, chance: random.Random, number: int
    ) -> None:
        self._port = port
        self._senders = senders
        self._ledger = ledger
        self._chance = chance
        self._number = number
        self._made = 0
        self._again: deque[list[Intent]] = deque()
        self._done: deque[list[Intent]] = deque(maxlen=_KEPT)
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Post a new event, repeat one with an unknown outcome, or sometimes repeat a known one."""
        if self._again:
            intents = self._again.popleft()
        elif self._done and self._chance.random() < 0.05:
            intents = self._chance.choice(self._done)
        else:
            intents = self._new()
        for intent in intents:
            self._ledger.begin(intent)
        await self._post(intents)

    def _new(self) -> list[Intent]:
        self._made += 1
        # In turns, and each its own: so many seconds of load are as many events and deliveries as any others.
        turn = self._made + self._number
        tenant = turn % len(self._senders)
        kind = self._chance.choice("ddii-")
        key = f"{self._number}-{self._made}"
        if (turn // len(self._senders) + self._number) % _BATCH_EVERY == 0:
            keys = [f"{key}-{place}" if kind == "d" else f"{key}#{place}" for place in range(_BATCH)]
            return [Intent(tenant, f"{key}/{place}", kind, each) for place, each in enumerate(keys)]
        return [Intent(tenant, key, kind, key)]

    async def _post(self, intents: list[Intent]) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await self._exchange(self._request(intents))
        except (OSError, asyncio.IncompleteReadError, TimeoutError, RuntimeError):
            # uvloop raises RuntimeError where a transport is closed.
            self.hang_up()
            self._unknown(intents, "none")
            await asyncio.sleep(_PAUSE_S)
            return
        if answer.status == 500 and "json" not in answer.headers.get("content-type", ""):
            # The HTTP server's own, seen once; why is not known. It acknowledges nothing, and the event may be stored.
            self.hang_up()
            self._unknown(intents, "500 of the HTTP server")
            await asyncio.sleep(_PAUSE_S)
            return
        self._judge(intents, answer, time.monotonic() - begun)
        if answer.headers.get("connection") == "close":
            self.hang_up()
        if answer.status == 503:
            # A client that is told to come back in a second does; sooner here, to find the end of a fault.
            await asyncio.sleep(_PAUSE_S)

    def _request(self, intents: list[Intent]) -> bytes:
        first = intents[0]
        single = len(intents) == 1
        body = json.dumps(first.body if single else [intent.body for intent in intents], separators=(",", ":"))
        key = f"Idempotency-Key: {first.key.partition('#')[0]}\r\n" if first.kind == "i" else ""
        path = "/api/events" if single else "/api/events/batch"
        return (
            f"POST {path} HTTP/1.1\r\nHost: relay\r\nX-API-Key: {self._senders[first.tenant].key}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def _exchange(self, request: bytes) -> Answer:
        if self._line is None:
            self._line = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._line
        if writer.is_closing():
            raise ConnectionResetError
        writer.write(request)
        return await read_answer(reader)

    def hang_up(self) -> None:
        """Break its connection."""
        if self._line is not None:
            self._line[1].transport.abort()
            self._line = None

    def _judge(self, intents: list[Intent], answer: Answer, took_s: float) -> None:
        said = answer.json()
        if answer.status == 201 or (answer.status == 409 and intents[0].kind == "d" and "conflict" not in said):
            self._known(intents, [said["id"]], answer)
        elif answer.status == 200 and all(
            each["status"] == "accepted"
            or (each["status"] == "duplicate" and intents[0].kind == "d" and "conflict" not in each)
            for each in said["results"]
        ):
            self._known(intents, [each["id"] for each in said["results"]], answer)
        elif answer.status == 503 and "retry-after" in answer.headers:
            self._ledger.slowest_refusal_s = max(self._ledger.slowest_refusal_s, took_s)
            if said["code"] == "commit_unknown":
                self._unknown(intents, "503 commit_unknown")
            else:
                self._ledger.answers["503"] += 1
                self._again.append(intents)
        else:
            self._ledger.strange.append(f"{intents[0].marker} as {intents[0].kind}: {answer.status} {said}")

    def _known(self, intents: list[Intent], ids: list[str], answer: Answer) -> None:
        self._ledger.answers[str(answer.status)] += 1
        for intent, event_id in zip(intents, ids, strict=True):
            self._ledger.acknowledged(intent, event_id, self._senders[intent.tenant].paths)
        if intents[0].kind != "-":
            self._done.append(intents)

    def _unknown(self, intents: list[Intent], answer: str) -> None:
        self._ledger.answers[answer] += 1
        for intent in intents:
            intent.maybe = True
        if intents[0].kind != "-":
            self._again.append(intents)
