"""A limit on PostgreSQL backends, including those that still run a statement abandoned by this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final

from relay.runtime.service import Service
from relay.store import errors

_log = logging.getLogger("relay.store")

#: The timeout of a cancel request, which may hang for the same reason as the statement.
CANCEL_TIMEOUT_S: Final = 2.0
_INTERVAL_S: Final = 0.5


class BackendLimit(Service):
    """A limit of `limit` backends at once. Entering starts the task that checks which abandoned backends have ended.

    Closing a connection does not end its running statement: the backend lives until the server notices. It counts
    towards the limit until `left` no longer returns it.

    Args:
        limit: the maximum number of backends.
        left: given process ids and how many seconds ago each backend was abandoned, returns those still alive.
    """

    def __init__(self, limit: int, left: Callable[[Sequence[int], Sequence[float]], Awaitable[Sequence[int]]]) -> None:
        self._left = left
        self._places = asyncio.Semaphore(limit)
        self._given_up: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        for task in self._ending:
            task.cancel()
        if self._ending:
            await asyncio.wait(set(self._ending))

    @property
    def given_up(self) -> int:
        """The number of live backends whose connection is closed."""
        return len(self._given_up)

    async def acquire(self, timeout_s: float) -> None:
        """Acquire a place.

        Raises:
            TimeoutError: no place became free in time.
        """
        # A timer costs more than acquiring a free place.
        if self._places.locked():
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        else:
            await self._places.acquire()

    def release(self) -> None:
        """Release a place."""
        self._places.release()

    def release_after(self, ended: Awaitable[int | None]) -> None:
        """Release a place once an abandoned statement has ended.

        Args:
            ended: waits for that. Returns the process id of the backend if it has not ended.
        """
        self._go_on(self._release_after(ended))

    def add(self, process_id: int) -> None:
        """Let an abandoned backend without a place take one as soon as one is free, until the backend ends."""
        self._go_on(self._add(process_id))

    def _go_on(self, ending: Awaitable[None]) -> None:
        task = asyncio.ensure_future(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _release_after(self, ended: Awaitable[int | None]) -> None:
        process_id = await ended
        if process_id is None:
            self._places.release()
        else:
            self._keep(process_id)

    async def _add(self, process_id: int) -> None:
        await self._places.acquire()
        self._keep(process_id)

    def _keep(self, process_id: int) -> None:
        self._given_up[process_id] = time.monotonic()
        self._changed.set()

    async def run(self) -> None:
        """Check repeatedly which abandoned backends have ended."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_INTERVAL_S)
            asked = dict(self._given_up)
            now = time.monotonic()
            try:
                left = set(await self._left(list(asked), [now - at for at in asked.values()]))
            except errors.StoreError as error:
                _log.debug("backends_not_read", extra={"reason": str(error), "backends": len(asked)})
                continue
            for process_id in asked.keys() - left:
                del self._given_up[process_id]
                self._places.release()
            if not self._given_up:
                self._changed.clear()
