"""What was asked, what was answered and what arrived: all that the auditor knows."""

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
        """The event, as it is posted."""
        dedup = {"dedup_id": self.key} if self.kind == "d" else {}
        return {"type": "fault.found", "payload": {"marker": self.marker}, **dedup}

    @property
    def payload(self) -> str:
        """The payload, as it must be stored and delivered."""
        return f'{{"marker":"{self.marker}"}}'


@dataclass(slots=True)
class Receipts:
    """The requests for one delivery that came to a receiver, which answers all with success."""

    count: int = 0
    #: The greatest attempt number among them, and the local time of the last.
    attempt: int = 0
    last_at: float = 0.0


class Ledger:
    """Kept by producers and receivers while a run goes on."""

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
        """Somebody is about to ask for this."""
        self.intents[intent.marker] = intent

    def acknowledged(self, intent: Intent, event_id: str, paths: Sequence[str]) -> None:
        """It was answered with this id."""
        if not intent.ids:
            self.accepted += 1
            self.outstanding.update((event_id, path) for path in paths if (event_id, path) not in self.receipts)
        intent.ids.add(event_id)

    def arrived(self, event_id: str, path: str, attempt: int) -> None:
        """A receiver has a webhook, and is about to answer it with success."""
        receipts = self.receipts.setdefault((event_id, path), Receipts())
        receipts.count += 1
        receipts.attempt = max(receipts.attempt, attempt)
        receipts.last_at = time.time()
        self.outstanding.discard((event_id, path))
        if receipts.count == 1:
            self.received += 1
        else:
            self.repeated += 1
