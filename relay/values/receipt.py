"""Receipts: the proof of a lease, which finds its row and which only this installation can issue."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from typing import Final, NamedTuple
from uuid import UUID

_BODY: Final = struct.Struct(">iq16s16s16si")
_TAG_BYTES: Final = 16


class Receipt(NamedTuple):
    """The lease of one delivery, or of one event of the plain inbox.

    Args:
        epoch: part of the event's position, as in `relay.values.cursor`.
        xid: part of the event's position.
        event_id: the event.
        endpoint_id: the consumer; nil for the plain inbox.
        claim_token: a UUIDv7, made when the lease began.
        attempt: the number of the attempt.
    """

    epoch: int
    xid: int
    event_id: UUID
    endpoint_id: UUID
    claim_token: UUID
    attempt: int


class ReceiptKey:
    """The key that signs receipts, derived from the installation's HMAC key.

    Args:
        hmac_key: the HMAC key of the installation, the same in every process.
    """

    def __init__(self, hmac_key: bytes) -> None:
        self._key = hmac.digest(hmac_key, b"relay receipts", "sha256")

    def write(self, organization_id: UUID, receipt: Receipt) -> str:
        """Return the receipt as 107 characters, valid for this organization only."""
        epoch, xid, event_id, endpoint_id, claim_token, attempt = receipt
        body = _BODY.pack(epoch, xid, event_id.bytes, endpoint_id.bytes, claim_token.bytes, attempt)
        return base64.urlsafe_b64encode(body + self._tag(organization_id, body)).rstrip(b"=").decode("ascii")

    def read(self, organization_id: UUID, text: str) -> Receipt | None:
        """Return what a receipt stands for, or None if this installation did not issue it to the organization."""
        if len(text) != _LENGTH or not text.isascii():
            return None
        try:
            raw = base64.b64decode(text + _PADDING, altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        body, tag = raw[: _BODY.size], raw[_BODY.size :]
        # Spare bits of the last letter are checked too: a receipt has one spelling.
        spelt = base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
        if spelt != text or not hmac.compare_digest(tag, self._tag(organization_id, body)):
            return None
        epoch, xid, event_id, endpoint_id, claim_token, attempt = _BODY.unpack(body)
        return Receipt(epoch, xid, UUID(bytes=event_id), UUID(bytes=endpoint_id), UUID(bytes=claim_token), attempt)

    def _tag(self, organization_id: UUID, body: bytes) -> bytes:
        return hashlib.blake2b(
            organization_id.bytes + body, key=self._key, digest_size=_TAG_BYTES, person=b"relay receipt"
        ).digest()


_LENGTH: Final = -(-(_BODY.size + _TAG_BYTES) * 8 // 6)
_PADDING: Final = "=" * (-_LENGTH % 4)
