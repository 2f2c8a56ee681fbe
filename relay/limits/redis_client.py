"""The ledger of all nodes, in Redis: who asks while an exchange is under way joins the next one."""

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

#: How long an exchange may take: what waits for it decides alone after that.
EXCHANGE_S: Final = 0.1
_CONNECT_S: Final = 1.0
#: How often a process says that it is there, and how often Redis is tried while it does not answer.
BEAT_S: Final = 0.5
_GONE_S: Final = 5
_AT_MOST: Final = 512
#: However many processes were there, one that decides alone grants this share of a rate.
_LEAST_SHARE: Final = 16
# Redis names a script by its SHA-1.
_SHA1: Final = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (redis_scripts.GRANT, redis_scripts.RETURN, redis_scripts.PRESENT, redis_scripts.ABSENT)
}
_FAILURES: Final = (RedisError, OSError, TimeoutError)


class RedisAway(Exception):
    """Redis does not answer, or not what it should: whoever asked decides alone."""


class RedisClient:
    """One connection to Redis. Entering begins to talk to it, whether it is there or not; leaving says goodbye.

    Args:
        url: of Redis; never shown.
        prefix: of every key.
        metrics: where to show whether Redis answers.
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
        self._asked: deque[tuple[str, Sequence[object], asyncio.Future[Any]]] = deque()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        #: Whether Redis answered when it was last asked.
        self.up = False
        self._told = False
        #: How many processes there were when it last said.
        self.processes = 1
        self._counted_at = 0.0
        metrics.gauge("relay_redis_up", "1 while Redis answers.", lambda: int(self.up), combine="min")

    @property
    def share(self) -> int:
        """One in how many parts of a rate is this process's own while Redis is away."""
        return min(max(self.processes, 1), _LEAST_SHARE)

    def key_of(self, caller: uuid.UUID) -> str:
        """The key of a caller."""
        return f"{self._prefix}:limit:{caller}"

    async def __aenter__(self) -> Self:
        await self._say_present()
        self._tasks = [asyncio.create_task(self._talk(), name="redis"), asyncio.create_task(self._beat(), name="beat")]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._fail(self._asked)
        with contextlib.suppress(*_FAILURES):
            await self._exchange([(redis_scripts.ABSENT, (self._processes_key, self._process))])
        await self._redis.aclose()

    def ask(self, script: str, key: str, *args: object) -> asyncio.Future[Any]:
        """Have a script run with the next exchange.

        Raises:
            RedisAway: from the future.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((script, (key, *args), future))
        self._arrived.set()
        return future

    @property
    def _processes_key(self) -> str:
        return f"{self._prefix}:processes"

    async def _talk(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._asked:
                taken = [self._asked.popleft() for _ in range(min(len(self._asked), _AT_MOST))]
                try:
                    answers = await self._exchange([(script, args) for script, args, _ in taken])
                # The client's own mistakes too: requests wait for this, and for the task that makes it.
                except Exception as error:
                    self._lost(error)
                    self._fail(taken)
                    self._fail(self._asked)
                    self._asked.clear()
                    continue
                except asyncio.CancelledError:
                    self._fail(taken)
                    raise
                for (_, _, future), answer in zip(taken, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, Exception):
                        self._lost(answer)
                        future.set_exception(RedisAway())
                    else:
                        future.set_result(answer)

    async def _exchange(self, asked: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        # The client's own time-out comes first, and leaves its connection in order.
        async with asyncio.timeout(2 * EXCHANGE_S if self.up else _CONNECT_S + EXCHANGE_S):
            answers = await self._send(asked)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                # Redis has begun anew. What it knew was known to all of this exchange or to none.
                for script in {script for script, _ in asked}:
                    await self._redis.script_load(script)
                again = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
                for n, answer in zip(again, await self._send([asked[n] for n in again]), strict=True):
                    answers[n] = answer
            return answers

    async def _send(self, asked: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for script, args in asked:
            pipeline.evalsha(_SHA1[script], 1, *args)  # type: ignore[arg-type]
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._say_present()

    async def _say_present(self) -> None:
        try:
            (answer,) = await self._exchange([(redis_scripts.PRESENT, (self._processes_key, self._process, _GONE_S))])
            if isinstance(answer, Exception):
                raise answer
            processes = int(answer)
        except Exception as error:
            self._lost(error)
        else:
            self._found(processes)

    def _found(self, processes: int) -> None:
        now = asyncio.get_running_loop().time()
        # One that has begun anew does not know yet who else is there: fewer than before are believed after a while.
        if not self.up:
            self._counted_at = now
        if processes >= self.processes or now - self._counted_at > _GONE_S:
            self.processes, self._counted_at = processes, now
        if not self.up:
            _log.info("redis_answers", extra={"processes": self.processes})
        self.up = self._told = True

    def _lost(self, error: Exception) -> None:
        # Its text may hold the URL, and with it a password.
        if self.up or not self._told:
            _log.warning("redis_away", extra={"error": type(error).__name__, "share": f"1/{self.share}"})
        self.up = False
        self._told = True

    def _fail(self, asked: Iterable[tuple[str, Sequence[object], asyncio.Future[Any]]]) -> None:
        for _, _, future in asked:
            if not future.done():
                future.set_exception(RedisAway())
