"""The pull API: inbox pages, single events, leases and acknowledgements, with delivery listings and statistics."""

from relay.inbox.acknowledge import acknowledge
from relay.inbox.arrivals import ALL_TYPES, Waiter, Woken
from relay.inbox.consumer_names import consumer_named, names_of_consumers
from relay.inbox.deliveries import AttemptsPage, DeliveriesPage, DeliveriesQuery, read_attempts, read_deliveries
from relay.inbox.event_details import EventDetails, read_event
from relay.inbox.leases import EventLease, EventLeases
from relay.inbox.page import NOW, PAGE_BYTES, InboxQuery, Order, Page, Status, read_page
from relay.inbox.stats import Capped, OrganizationStats, read_stats
from relay.inbox.time_range import TimeRange
from relay.inbox.waiters import Waiters

__all__ = [
    "ALL_TYPES",
    "NOW",
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
    "Waiter",
    "Waiters",
    "Woken",
    "acknowledge",
    "consumer_named",
    "names_of_consumers",
    "read_attempts",
    "read_deliveries",
    "read_event",
    "read_page",
    "read_stats",
]
