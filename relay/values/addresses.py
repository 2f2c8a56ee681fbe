"""Which hosts webhooks may be sent to: addresses of the public internet, those an operator allows, and names. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

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
# The last looks public and is none: every virtual machine on Azure answers there itself, with its metadata.
_NOT_ROUTED_V4: Final = tuple(
    ipaddress.IPv4Network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)

_LONGEST_NAME: Final = 253
# RFC 1123, section 2.1, and underscores: they are not in its alphabet, and resolve all the same.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)
# What makes readers of URLs take a host for an IPv4 address (WHATWG URL, "ends in a number").
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)

# Code points that are not seen and that encoding drops (Unicode's Default_Ignorable_Code_Point, and U+1806): a name
# with one reads as another, and the HTTP client refuses it.
_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f-\u1160\u17b4-\u17b5\u1806\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_NO_NAME: Final = "The host is no valid name."
_DISGUISED: Final = "The host is a number: an IPv4 address is written as four decimal numbers."
_NOT_REACHED: Final = "The host is an address that webhooks may not reach, unless RELAY_ALLOWED_NETWORKS has it."
_THIS_MACHINE: Final = "The host is this machine, which webhooks may not reach, unless RELAY_ALLOWED_NETWORKS has it."
_LOOPBACK: Final = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


def is_public(address: Address) -> bool:
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


def is_permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether webhooks may reach an address: a public one, or one of the networks that are allowed all the same.

    A zone (RFC 4007) picks one of our own interfaces, so an address with one is never permitted.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        address = address.ipv4_mapped or address
    return is_public(address) or any(address in network for network in allowed if network.version == address.version)


def host_problem(host: str, allowed: Sequence[Network]) -> str | None:
    """Why webhooks can never be sent to a host, as a sentence for the one who configures it; None when they may.

    A name is not looked up, what it means is judged at each connection; only `localhost` is this machine everywhere.

    Args:
        host: as `urlsplit(...).hostname` gives it, so an IPv6 address without brackets.
        allowed: networks that may be reached though they are not public.
    """
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            return "The host is no IPv6 address."
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
    """The host as it is asked for: in ASCII, as yarl writes it; empty where there is no such name."""
    if host.isascii():
        return host
    if len(host) > _LONGEST_NAME or _UNSEEN.search(host):
        return ""
    # Its tables cost memory, and few names need them.
    import idna

    try:
        return idna.encode(host, uts46=True).decode()
    except UnicodeError:
        pass
    try:
        # The rules of 2003 know symbols, which those of 2008 refuse and people own.
        return host.encode("idna").decode()
    except UnicodeError:
        return ""
