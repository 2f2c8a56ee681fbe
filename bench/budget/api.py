"""CPU of the API process for an event, from the call of the application to the end of its response, without its server.

Run by `bench.budget` with the interpreter and the tree of a build, so it imports nothing of the bench:
api.py DATABASE_URL. It prints JSON: microseconds by what was measured. The database is real, and so is each commit.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import uvloop

from relay.app import Relay
from relay.config.environment import load
from relay.runtime.shared_memory import SharedMemory

_TOKEN: Final = "token-of-the-bench"
_TENANTS: Final = 8
_EVENT: Final = (
    b'{"type":"load.test","payload":{"n":1234567,"name":"somebody","amount":12.5,"at":"2026-01-01T00:00:00Z"}}'
)
_BATCH: Final = 300
#: Requests of a turn that is counted, by how many are under way at once; 64 are what saturation has.
_SINGLE: Final = {64: 6_400, 1: 1_000}
_BATCHES: Final = 40
_TURNS: Final = 4

Message = MutableMapping[str, Any]


def _scope(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """What Granian hands over."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8080),
        "client": ("127.0.0.1", 50_000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "extensions": {},
        "state": {},
    }


def _headers(body: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [
        (b"host", b"127.0.0.1:8080"),
        (b"user-agent", b"load/1.0"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *more,
    ]


class Caller:
    """Calls the application as its server would, and looks at each status."""

    def __init__(self, application: Callable[..., Awaitable[None]], keys: list[bytes]) -> None:
        self._application = application
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._wrong = 0

    async def cpu_us(self, path: str, body: bytes, status: int, count: int, at_once: int) -> float:
        """CPU microseconds for each of `count` requests, so many at once."""
        heads = [_headers(body, (b"x-api-key", key)) for key in self._keys]
        request = {"type": "http.request", "body": body, "more_body": False}

        async def receive() -> Message:
            return request

        async def send(message: Message) -> None:
            if message.get("status", status) != status:
                self._wrong += 1

        async def client(number: int) -> None:
            headers = heads[number % len(heads)]
            for _ in range(count // at_once):
                # A task for each, as Granian makes one.
                await self._loop.create_task(self._application(_scope(path, headers), receive, send))  # type: ignore[arg-type]

        before_s = time.process_time()
        await asyncio.gather(*(client(number) for number in range(at_once)))
        used_s = time.process_time() - before_s
        if self._wrong:
            raise RuntimeError(f"{self._wrong} responses were no {status}")
        return used_s / count * 1e6


async def _key(application: Callable[..., Awaitable[None]]) -> bytes:
    body = b'{"organization_name":"bench","tier":"enterprise"}'
    said: list[bytes] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        said.append(message.get("body", b""))

    headers = _headers(body, (b"authorization", b"Bearer " + _TOKEN.encode()))
    await application(_scope("/api/keys/generate", headers), receive, send)
    key: str = json.loads(b"".join(said))["api_key"]
    return key.encode()


async def _nothing(scope: dict[str, Any], receive: Callable[[], Awaitable[Message]], send: Any) -> None:
    """What the measuring itself takes."""
    await receive()
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _measure(url: str) -> dict[str, float]:
    settings = load(
        {
            "DATABASE_URL": url,
            "RELAY_SECRET_KEY": "a secret key that only this run of the bench knows",
            "RELAY_ADMIN_TOKEN": _TOKEN,
            "RELAY_RATE_LIMIT_ENTERPRISE": "1000000000",
        }
    )
    batch = b"[" + b",".join([_EVENT] * _BATCH) + b"]"
    seen: dict[str, list[float]] = {}
    async with Relay(settings, SharedMemory.create(1), connections=settings.db_pool_max, clients=1_024) as relay:
        keys = [await _key(relay.application) for _ in range(_TENANTS)]
        caller = Caller(relay.application, keys)
        await caller.cpu_us("/api/events", _EVENT, 201, 6_400, 64)
        await caller.cpu_us("/api/events/batch", batch, 200, 8, 4)
        # As `relay serve` does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        for _ in range(_TURNS):
            for at_once, count in _SINGLE.items():
                used = await caller.cpu_us("/api/events", _EVENT, 201, count, at_once)
                seen.setdefault(f"event, {at_once} at once", []).append(used)
            used = await caller.cpu_us("/api/events/batch", batch, 200, _BATCHES, 4)
            seen.setdefault(f"event of a batch of {_BATCH}", []).append(used / _BATCH)
        own = min([await Caller(_nothing, keys).cpu_us("/", _EVENT, 201, 12_800, 64) for _ in range(3)])
    figures = {name: min(values) for name, values in seen.items()}
    return {name: used - (own / _BATCH if "batch" in name else own) for name, used in figures.items()}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_measure(sys.argv[1]))))
