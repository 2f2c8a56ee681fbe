"""Comparison of what is stored with what was requested, acknowledged and received. Pure: it gets rows, no database."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.ledger import Intent, Ledger


class Stored(NamedTuple):
    """An event as stored in the database."""

    organization_id: str
    event_id: str
    payload: str
    dedup_id: str | None


class Ended(NamedTuple):
    """A delivery that has ended: how, when, and its attempts of which success was recorded, and of all."""

    event_id: str
    path: str
    status: str
    ended_at: float
    succeeded: int | None
    attempted: int


@dataclass(frozen=True, slots=True)
class Books:
    """The contents of the database. Open rows were read first, then ended ones."""

    events: Sequence[Stored]
    open: frozenset[tuple[str, str]]
    ended: Mapping[tuple[str, str], Ended]


@dataclass(slots=True)
class Account:
    """The outcome of an audit: Jepsen's total queue, once for events and once for their deliveries."""

    #: Events that somebody asked for, and those that were acknowledged.
    asked: int = 0
    acknowledged: int = 0
    #: Of those that were never acknowledged: not known to be stored, and stored.
    maybe: int = 0
    recovered: int = 0
    #: What must not be: each names what it found.
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    attempted_again: list[str] = field(default_factory=list)
    #: Requests that came to a receiver once more; at least once allows them.
    repeated: int = 0
    dead: int = 0

    @property
    def wrong(self) -> list[str]:
        """The findings that must not occur."""
        found = {
            "lost": self.lost,
            "unexpected": self.unexpected,
            "duplicated": self.duplicated,
            "undelivered": self.undelivered,
            "attempted again": self.attempted_again,
        }
        return [f"{what}: {each}" for what, every in found.items() for each in every]


#: How much later than it was recorded a request may still be seen to arrive: the receiver is busy too.
_LATE_S = 1.0


class Auditor:
    """Audits a ledger repeatedly. Deliveries that wait at one audit are checked at the next.

    Args:
        organization_ids: of the tenants, by their number.
        paths: where each tenant's webhooks go.
    """

    def __init__(self, organization_ids: Sequence[str], paths: Sequence[Sequence[str]]) -> None:
        self._numbers = {organization_id: number for number, organization_id in enumerate(organization_ids)}
        self._paths = paths
        self._owed: set[tuple[str, str]] = set()
        #: Of the last audit, which rows come once more in the next: what was still being committed then is new in it.
        self._seen: set[str] = set()
        #: What nobody knew of in earlier audits.
        self._maybes: set[tuple[int, str]] = set()
        self._repeated = 0

    @property
    def owed(self) -> frozenset[tuple[str, str]]:
        """The deliveries that waited at the last audit, by event and path."""
        return frozenset(self._owed)

    def audit(self, ledger: Ledger, books: Books, *, late: bool = False) -> Account:
        """Hold one against the other, for all that was asked for since the last time.

        Args:
            ledger: its intents are taken out of it.
            books: events since a little before the last audit, and all that were acknowledged since; what is open and
                has ended, of those and of what was owed.
            late: whether requests were held up on the way, so that some may have been sent before a success was
                recorded and have come after.
        """
        account = Account()
        intents, ledger.intents = ledger.intents, {}
        self._events(account, intents, books.events)
        for row in books.events:
            if row.event_id not in self._seen:
                self._owed.update((row.event_id, path) for path in self._paths[self._numbers[row.organization_id]])
        self._seen = {row.event_id for row in books.events}
        self._deliveries(account, ledger, books, late=late)
        account.repeated, self._repeated = ledger.repeated - self._repeated, ledger.repeated
        return account

    def _events(self, account: Account, intents: Mapping[str, Intent], rows: Iterable[Stored]) -> None:
        stored: dict[tuple[int, str], list[Stored]] = defaultdict(list)
        dedup_ids: Counter[tuple[str, str]] = Counter()
        for row in rows:
            stored[self._numbers[row.organization_id], row.payload].append(row)
            if row.dedup_id is not None:
                dedup_ids[row.organization_id, row.dedup_id] += 1
        account.duplicated += [f"dedup_id {key} {count} times" for (_, key), count in dedup_ids.items() if count > 1]
        for intent in intents.values():
            found = stored.pop((intent.tenant, intent.payload), [])
            account.asked += 1
            name = f"{intent.marker} ({intent.kind})"
            if len(found) > 1:
                account.duplicated.append(f"{name} is stored as {[row.event_id for row in found]}")
            if intent.ids:
                account.acknowledged += 1
                if len(intent.ids) > 1:
                    account.duplicated.append(f"{name} was acknowledged as {sorted(intent.ids)}")
                missing = intent.ids - {row.event_id for row in found}
                account.lost += [f"{name} was acknowledged as {event_id}" for event_id in missing]
            elif intent.maybe:
                account.maybe += 1
                account.recovered += bool(found)
            elif found:
                account.unexpected.append(f"{name} was refused and is stored as {found[0].event_id}")
        self._leftover(account, stored)
        self._maybes.update((each.tenant, each.payload) for each in intents.values() if each.maybe and not each.ids)

    def _leftover(self, account: Account, stored: Mapping[tuple[int, str], Sequence[Stored]]) -> None:
        for asked, rows in stored.items():
            new = [row for row in rows if row.event_id not in self._seen]
            if new and asked in self._maybes:
                account.recovered += 1
                self._maybes.discard(asked)
                new = new[1:]
            account.unexpected += [f"{row.payload} was asked for by nobody" for row in new]

    def _deliveries(self, account: Account, ledger: Ledger, books: Books, *, late: bool) -> None:
        for owed in list(self._owed):
            if owed in books.open:
                continue
            self._owed.discard(owed)
            receipts = ledger.receipts.get(owed)
            ended = books.ended.get(owed)
            name = f"event {owed[0]} to {owed[1]}"
            if ended is None:
                account.undelivered.append(f"{name} is neither open nor has it ended")
            elif ended.status == "failed":
                account.dead += 1
            elif ended.status != "delivered" or receipts is None:
                account.undelivered.append(
                    f"{name} is {ended.status} and came {receipts.count if receipts else 0} times"
                )
            elif ended.succeeded is not None and ended.attempted > ended.succeeded:
                account.attempted_again.append(f"{name}: attempt {ended.attempted} after {ended.succeeded} succeeded")
            elif ended.succeeded is not None and receipts.attempt > ended.succeeded:
                account.attempted_again.append(f"{name}: attempt {receipts.attempt} came, {ended.succeeded} succeeded")
            elif receipts.count > 1 and receipts.last_at > ended.ended_at + _LATE_S and not late:
                account.attempted_again.append(f"{name} came {receipts.last_at - ended.ended_at:.1f} s after its end")
