"""Write results in batches. Results that arrive during a flush join the next one."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from relay.delivery.claims import ClaimRef
from relay.delivery.transport.response import ErrorClass
from relay.store import HotConnection, PartitionMissing, RowRefused, StatementRejected, StoreError

_log = logging.getLogger("relay.delivery")

_BATCH: Final = 500
# Nothing else detects a dead connection.
_TIMEOUT_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
# The same while PostgreSQL rejects the statement itself, which only an operator can solve.
_LONGEST_REJECTED_PAUSE_S: Final = 10.0
# The time that shutdown waits for results. Deliveries whose results are not written by then are attempted again.
_DRAIN_S: Final = 3.0
_LARGEST_INT4: Final = 2**31 - 1


class Result(NamedTuple):
    """One attempt and the outcome of its delivery: delivered, failed, retry or probe.

    A retry is held if its endpoint is disabled. If the endpoint is gone, a job cancels it. The outcome `probe` is a
    failed probe, which does not count as an attempt, so `number` is that of the last attempt, or 0.
    """

    claim: ClaimRef
    number: int
    at: datetime.datetime
    status_code: int | None
    latency_ms: int
    error_class: ErrorClass | None
    response: bytes | None
    outcome: str
    retry_s: float | None


class Recorder:
    """Hold results until they are written, even during an outage. Entering starts it, leaving drains it.

    Args:
        connection: a connection of its own.
        recorded: called with each batch of results once it is written, or known to be unwritable.
    """

    def __init__(self, connection: HotConnection, recorded: Callable[[Sequence[Result]], None]) -> None:
        self._connection = connection
        self._recorded = recorded
        self._waiting: list[Result] = []
        self._under_way: list[Result] = []
        self._arrived = asyncio.Event()
        self._stopping = False
        #: Runs until exit. It ends earlier only because of a bug here.
        self.task: asyncio.Task[None] | None = None
        #: True while writing fails.
        self.failing = False

    @property
    def backlog(self) -> int:
        """Return the number of results that are not written yet."""
        return len(self._waiting) + len(self._under_way)

    def add(self, result: Result) -> None:
        """Write this result with the next flush."""
        self._waiting.append(result)
        self._arrived.set()

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._run(), name="recorder")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping = True
        self._arrived.set()
        if self.task is None:
            return
        await asyncio.wait((self.task,), timeout=_DRAIN_S)
        if not self.task.done():
            _log.warning("results_not_recorded", extra={"results": self.backlog})
            self.task.cancel()
            await asyncio.wait((self.task,))

    async def _run(self) -> None:
        while not self._stopping or self._waiting:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                self._under_way, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._flush(self._under_way)
                written, self._under_way = self._under_way, []
                self._recorded(written)

    async def _flush(self, results: list[Result]) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._write(results)
            except StoreError as reason:
                # Writing twice is harmless, so retry whether or not it committed: an attempt is inserted once, and
                # a used token matches no row. Leases are renewed meanwhile, and nothing is claimed.
                self.failing = True
                _log.warning("results_wait_for_database", extra={"results": self.backlog, "reason": str(reason)})
                await asyncio.sleep(pause_s)
                is_rejected = isinstance(reason, StatementRejected)
                pause_s = min(_LONGEST_REJECTED_PAUSE_S if is_rejected else _LONGEST_PAUSE_S, pause_s * 2)
            else:
                self.failing = False
                return

    async def _write(self, results: list[Result]) -> None:
        try:
            await self._connection.fetch("record_attempts", *_columns(results), timeout_s=_TIMEOUT_S)
        except (RowRefused, PartitionMissing) as rejected:
            if len(results) > 1:
                middle = len(results) // 2
                await self._write(results[:middle])
                await self._write(results[middle:])
            elif isinstance(rejected, RowRefused):
                await self._write_without_response(results[0], rejected)
            else:
                # The partition is gone and the event with it, so a retry cannot succeed.
                _log.error("attempt_not_recorded", extra={**_fields(results[0]), "reason": str(rejected)})

    async def _write_without_response(self, result: Result, rejected: RowRefused) -> None:
        fields = {**_fields(result), "sqlstate": rejected.sqlstate}
        _log.error("attempt_refused_by_database", extra=fields)
        try:
            without_response = result._replace(response=None)
            await self._connection.fetch("record_attempts", *_columns([without_response]), timeout_s=_TIMEOUT_S)
        except RowRefused:
            # The lease expires, and the delivery is attempted again.
            _log.error("attempt_not_recorded", extra=fields)


def _fields(result: Result) -> dict[str, object]:
    return {
        "event_id": str(result.claim.event_id),
        "endpoint_id": str(result.claim.endpoint_id),
        "attempt": result.number,
    }


def _columns(results: Sequence[Result]) -> list[list[object]]:
    claims = [result.claim for result in results]
    return [
        [claim.organization_id for claim in claims],
        [claim.epoch for claim in claims],
        [claim.xid for claim in claims],
        [claim.event_id for claim in claims],
        [claim.endpoint_id for claim in claims],
        [claim.claim_token for claim in claims],
        [result.number for result in results],
        [result.at for result in results],
        [result.status_code for result in results],
        [min(result.latency_ms, _LARGEST_INT4) for result in results],
        [result.error_class for result in results],
        [result.response for result in results],
        [result.outcome for result in results],
        [result.retry_s for result in results],
    ]
