"""Background services: each runs for as long as its `async with` block."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Final, Self

_log = logging.getLogger("relay.background")

_RESTART_PAUSE_S: Final = 1.0


class Service(ABC):
    """A service with one task. Entering starts it, leaving cancels it.

    A service handles the failures that it expects. Any other exception of `run` is a bug: it is logged and `run` is
    called again after a second, because a service that stops silently is worse.
    """

    _task: asyncio.Task[None] | None = None

    @abstractmethod
    async def run(self) -> None:
        """Run until cancelled."""

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
                await asyncio.sleep(_RESTART_PAUSE_S)
