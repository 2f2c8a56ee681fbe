"""The client behind trusted proxies: `X-Forwarded-For` and `X-Forwarded-Proto`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from relay.http.exchange import Header, Scope
from relay.values.addresses import Address, Network

HSTS: Final[Header] = (b"strict-transport-security", b"max-age=31536000")
# An address, perhaps with a port: `192.0.2.1:80`, `[2001:db8::1]:80`. Quotes as in Forwarded (RFC 7239) are accepted.
_HOP: Final = re.compile(
    r'"?(?:\[([0-9a-f:.]{2,45})\]|([0-9.]{7,15})|([0-9a-f:.]{2,45}))(?::[0-9]{1,5})?"?', re.ASCII | re.IGNORECASE
)
# Proxies do not write longer lists.
_HOPS: Final = 50
# The size limit of the cache of trusted and untrusted peers.
_REMEMBERED: Final = 1024


class TrustedProxies:
    """Tells who sent a request, and whether over TLS. Only trusted proxies are believed.

    Args:
        trusted: the networks of the operator's proxies.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self._known: dict[str, bool] = {}

    def address_of(self, scope: Scope) -> str:
        """Return the address of the client: the rightmost that is not one of our proxies; empty if there is none.

        A hop that is not an address ends the search at the peer that reported it: our proxies do not write that.
        """
        client = scope.get("client")
        peer = _read(client[0]) if client else None
        if peer is None:
            return ""
        if not self._trusts(peer):
            return str(peer)
        lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for hop in reversed(b",".join(lines).decode("latin-1").split(",")[-_HOPS:]):
            address = _read_hop(hop.strip())
            if address is None:
                break
            peer = address
            if not self._trusts(peer):
                break
        return str(peer)

    def is_secure(self, scope: Scope) -> bool:
        """Return whether a trusted proxy reports TLS for every hop."""
        client = scope.get("client")
        if not client or not self._is_proxy(client[0]):
            return False
        lines = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
        hops = b",".join(lines).split(b",")
        return all(hop.strip().lower() == b"https" for hop in hops)

    def _is_proxy(self, text: str) -> bool:
        known = self._known.get(text)
        if known is None:
            address = _read(text)
            known = address is not None and self._trusts(address)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = known
        return known

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted if network.version == address.version)


def client_network(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address, which one customer controls."""
    read = _read(address)
    if isinstance(read, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((read, 64), strict=False))
    return address


def _read(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        # A dual-stack socket shows IPv4 clients in this form.
        return address.ipv4_mapped or address
    return address


def _read_hop(text: str) -> Address | None:
    hop = _HOP.fullmatch(text)
    return None if hop is None else _read(hop[1] or hop[2] or hop[3])
