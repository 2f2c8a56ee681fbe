"""The record of requests, responses and webhooks from which the auditor works."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Intent:
    """An event that a producer wants stored, however often it has to ask.

    `kind` says how: `d` with a dedup_id, `i` with an Idempotency-Key, `-` with neither, which is asked for only once.
    """

    tenant: int
    marker: str
    kind: str
    #: Its own, or in a batch with an Idempotency-Key that of the batch, with its place.
    key: str
    #: The ids that it was answered with; there may be only one.
    ids: set[str] = field(default_factory=set)
    #: Whether some request for it had no answer, or one that says it is not known.
    maybe: bool = False

    @property
    def body(self) -> dict[str, object]:
        """Return the event as it is posted."""
        dedup = {"dedup_id": self.key} if self.kind == "d" else {}
        return {"type": "fault.found", "payload": {"marker": self.marker}, **dedup}

    @property
    def payload(self) -> str:
        """Return the payload as it must be stored and delivered."""
        return f'{{"marker":"{self.marker}"}}'


@dataclass(slots=True)
class Receipts:
    """The requests of one delivery that a receiver got. It responds to all with success."""

    count: int = 0
    #: The greatest attempt number among them, and the local time of the last.
    attempt: int = 0
    last_at: float = 0.0


class Ledger:
    """The record that producers and receivers keep during a run."""

    def __init__(self) -> None:
        #: Since the last audit, by marker.
        self.intents: dict[str, Intent] = {}
        #: Of the whole run, by event id and the path it came to.
        self.receipts: dict[tuple[str, str], Receipts] = {}
        #: Answers that nothing explains.
        self.strange: list[str] = []
        #: Answers, by status; `none` where there was none.
        self.answers: Counter[str] = Counter()
        #: The slowest answer 503, in seconds.
        self.slowest_refusal_s = 0.0
        self.accepted = 0
        self.received = 0
        self.repeated = 0
        #: Deliveries of accepted events that are still to come: the load is held at what is delivered.
        self.outstanding: set[tuple[str, str]] = set()

    def begin(self, intent: Intent) -> None:
        """Record a request that is about to be sent."""
        self.intents[intent.marker] = intent

    def acknowledged(self, intent: Intent, event_id: str, paths: Sequence[str]) -> None:
        """Record a response with this id."""
        if not intent.ids:
            self.accepted += 1
            self.outstanding.update((event_id, path) for path in paths if (event_id, path) not in self.receipts)
        intent.ids.add(event_id)

    def arrived(self, event_id: str, path: str, attempt: int) -> None:
        """Record a webhook that a receiver is about to respond to with success."""
        receipts = self.receipts.setdefault((event_id, path), Receipts())
        receipts.count += 1
        receipts.attempt = max(receipts.attempt, attempt)
        receipts.last_at = time.time()
        self.outstanding.discard((event_id, path))
        if receipts.count == 1:
            self.received += 1
        else:
            self.repeated += 1
