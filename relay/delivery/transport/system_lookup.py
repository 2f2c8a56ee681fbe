"""Look up a host name with the system's resolver."""

from __future__ import annotations

import socket
from typing import Final

from relay.delivery.transport.shortage import Shortage

# A name with a thousand addresses must not cause a thousand connection attempts.
_ADDRESSES: Final = 8

Address = tuple[socket.AddressFamily, int, str]


def ask_system(host: str) -> list[Address]:
    """Return the first addresses of a name from the system's resolver. Called in a thread.

    Raises:
        OSError: the name has no addresses.
        Shortage: the process has no descriptor left for the lookup.
    """
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        # Without a free descriptor the C library reports that the name is unknown.
        _check_descriptors()
        raise error
    except ValueError as error:
        # For example, a name that cannot be encoded.
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
