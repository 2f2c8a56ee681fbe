"""Argon2id behind the keys that their digest has admitted, organizations by turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

from relay.auth.hasher import Hasher
from relay.runtime.service import Service

#: How many keys of one organization, and of all, may wait.
MOST_OF_ORGANIZATION: Final = 200
MOST: Final = 10_000


class HashCheck(NamedTuple):
    """A key that was admitted, and the hash that its secret must fit."""

    fingerprint: bytes
    organization_id: UUID
    key_id: UUID
    secret: bytes
    argon2: str


class HashChecks(Service):
    """Verifies secrets against their Argon2id hashes, one after the other, each waiting organization in its turn.

    Entering starts it; leaving ends it, and what waits is verified by the next process that meets the key.

    Args:
        hasher: runs Argon2id.
        failed: is called with a key whose secret does not fit its hash.
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
        """Verify a key in its turn, once however often it is added. False: too many wait already."""
        if check.fingerprint in self._fingerprints:
            return True
        queue = self._waiting.get(check.organization_id)
        if len(self._fingerprints) >= MOST or (queue is not None and len(queue) >= MOST_OF_ORGANIZATION):
            return False
        if queue is None:
            queue = self._waiting[check.organization_id] = deque()
        queue.append(check)
        self._fingerprints.add(check.fingerprint)
        self._arrived.set()
        return True

    async def run(self) -> None:
        """Verify what waits, and wait for more."""
        while True:
            await self._arrived.wait()
            while self._waiting:
                check = self._next()
                try:
                    if not await self._hasher.fits(check.argon2, check.secret):
                        self._failed(check)
                finally:
                    self._fingerprints.discard(check.fingerprint)
            self._arrived.clear()

    def _next(self) -> HashCheck:
        """Take the first of the organization whose turn it is, which then goes to the end of the line."""
        organization_id = next(iter(self._waiting))
        queue = self._waiting.pop(organization_id)
        check = queue.popleft()
        if queue:
            self._waiting[organization_id] = queue
        return check
