"""Argon2id in dedicated threads."""

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

from relay.auth.errors import TooManyNewKeys
from relay.telemetry.metrics import Metrics

# The minimum of OWASP's password storage cheat sheet. Secrets of 256 random bits need no more.
_MEMORY_KIB: Final = 19 * 1024
_PASSES: Final = 2
# The niceness of the verifying thread on Linux: no request waits for it. Not 19, because the thread briefly holds the
# GIL, and the event loop would then wait for a thread that gets no core.
_NICENESS: Final = 10
# The last in a full queue waits for about 3 s.
_MAX_QUEUED: Final = 100


class Hasher:
    """An Argon2id hasher for the secrets of keys: 30 ms each, off the event loop. Leaving waits for running hashes.

    There are only two threads, because each running hash takes 19 MiB and, since it releases the GIL, a core. One
    hashes new keys, whose owners wait for them. The other verifies admitted keys at a low priority.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._argon2 = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=1)
        self._hash_thread = ThreadPoolExecutor(1, thread_name_prefix="argon2 hash")
        self._hashing = asyncio.Semaphore(1)
        self._verify_thread = ThreadPoolExecutor(1, thread_name_prefix="argon2 verify", initializer=_lower_priority)
        self._queued = 0
        self.hashed = (metrics or Metrics()).counter(
            "relay_keys_hashed", "Runs of Argon2id, to verify a key or to create one."
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hash_thread.shutdown(cancel_futures=True)
        self._verify_thread.shutdown(cancel_futures=True)

    async def hash(self, secret: bytes) -> str:
        """Return the Argon2id hash of a new key's secret, with its parameters and salt (PHC string format).

        Raises:
            TooManyNewKeys: so many are queued that this one would wait for seconds.
        """
        if self._queued >= _MAX_QUEUED:
            raise TooManyNewKeys
        self._queued += 1
        try:
            async with self._hashing:
                self.hashed.add()
                return await asyncio.get_running_loop().run_in_executor(self._hash_thread, self._argon2.hash, secret)
        finally:
            self._queued -= 1

    async def matches(self, hashed: str, secret: bytes) -> bool:
        """Return True if `hashed` is the hash of this secret."""
        self.hashed.add()
        return await asyncio.get_running_loop().run_in_executor(self._verify_thread, self._verify, hashed, secret)

    def _verify(self, hashed: str, secret: bytes) -> bool:
        try:
            return self._argon2.verify(hashed, secret)
        except (VerificationError, InvalidHashError):
            return False


def _lower_priority() -> None:
    """Lower the priority of this thread, where threads have their own priority."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
