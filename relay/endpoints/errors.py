"""The errors of endpoints."""

from __future__ import annotations


class EndpointError(Exception):
    """The base class of these errors."""


class EndpointNotFound(EndpointError):
    """The organization has no such endpoint."""


class ConsumerNotFound(EndpointError):
    """The organization has no such consumer."""


class ConsumerExists(EndpointError):
    """The organization has a consumer with this name."""


class TooManyEndpoints(EndpointError):
    """The organization has as many endpoints and consumers as its tier allows: `most`."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the limit is {most} endpoints")
        self.most = most


class TooManyFilters(EndpointError):
    """The filters of the organization's endpoints would exceed their size limit."""


class InvalidUrl(EndpointError):
    """Webhooks cannot be sent to this URL.

    Args:
        field: the member of the request that holds the URL.
        problem: what is wrong, as a sentence.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field
        self.problem = problem


class TooManyPings(EndpointError):
    """The organization has as many test deliveries in progress as it may."""


class NoDeliveryProcess(EndpointError):
    """No delivery process sent the test delivery in time."""


class PingNotSent(EndpointError):
    """The delivery process could not send the test delivery. The message is its reason, as a sentence."""


class PingsStopped(EndpointError):
    """This process is stopping, and does not wait for test deliveries any more."""
