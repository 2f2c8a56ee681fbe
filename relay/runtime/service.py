"""What goes on beside the requests, for as long as somebody stays in its `async with`."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Final, Self

_log = logging.getLogger("relay.background")

_AFTER_MISTAKE_S: Final = 1.0


class Service(ABC):
    """A service with one task: entering starts it, leaving ends it.

    What `run` raises is a mistake in here, since each knows the failures of its own: it is logged and `run` begins
    again, because a service that is silently gone is worse than one that stumbles.
    """

    _task: asyncio.Task[None] | None = None

    @abstractmethod
    async def run(self) -> None:
        """Go on until cancelled."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_on(), name=type(self).__name__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _keep_on(self) -> None:
        while True:
            try:
                await self.run()
                return
            except Exception:
                _log.exception("background_failed", extra={"service": type(self).__name__})
                await asyncio.sleep(_AFTER_MISTAKE_S)
