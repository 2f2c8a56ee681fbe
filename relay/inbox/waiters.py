"""Waking the requests of this process that wait for events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final
from uuid import UUID

from relay.inbox.arrivals import ALL_TYPES, Horizon, OrganizationWaiters, Waiter, Woken
from relay.runtime.service import Service
from relay.store import Cell, Listener, Row, SharedConnection, StoreError
from relay.telemetry.metrics import Metrics
from relay.values import commit_notice, uuid7
from relay.values.cursor import FIRST

_log = logging.getLogger("relay.inbox")

#: How often all waiting requests are looked at, whatever was heard.
POLL_S: Final = 1.0
# Between two looks.
_PAUSE_S: Final = 0.003
# The first pause before events are looked at again that the horizon has not passed; it doubles each time.
_HELD_S: Final = 0.005
# Each waiting request of an organization lets it rest so long between looks: so much goes into waking them all.
_REST_S: Final = 0.0001
# How often a process says that requests wait in it. It counts for 20 s.
_PRESENCE_S: Final = 5.0
# Events of one organization in one look.
_LIMIT: Final = 200
# Ids of events that become visible now are at most so old: a bound on the partitions that are read. Whatever an older
# transaction holds back for longer is read when the wait is over.
_OLDEST_ID_S: Final = 86_400.0
_TIMEOUT_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 1.0
# Waiters that are woken in one turn of the event loop.
_WOKEN_AT_ONCE: Final = 32


class Waiters(Service):
    """Wakes waiting requests when there may be events for them. A waiting request holds no connection.

    After a commit of this process, and when another one tells of a commit, a single statement looks for the events of
    all organizations concerned, and the waiters whose filters match are woken. All are looked at once a second, which
    makes up for lost notifications. Events above the horizon are looked at again soon, by the same statement.

    Args:
        cell: where events are.
        connection: for short statements.
        metrics: where to count.
        process_id: of this process, as the others know it.
        announce: tells the other processes that requests wait here.
    """

    def __init__(
        self,
        cell: Cell,
        connection: SharedConnection,
        metrics: Metrics,
        *,
        process_id: UUID,
        announce: Callable[[], None],
    ) -> None:
        self._cell = cell
        self._process_id = process_id
        self._announce = announce
        self._connection = connection
        self._listener: Listener | None = None
        self._organizations: dict[UUID, OrganizationWaiters] = {}
        self._dirty: set[UUID] = set()
        self._wanted = asyncio.Event()
        self._woken: deque[Waiter] = deque()
        self._horizon: Horizon = FIRST[:2]
        self._looked_at = self._poll_at = self._present_at = -1e9
        self._held_s = _HELD_S
        self._look_again_at: float | None = None
        self._stopping = False
        self._turn = 0
        #: Counts the statements.
        self.queries = metrics.counter(
            "relay_waiter_queries", "Statements that looked for events for all waiting requests of a process."
        ).labels()
        wakeups = metrics.counter(
            "relay_waiter_wakeups",
            "Waiting requests and streams that were woken because there may be an event for them.",
        )
        self._wakeups = wakeups.labels()
        metrics.gauge(
            "relay_waiters",
            "Requests that wait for events, and streams.",
            lambda: sum([len(found) for found in self._organizations.values()]),
        )

    def listen_on(self, listener: Listener, heard: Callable[[str], None]) -> None:
        """Hear of the commits of other processes.

        Args:
            listener: owned by another service, which enters it later.
            heard: called with each notification, too.
        """

        def both(payload: str) -> None:
            heard(payload)
            self._heard(payload)

        self._listener = listener.and_on_payload(self._cell.channel(commit_notice.CHANNEL), both)

    async def register(
        self,
        organization_id: UUID,
        filters: Sequence[str] = ALL_TYPES,
        *,
        sees_above: bool = False,
        group: str | None = None,
    ) -> Waiter:
        """Return a waiter for events of an organization. Register it before the first read, and use it in a `with`.

        Args:
            organization_id: whose events.
            filters: as in `Waiter`.
            sees_above: as in `Waiter`.
            group: as in `Waiter`.

        Raises:
            StoreError: the database does not respond.
        """
        if organization_id not in self._organizations:
            horizon = await self._recent_horizon()
            if organization_id not in self._organizations:
                self._organizations[organization_id] = OrganizationWaiters(
                    organization_id, horizon, is_stopping=lambda: self._stopping, emptied=self._forget
                )
                self._wanted.set()
        return self._organizations[organization_id].add(filters, sees_above=sees_above, group=group)

    def committed(self, organization_ids: Collection[UUID]) -> None:
        """Look for the events of these organizations now: they have been committed."""
        if self._organizations:
            concerned = self._organizations.keys() & organization_ids
            if concerned:
                self._dirty |= concerned
                self._wanted.set()

    def returned(self, organization_id: UUID) -> None:
        """Wake one of each group of an organization: what another reader had may be there again."""
        organization = self._organizations.get(organization_id)
        if organization is not None:
            organization.wake_groups()

    def stop(self) -> None:
        """End all waiting for good."""
        self._stopping = True
        for organization in self._organizations.values():
            for waiter in organization.all():
                waiter.end(Woken.STOPPING)

    @property
    def is_stopping(self) -> bool:
        """Return whether waiting has ended for good."""
        return self._stopping

    async def run(self) -> None:
        """Look for events whenever there may be some."""
        loop = asyncio.get_running_loop()
        pause_s = _PAUSE_S
        while True:
            await self._until_wanted(loop)
            now = loop.time()
            chosen = self._chosen(now)
            if not chosen:
                continue
            try:
                await self._look(chosen, now)
            except StoreError as error:
                if pause_s == _PAUSE_S:
                    _log.warning("waiters_wait_for_database", extra={"reason": str(error)})
                self._dirty.update(chosen)
                pause_s = min(_LONGEST_PAUSE_S, max(0.1, pause_s * 2))
            else:
                pause_s = _PAUSE_S
            await asyncio.sleep(pause_s)

    async def _until_wanted(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._organizations:
            self._dirty.clear()
            self._wanted.clear()
            await self._wanted.wait()
            return
        times = [self._poll_at]
        if self._look_again_at is not None:
            times.append(self._look_again_at)
        times += [found.rests_until for found in map(self._organizations.get, self._dirty) if found is not None]
        wait_s = min(times) - loop.time()
        if wait_s > 0:
            self._wanted.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()
            except TimeoutError:
                return

    def _chosen(self, now: float) -> list[UUID]:
        """Return the organizations to look at now."""
        if now >= self._poll_at:
            self._dirty.clear()
            return list(self._organizations)
        wanted = self._dirty
        if self._look_again_at is not None and now >= self._look_again_at:
            self._look_again_at = None
            wanted = wanted | {id_ for id_, found in self._organizations.items() if found.is_held}
        chosen = [id_ for id_ in wanted if id_ in self._organizations and self._organizations[id_].rests_until <= now]
        self._dirty = {id_ for id_ in wanted.difference(chosen) if id_ in self._organizations}
        return chosen

    async def _look(self, chosen: Sequence[UUID], now: float) -> None:
        organizations = [self._organizations[id_] for id_ in chosen]
        is_poll = now >= self._poll_at
        hears = self._listener is not None and self._listener.can_listen
        is_present = is_poll and hears and now - self._present_at >= _PRESENCE_S
        self.queries.add()
        rows = await self._connection.fetch(
            "new_events",
            chosen,
            [organization.horizon[0] for organization in organizations],
            [organization.horizon[1] for organization in organizations],
            uuid7.shifted(uuid7.floor(self._cell.now()), -_OLDEST_ID_S),
            _LIMIT,
            self._process_id if is_present else None,
            timeout_s=_TIMEOUT_S,
        )
        if is_poll:
            self._poll_at = now + POLL_S
            self._wake_one_queue()
        if is_present:
            if now - self._present_at >= 2 * _PRESENCE_S:
                self._announce()
            self._present_at = now
        self._looked_at = now
        found: list[list[Row]] = [[] for _ in organizations]
        for row in rows:
            if row["place"] is None:
                self._horizon = row["epoch"], row["xid"]
            else:
                found[row["place"] - 1].append(row)
        for organization, new in zip(organizations, found, strict=True):
            self._wake(organization.arrived(new, self._horizon, _LIMIT))
            organization.rests_until = now + _REST_S * len(organization)
        self._schedule_held(now)

    def _wake_one_queue(self) -> None:
        """Wake one of those that wait for what others had, in turn: a delay or a lease that ends there tells nobody."""
        queues = [(id_, group) for id_, found in self._organizations.items() for group in found.groups]
        if queues:
            self._turn = (self._turn + 1) % len(queues)
            organization_id, group = queues[self._turn]
            self._organizations[organization_id].wake_group(group)

    def _schedule_held(self, now: float) -> None:
        """Look again soon at what the horizon has not passed, each time a little later."""
        if not any(found.is_held for found in self._organizations.values()):
            self._look_again_at, self._held_s = None, _HELD_S
        elif self._look_again_at is None:
            self._look_again_at = now + self._held_s
            self._held_s = min(POLL_S, self._held_s * 2)

    def _wake(self, waiters: Sequence[Waiter]) -> None:
        if not waiters:
            return
        self._wakeups.add(len(waiters))
        now = asyncio.get_running_loop().time()
        for waiter in waiters:
            waiter.matched_at = now
        is_running = bool(self._woken)
        self._woken.extend(waiters)
        if not is_running:
            self._wake_some()

    def _wake_some(self) -> None:
        """Wake a few, and let the event loop do other work before the next."""
        for _ in range(min(_WOKEN_AT_ONCE, len(self._woken))):
            self._woken.popleft().match()
        if self._woken:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _forget(self, organization_id: UUID) -> None:
        del self._organizations[organization_id]

    async def _recent_horizon(self) -> Horizon:
        """Return a horizon that is not older than a poll; a lower one than the present one is never wrong."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > 2 * POLL_S:
            (row,) = await self._cell.fetch("horizon")
            self._horizon, self._looked_at = (row["epoch"], row["xid"]), now
        return self._horizon

    def _heard(self, payload: str) -> None:
        """Handle a notification of another process. An empty payload: some may have been lost."""
        if not self._organizations:
            return
        notice = commit_notice.read(payload)
        if not notice.is_from(self._process_id) and not notice.says_present:
            ids = notice.organization_ids
            self.committed(self._organizations.keys() if ids is None else ids)
