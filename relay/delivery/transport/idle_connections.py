"""Keep connections for the next request, with a limit and a share of it for each organization."""

from __future__ import annotations

import asyncio
import functools
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final
from uuid import UUID

from relay.delivery.transport.receiver_connection import ReceiverConnection

# Node closes idle connections after 5 s, gunicorn after 2 s, so one that is kept longer is usually dead. If the
# receiver states how long it keeps a connection, that applies instead, less a margin.
_KEEP_S: Final = 4.0
#: The longest time that a connection is kept.
KEEP_AT_MOST_S: Final = 60.0
_KEEP_MARGIN_S: Final = 1.0
_SWEEP_S: Final = 1.0
# Each costs memory, with TLS some 50 KB.
_MOST: Final = 4_096
# When all are taken, one of an organization with at least this part of them is closed, and none of others.
_SHARE: Final = 4
_KEEP_ALIVE: Final = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?([0-9]{1,6})", re.IGNORECASE | re.ASCII)


class IdleConnections:
    """The connections that are kept, longest idle first. Those whose keep time has passed are closed.

    Args:
        max_connections: the limit of open connections of the process.
    """

    def __init__(self, max_connections: float) -> None:
        self._loop = asyncio.get_running_loop()
        #: The limit of kept connections.
        self.most = int(min(_MOST, max_connections))
        #: The number of kept connections from which on an organization has more than its share.
        self.most_of_one = max(1, self.most // _SHARE)
        self._all: OrderedDict[ReceiverConnection, None] = OrderedDict()
        self._of: dict[UUID | None, OrderedDict[ReceiverConnection, None]] = {}
        self._over_share: set[UUID | None] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[ReceiverConnection]:
        return iter(self._all)

    def add(self, connection: ReceiverConnection, organization_id: UUID | None) -> None:
        """Keep a connection until its `keep_until`, counted against the organization that used it last."""
        connection.organization_id = organization_id
        own = self._of.setdefault(organization_id, OrderedDict())
        own[connection] = None
        if len(own) >= self.most_of_one:
            self._over_share.add(organization_id)
        self._all[connection] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def discard(self, connection: ReceiverConnection) -> None:
        """Count a connection as idle no longer, if it was."""
        if connection not in self._all:
            return
        del self._all[connection]
        own = self._of[connection.organization_id]
        del own[connection]
        if len(own) < self.most_of_one:
            self._over_share.discard(connection.organization_id)
        if not own:
            del self._of[connection.organization_id]

    def end(self, count: int) -> None:
        """Close at most `count` connections, longest idle first."""
        for _ in range(min(count, len(self._all))):
            self._end(next(iter(self._all)))

    def end_one(self) -> None:
        """Close a connection to make room: one of an organization over its share, if any."""
        if self._over_share:
            self._end(next(iter(self._of[next(iter(self._over_share))])))
        else:
            self.end(1)

    def clear(self) -> None:
        """Forget all connections, which their owner closes."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._all.clear()
        self._of.clear()
        self._over_share.clear()

    def _end(self, connection: ReceiverConnection) -> None:
        self.discard(connection)
        connection.close()

    def _sweep(self) -> None:
        """Close the connections whose keep time has passed. aiohttp's pool then skips them."""
        for connection in [connection for connection in self._all if not connection.is_connected()]:
            self._end(connection)
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep) if self._all else None


@functools.lru_cache(maxsize=256)
def keep_s(keep_alive: str | None) -> float:
    """Return how long to keep a connection after this `Keep-Alive` header, which may have a `timeout=` (RFC 2068,
    section 19.7.1.1).
    """
    match = None if keep_alive is None else _KEEP_ALIVE.search(keep_alive)
    if match is None:
        return _KEEP_S
    seconds = float(match[1])
    return min(max(seconds - _KEEP_MARGIN_S, seconds / 2), KEEP_AT_MOST_S)
