"""Claim due deliveries again and again, and start an attempt for each."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from relay.delivery.attempts import Attempts
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.concurrency import ConcurrencyLimiter
from relay.delivery.claims import ClaimedDelivery, Claimer, has_crashed
from relay.delivery.endpoint_cache import EndpointCache
from relay.delivery.leases import Leases
from relay.delivery.metrics import DeliveryMetrics
from relay.delivery.ownership.bucket_leases import BucketLeases
from relay.delivery.recorder import Recorder
from relay.store import StatementRejected, StoreError

_log = logging.getLogger("relay.delivery")

# Wakeups may be lost, so polling makes up for them.
_POLL_S: Final = 1.0
# The shortest interval between checks for parked deliveries, those whose retry was more than a minute away.
_UNPARK_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# The same while PostgreSQL rejects the statement itself, which only an operator can solve.
_LONGEST_REJECTED_PAUSE_S: Final = 30.0


class ClaimLoop:
    """Claim within the capacity of the process and its assigned buckets. The theory of operation is in `loop`.

    Args:
        wake: set when something may be due.
        max_unrecorded: with this many unwritten results, claiming pauses.
        now: PostgreSQL's time.
    """

    def __init__(
        self,
        wake: asyncio.Event,
        max_unrecorded: int,
        now: Callable[[], datetime.datetime],
        *,
        claimer: Claimer,
        slots: ConcurrencyLimiter,
        bucket_leases: BucketLeases,
        leases: Leases,
        endpoint_cache: EndpointCache,
        attempts: Attempts,
        recorder: Recorder,
        metrics: DeliveryMetrics,
    ) -> None:
        self._wake = wake
        self._max_unrecorded = max_unrecorded
        self._now = now
        self._claimer = claimer
        self._slots = slots
        self._bucket_leases = bucket_leases
        self._leases = leases
        self._endpoint_cache = endpoint_cache
        self._attempts = attempts
        self._recorder = recorder
        self._metrics = metrics
        self._next_poll: asyncio.TimerHandle | None = None
        self._stopping = asyncio.Event()
        self._unpark_at = 0.0
        #: True while claiming pauses because results are not written.
        self.is_blocked = False
        #: Set once the first assignment is known and its due deliveries have been claimed.
        self.ready = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing more. `run` ends once a running claim has ended."""
        self._stopping.set()
        self._wake.set()

    def close(self) -> None:
        """Cancel the timer."""
        if self._next_poll is not None:
            self._next_poll.cancel()

    async def run(self) -> None:
        """Claim until stopped."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                await self._iterate()
                await self._unpark()
            except StoreError as reason:
                _log.warning("claims_wait_for_database", extra={"reason": str(reason)})
                is_rejected = isinstance(reason, StatementRejected)
                longest_s = _LONGEST_REJECTED_PAUSE_S if is_rejected else _LONGEST_PAUSE_S
                await self._rest(min(pause_s, longest_s))
                pause_s = min(longest_s, pause_s * 2)
                continue
            pause_s = _FIRST_PAUSE_S
            self._schedule_poll()
            if self._bucket_leases.joined:
                self.ready.set()
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not beyond the stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _unpark(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._unpark_at:
            return
        unparked, more = await self._claimer.unpark()
        if unparked:
            self._wake.set()
        if not more:
            self._unpark_at = now + _UNPARK_S

    async def _iterate(self) -> None:
        """Claim until nothing more can be claimed now."""
        self._claimer.begin_pass()
        more = True
        while more and not self._stopping.is_set():
            self.is_blocked = self._recorder.failing or self._recorder.backlog >= self._max_unrecorded
            if self.is_blocked or self._attempts.is_exhausted:
                return
            assignment, budget = self._bucket_leases.assignment, self._slots.budget(asyncio.get_running_loop().time())
            if budget is None or not assignment.ranges:
                return
            claimed, more = await self._claimer.claim(budget, assignment)
            self._metrics.claimed(claimed)
            self._leases.track(delivery.claim for delivery in claimed)
            await self._start(budget, claimed)

    async def _keep_owned(self, claimed: list[ClaimedDelivery]) -> list[ClaimedDelivery]:
        """Release the claims whose buckets were lost while statements ran, and return the rest."""
        while lost := {
            delivery.claim for delivery in claimed if not self._bucket_leases.owns(delivery.claim.endpoint_id)
        }:
            await self._leases.release(list(lost))
            claimed = [delivery for delivery in claimed if delivery.claim not in lost]
        return claimed

    async def _start(self, budget: ClaimBudget, claimed: Sequence[ClaimedDelivery]) -> None:
        try:
            endpoints = await self._endpoint_cache.of_claim(claimed)
        except StoreError:
            await self._leases.release([delivery.claim for delivery in claimed])
            raise
        if self._stopping.is_set():
            endpoints = {}
        known = [delivery for delivery in claimed if delivery.claim.endpoint_id in endpoints]
        if len(known) < len(claimed):
            await self._leases.release(
                [delivery.claim for delivery in claimed if delivery.claim.endpoint_id not in endpoints]
            )
        known = await self._keep_owned(known)
        for delivery in [each for each in known if has_crashed(each)]:
            known.remove(delivery)
            self._attempts.fail_unsent(delivery, self._now())
        taken = Counter(delivery.claim.endpoint_id for delivery in known)
        limits = {endpoint_id: endpoints[endpoint_id].limits for endpoint_id in taken}
        for nth, delivery in enumerate(known):
            payload = self._slots.quotas.reserve_payload(
                delivery.claim.organization_id, delivery.claim.event_id, delivery.payload
            )
            if payload is not delivery.payload:
                known[nth] = delivery._replace(payload=payload)
        self._slots.reserve(budget, taken, limits, asyncio.get_running_loop().time())
        for delivery in known:
            self._attempts.start(delivery, endpoints[delivery.claim.endpoint_id])

    def _schedule_poll(self) -> None:
        """Poll again when the next token or probe is due."""
        if self._next_poll is not None:
            self._next_poll.cancel()
        loop = asyncio.get_running_loop()
        wait_s = self._slots.poll_in_s(loop.time())
        self._next_poll = None if wait_s is None else loop.call_later(wait_s, self._wake.set)
