"""A limit on PostgreSQL's processes, also on those that still work on a statement that was given up here."""

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

#: How long the answer to a cancel may take; what hangs a statement may hang that too.
CANCEL_TIMEOUT_S: Final = 2.0
_INTERVAL_S: Final = 0.5


class BackendLimit(Service):
    """At most `limit` backends at once. Entering starts the task that looks for those that have ended.

    A connection that is closed while its statement runs does not end that statement: its backend lives on until the
    server notices. It keeps its place in the limit until `left` no longer lists it.

    Args:
        limit: how many.
        left: of backends, given by their process ids and how long ago each was given up in seconds, those that live.
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
        """How many places are kept by backends whose connection is closed."""
        return len(self._given_up)

    async def acquire(self, timeout_s: float) -> None:
        """Take a place.

        Raises:
            TimeoutError: there was none in this time.
        """
        # A timer costs more than a place that is free.
        if self._places.locked():
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        else:
            await self._places.acquire()

    def release(self) -> None:
        """Give a place back."""
        self._places.release()

    def release_after(self, ended: Awaitable[int | None]) -> None:
        """Give a place back once a statement that was given up has ended.

        Args:
            ended: waits for that; gives the process id of the backend if it has not.
        """
        self._go_on(self._release_after(ended))

    def add(self, process_id: int) -> None:
        """Let a backend that never had a place keep one, as soon as there is one and for as long as it lives."""
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
        """Look again and again which of them have ended."""
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
