"""How consumers pull: pages, one event, acknowledgements; and how deliveries are listed."""

from relay.inbox.acknowledge import acknowledge
from relay.inbox.deliveries import DeliveriesPage, DeliveriesQuery, read_deliveries
from relay.inbox.event import Story, read_event
from relay.inbox.page import InboxQuery, Order, Page, Status, read_page
from relay.inbox.span import Span

__all__ = [
    "DeliveriesPage",
    "DeliveriesQuery",
    "InboxQuery",
    "Order",
    "Page",
    "Span",
    "Status",
    "Story",
    "acknowledge",
    "read_deliveries",
    "read_event",
    "read_page",
]
