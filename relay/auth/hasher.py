"""Argon2id, in threads of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from relay.telemetry.metrics import Metrics

# The least that OWASP's password storage cheat sheet allows; secrets of 256 random bits need no more.
_MEMORY_KIB: Final = 19 * 1024
_PASSES: Final = 2
# Each running hash takes 19 MiB and, since it releases the GIL, a core.
_THREADS: Final = 2


class Hasher:
    """Argon2id over the secrets of keys, 30 ms each, off the event loop. Leaving waits for what runs."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._argon2 = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=1)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
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
        """The Argon2id hash of a secret, with its parameters and salt (PHC string format)."""
        self.hashed.add()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._argon2.hash, secret)

    async def fits(self, hashed: str, secret: bytes) -> bool:
        """Whether `hashed` was made from this secret."""
        self.hashed.add()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._verify, hashed, secret)

    def _verify(self, hashed: str, secret: bytes) -> bool:
        try:
            return self._argon2.verify(hashed, secret)
        except (VerificationError, InvalidHashError):
            return False
