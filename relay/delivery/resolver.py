"""Names to addresses, in threads of our own."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

# Look-ups that may hang at once. The loop's own pool has four threads with uvloop: four dead name servers of one tenant
# would stop the names of all others.
_LOOKUPS: Final = 64
# A name with a thousand addresses is not an invitation to try a thousand hosts.
_ADDRESSES: Final = 8


class Resolver(AbstractResolver):
    """Asks the system's resolver, each look-up in a thread of its own that does not hold up the end of the process."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The first addresses of a name.

        Raises:
            OSError: there are none.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(found: list[ResolveResult] | OSError) -> None:
            self._free.release()
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            try:
                found: list[ResolveResult] | OSError = _look_up(host, port, family)
            except OSError as error:
                found = error
            except Exception as error:
                # A name that cannot even be encoded, for instance.
                found = OSError(None, type(error).__name__)
            try:
                loop.call_soon_threadsafe(settle, found)
            except RuntimeError:
                # The loop has ended meanwhile.
                return

        threading.Thread(target=look_up, name="resolver", daemon=True).start()
        return await answer

    async def close(self) -> None:
        """Nothing to close: threads that still wait for an answer are left to it."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = []
    infos = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    for kind, _, protocol, _, address in infos[:_ADDRESSES]:
        zone = f"%{address[3]}" if len(address) == 4 and address[3] else ""
        found.append(
            ResolveResult(
                hostname=host,
                host=f"{address[0]}{zone}",
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
        )
    return found
