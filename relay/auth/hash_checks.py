"""Argon2id checks in the background, for keys that their digest has already admitted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

from relay.auth.hasher import Hasher
from relay.runtime.service import Service

#: The maximum number of waiting keys, per organization and in total.
MAX_PER_ORGANIZATION: Final = 200
MAX_WAITING: Final = 10_000


class HashCheck(NamedTuple):
    """An admitted key and the hash that its secret must match."""

    fingerprint: bytes
    organization_id: UUID
    key_id: UUID
    secret: bytes
    argon2: str


class HashChecks(Service):
    """A service that verifies secrets against their Argon2id hashes, one at a time, round-robin over organizations.

    Leaving drops what waits: the next process that sees the key verifies it.

    Args:
        hasher: runs Argon2id.
        failed: called with a key whose secret does not match its hash.
    """

    def __init__(self, hasher: Hasher, failed: Callable[[HashCheck], None]) -> None:
        self._hasher = hasher
        self._failed = failed
        self._waiting: dict[UUID, deque[HashCheck]] = {}
        self._fingerprints: set[bytes] = set()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._fingerprints)

    def add(self, check: HashCheck) -> bool:
        """Queue a key, once however often it is added. Return False if too many are waiting."""
        if check.fingerprint in self._fingerprints:
            return True
        queue = self._waiting.get(check.organization_id)
        if len(self._fingerprints) >= MAX_WAITING or (queue is not None and len(queue) >= MAX_PER_ORGANIZATION):
            return False
        if queue is None:
            queue = self._waiting[check.organization_id] = deque()
        queue.append(check)
        self._fingerprints.add(check.fingerprint)
        self._arrived.set()
        return True

    async def run(self) -> None:
        """Verify the waiting keys, and wait for more."""
        while True:
            await self._arrived.wait()
            while self._waiting:
                check = self._next()
                try:
                    if not await self._hasher.matches(check.argon2, check.secret):
                        self._failed(check)
                finally:
                    self._fingerprints.discard(check.fingerprint)
            self._arrived.clear()

    def _next(self) -> HashCheck:
        """Take the first key of the next organization, and move that organization to the end of the queue."""
        organization_id = next(iter(self._waiting))
        queue = self._waiting.pop(organization_id)
        check = queue.popleft()
        if queue:
            self._waiting[organization_id] = queue
        return check
