"""The errors of leases."""

from __future__ import annotations


class LeaseError(Exception):
    """The base class of these errors."""


class TooManyLeased(LeaseError):
    """As many events of the queue are leased as may be."""


class NoDeadLetters(LeaseError):
    """The plain inbox has no dead letters.

    Args:
        place: the index of the first receipt that is of the plain inbox.
    """

    def __init__(self, place: int) -> None:
        super().__init__(f"receipt {place} is of the plain inbox")
        self.place = place
