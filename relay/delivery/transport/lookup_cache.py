"""Remember the results of lookups for a while, with a limit for each organization. Pure."""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Final
from uuid import UUID

from relay.delivery.transport.system_lookup import Address

_REMEMBERED_S: Final = 10.0
_NAMES: Final = 4_096
_NAMES_OF_ONE: Final = 512


class LookupHung(OSError):
    """Raised for a name whose name servers did not respond recently, so that they are not asked again yet.

    Args:
        rest_s: the time until they are asked again.
    """

    def __init__(self, rest_s: float) -> None:
        super().__init__(socket.EAI_AGAIN, "the name servers of the host did not respond")
        self.rest_s = rest_s


class _Name:
    """The cached result for a name: its addresses, or none if its lookup hung."""

    __slots__ = ("addresses", "organization_id", "rest_s", "until")

    def __init__(self, organization_id: UUID, addresses: list[Address], until: float, rest_s: float = 0.0) -> None:
        self.organization_id = organization_id
        self.addresses = addresses
        self.until = until
        self.rest_s = rest_s


class LookupCache:
    """The addresses of names for 10 s, and the names whose lookup hung. All times are of one monotonic clock.

    Args:
        first_rest_s: the first pause after a lookup that hung. It doubles each time in a row.
        longest_rest_s: the longest such pause.
    """

    def __init__(self, first_rest_s: float, longest_rest_s: float) -> None:
        self._first_rest_s = first_rest_s
        self._longest_rest_s = longest_rest_s
        self._known: OrderedDict[str, _Name] = OrderedDict()
        self._known_of: dict[UUID, OrderedDict[str, None]] = {}

    def find(self, host: str, now: float) -> list[Address] | None:
        """Return the addresses of a name; None if they are not known.

        Raises:
            LookupHung: its lookup hung recently.
        """
        name = self._known.get(host)
        if name is None or (left_s := name.until - now) <= 0:
            return None
        if not name.addresses:
            raise LookupHung(left_s)
        # Each connection starts with the next address.
        name.addresses.append(name.addresses.pop(0))
        return name.addresses

    def remember(self, host: str, organization_id: UUID, addresses: list[Address], now: float) -> None:
        """Remember the addresses of a name, counted against the organization that looked it up."""
        self._put(host, _Name(organization_id, addresses, now + _REMEMBERED_S))

    def remember_hung(self, host: str, organization_id: UUID, now: float) -> float:
        """Remember that the lookup of a name hung. Return the seconds until it may be looked up again."""
        before = self._known.get(host)
        rest_s = self._first_rest_s if before is None or not before.rest_s else before.rest_s * 2
        rest_s = min(rest_s, self._longest_rest_s)
        self._put(host, _Name(organization_id, [], now + rest_s, rest_s))
        return rest_s

    def forget(self, host: str) -> None:
        """Forget a name."""
        name = self._known.pop(host, None)
        if name is None:
            return
        of_organization = self._known_of[name.organization_id]
        del of_organization[host]
        if not of_organization:
            del self._known_of[name.organization_id]

    def _put(self, host: str, name: _Name) -> None:
        self.forget(host)
        of_organization = self._known_of.setdefault(name.organization_id, OrderedDict())
        if len(of_organization) >= _NAMES_OF_ONE:
            self.forget(next(iter(of_organization)))
        elif len(self._known) >= _NAMES:
            self.forget(next(iter(self._known)))
        self._known[host] = name
        self._known_of.setdefault(name.organization_id, of_organization)[host] = None
