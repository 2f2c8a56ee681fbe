"""Whether a key that this process does not know yet is what it says it is."""

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
from relay.auth.key_format import ApiKey, digest, read
from relay.auth.key_loader import KeyLoader
from relay.auth.keyring import Keyring
from relay.auth.tenant import Tenant
from relay.store import Row
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.auth")

# A client that goes on with a revoked key costs one query in so long, not one a request.
_REMEMBERED_S: Final = 30.0
_REMEMBERED: Final = 10_000
# How often a row is read again because a key was revoked meanwhile, before the answer goes uncached.
_READS: Final = 3


class Refusals:
    """Keys that were refused lately, by what stands for them, up to 10,000.

    What is refused once is refused for good: no id is given out twice, and no key that has ended comes back. They are
    forgotten after 30 to 60 s all the same, for the operator who mends a row by hand. Two generations, because a timer
    for each costs as much as the refusal.
    """

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._until = 0.0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, fingerprint: bytes) -> bool:
        self._grow_old()
        return fingerprint in self._young or fingerprint in self._old

    def add(self, fingerprint: bytes) -> None:
        """Remember one more."""
        self._grow_old()
        self._young.add(fingerprint)

    def _grow_old(self) -> None:
        now = time.monotonic()
        if now >= self._until or len(self._young) >= _REMEMBERED // 2:
            # Nobody may have come for long.
            self._old = self._young if now < self._until + _REMEMBERED_S else set()
            self._young = set()
            self._until = now + _REMEMBERED_S


class Verifier:
    """Verifies keys, cheapest proof first: shape and checksum, the row of its id, the digest, and behind it Argon2.

    The digest of a secret of 256 random bits admits: nobody finds another secret for it. Argon2 verifies the secret
    behind that, once for each key, and one that does not fit its hash is refused here from then on.

    A wrong secret for a real id ends at the digest and touches nothing of the real key. Requests that come
    with one key at the same time share one verification. Entering starts what verifies behind; leaving ends it and what
    is under way.
    """

    def __init__(self, reads: KeyLoader, keyring: Keyring, cache: KeyCache, hasher: Hasher, metrics: Metrics) -> None:
        self._reads = reads
        self._keyring = keyring
        self._cache = cache
        self._refusals = Refusals()
        self._flights: dict[bytes, asyncio.Task[Tenant | None]] = {}
        self._refused = metrics.counter("relay_keys_refused", "Keys refused, by the proof that failed.", "proof")
        self._checks = HashChecks(hasher, self._end)
        # Ids of keys whose secret has the digest of their row and not its hash: somebody has changed the row.
        self._ended: set[UUID] = set()
        metrics.gauge(
            "relay_key_hash_checks_waiting",
            "Keys that their digest has admitted and that Argon2id has yet to verify.",
            lambda: len(self._checks),
        )

    def __len__(self) -> int:
        """How many keys are under way or remembered as refused."""
        return len(self._flights) + len(self._refusals)

    async def __aenter__(self) -> Self:
        await self._checks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        flights = [flight for flight in self._flights.values() if not flight.done()]
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)
        await self._checks.__aexit__(kind, error, traceback)

    async def verify(self, text: bytes) -> Tenant | None:
        """The tenant of a key, or None when it is refused.

        Raises:
            StoreError: the database does not answer.
        """
        key = read(text, self._keyring.hmac_key)
        if key is None or key.cell_id != self._keyring.cell_id:
            self._refused.add(1, "checksum")
            return None
        fingerprint = self._cache.fingerprint(text)
        if fingerprint in self._refusals:
            self._refused.add(1, "remembered")
            return None
        flight = self._flights.get(fingerprint)
        if flight is None:
            flight = asyncio.create_task(self._prove(key, fingerprint), name="verify a key")
            self._flights[fingerprint] = flight
            flight.add_done_callback(lambda _: self._flights.pop(fingerprint, None))
        # A client that leaves does not take the others' verification along.
        return await asyncio.shield(flight)

    async def _prove(self, key: ApiKey, fingerprint: bytes) -> Tenant | None:
        tenant = None
        for _ in range(_READS):
            row = await self._reads.row(key.key_id)
            if row is None:
                self._refuse(fingerprint, "id")
                return None
            if not hmac.compare_digest(row["digest"], digest(key.secret, self._keyring.hmac_key)):
                self._refuse(fingerprint, "digest")
                return None
            if key.key_id in self._ended:
                self._refuse(fingerprint, "argon2")
                return None
            tenant = tenant_of(row)
            check = HashCheck(fingerprint, tenant.organization_id, key.key_id, key.secret, row["argon2"])
            # What is cached is verified, or waits for it. What there is no room for is looked up again each time.
            if not self._cache.has(fingerprint) and not self._checks.add(check):
                break
            if self._cache.put(fingerprint, tenant, row["keys_version"]):
                break
        return tenant

    def _end(self, check: HashCheck) -> None:
        """Refuse a key for as long as this process lives."""
        _log.error(
            "key_does_not_fit_its_hash",
            extra={"key_id": str(check.key_id), "organization_id": str(check.organization_id)},
        )
        self._ended.add(check.key_id)
        self._refuse(check.fingerprint, "argon2")

    def _refuse(self, fingerprint: bytes, proof: str) -> None:
        self._cache.drop(fingerprint)
        self._refusals.add(fingerprint)
        self._refused.add(1, proof)


def tenant_of(row: Row) -> Tenant:
    """The tenant that a row of a key speaks of."""
    expires_at = row["expires_at"]
    return Tenant(
        organization_id=row["organization_id"],
        key_id=row["id"],
        tier=row["tier"],
        scopes=frozenset(row["scopes"]),
        expires_at=None if expires_at is None else expires_at.timestamp(),
    )
