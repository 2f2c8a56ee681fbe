"""Receipts: one spelling, one organization, one installation."""

from __future__ import annotations

import string
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from relay.values.receipt import Receipt, ReceiptKey
from relay.values.uuid7 import Uuid7Clock

KEY = ReceiptKey(b"k" * 32)
CLOCK = Uuid7Clock()
OURS, THEIRS = CLOCK.new(), CLOCK.new()
RECEIPT = Receipt(1_700_000_000, 2**40, CLOCK.new(), UUID(int=0), CLOCK.new(), 3)


@given(
    st.builds(
        Receipt,
        st.integers(-1, 2**31 - 1),
        st.integers(0, 2**63 - 1),
        st.uuids(),
        st.uuids(),
        st.uuids(),
        st.integers(1, 2**31 - 1),
    ),
    st.uuids(),
)
def test_a_receipt_is_read_as_it_was_written(receipt: Receipt, organization_id: UUID) -> None:
    text = KEY.write(organization_id, receipt)
    assert len(text) <= 200
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")
    assert KEY.read(organization_id, text) == receipt


def test_a_receipt_is_good_for_one_organization_and_one_installation() -> None:
    text = KEY.write(OURS, RECEIPT)
    assert KEY.read(THEIRS, text) is None
    assert ReceiptKey(b"l" * 32).read(OURS, text) is None
    assert ReceiptKey(b"k" * 32).read(OURS, text) == RECEIPT


@given(st.data())
def test_a_receipt_that_was_changed_anywhere_is_none(data: st.DataObject) -> None:
    text = KEY.write(OURS, RECEIPT)
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(sorted({*string.ascii_letters, *string.digits, "-", "_", "=", "é", " "})))
    changed = text[:place] + letter + text[place + 1 :]
    assert KEY.read(OURS, changed) == (RECEIPT if changed == text else None)


@given(st.text(max_size=250))
def test_no_text_is_a_mistake(text: str) -> None:
    assert KEY.read(OURS, text) is None
