"""Names to addresses, in threads of our own, of which each organization has a share."""

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

from relay.delivery.transport.shortage import Shortage

# Look-ups that may hang at once. The loop's own pool has four threads with uvloop: four dead name servers of one tenant
# would stop the names of all others.
_LOOKUPS: Final = 64
_LOOKUPS_OF_ONE: Final = 8
# The last of them are for organizations that have none under way: eight with dead name servers would take all.
_RESERVE: Final = 16
# A name with a thousand addresses is not an invitation to try a thousand hosts.
_ADDRESSES: Final = 8
_REMEMBERED_S: Final = 10.0
_NAMES: Final = 4_096
_NAMES_OF_ONE: Final = 512
_NOBODY: Final = UUID(int=0)

Address = tuple[socket.AddressFamily, int, str]
LookUp = Callable[[str], list[Address]]


class Pace(NamedTuple):
    """How long look-ups may take.

    Args:
        patience_s: how long a name may wait for a thread before its delivery goes back to the queue.
        hung_s: a look-up that fails after this long has hung, and its name is left alone for a while.
        first_rest_s: for how long; each time in a row it is twice that.
        longest_rest_s: and never longer.
    """

    patience_s: float = 5.0
    hung_s: float = 4.0
    first_rest_s: float = 30.0
    longest_rest_s: float = 480.0


PACE: Final = Pace()


class Asker(NamedTuple):
    """For whom a name is looked up, and the time limit of the attempt, which does not run while it waits for us."""

    organization_id: UUID
    limit: asyncio.Timeout


#: Set in the task of an attempt: aiohttp's connector passes on a host and a port alone, but within that task.
asking: ContextVar[Asker | None] = ContextVar("asking", default=None)


class Hung(OSError):
    """The name servers of a name did not answer lately, so they are not asked.

    Args:
        rest_s: how long they are left alone from now.
    """

    def __init__(self, rest_s: float) -> None:
        super().__init__(socket.EAI_AGAIN, "its name servers did not answer")
        self.rest_s = rest_s


class _LookUp:
    """A name that is asked for or is going to be, and who waits for it."""

    __slots__ = ("askers", "begun", "begun_at", "host", "waiting")

    def __init__(self, host: str) -> None:
        self.host = host
        self.askers: set[UUID] = set()
        self.waiting: set[asyncio.Future[list[Address]]] = set()
        self.begun = asyncio.Event()
        self.begun_at = 0.0


class _Name:
    """What is remembered of a name: its addresses, or that asking for it hung."""

    __slots__ = ("addresses", "organization_id", "rest_s", "until")

    def __init__(self, organization_id: UUID, addresses: list[Address], until: float, rest_s: float = 0.0) -> None:
        self.organization_id = organization_id
        self.addresses = addresses
        self.until = until
        self.rest_s = rest_s


