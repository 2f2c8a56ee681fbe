"""From a posted body to a committed event."""

from relay.ingest.commit import GroupCommit
from relay.ingest.hint import Hint
from relay.ingest.outcome import Accepted, Duplicate, KeyReused, Outcome, Replayed
from relay.ingest.parse import PostedEvent, parse_event, read_idempotency_key

__all__ = [
    "Accepted",
    "Duplicate",
    "GroupCommit",
    "Hint",
    "KeyReused",
    "Outcome",
    "PostedEvent",
    "Replayed",
    "parse_event",
    "read_idempotency_key",
]
