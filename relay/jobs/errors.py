"""The errors of retries, replays and jobs."""

from __future__ import annotations


class JobError(Exception):
    """The base class of these errors."""


class JobNotFound(JobError):
    """The organization has no such job."""


class EventNotFound(JobError):
    """The organization has no such event."""


class DeliveryNotFound(JobError):
    """The organization has no such delivery."""


class AlreadyEnded(JobError):
    """The delivery has been delivered or cancelled."""


class DestinationNotFound(JobError):
    """The endpoint to send to does not exist."""


class NoMatchingEndpoint(JobError):
    """No endpoint of the organization accepts events of this type."""
