"""The notifications that wake delivery processes, and waiting requests in other API processes, after a commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final
from uuid import UUID

from relay.runtime.service import Service
from relay.store import Cell, SharedConnection, StoreError
from relay.values import commit_notice

_SHORTEST_PAUSE_S: Final = 0.01
_PRESENCE_S: Final = 5.0
# The statement `presence` counts a process in which requests wait for this long.
_WAITS_S: Final = 20.0


class Wakeup(Service):
    """Notifies delivery processes that deliveries are due, and API processes whose events were committed: after the
    commit, on a separate connection, at most once in 10 ms, and only while another process wants to know. A lost wakeup
    does no harm, because they also poll.

    Args:
        cell: the cell whose processes it notifies.
        connection: for short statements.
        process_id: the name of this process in notifications.
    """

    def __init__(self, cell: Cell, connection: SharedConnection, process_id: UUID) -> None:
        self._process_id = process_id
        self._connection = connection
        self._wake_channel = cell.channel("wake")
        self._inbox_channel = cell.channel(commit_notice.CHANNEL)
        self._wanted = asyncio.Event()
        self._is_due = self._is_present = False
        self._committed: set[UUID] = set()
        self._checked_at = -_PRESENCE_S
        self._delivers = False
        self._waits = False
        self._waits_until = 0.0

    def due(self) -> None:
        """Wake delivery processes soon."""
        self._is_due = True
        self._wanted.set()

    def committed(self, organization_ids: Collection[UUID]) -> None:
        """Wake the requests that wait for events of these organizations in other processes soon."""
        if self._waits or time.monotonic() - self._checked_at >= _PRESENCE_S:
            self._committed |= set(organization_ids)
            self._wanted.set()

    def announce(self) -> None:
        """Tell the other processes soon that requests wait in this one."""
        self._is_present = True
        self._wanted.set()

    def heard(self, payload: str) -> None:
        """Read a notification: perhaps it says that requests wait in another process."""
        notice = commit_notice.read(payload)
        if notice.says_present and not notice.is_from(self._process_id):
            self._waits = True
            self._waits_until = time.monotonic() + _WAITS_S

    async def run(self) -> None:
        """Send wakeups until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._check_presence()
                await self._send()
            except StoreError:
                await asyncio.sleep(1.0)
            await asyncio.sleep(_SHORTEST_PAUSE_S)

    async def _send(self) -> None:
        notices: list[tuple[str, str]] = []
        if self._is_due and self._delivers:
            notices.append((self._wake_channel, ""))
        if self._committed and self._waits:
            notices.append((self._inbox_channel, commit_notice.committed(self._process_id, self._committed)))
        if self._is_present:
            notices.append((self._inbox_channel, commit_notice.present(self._process_id)))
        self._is_due = self._is_present = False
        self._committed = set()
        if notices:
            channels, payloads = [list(column) for column in zip(*notices, strict=True)]
            await self._connection.fetch("notify", channels, payloads, timeout_s=2.0)

    async def _check_presence(self) -> None:
        now = time.monotonic()
        if now - self._checked_at >= _PRESENCE_S:
            (row,) = await self._connection.fetch("presence", self._process_id, timeout_s=2.0)
            self._delivers = row["delivers"]
            self._waits = row["waits"] or now < self._waits_until
            self._checked_at = now
