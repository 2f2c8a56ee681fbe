"""How consumers pull: pages, one event, acknowledgements."""

from relay.inbox.acknowledge import acknowledge
from relay.inbox.event import Story, read_event
from relay.inbox.page import InboxQuery, Order, Page, Status, read_page

__all__ = ["InboxQuery", "Order", "Page", "Status", "Story", "acknowledge", "read_event", "read_page"]
