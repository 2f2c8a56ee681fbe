"""The pull API: inbox pages, single events, leases and acknowledgements, with delivery listings and statistics."""

from relay.inbox.acknowledge import acknowledge
from relay.inbox.consumer_names import consumer_named, names_of_consumers
from relay.inbox.deliveries import AttemptsPage, DeliveriesPage, DeliveriesQuery, read_attempts, read_deliveries
from relay.inbox.event_details import EventDetails, read_event
from relay.inbox.leases import EventLease, EventLeases
from relay.inbox.page import PAGE_BYTES, InboxQuery, Order, Page, Status, read_page
from relay.inbox.stats import Capped, OrganizationStats, read_stats
from relay.inbox.time_range import TimeRange

__all__ = [
    "PAGE_BYTES",
    "AttemptsPage",
    "Capped",
    "DeliveriesPage",
    "DeliveriesQuery",
    "EventDetails",
    "EventLease",
    "EventLeases",
    "InboxQuery",
    "Order",
    "OrganizationStats",
    "Page",
    "Status",
    "TimeRange",
    "acknowledge",
    "consumer_named",
    "names_of_consumers",
    "read_attempts",
    "read_deliveries",
    "read_event",
    "read_page",
    "read_stats",
]
