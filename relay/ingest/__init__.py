"""The path from a posted body to a committed event."""

from relay.ingest.batch import MAX_EVENTS, Item, parse_array, parse_lines
from relay.ingest.group_commit import GroupCommit
from relay.ingest.outcome import Accepted, Duplicate, KeyReused, Outcome, Replayed
from relay.ingest.parse import PostedEvent, parse_event, read_idempotency_key
from relay.ingest.wakeup import Wakeup

__all__ = [
    "MAX_EVENTS",
    "Accepted",
    "Duplicate",
    "GroupCommit",
    "Item",
    "KeyReused",
    "Outcome",
    "PostedEvent",
    "Replayed",
    "Wakeup",
    "parse_array",
    "parse_event",
    "parse_lines",
    "read_idempotency_key",
]
