"""Group commit: requests that arrive while a flush is under way are all written by the next one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID

from relay.errors import ApiError
from relay.ingest.flush import Key, Waiting, part_followers
from relay.ingest.measures import Measures
from relay.ingest.outcome import Outcome
from relay.ingest.parse import PostedEvent
from relay.store import PLAN_KEPT, Cell, DatabaseUnavailable, OutcomeUnknown, Row, RowRefused, StoreError
from relay.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from relay.telemetry.traces import Trace, Tracer

_log = logging.getLogger("relay.ingest")

MAX_FLUSH_BYTES: Final = 8 * 1024 * 1024
MAX_FLUSH_EVENTS: Final = 1000
#: Deliveries that one statement opens.
MOST_DELIVERIES: Final = 20_000
# What is nobody's own fault: to try again for each follower would be one time-out after the other.
_OUTAGES: Final = frozenset(("database_unavailable", "commit_unknown"))
# What still waits when the process leaves may take this long.
_DRAIN_S: Final = 5.0


class GroupCommit:
    """Commits events in groups and answers each request after the COMMIT that holds its event.

    There is no timer: the flush under way is the clock. One connection is enough, and two are slower in a closed loop
    (DESIGN section 6). Entering starts the loop; leaving refuses newcomers and writes what waits.

    Args:
        cell: where events go.
        dedup_window_s: how long a key makes two requests one event.
        commit_timeout_s: after which a flush is given up and sent once more on another connection.
        queue_bytes: how much may wait; past that, `queue_full`.
        metrics: where to count.
        due: called after a commit that opened deliveries which are due.
        tracer: makes spans of flushes, if traces are on.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        dedup_window_s: float,
        commit_timeout_s: float,
        queue_bytes: int,
        metrics: Metrics,
        due: Callable[[], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._cell = cell
        self._connection = cell.owned_connection(2 * commit_timeout_s, plans=PLAN_KEPT)
        self._dedup_window_s = dedup_window_s
        self._commit_timeout_s = commit_timeout_s
        self._queue_bytes = queue_bytes
        self._due = due
        self._tracer = tracer
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._under_way: Sequence[Waiting] = ()
        # Asked for at each request it is a system call until Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._measures = Measures(metrics, lambda: len(self._waiting), lambda: self._waiting_bytes)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="group commit")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        self._arrived.set()
        if self._task is None:
            return
        await asyncio.wait((self._task,), timeout=_DRAIN_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._fail(self._under_way, "commit_unknown")
            self._fail(self._waiting, "shutting_down")

    def join(
        self,
        organization_id: UUID,
        event: PostedEvent,
        idempotency_key: str | None = None,
        trace: Trace | None = None,
    ) -> asyncio.Future[Outcome]:
        """Put an event into the next flush; the future ends after its COMMIT. Who stops waiting takes nothing along.

        Raises:
            ApiError: at once `queue_full` or `shutting_down`; from the future `database_unavailable`, `commit_unknown`
                or `unstorable`.
        """
        self._open_for(1)
        future = self._add(organization_id, event, idempotency_key, trace).future
        self._arrived.set()
        return future

    def join_batch(
        self, organization_id: UUID, events: Sequence[tuple[PostedEvent, str | None]], trace: Trace | None = None
    ) -> list[asyncio.Future[Outcome]]:
        """Put events, each with its Idempotency-Key, into the next flush together; none is left for the one after.

        Raises:
            ApiError: as `join`, at once for all of them.
        """
        self._open_for(len(events))
        waiting = [self._add(organization_id, event, key, trace) for event, key in events]
        for event in waiting[:-1]:
            event.ends_unit = False
        self._arrived.set()
        return [event.future for event in waiting]

    def reject(self, code: str, events: int = 1) -> None:
        """Count events that were refused before they came here.

        Args:
            code: of the answer.
            events: how many; a batch that was refused before it was parsed is one.
        """
        self._measures.rejected(events, code)

    def _open_for(self, events: int) -> None:
        code = "shutting_down" if self._closing else "queue_full"
        if self._closing or self._waiting_bytes > self._queue_bytes:
            self.reject(code, events)
            raise ApiError(code)

    def _add(
        self, organization_id: UUID, event: PostedEvent, idempotency_key: str | None, trace: Trace | None
    ) -> Waiting:
        future: asyncio.Future[Outcome] = self._loop.create_future()
        waiting = Waiting(organization_id, self._cell.clock.new(), event, idempotency_key, future, trace)
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size
        return waiting

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                events = self._under_way = self._take()
                begun = time.perf_counter()
                try:
                    await self._flush(events)
                except Exception:
                    # Nothing below is expected to raise; whatever it was, no request may wait for ever.
                    _log.exception("flush_failed")
                    self._fail([event for event in events if not event.future.done()], "internal_error")
                self._measures.flushed(len(events), time.perf_counter() - begun)
                if self._tracer is not None:
                    _trace(self._tracer, events, time.perf_counter() - begun)
                self._waiting_bytes -= sum([event.size for event in events])
            if self._closing:
                return

    def _take(self) -> list[Waiting]:
        taken: list[Waiting] = []
        taken_bytes = 0
        waiting = self._waiting
        whole = True
        while waiting and not (whole and (len(taken) >= MAX_FLUSH_EVENTS or taken_bytes >= MAX_FLUSH_BYTES)):
            event = waiting.popleft()
            taken.append(event)
            taken_bytes += event.size
            whole = event.ends_unit
        return taken

    async def _flush(self, events: list[Waiting]) -> None:
        leaders, followers = part_followers(events)
        await self._commit(leaders, sent_before=False)
        for leader in leaders:
            if leader.key is not None and leader.key in followers:
                self._let_follow(leader, followers[leader.key])

    def _let_follow(self, leader: Waiting, followers: Sequence[Waiting]) -> None:
        """Answer those whose key stood in the same flush; where the first failed for its own reasons they try again."""
        if leader.failed in _OUTAGES:
            self._fail(followers, leader.failed)
            return
        if leader.first is None:
            self._again(followers)
            return
        for follower in followers:
            follower.lost_to(*leader.first)
        self._measures.duplicate.add(len(followers))

    def _again(self, events: Sequence[Waiting]) -> None:
        for event in reversed(events):
            if not event.future.done():
                self._waiting.appendleft(event)
                self._waiting_bytes += event.size

    async def _commit(self, events: Sequence[Waiting], *, sent_before: bool) -> None:
        """Write events and answer them. A statement that one row spoils is split in halves until that row is alone."""
        try:
            won = await self._write(events, sent_before=sent_before)
        except RowRefused as refused:
            if len(events) == 1:
                _log.warning("event_unstorable", extra={"sqlstate": refused.sqlstate})
                self._fail(events, "unstorable")
                return
            middle = len(events) // 2
            await self._commit(events[:middle], sent_before=sent_before)
            await self._commit(events[middle:], sent_before=sent_before)
            return
        except OutcomeUnknown as unknown:
            _log.warning("flush_outcome_unknown", extra={"events": len(events), "reason": str(unknown)})
            if sent_before:
                self._fail(events, "commit_unknown")
            else:
                await self._commit(events, sent_before=True)
            return
        except DatabaseUnavailable as unavailable:
            _log.warning("flush_not_stored", extra={"events": len(events), "reason": str(unavailable)})
            self._fail(events, "commit_unknown" if sent_before else "database_unavailable")
            return
        losers = []
        for event in events:
            if event.key is None or event.event_id in won:
                event.accept()
            else:
                losers.append(event)
        self._measures.accepted.add(len(events) - len(losers))
        if losers:
            await self._answer_losers(losers)

    def _fail(self, events: Collection[Waiting], code: str) -> None:
        self._measures.rejected(len(events), code)
        for event in events:
            event.fail(code)

    async def _write(self, events: Sequence[Waiting], *, sent_before: bool) -> frozenset[UUID]:
        """One statement, one commit; gives the ids of the events that won their keys."""
        rows = [event.row() for event in events]
        if len(rows) == 1 and not sent_before:
            (row,) = await self._fetch("commit_event", *_parameters(rows[0]), self._dedup_window_s)
        elif sent_before or any(event.key or event.trace for event in events):
            columns = _parameters(list(zip(*rows, strict=True)))
            # Only the first of these leaves what it finds stored as it is.
            name = "commit_events_again" if sent_before else "commit_events_with_keys"
            (row,) = await self._fetch(name, *columns, self._dedup_window_s)
        else:
            (row,) = await self._fetch("commit_events", *_parameters(list(zip(*rows, strict=True)))[:6])
        if row["due"]:
            self._due()
        return frozenset(row.get("won", ()))

    def _fetch(self, statement: str, *parameters: object) -> Awaitable[Sequence[Row]]:
        return self._connection.fetch(statement, *parameters, timeout_s=self._commit_timeout_s)

    async def _answer_losers(self, losers: Sequence[Waiting]) -> None:
        """Tell those who lost a key who holds it. Nothing of theirs was stored, so a failure here is no unknown."""
        keys = [event.key for event in losers if event.key is not None]
        try:
            rows = await self._fetch("first_holders", *_key_columns(keys))
        except StoreError as error:
            _log.warning("first_holders_not_read", extra={"reason": str(error)})
            self._fail(losers, "database_unavailable")
            return
        holders = {(row["organization_id"], row["kind"], row["key"]): row for row in rows}
        for event in losers:
            holder = holders.get(event.key) if event.key is not None else None
            if holder is None:
                # The holder ran out between the two statements: the key is free now.
                self._again((event,))
            else:
                event.lost_to(holder["event_id"], holder["digest"])
                self._measures.duplicate.add()


def _trace(tracer: Tracer, events: Sequence[Waiting], took_s: float) -> None:
    # A batch brings its trace once for each of its events.
    traces = {id(event.trace): event.trace for event in events if event.trace is not None}
    now_ns = time.time_ns()
    tracer.flushed(now_ns - round(took_s * 1e9), now_ns, len(events), list(traces.values()))


def _parameters(columns: Sequence[object]) -> Sequence[object]:
    return (*columns[:5], MOST_DELIVERIES, *columns[5:])


def _key_columns(keys: Sequence[Key]) -> tuple[list[UUID], list[str], list[str]]:
    return [key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys]
