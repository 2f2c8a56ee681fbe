"""The hosts that webhooks may be sent to: public addresses, networks that the operator allows, and names. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IPv6 networks whose addresses contain an IPv4 address, and the bit offset of that address: NAT64 (RFC 6052) and 6to4
# (RFC 3056).
_CARRIERS: Final = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
# An explicit list, because Python's `is_global` differs between releases and counts unassigned IPv6 space as global.
# All routed IPv6 addresses are in 2000::/3, except for these networks of the special-purpose registry (RFC 6890):
# protocol assignments, which include Teredo, and documentation.
_ROUTED: Final = ipaddress.IPv6Network("2000::/3")
_NOT_ROUTED: Final = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20"))
# The last one looks public but is not: on Azure it serves the metadata of the virtual machine.
_NOT_ROUTED_V4: Final = tuple(
    ipaddress.IPv4Network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)

_LONGEST_NAME: Final = 253
# RFC 1123, section 2.1, plus underscores, which it does not allow but which resolve.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)
# A last label that makes URL parsers read the host as an IPv4 address (WHATWG URL, "ends in a number").
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)

# Invisible code points that encoding drops (Unicode's Default_Ignorable_Code_Point, and U+1806): a name that contains
# one looks like another name, and the HTTP client rejects it.
_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f-\u1160\u17b4-\u17b5\u1806\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_NO_NAME: Final = "The host is not a valid name."
_DISGUISED: Final = "The host is a number. Write an IPv4 address as four decimal numbers."
_NOT_REACHED: Final = "Webhooks may not reach this address, unless RELAY_ALLOWED_NETWORKS contains it."
_THIS_MACHINE: Final = "Webhooks may not reach the relay machine itself, unless RELAY_ALLOWED_NETWORKS contains it."
_LOOPBACK: Final = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


def is_public(address: Address) -> bool:
    """Return whether an address is public. For an IPv6 address that contains an IPv4 address, that one decides."""
    if isinstance(address, ipaddress.IPv4Address):
        special = address.is_multicast or address.is_reserved or any(address in network for network in _NOT_ROUTED_V4)
        return address.is_global and not special
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    for network, shift in _CARRIERS:
        if address in network:
            return is_public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF))
    return address in _ROUTED and not any(address in network for network in _NOT_ROUTED)


def is_permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether webhooks may reach an address: it is public, or in one of the allowed networks.

    An address with a zone (RFC 4007) is never permitted, because the zone selects one of our own interfaces.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        address = address.ipv4_mapped or address
    return is_public(address) or any(address in network for network in allowed if network.version == address.version)


def host_problem(host: str, allowed: Sequence[Network]) -> str | None:
    """Return a sentence that says why webhooks can never be sent to a host, or None if they can.

    A name is not resolved: its addresses are checked at each connection. Only `localhost` is always this machine.

    Args:
        host: as `urlsplit(...).hostname` returns it: an IPv6 address has no brackets.
        allowed: networks that webhooks may reach although they are not public.
    """
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            return "The host is not a valid IPv6 address."
        return None if is_permitted(address, allowed) else _NOT_REACHED
    name = _encoded(host)
    labels = name.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            quad = ipaddress.IPv4Address(name)
        except ValueError:
            return _DISGUISED
        return None if is_permitted(quad, allowed) else _NOT_REACHED
    if len(name.removesuffix(".")) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        return _NO_NAME
    # RFC 6761, section 6.3.
    if labels[-1].lower() == "localhost" and not any(is_permitted(address, allowed) for address in _LOOPBACK):
        return _THIS_MACHINE
    return None


def _encoded(host: str) -> str:
    """Return the ASCII form of a host, as yarl encodes it, or an empty string if it has none."""
    if host.isascii():
        return host
    if len(host) > _LONGEST_NAME or _UNSEEN.search(host):
        return ""
    # Imported late: its tables take memory, and few names need them.
    import idna

    try:
        return idna.encode(host, uts46=True).decode()
    except UnicodeError:
        pass
    try:
        # IDNA 2003 allows symbols, which IDNA 2008 rejects but which existing names contain.
        return host.encode("idna").decode()
    except UnicodeError:
        return ""
