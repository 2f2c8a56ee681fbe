"""Argon2id, in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from relay.errors import ApiError
from relay.telemetry.metrics import Metrics

# The least that OWASP's password storage cheat sheet allows; secrets of 256 random bits need no more.
_MEMORY_KIB: Final = 19 * 1024
_PASSES: Final = 2
# Of the thread that verifies, on Linux: nobody waits for it. Not 19, because it holds the GIL for moments, and the
# event loop would then wait for a thread that gets no core.
_NICENESS: Final = 10
# Those at the end of the line wait for 3 s or so.
_MOST_IN_LINE: Final = 100


class Hasher:
    """Argon2id over the secrets of keys, 30 ms each, off the event loop. Leaving waits for what runs.

    Two threads, because each running hash takes 19 MiB and, since it releases the GIL, a core: one makes keys, whose
    owners wait for them; one verifies, at a low priority, keys that are admitted already.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._argon2 = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=1)
        self._making = ThreadPoolExecutor(1, thread_name_prefix="argon2 make")
        self._turn = asyncio.Semaphore(1)
        self._verifying = ThreadPoolExecutor(1, thread_name_prefix="argon2 verify", initializer=_give_way)
        self._in_line = 0
        self.hashed = (metrics or Metrics()).counter(
            "relay_keys_hashed", "Runs of Argon2id, to verify a key or to make one."
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._making.shutdown(cancel_futures=True)
        self._verifying.shutdown(cancel_futures=True)

    async def hash(self, secret: bytes) -> str:
        """The Argon2id hash of a new key's secret, with its parameters and salt (PHC string format).

        Raises:
            ApiError: `too_many_new_keys` when so many wait already that this one would wait for seconds.
        """
        if self._in_line >= _MOST_IN_LINE:
            raise ApiError("too_many_new_keys")
        self._in_line += 1
        try:
            async with self._turn:
                self.hashed.add()
                return await asyncio.get_running_loop().run_in_executor(self._making, self._argon2.hash, secret)
        finally:
            self._in_line -= 1

    async def fits(self, hashed: str, secret: bytes) -> bool:
        """Whether `hashed` was made from this secret."""
        self.hashed.add()
        return await asyncio.get_running_loop().run_in_executor(self._verifying, self._verify, hashed, secret)

    def _verify(self, hashed: str, secret: bytes) -> bool:
        try:
            return self._argon2.verify(hashed, secret)
        except (VerificationError, InvalidHashError):
            return False


def _give_way() -> None:
    """Lower the priority of this thread, where threads have priorities of their own."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
