"""Resolve host names in dedicated threads, with a limit for each organization."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, NamedTuple
from uuid import UUID

from aiohttp.abc import AbstractResolver, ResolveResult

from relay.delivery.transport.lookup_cache import LookupCache, LookupHung
from relay.delivery.transport.shortage import Shortage
from relay.delivery.transport.system_lookup import Address, ask_system

# Concurrent lookups. uvloop's own pool has four threads, so four dead name servers of one organization would block the
# lookups of all others.
_LOOKUPS: Final = 64
_LOOKUPS_OF_ONE: Final = 8
# The last of them are for organizations with no lookup running: eight with dead name servers would take all.
_RESERVE: Final = 16
_NO_ORGANIZATION: Final = UUID(int=0)

LookUp = Callable[[str], list[Address]]


class LookupTimes(NamedTuple):
    """The time limits of lookups.

    Args:
        patience_s: the longest wait for a thread, after which the delivery is put off.
        hung_s: a lookup that fails after this time counts as hung, and its name is not looked up for a while.
        first_rest_s: the first such pause. It doubles each time in a row.
        longest_rest_s: the longest such pause.
    """

    patience_s: float = 5.0
    hung_s: float = 4.0
    first_rest_s: float = 30.0
    longest_rest_s: float = 480.0


_TIMES: Final = LookupTimes()


class LookupOwner(NamedTuple):
    """The organization of a lookup, and the timeout of its attempt, which is paused while it waits for a thread."""

    organization_id: UUID
    limit: asyncio.Timeout


#: Set in the task of an attempt. aiohttp's connector calls the resolver in that task, with only a host and a port.
lookup_owner: ContextVar[LookupOwner | None] = ContextVar("lookup_owner", default=None)


class _Lookup:
    """A lookup that is running or queued, and the futures that wait for it."""

    __slots__ = ("host", "organization_ids", "started", "started_at", "waiting")

    def __init__(self, host: str) -> None:
        self.host = host
        self.organization_ids: set[UUID] = set()
        self.waiting: set[asyncio.Future[list[Address]]] = set()
        self.started = asyncio.Event()
        self.started_at = 0.0


class Resolver(AbstractResolver):
    """Call the system's resolver, each lookup in a daemon thread of its own, which does not delay process exit.

    Organizations take turns, with at most eight lookups each. It uses the system's resolver because no asynchronous one
    obeys nsswitch.conf: /etc/hosts, mDNS, and what containers and VPNs set up.

    Args:
        look_up: looks up a name in a thread. None: `ask_system`.
        times: the time limits.
        on_start: called when a lookup starts, with the number that its organization is then running.
    """

    def __init__(
        self, look_up: LookUp | None = None, times: LookupTimes = _TIMES, on_start: Callable[[int], None] | None = None
    ) -> None:
        self._look_up = look_up or ask_system
        self._times = times
        self._on_start = on_start
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, _Lookup] = {}
        self._running_of: dict[UUID, int] = {}
        self._queued: dict[str, _Lookup] = {}
        # By organization, in round-robin order.
        self._queue: OrderedDict[UUID, OrderedDict[str, _Lookup]] = OrderedDict()
        self._cache = LookupCache(times.first_rest_s, times.longest_rest_s)

    @property
    def waiting(self) -> int:
        """Return the number of names that wait for a thread."""
        return len(self._queued)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the first addresses of a name.

        Raises:
            OSError: the name has no addresses.
            LookupHung: a recent lookup of the name hung.
            Shortage: no thread became free, or the process ran out of a resource.
        """
        owner = lookup_owner.get()
        organization_id = _NO_ORGANIZATION if owner is None else owner.organization_id
        addresses = self._cache.find(host, self._loop.time())
        if addresses is None:
            addresses = await self._ask(host, organization_id, None if owner is None else owner.limit)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, protocol, address in addresses
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """Do nothing: threads that are still waiting end by themselves."""

    async def _ask(self, host: str, organization_id: UUID, limit: asyncio.Timeout | None) -> list[Address]:
        look_up = self._running.get(host)
        if look_up is None:
            look_up = self._enqueue(host, organization_id)
        found: asyncio.Future[list[Address]] = self._loop.create_future()
        look_up.waiting.add(found)
        try:
            if not look_up.started.is_set():
                await self._wait_for_thread(look_up, limit)
            return await found
        finally:
            look_up.waiting.discard(found)
            if not look_up.waiting and not look_up.started.is_set():
                self._dequeue(look_up)

    async def _wait_for_thread(self, look_up: _Lookup, limit: asyncio.Timeout | None) -> None:
        left_s = None
        if limit is not None and (ends_at := limit.when()) is not None:
            left_s = ends_at - self._loop.time()
            limit.reschedule(None)
        try:
            async with asyncio.timeout(self._times.patience_s):
                await look_up.started.wait()
        except TimeoutError:
            raise Shortage("look-ups", self._times.patience_s, is_general=False) from None
        finally:
            if limit is not None and left_s is not None:
                limit.reschedule(self._loop.time() + left_s)

    def _enqueue(self, host: str, organization_id: UUID) -> _Lookup:
        """Queue a name for this organization. A name in several queues is looked up at the first turn."""
        look_up = self._queued.setdefault(host, _Lookup(host))
        look_up.organization_ids.add(organization_id)
        self._queue.setdefault(organization_id, OrderedDict())[host] = look_up
        self._start_next()
        return look_up

    def _dequeue(self, look_up: _Lookup) -> None:
        del self._queued[look_up.host]
        for organization_id in look_up.organization_ids:
            names = self._queue[organization_id]
            del names[look_up.host]
            if not names:
                del self._queue[organization_id]

    def _start_next(self) -> None:
        while (organization_id := self._next_turn()) is not None:
            look_up = next(iter(self._queue[organization_id].values()))
            self._dequeue(look_up)
            if organization_id in self._queue:
                self._queue.move_to_end(organization_id)
            self._start_thread(look_up, organization_id)

    def _next_turn(self) -> UUID | None:
        free = _LOOKUPS - len(self._running)
        if free <= 0:
            return None
        most = 1 if free <= _RESERVE else _LOOKUPS_OF_ONE
        return next((key for key in self._queue if self._running_of.get(key, 0) < most), None)

    def _start_thread(self, look_up: _Lookup, organization_id: UUID) -> None:
        self._running[look_up.host] = look_up
        self._running_of[organization_id] = self._running_of.get(organization_id, 0) + 1
        look_up.started_at = self._loop.time()
        look_up.started.set()
        if self._on_start is not None:
            self._on_start(self._running_of[organization_id])

        def ask() -> None:
            found: list[Address] | Exception
            try:
                found = self._look_up(look_up.host)
            except Exception as error:
                found = error
            try:
                self._loop.call_soon_threadsafe(self._finish, look_up, organization_id, found)
            except RuntimeError:
                # The event loop has been closed.
                return

        try:
            threading.Thread(target=ask, name="resolver", daemon=True).start()
        except RuntimeError:
            self._loop.call_soon(self._finish, look_up, organization_id, Shortage("threads"))

    def _finish(self, look_up: _Lookup, organization_id: UUID, found: list[Address] | Exception) -> None:
        host, now = look_up.host, self._loop.time()
        del self._running[host]
        self._running_of[organization_id] -= 1
        if not self._running_of[organization_id]:
            del self._running_of[organization_id]
        if isinstance(found, list):
            self._cache.remember(host, organization_id, found, now)
        elif isinstance(found, OSError) and now - look_up.started_at >= self._times.hung_s:
            found = LookupHung(self._cache.remember_hung(host, organization_id, now))
        else:
            self._cache.forget(host)
        for waiting in look_up.waiting:
            if waiting.done():
                continue
            if isinstance(found, list):
                waiting.set_result(found)
            else:
                waiting.set_exception(found)
        self._start_next()
