"""The connection to Redis, with batching: scripts that arrive during one round trip are sent in the next."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from relay.limits import redis_scripts
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.limits")

#: The timeout of a round trip. Callers decide without Redis after that.
EXCHANGE_S: Final = 0.1
_CONNECT_S: Final = 1.0
#: The interval of heartbeats, and of retries while Redis does not respond.
HEARTBEAT_S: Final = 0.5
_GONE_S: Final = 5
_MAX_BATCH: Final = 512
#: A process without Redis grants at least 1/16 of a rate, however many processes there were.
_MAX_SHARES: Final = 16
# Redis identifies a script by its SHA-1.
_SHA1: Final = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (redis_scripts.GRANT, redis_scripts.RETURN, redis_scripts.PRESENT, redis_scripts.ABSENT)
}
_FAILURES: Final = (RedisError, OSError, TimeoutError)


class RedisUnavailable(Exception):
    """Redis does not respond, or responds with an error. The caller decides without it."""


class RedisClient:
    """A batching connection to Redis. Entering starts it even if Redis is unavailable. Leaving removes this process
    from the set of processes.

    Args:
        url: of Redis, never shown.
        prefix: of every key.
        metrics: where it reports the state of Redis.
    """

    def __init__(self, url: str, prefix: str, metrics: Metrics) -> None:
        self._redis = Redis.from_url(
            url,
            max_connections=2,
            socket_timeout=EXCHANGE_S,
            socket_connect_timeout=_CONNECT_S,
            retry=None,
            retry_on_timeout=False,
            protocol=2,
        )
        self._prefix = prefix
        self._process = uuid.uuid4().hex
        self._queue: deque[tuple[str, Sequence[object], asyncio.Future[Any]]] = deque()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        #: True if Redis responded to the last request.
        self.up = False
        self._logged = False
        #: The number of processes that Redis last reported.
        self.processes = 1
        self._counted_at = 0.0
        metrics.gauge("relay_redis_up", "1 while Redis responds.", lambda: int(self.up), combine="min")

    @property
    def share(self) -> int:
        """The divisor of a rate: without Redis this process grants 1/`share` of it."""
        return min(max(self.processes, 1), _MAX_SHARES)

    def key_of(self, caller: uuid.UUID) -> str:
        """Return the Redis key of a caller."""
        return f"{self._prefix}:limit:{caller}"

    async def __aenter__(self) -> Self:
        await self._send_heartbeat()
        self._tasks = [
            asyncio.create_task(self._run_queue(), name="redis"),
            asyncio.create_task(self._run_heartbeat(), name="redis heartbeat"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._fail(self._queue)
        with contextlib.suppress(*_FAILURES):
            await self._exchange([(redis_scripts.ABSENT, (self._processes_key, self._process))])
        await self._redis.aclose()

    def run(self, script: str, key: str, *args: object) -> asyncio.Future[Any]:
        """Run a script in the next round trip.

        Raises:
            RedisUnavailable: from the future.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((script, (key, *args), future))
        self._arrived.set()
        return future

    @property
    def _processes_key(self) -> str:
        return f"{self._prefix}:processes"

    async def _run_queue(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
                try:
                    replies = await self._exchange([(script, args) for script, args, _ in batch])
                # Bugs of the client library too: requests wait for this batch, and this task must not end.
                except Exception as error:
                    self._mark_down(error)
                    self._fail(batch)
                    self._fail(self._queue)
                    self._queue.clear()
                    continue
                except asyncio.CancelledError:
                    self._fail(batch)
                    raise
                for (_, _, future), reply in zip(batch, replies, strict=True):
                    if future.done():
                        continue
                    if isinstance(reply, Exception):
                        self._mark_down(reply)
                        future.set_exception(RedisUnavailable())
                    else:
                        future.set_result(reply)

    async def _exchange(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        # The client's own timeout comes first and leaves its connection in order.
        async with asyncio.timeout(2 * EXCHANGE_S if self.up else _CONNECT_S + EXCHANGE_S):
            replies = await self._send(calls)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                # Redis was restarted and has lost all scripts, so each is loaded again.
                for script in {script for script, _ in calls}:
                    await self._redis.script_load(script)
                missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                for n, reply in zip(missing, await self._send([calls[n] for n in missing]), strict=True):
                    replies[n] = reply
            return replies

    async def _send(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for script, args in calls:
            pipeline.evalsha(_SHA1[script], 1, *args)  # type: ignore[arg-type]
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _run_heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._send_heartbeat()

    async def _send_heartbeat(self) -> None:
        try:
            (reply,) = await self._exchange([(redis_scripts.PRESENT, (self._processes_key, self._process, _GONE_S))])
            if isinstance(reply, Exception):
                raise reply
            processes = int(reply)
        except Exception as error:
            self._mark_down(error)
        else:
            self._mark_up(processes)

    def _mark_up(self, processes: int) -> None:
        now = asyncio.get_running_loop().time()
        # A restarted Redis does not know all processes yet, so a lower number is accepted only after a while.
        if not self.up:
            self._counted_at = now
        if processes >= self.processes or now - self._counted_at > _GONE_S:
            self.processes, self._counted_at = processes, now
        if not self.up:
            _log.info("redis_answers", extra={"processes": self.processes})
        self.up = self._logged = True

    def _mark_down(self, error: Exception) -> None:
        # The error's text may contain the URL and so a password: only its type is logged.
        if self.up or not self._logged:
            _log.warning("redis_away", extra={"error": type(error).__name__, "share": f"1/{self.share}"})
        self.up = False
        self._logged = True

    def _fail(self, calls: Iterable[tuple[str, Sequence[object], asyncio.Future[Any]]]) -> None:
        for _, _, future in calls:
            if not future.done():
                future.set_exception(RedisUnavailable())
