"""Verification of keys that are not in this process's cache."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from relay.auth.cache import KeyCache
from relay.auth.hash_checks import HashCheck, HashChecks
from relay.auth.hasher import Hasher
from relay.auth.key_format import ParsedKey, digest, parse
from relay.auth.key_loader import KeyLoader
from relay.auth.keyring import Keyring
from relay.auth.tenant import Tenant
from relay.store import Row
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.auth")

# A client that keeps using a revoked key costs one query in this time, not one per request.
_REMEMBERED_S: Final = 30.0
_MAX_REMEMBERED: Final = 10_000
# How often a row is read, if keys are revoked meanwhile, before the result is returned uncached.
_MAX_READS: Final = 3


class RejectedKeys:
    """The fingerprints of recently rejected keys, at most 10,000.

    A rejection is final: ids are never reused, and an expired key never becomes valid again. Entries are still dropped
    after 30 to 60 s, for the operator who repairs a row by hand. There are two generations, because a timer per entry
    costs as much as the rejection.
    """

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._until = 0.0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, fingerprint: bytes) -> bool:
        self._age()
        return fingerprint in self._young or fingerprint in self._old

    def add(self, fingerprint: bytes) -> None:
        """Add a rejected key."""
        self._age()
        self._young.add(fingerprint)

    def _age(self) -> None:
        now = time.monotonic()
        if now >= self._until or len(self._young) >= _MAX_REMEMBERED // 2:
            # If this was not called for a long time, the young generation is out of date too.
            self._old = self._young if now < self._until + _REMEMBERED_S else set()
            self._young = set()
            self._until = now + _REMEMBERED_S


class Verifier:
    """Verifies keys, cheapest proof first: format and checksum, the row of its id, the digest, and later Argon2id.

    A matching digest admits the request: a second secret of 256 random bits with the same digest cannot be found.
    Argon2id verifies the secret in the background, once for each key. A key that does not match its hash is rejected by
    this process from then on.

    A wrong secret for an existing id is rejected at the digest and has no effect on the real key. Concurrent requests
    with the same key share one verification. Entering starts the background check. Leaving cancels it and the running
    verifications.
    """

    def __init__(self, loader: KeyLoader, keyring: Keyring, cache: KeyCache, hasher: Hasher, metrics: Metrics) -> None:
        self._loader = loader
        self._keyring = keyring
        self._cache = cache
        self._rejected = RejectedKeys()
        self._in_flight: dict[bytes, asyncio.Task[Tenant | None]] = {}
        self._rejections = metrics.counter("relay_keys_refused", "Keys rejected, by the proof that failed.", "proof")
        self._checks = HashChecks(hasher, self._disable)
        # Ids of keys whose secret matches the digest of their row but not its hash: the row was tampered with.
        self._disabled: set[UUID] = set()
        metrics.gauge(
            "relay_key_hash_checks_waiting",
            "Keys that were admitted by their digest and wait for Argon2id.",
            lambda: len(self._checks),
        )

    def __len__(self) -> int:
        """Return the number of keys that are being verified or remembered as rejected."""
        return len(self._in_flight) + len(self._rejected)

    async def __aenter__(self) -> Self:
        await self._checks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        running = [task for task in self._in_flight.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._checks.__aexit__(kind, error, traceback)

    async def verify(self, text: bytes) -> Tenant | None:
        """Return the tenant of a key, or None if the key is rejected.

        Raises:
            StoreError: the database does not respond.
        """
        key = parse(text, self._keyring.hmac_key)
        if key is None or key.cell_id != self._keyring.cell_id:
            self._rejections.add(1, "checksum")
            return None
        fingerprint = self._cache.fingerprint(text)
        if fingerprint in self._rejected:
            self._rejections.add(1, "remembered")
            return None
        task = self._in_flight.get(fingerprint)
        if task is None:
            task = asyncio.create_task(self._verify(key, fingerprint), name="verify a key")
            self._in_flight[fingerprint] = task
            task.add_done_callback(lambda _: self._in_flight.pop(fingerprint, None))
        # A client that disconnects must not cancel the verification for the others.
        return await asyncio.shield(task)

    async def _verify(self, key: ParsedKey, fingerprint: bytes) -> Tenant | None:
        tenant = None
        for _ in range(_MAX_READS):
            row = await self._loader.row(key.key_id)
            if row is None:
                self._reject(fingerprint, "id")
                return None
            if not hmac.compare_digest(row["digest"], digest(key.secret, self._keyring.hmac_key)):
                self._reject(fingerprint, "digest")
                return None
            if key.key_id in self._disabled:
                self._reject(fingerprint, "argon2")
                return None
            tenant = tenant_of(row)
            check = HashCheck(fingerprint, tenant.organization_id, key.key_id, key.secret, row["argon2"])
            # A cached key is verified or queued for it. If the queue is full, the key is looked up again each time.
            if not self._cache.has(fingerprint) and not self._checks.add(check):
                break
            if self._cache.put(fingerprint, tenant, row["keys_version"]):
                break
        return tenant

    def _disable(self, check: HashCheck) -> None:
        """Reject a key until this process ends."""
        _log.error(
            "key_does_not_fit_its_hash",
            extra={"key_id": str(check.key_id), "organization_id": str(check.organization_id)},
        )
        self._disabled.add(check.key_id)
        self._reject(check.fingerprint, "argon2")

    def _reject(self, fingerprint: bytes, proof: str) -> None:
        self._cache.drop(fingerprint)
        self._rejected.add(fingerprint)
        self._rejections.add(1, proof)


def tenant_of(row: Row) -> Tenant:
    """Return the tenant of a row of `keys_by_id` or `keys_in_force`."""
    expires_at = row["expires_at"]
    return Tenant(
        organization_id=row["organization_id"],
        key_id=row["id"],
        tier=row["tier"],
        scopes=frozenset(row["scopes"]),
        expires_at=None if expires_at is None else expires_at.timestamp(),
    )
