"""The guard against requests into our own networks (SSRF): it sees each address right before it is connected to."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from relay.values.addresses import Network, is_permitted


class Blocked(OSError):
    """The guard rejects an address.

    Args:
        address: the one that was about to be connected to.
    """

    def __init__(self, address: str) -> None:
        # One text for all addresses: aiohttp passes on a single exception where all of them say the same.
        super().__init__(errno.EACCES, "the address is not one that webhooks may reach")
        self.address = address


class SsrfGuard:
    """A socket factory for aiohttp that makes sockets for permitted addresses only.

    It stands here and not in the resolver, which is never asked for a URL that holds an address, and there is no moment
    between the check and the connection in which a name could come to mean something else.

    Args:
        allowed: networks that may be reached though they are not public.
    """

    def __init__(self, allowed: Sequence[Network]) -> None:
        allowed = tuple(allowed)
        # Judging an address takes 5 microseconds, a tenth of a delivery over a kept connection.
        self._permits = lru_cache(maxsize=4096)(lambda text: _permits(text, allowed))

    def permits(self, sockaddr: Sequence[Any]) -> bool:
        """Return whether a socket address, as getaddrinfo gives it, may be connected to."""
        # A zone, here as a number.
        if len(sockaddr) == 4 and sockaddr[3]:
            return False
        return self._permits(sockaddr[0])

    def __call__(self, addr_info: tuple[Any, Any, Any, Any, Any]) -> socket.socket:
        """Return a socket for this address.

        Raises:
            Blocked: it may not be reached.
        """
        family, type_, protocol, _, sockaddr = addr_info
        if not self.permits(sockaddr):
            raise Blocked(str(sockaddr[0]))
        return socket.socket(family, type_, protocol)


def _permits(text: str, allowed: Sequence[Network]) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return is_permitted(address, allowed)
