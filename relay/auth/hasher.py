"""Argon2id, in threads of its own."""

from __future__ import annotations

import asyncio
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
# Each running hash takes 19 MiB and, since it releases the GIL, a core.
_THREADS: Final = 2
# Those at the end of the line wait for 3 s or so.
_MOST_IN_LINE: Final = 100


class Hasher:
    """Argon2id over the secrets of keys, 30 ms each, off the event loop. Leaving waits for what runs.

    Keys are made one at a time: whoever makes thousands of them, by signing up or by rotating, takes one thread and no
    place before a key that is to be verified.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._argon2 = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=1)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._making = asyncio.Semaphore(1)
        self._in_line = 0
        self.hashed = (metrics or Metrics()).counter(
            "relay_keys_hashed", "Runs of Argon2id, to verify a key or to make one."
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def hash(self, secret: bytes) -> str:
        """The Argon2id hash of a new key's secret, with its parameters and salt (PHC string format).

        Raises:
            ApiError: `too_many_new_keys` when so many wait already that this one would wait for seconds.
        """
        if self._in_line >= _MOST_IN_LINE:
            raise ApiError("too_many_new_keys")
        self._in_line += 1
        try:
            async with self._making:
                self.hashed.add()
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._argon2.hash, secret)
        finally:
            self._in_line -= 1

    async def fits(self, hashed: str, secret: bytes) -> bool:
        """Whether `hashed` was made from this secret."""
        self.hashed.add()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._verify, hashed, secret)

    def _verify(self, hashed: str, secret: bytes) -> bool:
        try:
            return self._argon2.verify(hashed, secret)
        except (VerificationError, InvalidHashError):
            return False
