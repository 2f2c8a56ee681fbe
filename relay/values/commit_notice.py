"""Notifications between API processes: whose events were committed, and that requests wait for events."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Final, NamedTuple
from uuid import UUID

#: The notification channel of a cell.
CHANNEL: Final = "inbox"
_PRESENT: Final = "+"
_MANY: Final = "*"
# PostgreSQL allows 7,999 bytes. An id takes 16, which are 22 in base64.
_MOST_NAMED: Final = 340


class CommitNotice(NamedTuple):
    """A notification.

    Args:
        sender: the name of the process that sent it.
        says_present: whether it says that requests wait there, and nothing else.
        organization_ids: whose events were committed. None: perhaps anyone's.
    """

    sender: str
    says_present: bool
    organization_ids: Collection[UUID] | None

    def is_from(self, process_id: UUID) -> bool:
        """Return whether this process sent it."""
        return self.sender == _name(process_id)


def committed(process_id: UUID, organization_ids: Collection[UUID]) -> str:
    """Return the payload that names these organizations, or says that there are many, in less than 8,000 bytes."""
    if len(organization_ids) > _MOST_NAMED:
        return f"{_name(process_id)} {_MANY}"
    return f"{_name(process_id)} {base64.b64encode(b''.join([id_.bytes for id_ in organization_ids])).decode('ascii')}"


def present(process_id: UUID) -> str:
    """Return the payload that says that requests wait in this process."""
    return f"{_name(process_id)} {_PRESENT}"


def read(payload: str) -> CommitNotice:
    """Return what a payload says. One that is not understood, perhaps of another release, may concern anyone."""
    sender, _, what = payload.partition(" ")
    if what == _PRESENT:
        return CommitNotice(sender, True, ())
    try:
        raw = base64.b64decode(what, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw or len(raw) % 16:
        return CommitNotice(sender, False, None)
    ids = [UUID(bytes=raw[start : start + 16]) for start in range(0, len(raw), 16)]
    return CommitNotice(sender, False, ids)


def _name(process_id: UUID) -> str:
    return process_id.hex[-12:]
