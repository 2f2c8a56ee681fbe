"""The guard against requests into our own networks (SSRF): it sees each address right before it is connected to."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IPv6 addresses that lead to an IPv4 one, and by how many bits it is shifted in them: NAT64 (RFC 6052) and 6to4
# (RFC 3056).
_CARRIERS: Final = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
# Written out, because Python's `is_global` differs between releases and takes IPv6 space for global that IANA has not
# given out. All that is routed of IPv6 lies in 2000::/3, except for these of its special-purpose registry (RFC 6890):
# protocol assignments with Teredo among them, and documentation.
_ROUTED: Final = ipaddress.IPv6Network("2000::/3")
_NOT_ROUTED: Final = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_NOT_ROUTED_V4: Final = tuple(ipaddress.IPv4Network(text) for text in ("192.0.0.0/24", "192.88.99.0/24"))


class Blocked(OSError):
    """The guard refuses the address."""

    def __init__(self) -> None:
        # One text for all addresses: aiohttp passes on a single exception where all of them say the same.
        super().__init__(errno.EACCES, "the address is not one that webhooks may reach")


def is_public(address: _Address) -> bool:
    """Whether an address is one of the public internet, judging the IPv4 address inside of an IPv6 one by itself."""
    if isinstance(address, ipaddress.IPv4Address):
        special = address.is_multicast or address.is_reserved or any(address in network for network in _NOT_ROUTED_V4)
        return address.is_global and not special
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    for network, shift in _CARRIERS:
        if address in network:
            return is_public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF))
    return address in _ROUTED and not any(address in network for network in _NOT_ROUTED)


class Guard:
    """A socket factory for aiohttp that makes sockets for permitted addresses only.

    It stands here and not in the resolver, which is never asked for a URL that holds an address, and there is no moment
    between the check and the connection in which a name could come to mean something else.

    Args:
        allowed: networks that may be reached though they are not public.
    """

    def __init__(self, allowed: Sequence[_Network]) -> None:
        self._allowed = tuple(allowed)

    def permits(self, sockaddr: Sequence[Any]) -> bool:
        """Whether a socket address, as getaddrinfo gives it, may be connected to."""
        # A zone (RFC 4007) picks one of our own interfaces.
        if len(sockaddr) == 4 and sockaddr[3]:
            return False
        try:
            address = ipaddress.ip_address(sockaddr[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return False
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
        return is_public(address) or any(
            address in network for network in self._allowed if network.version == address.version
        )

    def __call__(self, addr_info: tuple[Any, Any, Any, Any, Any]) -> socket.socket:
        """A socket for this address.

        Raises:
            Blocked: it may not be reached.
        """
        family, type_, protocol, _, sockaddr = addr_info
        if not self.permits(sockaddr):
            raise Blocked
        return socket.socket(family, type_, protocol)