class Resolver(AbstractResolver):
    """Asks the system's resolver, each look-up in a thread of its own that does not hold up the end of the process.

    Organizations take turns, with at most eight look-ups each. The system's resolver and not an asynchronous one,
    because it alone obeys nsswitch.conf: /etc/hosts, mDNS, and what containers and VPNs set up.

    Args:
        look_up: asks for a name, in a thread; None: `ask_system`.
        pace: how long that may take.
        begun: told, as a look-up begins, how many its organization has under way then.
    """

    def __init__(
        self, look_up: LookUp | None = None, pace: Pace = PACE, begun: Callable[[int], None] | None = None
    ) -> None:
        self._look_up = look_up or ask_system
        self._pace = pace
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, _LookUp] = {}
        self._running_of: dict[UUID, int] = {}
        self._queued: dict[str, _LookUp] = {}
        # By organization, in the order of their turns.
        self._queue: OrderedDict[UUID, OrderedDict[str, _LookUp]] = OrderedDict()
        self._known: OrderedDict[str, _Name] = OrderedDict()
        self._known_of: dict[UUID, OrderedDict[str, None]] = {}

    @property
    def waiting(self) -> int:
        """How many names wait for a thread."""
        return len(self._queued)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the first addresses of a name.

        Raises:
            OSError: there are none.
            Hung: they were asked for in vain a moment ago.
            Shortage: no thread became free, or this process cannot ask.
        """
        asker = asking.get()
        organization_id = _NOBODY if asker is None else asker.organization_id
        addresses = self._remembered(host)
        if addresses is None:
            addresses = await self._ask(host, organization_id, None if asker is None else asker.limit)
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
        """Do nothing: threads that still wait for an answer are left to it."""

    def _remembered(self, host: str) -> list[Address] | None:
        name = self._known.get(host)
        if name is None or (left_s := name.until - self._loop.time()) <= 0:
            return None
        if not name.addresses:
            raise Hung(left_s)
        # Each connection begins with the next address.
        name.addresses.append(name.addresses.pop(0))
        return name.addresses

    async def _ask(self, host: str, organization_id: UUID, limit: asyncio.Timeout | None) -> list[Address]:
        look_up = self._running.get(host)
        if look_up is None:
            look_up = self._enter(host, organization_id)
        found: asyncio.Future[list[Address]] = self._loop.create_future()
        look_up.waiting.add(found)
        try:
            if not look_up.begun.is_set():
                await self._wait_for_thread(look_up, limit)
            return await found
        finally:
            look_up.waiting.discard(found)
            if not look_up.waiting and not look_up.begun.is_set():
                self._leave(look_up)

    async def _wait_for_thread(self, look_up: _LookUp, limit: asyncio.Timeout | None) -> None:
        left_s = None
        if limit is not None and (ends_at := limit.when()) is not None:
            left_s = ends_at - self._loop.time()
            limit.reschedule(None)
        try:
            async with asyncio.timeout(self._pace.patience_s):
                await look_up.begun.wait()
        except TimeoutError:
            raise Shortage("look-ups", self._pace.patience_s, is_general=False) from None
        finally:
            if limit is not None and left_s is not None:
                limit.reschedule(self._loop.time() + left_s)

    def _enter(self, host: str, organization_id: UUID) -> _LookUp:
        """Put a name in its organization's queue, and in that of each other that asks for it: the first turn counts."""
        look_up = self._queued.setdefault(host, _LookUp(host))
        look_up.askers.add(organization_id)
        self._queue.setdefault(organization_id, OrderedDict())[host] = look_up
        self._begin_next()
        return look_up

    def _leave(self, look_up: _LookUp) -> None:
        del self._queued[look_up.host]
        for organization_id in look_up.askers:
            names = self._queue[organization_id]
            del names[look_up.host]
            if not names:
                del self._queue[organization_id]

    def _begin_next(self) -> None:
        while (organization_id := self._next_turn()) is not None:
            look_up = next(iter(self._queue[organization_id].values()))
            self._leave(look_up)
            if organization_id in self._queue:
                self._queue.move_to_end(organization_id)
            self._begin(look_up, organization_id)

    def _next_turn(self) -> UUID | None:
        free = _LOOKUPS - len(self._running)
        if free <= 0:
            return None
        most = 1 if free <= _RESERVE else _LOOKUPS_OF_ONE
        return next((key for key in self._queue if self._running_of.get(key, 0) < most), None)

    def _begin(self, look_up: _LookUp, organization_id: UUID) -> None:
        self._running[look_up.host] = look_up
        self._running_of[organization_id] = self._running_of.get(organization_id, 0) + 1
        look_up.begun_at = self._loop.time()
        look_up.begun.set()
        if self._begun is not None:
            self._begun(self._running_of[organization_id])

        def ask() -> None:
            found: list[Address] | Exception
            try:
                found = self._look_up(look_up.host)
            except Exception as error:
                found = error
            try:
                self._loop.call_soon_threadsafe(self._settle, look_up, organization_id, found)
            except RuntimeError:
                # The loop has ended meanwhile.
                return

        try:
            threading.Thread(target=ask, name="resolver", daemon=True).start()
        except RuntimeError:
            self._loop.call_soon(self._settle, look_up, organization_id, Shortage("threads"))

    def _settle(self, look_up: _LookUp, organization_id: UUID, found: list[Address] | Exception) -> None:
        host, now = look_up.host, self._loop.time()
        del self._running[host]
        self._running_of[organization_id] -= 1
        if not self._running_of[organization_id]:
            del self._running_of[organization_id]
        if isinstance(found, list):
            self._remember(host, _Name(organization_id, found, now + _REMEMBERED_S))
        elif isinstance(found, OSError) and now - look_up.begun_at >= self._pace.hung_s:
            before = self._known.get(host)
            rest_s = self._pace.first_rest_s if before is None or not before.rest_s else before.rest_s * 2
            rest_s = min(rest_s, self._pace.longest_rest_s)
            self._remember(host, _Name(organization_id, [], now + rest_s, rest_s))
            found = Hung(rest_s)
        else:
            self._forget(host)
        for waiting in look_up.waiting:
            if waiting.done():
                continue
            if isinstance(found, list):
                waiting.set_result(found)
            else:
                waiting.set_exception(found)
        self._begin_next()

    def _remember(self, host: str, name: _Name) -> None:
        self._forget(host)
        own = self._known_of.setdefault(name.organization_id, OrderedDict())
        if len(own) >= _NAMES_OF_ONE:
            self._forget(next(iter(own)))
        elif len(self._known) >= _NAMES:
            self._forget(next(iter(self._known)))
        self._known[host] = name
        self._known_of.setdefault(name.organization_id, own)[host] = None

    def _forget(self, host: str) -> None:
        name = self._known.pop(host, None)
        if name is None:
            return
        own = self._known_of[name.organization_id]
        del own[host]
        if not own:
            del self._known_of[name.organization_id]


def ask_system(host: str) -> list[Address]:
    """Return the first addresses of a name as the system knows them; called in a thread.

    Raises:
        OSError: there are none.
        Shortage: this process has no descriptor to ask with.
    """
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        # The C library says of its own lack of a descriptor that the name is unknown.
        _check_descriptors()
        raise error
    except ValueError as error:
        # A name that cannot even be encoded, for instance.
        raise OSError(None, type(error).__name__) from error
    found: list[Address] = []
    for kind, _, protocol, _, address in infos[:_ADDRESSES]:
        zone = f"%{address[3]}" if len(address) == 4 and address[3] else ""
        found.append((kind, protocol, f"{address[0]}{zone}"))
    return found


def _check_descriptors() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        raise Shortage("descriptors") from error
