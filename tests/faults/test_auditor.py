"""The auditor finds each kind of error. Without this, finding nothing would mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.auditor import Account, Auditor, Books, Ended, Stored
from tests.faults.ledger import Intent, Ledger

ORGANIZATION = "organization"
PATH = "/0/0"


def intent(kind: str = "d", *, ids: Sequence[str] = (), maybe: bool = False) -> Intent:
    return Intent(0, "m", kind, "m", set(ids), maybe)


def stored(event_id: str = "e", dedup_id: str | None = "m") -> Stored:
    return Stored(ORGANIZATION, event_id, '{"marker":"m"}', dedup_id)


def ended(status: str = "delivered", ended_at: float = 100.0, succeeded: int | None = 1, attempted: int = 1) -> Ended:
    return Ended("e", PATH, status, ended_at, succeeded, attempted)


def audit(
    asked: Intent | None,
    events: Sequence[Stored] = (),
    *,
    open_: bool = False,
    end: Ended | None = None,
    arrivals: Sequence[int] = (),
    last_at: float = 99.0,
    late: bool = False,
) -> Account:
    ledger = Ledger()
    if asked is not None:
        ledger.begin(asked)
    for attempt in arrivals:
        ledger.arrived("e", PATH, attempt)
        ledger.receipts["e", PATH].last_at = last_at
    books = Books(events, frozenset({("e", PATH)} if open_ else ()), {("e", PATH): end} if end else {})
    return Auditor([ORGANIZATION], [[PATH]]).audit(ledger, books, late=late)


def test_what_was_acknowledged_and_stored_and_waits_is_well() -> None:
    account = audit(intent(ids="e"), [stored()], open_=True)
    assert (account.wrong, account.asked, account.acknowledged) == ([], 1, 1)


def test_what_was_acknowledged_stored_and_delivered_is_well() -> None:
    account = audit(intent(ids="e"), [stored()], end=ended(), arrivals=[1])
    assert (account.wrong, account.repeated) == ([], 0)


def test_what_was_acknowledged_and_is_not_stored_is_lost() -> None:
    assert len(audit(intent(ids="e")).lost) == 1


def test_what_was_acknowledged_under_another_id_is_lost() -> None:
    assert len(audit(intent(ids="f"), [stored()], open_=True).lost) == 1


def test_what_was_acknowledged_under_two_ids_is_a_duplicate() -> None:
    assert len(audit(intent(ids=["e", "f"]), [stored("e"), stored("f")], open_=True).duplicated) == 3


def test_a_dedup_id_that_stands_twice_is_found_though_only_one_was_acknowledged() -> None:
    assert "dedup_id m 2 times" in audit(intent(ids="e"), [stored(), stored("f")], open_=True).duplicated


def test_an_unknown_outcome_may_be_stored_or_not() -> None:
    there = audit(intent(maybe=True), [stored()], open_=True)
    assert (there.wrong, there.maybe, there.recovered) == ([], 1, 1)
    gone = audit(intent(maybe=True))
    assert (gone.wrong, gone.maybe, gone.recovered) == ([], 1, 0)


def test_what_was_refused_and_is_stored_is_unexpected() -> None:
    assert len(audit(intent(), [stored()], open_=True).unexpected) == 1


def test_what_nobody_asked_for_is_unexpected() -> None:
    assert len(audit(None, [stored()], open_=True).unexpected) == 1


@pytest.mark.parametrize("end", [None, ended(), ended("cancelled")])
def test_a_delivery_that_neither_waits_nor_arrived_is_missed(end: Ended | None) -> None:
    assert len(audit(intent(ids="e"), [stored()], end=end).undelivered) == 1


def test_a_dead_letter_is_no_loss_and_is_counted() -> None:
    account = audit(intent(ids="e"), [stored()], end=ended("failed", succeeded=None, attempted=5))
    assert (account.wrong, account.dead) == ([], 1)


def test_a_delivery_that_came_twice_before_it_was_recorded_is_counted_and_allowed() -> None:
    account = audit(intent(ids="e"), [stored()], end=ended(), arrivals=[1, 1])
    assert (account.wrong, account.repeated) == ([], 1)


def test_an_attempt_after_a_recorded_success_is_found() -> None:
    assert len(audit(intent(ids="e"), [stored()], end=ended(attempted=2), arrivals=[1, 2]).attempted_again) == 1
    assert len(audit(intent(ids="e"), [stored()], end=ended(), arrivals=[1, 2]).attempted_again) == 1


def test_a_request_after_the_end_is_found_unless_the_network_held_it_up() -> None:
    late = audit(intent(ids="e"), [stored()], end=ended(), arrivals=[1, 1], last_at=110.0)
    assert len(late.attempted_again) == 1
    excused = audit(intent(ids="e"), [stored()], end=ended(), arrivals=[1, 1], last_at=110.0, late=True)
    assert excused.wrong == []


def test_what_was_unknown_at_one_audit_may_turn_up_at_the_next_once() -> None:
    auditor, ledger = Auditor([ORGANIZATION], [[PATH]]), Ledger()
    ledger.begin(intent(maybe=True))
    auditor.audit(ledger, Books([], frozenset(), {}))
    account = auditor.audit(ledger, Books([stored()], frozenset({("e", PATH)}), {}))
    assert (account.wrong, account.recovered) == ([], 1)
    assert auditor.owed == {("e", PATH)}
    again = auditor.audit(ledger, Books([stored(), stored("f")], frozenset({("e", PATH), ("f", PATH)}), {}))
    assert len(again.wrong) >= 1
