"""The delivery loop: claim, post, record."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

from relay.config import Settings
from relay.delivery.answers import ErrorClass
from relay.delivery.claims import Claimed, Claimer
from relay.delivery.due import DueTimes
from relay.delivery.guard import Guard
from relay.delivery.leases import Leases
from relay.delivery.measures import Measures
from relay.delivery.recorder import Recorder, Result
from relay.delivery.secrets import Secrets
from relay.delivery.sender import Answer, Post, Sender
from relay.delivery.share import PACE, Pace, Share
from relay.delivery.slots import Ending, Slots
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics
from relay.values.backoff import wait_s
from relay.values.sealed import Vault

_log = logging.getLogger("relay.delivery")

# Wake-ups may be lost; looking this often makes up for them.
_POLL_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# How long what is on the wire may take to finish when the process stops.
_FINISH_S: Final = 18.0
_FINISH_CLAIM_S: Final = 2.0
# How long a delivery is left alone whose secret cannot be opened; it keeps its slot, so that a backlog of such
# deliveries is not claimed from end to end.
_UNSIGNABLE_S: Final = 30.0


class DeliveryLoop:
    """Delivers what is due in one cell to the endpoints that are this process's; any number of them share the work.

    Entering starts it. Leaving stops claiming, lets what is on the wire finish, records it and releases the rest,
    within 28 s.

    Args:
        cell: where deliveries are.
        settings: timeouts, schedule, slots.
        vault: opens the endpoints' secrets.
        metrics: counts.
        pace: the times of sharing with other processes.
    """

    def __init__(self, cell: Cell, settings: Settings, vault: Vault, metrics: Metrics, pace: Pace = PACE) -> None:
        self._cell = cell
        self._schedule = settings.retry_schedule
        self._attempts = settings.attempts
        self._most_unrecorded = settings.max_in_flight
        self._secrets = Secrets(vault)
        self._slots = Slots(settings.max_in_flight)
        self._measures = Measures(metrics, lambda: self._slots.in_flight)
        self._claimer = Claimer(cell.owned_connection(), settings.lease_s)
        self._leases = Leases(cell.owned_connection(), settings.lease_s)
        self._share = Share(cell, self._leases.endpoint_ids, self._look, metrics, pace)
        self._recorder = Recorder(cell.owned_connection(), self._recorded)
        self._sender = Sender(
            Guard(settings.allowed_networks or ()), timeout_s=settings.delivery_timeout_s, now=self._now
        )
        self._due = DueTimes(self._look)
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._held_up = False
        self._stack = AsyncExitStack()
        #: Set once it is known what this process shall deliver, and claimed if there is any.
        self.ready = asyncio.Event()
        #: Set when one of its tasks has ended by itself, which is logged: nothing is delivered any more.
        self.broken = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            # Left in the opposite order: listener, claims, what is on the wire, results, leases, share.
            await stack.enter_async_context(self._share)
            await stack.enter_async_context(self._leases)
            await stack.enter_async_context(self._recorder)
            await stack.enter_async_context(self._sender)
            claiming = asyncio.create_task(self._run(), name="claims")
            stack.push_async_callback(self._finish, claiming)
            await stack.enter_async_context(self._cell.listener("wake").on_notice(self._look))
            for task in (claiming, self._recorder.task, self._leases.task):
                if task is not None:
                    task.add_done_callback(self._ended)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.critical("delivery_broken", extra={"task": task.get_name()}, exc_info=task.exception())
            self.broken.set()

    def _look(self) -> None:
        """Something may be due."""
        self._wake.set()

    def _now(self) -> datetime.datetime:
        """PostgreSQL's time, from which ids are made too."""
        return datetime.datetime.fromtimestamp((time.time_ns() + self._cell.clock.offset_ns) / 1e9, datetime.UTC)

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                await self._lap()
            except StoreError as reason:
                _log.warning("claims_wait_for_database", extra={"reason": str(reason)})
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            pause_s = _FIRST_PAUSE_S
            if self._share.joined:
                self.ready.set()
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _lap(self) -> None:
        """Claim until nothing more can be claimed now."""
        self._claimer.begin_lap()
        more = True
        while more and not self._stopping.is_set():
            self._held_up = self._recorder.failing or self._recorder.backlog >= self._most_unrecorded
            if self._held_up:
                return
            turf, offer = self._share.turf, self._slots.offer()
            if offer is None or not turf.spans:
                return
            claimed, more = await self._claimer.claim(offer, turf)
            self._measures.claimed(len(claimed))
            self._leases.hold(delivery.held for delivery in claimed)
            claimed = await self._still_ours(claimed)
            self._slots.take(offer, (delivery.held.endpoint_id for delivery in claimed))
            for delivery in claimed:
                task = asyncio.create_task(self._deliver(delivery))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _still_ours(self, claimed: list[Claimed]) -> list[Claimed]:
        """What may be sent: the rest of this claim was given up, or its lease ran out, while the statement ran."""
        while lost := {delivery.held for delivery in claimed if not self._share.owns(delivery.held.endpoint_id)}:
            await self._leases.release(list(lost))
            claimed = [delivery for delivery in claimed if delivery.held not in lost]
        return claimed

    async def _deliver(self, delivery: Claimed) -> None:
        held = delivery.held
        ending = Ending.UNSENT
        try:
            secret = self._secrets.open(delivery.secret_seal, held.endpoint_id)
            if secret is None:
                await self._leave_alone(delivery)
                return
            number = delivery.attempts + 1
            answer = await self._sender.send(
                Post(delivery.url, secret, held.event_id, delivery.type, delivery.payload, number)
            )
            ending = _ending(answer)
            self._recorder.add(self._result(delivery, number, answer))
        except Exception:
            # A mistake in here, not the receiver's: its lease runs out, and it is attempted again.
            _log.exception(
                "delivery_dropped", extra={"event_id": str(held.event_id), "endpoint_id": str(held.endpoint_id)}
            )
            self._leases.drop([held])
        finally:
            self._slots.give_back(held.endpoint_id, ending)

    async def _leave_alone(self, delivery: Claimed) -> None:
        try:
            async with asyncio.timeout(_UNSIGNABLE_S):
                await self._stopping.wait()
        except TimeoutError:
            pass
        await self._leases.release([delivery.held])

    def _result(self, delivery: Claimed, number: int, answer: Answer) -> Result:
        outcome, retry_s = "delivered", None
        if answer.error_class is not None:
            outcome = "failed"
            if number < self._attempts:
                outcome = "retry"
                retry_s = wait_s(self._schedule, number, random.random())  # noqa: S311 - spreads load, keeps no secret
                retry_s = max(retry_s, answer.retry_after_s or 0.0)
            _log.info(
                "delivery_failed",
                extra={
                    "endpoint_id": str(delivery.held.endpoint_id),
                    "event_id": str(delivery.held.event_id),
                    "attempt": number,
                    "status": answer.status_code,
                    "error_class": answer.error_class,
                    "retry_s": None if retry_s is None else round(retry_s, 3),
                },
            )
        self._measures.attempted(answer, outcome)
        return Result(
            delivery.held,
            number,
            answer.at,
            answer.status_code,
            round(answer.latency_s * 1000),
            answer.error_class,
            answer.response,
            outcome,
            retry_s,
        )

    def _recorded(self, results: Sequence[Result]) -> None:
        """A flush has ended: leases and slots that it freed are taken up at its pace, not one by one."""
        self._leases.drop(result.held for result in results)
        for result in results:
            if result.retry_s is not None:
                self._due.add(result.retry_s)
        if self._slots.wanted or self._held_up:
            self._look()

    async def _finish(self, claiming: asyncio.Task[None]) -> None:
        self._stopping.set()
        self._share.leave()
        self._look()
        deadline = asyncio.get_running_loop().time() + _FINISH_S
        # A claim that is under way is waited for: cut off, what it took would stay leased.
        await asyncio.wait((claiming,), timeout=_FINISH_CLAIM_S)
        claiming.cancel()
        await asyncio.wait((claiming,))
        self._due.close()
        if not self._sending:
            return
        _, unfinished = await asyncio.wait(set(self._sending), timeout=deadline - asyncio.get_running_loop().time())
        for task in unfinished:
            task.cancel()
        if unfinished:
            _log.warning("deliveries_cut_off", extra={"deliveries": len(unfinished)})
            await asyncio.wait(unfinished, timeout=1.0)


def _ending(answer: Answer) -> Ending:
    if answer.error_class is None:
        return Ending.DELIVERED
    return Ending.TIMED_OUT if answer.error_class is ErrorClass.TIMEOUT else Ending.FAILED
